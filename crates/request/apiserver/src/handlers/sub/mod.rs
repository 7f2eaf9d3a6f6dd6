//! Subresources, and resources that are no stored objects.

mod binding;
mod component_status;
mod eviction;
mod reviews;
mod scale;
mod token;

use super::{Call, Served, get, method_not_allowed, patch, update};
use http::StatusCode;
use keelson_api::codec::Format;
use keelson_api::{ApiError, ApiResult, GroupVersionKind, Object, SchemaRef, builtin};
use keelson_registry::Cx;

pub async fn serve(call: Call<'_>) -> Served {
    let (sub, verb) = (call.context.info.subresource.clone(), call.context.info.verb.clone());
    match (sub.as_str(), verb.as_str()) {
        ("scale", _) => scale::serve(call).await,
        ("binding", "create") => binding::serve(call).await,
        ("eviction", "create") => eviction::serve(call).await,
        ("token", "create") => token::serve(call).await,
        ("status" | "finalize" | "approval" | "ephemeralcontainers" | "resize", verb) => match verb {
            "get" => get::serve(call).await,
            "update" => update::serve(call).await,
            "patch" => patch::serve(call).await,
            _ => Err(method_not_allowed(&call).into()),
        },
        _ => Err(method_not_allowed(&call).into()),
    }
}

pub async fn virtual_resource(call: Call<'_>) -> Served {
    let (group, resource) = (call.def.gvr.group.clone(), call.def.gvr.resource.clone());
    match (group.as_str(), resource.as_str()) {
        ("", "bindings") => binding::serve(call).await,
        ("", "componentstatuses") => component_status::serve(call).await,
        ("authentication.k8s.io" | "authorization.k8s.io", _) => reviews::serve(call).await,
        _ => Err(method_not_allowed(&call).into()),
    }
}

/// The body of a request that is of a kind of its own.
fn own_body(call: &Call<'_>, cx: &Cx, kind: &GroupVersionKind) -> ApiResult<(Object, SchemaRef)> {
    let schema = builtin::builtin_kind(kind).ok_or_else(|| ApiError::internal(format!("no schema of {kind}")))?;
    let format: Format = super::negotiate::input(call.content_type().as_deref(), false)?;
    let bytes = call.body.clone();
    let expected = super::body::Expected {
        kind,
        schema: &schema,
        strategy: None,
        custom: false,
    };
    let object = super::body::decode(cx, &bytes, format, &expected)?;
    Ok((object, schema))
}

/// Answers with an object of a kind that is no resource's.
fn own_answer(call: &Call<'_>, code: StatusCode, object: Object, schema: &SchemaRef) -> Served {
    let out = super::negotiate::Output {
        shape: super::negotiate::Shape::Object,
        ..call.out
    };
    Ok(super::respond::typed(code, out, object, schema)?)
}

/// `metav1.Status` of success.
fn success(code: u16) -> Object {
    let mut status = Object::new();
    status.set_gvk("v1", "Status");
    status.insert("code", i64::from(code));
    status.insert("metadata", keelson_api::Map::new());
    status.insert("status", "Success");
    status
}
