//! Takes back that a pod is about to be disrupted, when nothing came of it.

use crate::context::{Context, now};
use crate::pods;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Rest, is_conflict,
    is_not_found,
};
use serde_json::json;

const CONDITION: &str = "DisruptionTarget";
/// A pod that is said to be disrupted and isn't deleted within this time isn't disrupted.
const STALE: SignedDuration = SignedDuration::from_secs(120);
/// A kubelet's word stands: the end that it tells of may take as long as it likes.
const OF_KUBELET: &str = "TerminationByKubelet";

pub fn start(context: &Context, rest: &Rest) {
    let pods = context.informer::<Pod>();
    let controller = Controller::new("stale_pod_disruption")
        .input(&pods)
        .output(Pod::RESOURCE);
    let queue = controller.queue();
    pods.on_change(move |change| {
        if stale_at(change.object()).is_some() {
            queue.add(change.object().key());
        }
    });
    let objects = Objects::new(rest);
    context.run(controller, Stale { pods, objects });
}

struct Stale {
    pods: Informer<Pod>,
    objects: Objects<Pod>,
}

/// When the condition no longer means anything; `None` if there is none, or it stands.
fn stale_at(pod: &Pod) -> Option<Timestamp> {
    let condition = pods::condition(pod, CONDITION)?;
    let stands = pod.is_deleting()
        || condition.status != "True"
        || condition.reason.as_deref() == Some(OF_KUBELET)
        || matches!(pods::phase(pod), "Succeeded" | "Failed");
    let since = condition.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0);
    (!stands).then(|| since.saturating_add(STALE).unwrap_or(Timestamp::MAX))
}

#[async_trait]
impl Reconcile for Stale {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(pod) = self.pods.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(at) = stale_at(&pod) else {
            return Ok(Outcome::Done);
        };
        let now = now();
        if at > now {
            return Ok(Outcome::At(at));
        }
        let body = json!({"metadata": {"uid": pod.uid(), "resourceVersion": pod.metadata.resource_version}, "status": {"conditions": [{
            "type": CONDITION,
            "status": "False",
            "reason": null,
            "message": null,
            "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "observedGeneration": pod.metadata.generation,
        }]}});
        match self
            .objects
            .patch_status(pod.namespace(), pod.name(), Patch::Strategic(&body))
            .await
        {
            // A newer one, which is looked at when it comes, or none.
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(Outcome::Done),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_came_of_is_stale_after_two_minutes() {
        let at = |phase: &str, condition: &str, meta: &str| {
            let text = format!(
                r#"{{"metadata":{{{meta}}},"status":{{"phase":"{phase}","conditions":[{{"type":"DisruptionTarget",{condition}}}]}}}}"#
            );
            stale_at(&Pod::decode(text.as_bytes()).expect("valid")).map(|t| t.as_second())
        };
        let told = r#""status":"True","reason":"EvictionByEvictionAPI","lastTransitionTime":"1970-01-01T00:01:00Z""#;
        assert_eq!(at("Running", told, ""), Some(180));
        assert_eq!(at("Failed", told, ""), None);
        assert_eq!(
            at("Running", told, r#""deletionTimestamp":"1970-01-01T00:01:00Z""#),
            None
        );
        assert_eq!(at("Running", &told.replace("True", "False"), ""), None);
        assert_eq!(
            at("Running", &told.replace("EvictionByEvictionAPI", OF_KUBELET), ""),
            None
        );
        assert!(
            at("Running", r#""status":"True""#, "").is_some_and(|at| at < 0),
            "since ever"
        );
    }
}
