//! Enough of each resource, and room for one more pod; nodes with more left are preferred.

use super::shape::{Shape, broken_line};
use super::{check, dynamic_resources};
use crate::devices::extended::Classes;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, MAX_SCORE, Plugin, Prepared, Reject, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::resources::Resources;
use crate::world::World;
use std::borrow::Cow;
use std::sync::Arc;

#[derive(Default)]
pub struct ResourcesFit {
    pub strategy: Strategy,
    /// Resources that somebody else looks after, and groups of them (what stands before the slash).
    pub ignored: Vec<String>,
    pub ignored_groups: Vec<String>,
}

impl ResourcesFit {
    fn requests<'a>(&self, pod: &'a PodInfo) -> Cow<'a, Resources> {
        let is_ignored = |name: &String| {
            let group = name.split('/').next().unwrap_or_default();
            name.contains('/') && (self.ignored.contains(name) || self.ignored_groups.iter().any(|g| g == group))
        };
        if !pod.requests.other.keys().any(is_ignored) {
            return Cow::Borrowed(&pod.requests);
        }
        let mut requests = pod.requests.clone();
        requests.other.retain(|name, _| !is_ignored(name));
        Cow::Owned(requests)
    }
}

impl Plugin for ResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let requests = self.requests(cycle.pod);
        let classes = dynamic_resources::classes(cycle.pod, &cycle.snapshot.world.devices());
        check(move |node| fits(&requests, &classes, node))
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, _: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        Some(Box::new(Usage {
            pod: cycle.pod,
            strategy: &self.strategy,
        }))
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        a.requests == b.requests && a.assumed == b.assumed
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::Node(_) | ClusterEvent::PodLeft(_) | ClusterEvent::Devices
        )
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, world: &dyn World) -> bool {
        let classes = || dynamic_resources::classes(pod, &world.devices());
        match event {
            // A node that is too small even when empty doesn't help.
            ClusterEvent::Node(node) => fits(&self.requests(pod), &classes(), &NodeInfo::sized(node)).is_ok(),
            ClusterEvent::PodLeft(_) => true,
            // A class may stand for what no node has.
            ClusterEvent::Devices => !classes().is_empty(),
            _ => false,
        }
    }
}

/// What a class of devices stands for is no matter of here where the node has none of it by itself.
fn fits(requests: &Resources, classes: &Classes, node: &NodeInfo) -> Result<(), Reject> {
    let mut reject: Option<Reject> = None;
    let mut lacks = |reason: Cow<'static, str>, is_final: bool| match &mut reject {
        Some(reject) => {
            reject.push(reason);
            reject.is_final |= is_final;
        }
        None => {
            let mut first = Reject::for_now(reason);
            first.is_final = is_final;
            reject = Some(first);
        }
    };
    if node.pods().len() + 1 > node.allowed_pods {
        lacks("Too many pods".into(), false);
    }
    let (there, used) = (&node.allocatable, &node.requested);
    let common = [
        ("Insufficient cpu", requests.milli_cpu, there.milli_cpu, used.milli_cpu),
        ("Insufficient memory", requests.memory, there.memory, used.memory),
        (
            "Insufficient ephemeral-storage",
            requests.ephemeral_storage,
            there.ephemeral_storage,
            used.ephemeral_storage,
        ),
    ];
    for (reason, wanted, there, used) in common {
        if wanted > 0 && wanted > there.saturating_sub(used) {
            lacks(reason.into(), wanted > there);
        }
    }
    for (name, wanted) in &requests.other {
        let there = there.get(name);
        if there == 0 && classes.contains_key(name) {
            continue;
        }
        if *wanted > 0 && *wanted > there.saturating_sub(used.get(name)) {
            lacks(format!("Insufficient {name}").into(), *wanted > there);
        }
    }
    reject.map_or(Ok(()), Err)
}

/// Which nodes are preferred, by how much of them would be used.
pub struct Strategy {
    pub kind: Kind,
    /// With their weights.
    pub resources: Vec<(String, i64)>,
}

pub enum Kind {
    LeastAllocated,
    MostAllocated,
    /// Points of a broken line from use (in a hundred) to score (of ten).
    RequestedToCapacityRatio(Shape),
}

impl Default for Strategy {
    fn default() -> Self {
        Strategy {
            kind: Kind::LeastAllocated,
            resources: vec![("cpu".into(), 1), ("memory".into(), 1)],
        }
    }
}

struct Usage<'a> {
    pod: &'a PodInfo,
    strategy: &'a Strategy,
}

impl Scorer for Usage<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for (name, weight) in &self.strategy.resources {
            let there = node.allocatable.get(name);
            let (used, asked) = match name.as_str() {
                // Who asks for no CPU or memory is assumed to need some.
                "cpu" => (node.assumed.0, self.pod.assumed.0),
                "memory" => (node.assumed.1, self.pod.assumed.1),
                "ephemeral-storage" => (node.requested.ephemeral_storage, self.pod.requests.ephemeral_storage),
                // Of the less common ones only those count that the pod asks for.
                other if self.pod.requests.get(other) == 0 => continue,
                other => (node.requested.get(other), self.pod.requests.get(other)),
            };
            if there == 0 {
                continue;
            }
            let score = self.strategy.kind.score(used + asked, there);
            // The ratio's scores of nothing don't count at all.
            if score > 0 || !matches!(self.strategy.kind, Kind::RequestedToCapacityRatio(_)) {
                sum += score * weight;
                weights += weight;
            }
        }
        match (&self.strategy.kind, weights) {
            (_, 0) => 0,
            (Kind::RequestedToCapacityRatio(_), _) => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }
}

impl Kind {
    fn score(&self, used: i64, there: i64) -> i64 {
        match self {
            Kind::LeastAllocated if used > there => 0,
            Kind::LeastAllocated => (there - used) * MAX_SCORE / there,
            Kind::MostAllocated => used.min(there) * MAX_SCORE / there,
            Kind::RequestedToCapacityRatio(shape) => {
                let percentage = if used > there { 100 } else { used * 100 / there };
                broken_line(shape, percentage)
            }
        }
    }
}
