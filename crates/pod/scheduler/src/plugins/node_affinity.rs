//! Node selectors and node affinity, required and preferred.

use super::{Check, check};
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject, Scorer, normalize_by_max};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::select::{matches_term, named_nodes, node_fits, required};
use k8s_openapi::api::core::v1::PreferredSchedulingTerm;
use std::sync::Arc;

pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }
    fn prepare<'a>(&self, cycle: Cycle<'a>) -> Prepared<'a> {
        let pod = &cycle.pod.pod;
        let has_selector = pod
            .spec
            .as_ref()
            .is_some_and(|s| s.node_selector.as_ref().is_some_and(|l| !l.is_empty()));
        if !has_selector && required(pod).is_none() {
            return Prepared::Skip;
        }
        let fits = move |node: &NodeInfo| match node_fits(pod, node.node()) {
            true => Ok(()),
            false => Err(Reject::for_good("node(s) didn't match Pod's node affinity/selector")),
        };
        match named_nodes(pod) {
            Some(names) => Prepared::Only(Box::new(Check(fits)), names),
            None => check(fits),
        }
    }
    fn weight(&self) -> i64 {
        2
    }
    fn scorer<'a>(&self, cycle: Cycle<'a>, _: &[Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let affinity = cycle.pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity
            .preferred_during_scheduling_ignored_during_execution
            .as_deref()?;
        (!preferred.is_empty()).then(|| Box::new(Preferred(preferred)) as Box<dyn Scorer>)
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo) -> bool {
        matches!(event, ClusterEvent::Node(node) if node_fits(&pod.pod, node))
    }
}

struct Preferred<'a>(&'a [PreferredSchedulingTerm]);

impl Scorer for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let liked = self.0.iter().filter(|p| matches_term(&p.preference, node.node()));
        liked.map(|p| i64::from(p.weight)).sum()
    }
    fn normalize(&self, _: &[Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}
