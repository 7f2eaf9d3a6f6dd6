//! Node selectors and node affinity, required and preferred.

use super::{Check, check};
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject, Scorer, normalize_by_max};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::select::{matches_any, matches_term, named_nodes, node_fits, required};
use crate::world::World;
use k8s_openapi::api::core::v1::{Node, NodeSelector, PreferredSchedulingTerm};
use std::sync::Arc;

#[derive(Default)]
pub struct NodeAffinity {
    /// What all pods need and prefer in addition.
    pub added: Added,
}

#[derive(Default)]
pub struct Added {
    pub required: Option<NodeSelector>,
    pub preferred: Vec<PreferredSchedulingTerm>,
}

const NO_MATCH: &str = "node(s) didn't match Pod's node affinity/selector";
const NOT_ADDED: &str = "node(s) didn't match scheduler-enforced node affinity";

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let pod = &cycle.pod.pod;
        let has_selector = pod
            .spec
            .as_ref()
            .is_some_and(|s| s.node_selector.as_ref().is_some_and(|l| !l.is_empty()));
        let added = self.added.required.as_ref();
        if !has_selector && required(pod).is_none() && added.is_none() {
            return Prepared::Skip;
        }
        let fits = move |node: &NodeInfo| {
            if added.is_some_and(|added| !matches_any(added, node.node())) {
                return Err(Reject::for_good(NOT_ADDED));
            }
            match node_fits(pod, node.node()) {
                true => Ok(()),
                false => Err(Reject::for_good(NO_MATCH)),
            }
        };
        match named_nodes(pod) {
            Some(names) => Prepared::Only(Box::new(Check(fits)), names),
            None => check(fits),
        }
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, _: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let affinity = cycle
            .pod
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
        let own = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let liked: Vec<_> = own.into_iter().flatten().chain(&self.added.preferred).collect();
        (!liked.is_empty()).then(|| Box::new(Preferred(liked)) as Box<dyn Scorer>)
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        let wishes = |pod: &PodInfo| {
            let spec = pod.pod.spec.as_ref();
            let affinity = spec.and_then(|s| s.affinity.as_ref()?.node_affinity.clone());
            (spec.and_then(|s| s.node_selector.clone()), affinity)
        };
        wishes(a) == wishes(b)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        let added = self.added.required.as_ref();
        let fits = |node: &Node| node_fits(&pod.pod, node) && added.is_none_or(|added| matches_any(added, node));
        matches!(event, ClusterEvent::Node(node) if fits(node))
    }
}

struct Preferred<'a>(Vec<&'a PreferredSchedulingTerm>);

impl Scorer for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let liked = self.0.iter().filter(|p| matches_term(&p.preference, node.node()));
        liked.map(|p| i64::from(p.weight)).sum()
    }
    fn normalize(&self, _: &[&Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}
