//! NamespaceLifecycle: nothing is created in a namespace that isn't there or is going, and some namespaces stay.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Object};
use keelson_registry::Operation;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let cx = review.cx;
        if cx.def.is("", "namespaces") {
            if review.op == Operation::Delete && IMMORTAL.contains(&cx.name.as_str()) {
                return Err(ApiError::forbidden(
                    "",
                    "namespaces",
                    &cx.name,
                    "this namespace may not be deleted",
                ));
            }
            return Ok(());
        }
        let review_of_access = cx.def.is("authorization.k8s.io", "localsubjectaccessreviews");
        if review.op != Operation::Create || cx.namespace.is_empty() || review_of_access {
            return Ok(());
        }
        let Some(namespace) = review.lookup.get("", "namespaces", "", &cx.namespace).await? else {
            return Err(ApiError::not_found("", "namespaces", &cx.namespace));
        };
        if namespace.str_at(&["status", "phase"]) != Some("Terminating") {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            cx.namespace
        );
        let mut e = review.forbidden(new.as_deref(), why);
        let message = format!("namespace {} is being terminated", cx.namespace);
        if let Some(d) = &mut e.details {
            d.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message,
                field: "metadata.namespace".into(),
            });
        }
        Err(e)
    }
}
