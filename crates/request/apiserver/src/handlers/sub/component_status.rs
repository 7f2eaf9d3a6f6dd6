//! `componentstatuses`: whether the store and the rest of the control plane are well, asked when somebody wants to know.

use crate::handlers::negotiate::Shape;
use crate::handlers::{Call, Served, method_not_allowed, respond, table};
use futures::future;
use http::StatusCode;
use keelson_api::{ApiError, ApiResult, Object, Value, value};
use keelson_registry::codec::partial_metadata;

const ETCD: &str = "etcd-0";

pub async fn serve(call: Call<'_>) -> Served {
    let peers = &call.state.config.peers;
    match call.context.info.verb.as_str() {
        "list" => {
            let mut names: Vec<&str> = peers.iter().map(|p| p.name).chain([ETCD]).collect();
            names.sort_unstable();
            let items = future::try_join_all(names.iter().map(|name| one(&call, name))).await?;
            list(&call, items)
        }
        "get" => {
            let object = one(&call, &call.context.info.name).await?;
            Ok(respond::object(
                StatusCode::OK,
                call.out,
                &call.def,
                &call.def.schema,
                object,
                call.include_object(),
            )?)
        }
        _ => Err(method_not_allowed(&call).into()),
    }
}

fn list(call: &Call<'_>, items: Vec<Object>) -> Served {
    let out = call.out;
    let (version, kind, items): (_, _, Vec<Object>) = match out.shape {
        Shape::Table => {
            let table = table::table(&call.def, items, out, call.include_object(), "", true)?;
            return Ok(respond::text(StatusCode::OK, out, table)?);
        }
        Shape::MetadataList => {
            let version = out.meta_version();
            let bare = items.iter().map(|o| partial_metadata(o, version));
            (version, "PartialObjectMetadataList", bare.collect())
        }
        _ => ("v1", "ComponentStatusList", items.into_iter().map(nameless).collect()),
    };
    let mut list = Object::new();
    list.set_gvk(version, kind);
    list.insert("metadata", value!({}));
    list.insert("items", items.into_iter().map(Value::from).collect::<Vec<_>>());
    Ok(respond::built_in(StatusCode::OK, out, list)?)
}

/// An item of a list doesn't say what it is.
fn nameless(mut item: Object) -> Object {
    item.remove("apiVersion");
    item.remove("kind");
    item
}

async fn one(call: &Call<'_>, name: &str) -> ApiResult<Object> {
    let mut condition = value!({"type": "Healthy"});
    let mut tell = |status: &str, key: &str, text: String| {
        condition.set_at(&["status"], status);
        if !text.is_empty() {
            condition.set_at(&[key], text);
        }
    };
    match call.state.config.peers.iter().find(|p| p.name == name) {
        Some(peer) => match peer.ask().await {
            Ok(said) => tell("True", "message", said),
            Err(why) => tell("False", "message", why),
        },
        None if name == ETCD => match crate::health::of_store(call.state.engine.store().as_ref()).await {
            Ok(()) => tell("True", "message", "ok".into()),
            Err(why) => tell("False", "error", why),
        },
        None => return Err(ApiError::not_found("", "componentstatus", name)),
    }
    let mut o = Object::new();
    o.set_gvk("v1", "ComponentStatus");
    o.set_meta("name", name);
    o.insert("conditions", vec![condition]);
    Ok(o)
}
