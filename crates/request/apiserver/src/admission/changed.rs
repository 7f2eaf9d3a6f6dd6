//! Objects that webhooks and policies changed.

use super::{Review, matching::Target};
use keelson_api::codec::json;
use keelson_api::{ApiError, ApiResult, Object, SchemaRef, Value, builtin};
use keelson_registry::codec;

/// The schema of what a request under that target carries.
pub fn schema_of(review: &Review<'_>, target: &Target) -> Option<SchemaRef> {
    let sub = target.def.subresource(&review.cx.subresource);
    match sub.and_then(|s| s.schema.clone()) {
        Some(schema) => Some(schema),
        None if target.kind == target.def.gvk() => Some(target.def.schema.clone()),
        None => builtin::builtin_kind_at(&target.kind.group_version().to_string(), &target.kind.kind),
    }
}

/// A changed object in the form the server works with, with defaults.
pub fn completed(review: &Review<'_>, target: &Target, changed: Value) -> ApiResult<Object> {
    let whole = target.kind == target.def.gvk();
    match schema_of(review, target) {
        Some(schema) => {
            let strategy = whole.then_some(target.def.strategy.as_ref());
            codec::complete(&schema, strategy, changed)
                .map(|(object, _)| object)
                .map_err(ApiError::internal)
        }
        None => Object::try_from(changed).map_err(|_| ApiError::internal("a patch left no object")),
    }
}

/// A value as JSON, for audit annotations.
pub fn text_of(v: &Value) -> String {
    let mut out = Vec::new();
    json::encode_into(v, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
