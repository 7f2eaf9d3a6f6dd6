//! Prefers nodes whose CPU and memory would be used in more equal shares than before.

use crate::framework::{Cycle, MAX_SCORE, Plugin, Scorer};
use crate::node::NodeInfo;
use crate::resources::Resources;
use std::sync::Arc;

pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
    fn scorer<'a>(&self, cycle: Cycle<'a>, _: &[Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let requests = &cycle.pod.requests;
        // A pod that asks for nothing changes no balance.
        let asks = requests.milli_cpu != 0 || requests.memory != 0;
        asks.then(|| Box::new(Balance(requests)) as Box<dyn Scorer>)
    }
}

struct Balance<'a>(&'a Resources);

impl Scorer for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let used = (node.requested.milli_cpu, node.requested.memory);
        let with = balance(node, (used.0 + self.0.milli_cpu, used.1 + self.0.memory));
        let without = balance(node, used);
        MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
    }
}

/// 100 if the shares are equal.
fn balance(node: &NodeInfo, used: (i64, i64)) -> i64 {
    let share = |used: i64, there: i64| (there > 0).then(|| (used as f64 / there as f64).min(1.0));
    let deviation = match (
        share(used.0, node.allocatable.milli_cpu),
        share(used.1, node.allocatable.memory),
    ) {
        (Some(cpu), Some(memory)) => ((cpu - memory) / 2.0).abs(),
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
