//! RuntimeClass: the overhead and the node constraints of a pod's runtime.

use super::{Phase, Plugin, Review, tolerations, unaskable};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Object, Reason, Value};
use keelson_registry::Operation;
use keelson_registry::strategy::same;

pub struct RuntimeClass;

const OVERHEAD: [&str; 2] = ["spec", "overhead"];

async fn class_of(review: &Review<'_>, pod: &Object) -> ApiResult<Option<Object>> {
    let Some(name) = pod.str_at(&["spec", "runtimeClassName"]) else {
        return Ok(None);
    };
    // Upstream's client asks for no such thing.
    if let Some(why) = unaskable(name) {
        return Err(ApiError::new(Reason::Unknown, why));
    }
    match review.lookup.cached("node.k8s.io", "runtimeclasses", "", name).await? {
        Some(class) => Ok(Some(class)),
        None => Err(review.forbidden(Some(pod), format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new.filter(|_| review.op == Operation::Create && review.is("", "pods")) else {
            return Ok(());
        };
        let Some(class) = class_of(review, pod).await? else {
            return Ok(());
        };
        if let Some(fixed) = class.at(&["overhead", "podFixed"]) {
            let given = pod
                .at(&OVERHEAD)
                .and_then(Value::as_object)
                .is_some_and(|m| !m.is_empty());
            if given && !same(pod.at(&OVERHEAD), Some(fixed)) {
                return Err(review.forbidden(
                    Some(pod),
                    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
                ));
            }
            pod.set_at(&OVERHEAD, fixed.clone());
        }
        let Some(scheduling) = class.obj("scheduling") else {
            return Ok(());
        };
        for (key, wanted) in scheduling.obj("nodeSelector").into_iter().flatten() {
            let wanted = wanted.as_str().unwrap_or_default();
            if let Some(has) = pod.str_at(&["spec", "nodeSelector", key]).filter(|h| *h != wanted) {
                return Err(review.forbidden(
                    Some(pod),
                    format!("conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {has}"),
                ));
            }
            pod.set_at(&["spec", "nodeSelector", key], wanted);
        }
        if let Some(more) = scheduling.arr("tolerations") {
            let own = pod
                .at(&["spec", "tolerations"])
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            pod.set_at(&["spec", "tolerations"], tolerations::merge(&own, more));
        }
        Ok(())
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new.filter(|_| review.op == Operation::Create && review.is("", "pods")) else {
            return Ok(());
        };
        let class = class_of(review, pod).await?;
        match class.as_ref().and_then(|c| c.at(&["overhead", "podFixed"])) {
            Some(fixed) if !same(pod.at(&OVERHEAD), Some(fixed)) => Err(review.forbidden(
                Some(pod),
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            )),
            None if pod.at(&OVERHEAD).is_some() => Err(review.forbidden(
                Some(pod),
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}
