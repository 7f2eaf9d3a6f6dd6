//! NamespaceAutoProvision makes the namespace that something is to be in; NamespaceExists lets nothing be done in one that
//! isn't there.

use super::super::{Phase, Plugin, Review};
use crate::serve::Loopback;
use async_trait::async_trait;
use http::Method;
use keelson_api::{ApiError, ApiResult, Object, Reason, value};
use keelson_registry::Operation;

/// The namespace that a request is in.
fn namespace<'a>(review: &'a Review<'_>) -> Option<&'a str> {
    let name = review.cx.namespace.as_str();
    (!name.is_empty() && !review.cx.def.is("", "namespaces")).then_some(name)
}

pub struct NamespaceAutoProvision(pub Loopback);

#[async_trait]
impl Plugin for NamespaceAutoProvision {
    fn name(&self) -> &'static str {
        "NamespaceAutoProvision"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(name) = namespace(review).filter(|_| review.op == Operation::Create && !review.cx.dry_run) else {
            return Ok(());
        };
        let refused = |e: ApiError| review.forbidden(new.as_deref(), e.message);
        let there = review
            .lookup
            .cached("", "namespaces", "", name)
            .await
            .map_err(refused)?;
        if there.is_some() {
            return Ok(());
        }
        let made = value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        match self.0.send(Method::POST, "/api/v1/namespaces", Some(&made)).await {
            Err(e) if !e.is(Reason::AlreadyExists) => Err(refused(e)),
            _ => Ok(()),
        }
    }
}

pub struct NamespaceExists;

#[async_trait]
impl Plugin for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, _new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let writes = matches!(review.op, Operation::Create | Operation::Update | Operation::Delete);
        let Some(name) = namespace(review).filter(|_| writes) else {
            return Ok(());
        };
        match review.lookup.cached("", "namespaces", "", name).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(ApiError::not_found("", "namespaces", name)),
            Err(e) => Err(ApiError::internal(e.message)),
        }
    }
}
