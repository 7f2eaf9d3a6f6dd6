//! Enough of each resource, and room for one more pod; nodes with more left are preferred.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, MAX_SCORE, Plugin, Prepared, Reject, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::resources::Resources;
use std::borrow::Cow;
use std::sync::Arc;

pub struct ResourcesFit;

impl Plugin for ResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }
    fn prepare<'a>(&self, cycle: Cycle<'a>) -> Prepared<'a> {
        let requests = &cycle.pod.requests;
        check(move |node| fits(requests, node))
    }
    fn scorer<'a>(&self, cycle: Cycle<'a>, _: &[Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        Some(Box::new(LeastAllocated(cycle.pod.assumed)))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo) -> bool {
        match event {
            // A node that is too small even when empty doesn't help.
            ClusterEvent::Node(node) => fits(&pod.requests, &NodeInfo::of(node.clone())).is_ok(),
            ClusterEvent::PodLeft(_) => true,
            _ => false,
        }
    }
}

fn fits(requests: &Resources, node: &NodeInfo) -> Result<(), Reject> {
    let mut reject = Reject {
        is_final: false,
        reasons: Vec::new(),
    };
    if node.pods().len() + 1 > node.allowed_pods {
        reject.reasons.push("Too many pods".into());
    }
    let others = requests.other.keys().map(String::as_str);
    for name in ["cpu", "memory", "ephemeral-storage"].into_iter().chain(others) {
        let (wanted, there) = (requests.get(name), node.allocatable.get(name));
        if wanted > 0 && wanted > there.saturating_sub(node.requested.get(name)) {
            reject.reasons.push(Cow::Owned(format!("Insufficient {name}")));
            reject.is_final |= wanted > there;
        }
    }
    if reject.reasons.is_empty() { Ok(()) } else { Err(reject) }
}

/// Of CPU and memory, the share that would be left.
struct LeastAllocated((i64, i64));

impl Scorer for LeastAllocated {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (cpu, memory) = self.0;
        let pairs = [
            (node.assumed.0 + cpu, node.allocatable.milli_cpu),
            (node.assumed.1 + memory, node.allocatable.memory),
        ];
        let there: Vec<_> = pairs.into_iter().filter(|(_, capacity)| *capacity > 0).collect();
        let left = |(used, capacity): &(i64, i64)| {
            if used > capacity {
                0
            } else {
                (capacity - used) * MAX_SCORE / capacity
            }
        };
        if there.is_empty() {
            0
        } else {
            there.iter().map(left).sum::<i64>() / there.len() as i64
        }
    }
}
