//! TaintNodesByCondition: nodes begin as not ready. PodTopologyLabels: pods carry their node's zone and region.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Value, value};
use keelson_registry::Operation;

pub struct TaintNodesByCondition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(node) = new.filter(|_| review.op == Operation::Create && review.is("", "nodes")) else {
            return Ok(());
        };
        let mut taints = node
            .at(&["spec", "taints"])
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let has = taints.iter().any(|t| {
            let text = |key: &str| t.get(key).and_then(Value::as_str).unwrap_or_default();
            text("key") == NOT_READY && text("effect") == "NoSchedule"
        });
        if !has {
            taints.push(value!({"key": NOT_READY, "effect": "NoSchedule"}));
            node.set_at(&["spec", "taints"], taints);
        }
        Ok(())
    }
}

pub struct PodTopologyLabels;

const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let Some(object) = new.filter(|_| review.op == Operation::Create) else {
            return Ok(());
        };
        let node = if review.is("", "pods") {
            object.str_at(&["spec", "nodeName"])
        } else if review.is_sub("", "pods", "binding") && matches!(object.str_at(&["target", "kind"]), Some("Node")) {
            object.str_at(&["target", "name"])
        } else {
            None
        };
        let Some(node) = node.filter(|n| !n.is_empty()).map(String::from) else {
            return Ok(());
        };
        let Some(node) = review.lookup.cached("", "nodes", "", &node).await? else {
            return Ok(());
        };
        for key in TOPOLOGY {
            if let Some(v) = node.labels().and_then(|l| l.get(key)) {
                object.set_at(&["metadata", "labels", key], v.clone());
            }
        }
        Ok(())
    }
}
