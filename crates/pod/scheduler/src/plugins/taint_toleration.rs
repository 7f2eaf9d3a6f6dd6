//! Taints: what isn't tolerated keeps pods away, or makes a node less liked.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject, Scorer, normalize_by_max};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::select::{tolerates, tolerations, untolerated};
use crate::world::World;
use k8s_openapi::api::core::v1::Toleration;
use std::sync::Arc;

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        check(
            move |node| match node.has_taints && untolerated(&cycle.pod.pod, node.node()).is_some() {
                true => Err(Reject::for_good("node(s) had untolerated taint(s)")),
                false => Ok(()),
            },
        )
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, _: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        // Without such taints all nodes are equally good.
        if !cycle.snapshot.has_soft_taints() {
            return None;
        }
        let soft = |t: &&Toleration| matches!(t.effect.as_deref(), None | Some("" | "PreferNoSchedule"));
        Some(Box::new(Soft(
            tolerations(&cycle.pod.pod).iter().filter(soft).cloned().collect(),
        )))
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        tolerations(&a.pod) == tolerations(&b.pod)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        matches!(event, ClusterEvent::Node(node) if untolerated(&pod.pod, node).is_none())
    }
}

struct Soft(Vec<Toleration>);

impl Scorer for Soft {
    fn score(&self, node: &NodeInfo) -> i64 {
        let soft = node.taints().iter().filter(|t| t.effect == "PreferNoSchedule");
        soft.filter(|t| !tolerates(&self.0, t)).count() as i64
    }
    fn normalize(&self, _: &[&Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_by_max(scores, true);
    }
}
