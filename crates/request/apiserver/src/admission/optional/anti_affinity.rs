//! LimitPodHardAntiAffinityTopology: a pod may keep others off its node, not off a whole zone.

use super::super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Object, Value};
use keelson_registry::Operation;

const HOSTNAME: &str = "kubernetes.io/hostname";
const REQUIRED: [&str; 4] = [
    "spec",
    "affinity",
    "podAntiAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
];

pub struct LimitPodHardAntiAffinityTopology;

#[async_trait]
impl Plugin for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let writes = matches!(review.op, Operation::Create | Operation::Update);
        let Some(pod) = new.filter(|_| writes && review.is("", "pods")) else {
            return Ok(());
        };
        let terms = pod.at(&REQUIRED).and_then(Value::as_array).into_iter().flatten();
        let mut keys = terms.map(|term| term.get("topologyKey").and_then(Value::as_str).unwrap_or_default());
        match keys.find(|key| *key != HOSTNAME) {
            Some(key) => Err(ApiError::forbidden(
                "",
                "pods",
                pod.name(),
                format!(
                    "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
                ),
            )),
            None => Ok(()),
        }
    }
}
