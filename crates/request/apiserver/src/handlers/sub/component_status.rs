//! `componentstatuses`: what upstream once asked of its peers. Here the server, scheduler and controllers are one program
//! and report through leases and `/readyz`; what is asked is whether the store answers.

use crate::handlers::{Call, Served, method_not_allowed, respond};
use http::StatusCode;
use keelson_api::{ApiResult, Object, Value, value};

pub async fn serve(call: Call<'_>) -> Served {
    match call.context.info.verb.as_str() {
        "list" => {
            let mut list = Object::new();
            list.set_gvk("v1", "ComponentStatusList");
            list.insert("metadata", value!({}));
            let mut item = etcd(&call).await?;
            item.remove("apiVersion");
            item.remove("kind");
            list.insert("items", vec![Value::from(item)]);
            super::own_answer(&call, StatusCode::OK, list, &list_schema()?)
        }
        "get" => {
            let name = call.context.info.name.as_str();
            if name != "etcd-0" {
                return Err(keelson_api::ApiError::not_found("", "componentstatus", name).into());
            }
            let object = etcd(&call).await?;
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

fn list_schema() -> ApiResult<keelson_api::SchemaRef> {
    keelson_api::builtin::builtin_kind_at("v1", "ComponentStatusList")
        .ok_or_else(|| keelson_api::ApiError::internal("no schema of ComponentStatusList"))
}

async fn etcd(call: &Call<'_>) -> ApiResult<Object> {
    let (status, message, error) = match call.state.engine.store().current_revision().await {
        Ok(_) => ("True", "ok".to_string(), String::new()),
        Err(e) => ("False", String::new(), e.to_string()),
    };
    let mut condition = value!({"type": "Healthy", "status": status});
    for (key, text) in [("message", message), ("error", error)] {
        if !text.is_empty() {
            condition.set_at(&[key], text);
        }
    }
    let mut o = Object::new();
    o.set_gvk("v1", "ComponentStatus");
    o.set_meta("name", "etcd-0");
    o.meta_mut().insert("creationTimestamp", Value::Null);
    o.insert("conditions", vec![condition]);
    Ok(o)
}
