//! Access to devices that others use (`adminAccess`) is for namespaces that an administrator has labelled so.
//!
//! Upstream checks this with the object's fields, and nothing switches it off: it is no plug-in by name there.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Object, Value};
use keelson_registry::Operation;

pub struct DeviceAccess;

const GROUP: &str = "resource.k8s.io";
const LABEL: &str = "resource.kubernetes.io/admin-access";

#[async_trait]
impl Plugin for DeviceAccess {
    fn name(&self) -> &'static str {
        "DeviceAdminAccess"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some((kind, field)) = new.and_then(|new| asked(review, new, old)) else {
            return Ok(());
        };
        let namespace = super::matching::namespace(review, &review.cx.namespace).await;
        let cause = match namespace {
            Ok(namespace) if namespace.labels().and_then(|l| l.str(LABEL)) == Some("true") => return Ok(()),
            Ok(_) => {
                let why =
                    format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
                Cause::forbidden(&field, &why)
            }
            Err(error) => {
                let why = format!("could not retrieve namespace to verify admin access: {}", error.message);
                Cause::new("InternalError", &field, format!("Internal error: {why}"))
            }
        };
        let name = new.map(Object::name).unwrap_or_default();
        Err(ApiError::invalid(GROUP, kind, name, vec![cause]))
    }
}

/// The kind, and the first field that asks for access which the old object hadn't. What a claim asks for doesn't change.
fn asked(review: &Review<'_>, new: &Object, old: Option<&Object>) -> Option<(&'static str, String)> {
    let is_new = review.op == Operation::Create;
    if is_new && review.is(GROUP, "resourceclaims") {
        let i = request(new, &["spec", "devices", "requests"])?;
        return Some(("ResourceClaim", format!("spec.devices.requests[{i}].adminAccess")));
    }
    if is_new && review.is(GROUP, "resourceclaimtemplates") {
        let i = request(new, &["spec", "spec", "devices", "requests"])?;
        return Some((
            "ResourceClaimTemplate",
            format!("spec.devices.requests[{i}].adminAccess"),
        ));
    }
    if review.is_sub(GROUP, "resourceclaims", "status") && old.and_then(result).is_none() {
        let i = result(new)?;
        return Some((
            "ResourceClaim",
            format!("status.allocation.devices.results[{i}].adminAccess"),
        ));
    }
    None
}

fn first(object: &Object, path: &[&str], is_it: impl Fn(&Value) -> bool) -> Option<usize> {
    object.at(path)?.as_array()?.iter().position(is_it)
}

fn request(object: &Object, path: &[&str]) -> Option<usize> {
    first(object, path, |r| {
        r.at(&["exactly", "adminAccess"]).and_then(Value::as_bool) == Some(true)
    })
}

fn result(claim: &Object) -> Option<usize> {
    let path = ["status", "allocation", "devices", "results"];
    first(claim, &path, |r| {
        r.get("adminAccess").and_then(Value::as_bool) == Some(true)
    })
}
