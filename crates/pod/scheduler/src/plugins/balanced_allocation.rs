//! Prefers nodes whose resources would be used in more equal shares than before.

use crate::framework::{Cycle, MAX_SCORE, Plugin, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use std::sync::Arc;

pub struct BalancedAllocation {
    pub resources: Vec<String>,
}

impl Default for BalancedAllocation {
    fn default() -> Self {
        BalancedAllocation {
            resources: vec!["cpu".into(), "memory".into()],
        }
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, _: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let pod = cycle.pod;
        // A pod that asks for nothing changes no balance.
        let asks = self.resources.iter().any(|name| pod.requests.get(name) != 0);
        let resources = &self.resources;
        asks.then(|| Box::new(Balance { pod, resources }) as Box<dyn Scorer>)
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        a.requests == b.requests
    }
}

struct Balance<'a> {
    pod: &'a PodInfo,
    resources: &'a [String],
}

impl Scorer for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (mut with, mut without) = (Shares::default(), Shares::default());
        for name in self.resources {
            let (asked, there) = (self.pod.requests.get(name), node.allocatable.get(name));
            // Of the less common resources only those count that the pod asks for.
            if there == 0 || (asked == 0 && !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")) {
                continue;
            }
            let used = node.requested.get(name);
            without.push(used, there);
            with.push(used + asked, there);
        }
        MAX_SCORE / 2 + (MAX_SCORE / 2 + with.balance() - without.balance()) / 2
    }
}

/// Used shares; the first two, which are the rule, allocate nothing.
#[derive(Default)]
struct Shares {
    count: usize,
    two: [f64; 2],
    more: Vec<f64>,
}

impl Shares {
    fn push(&mut self, used: i64, there: i64) {
        let share = (used as f64 / there as f64).min(1.0);
        match self.two.get_mut(self.count) {
            Some(slot) => *slot = share,
            None => self.more.push(share),
        }
        self.count += 1;
    }

    /// 100 if the shares are equal.
    fn balance(&self) -> i64 {
        let (count, [a, b]) = (self.count, self.two);
        let deviation = match count {
            0 | 1 => 0.0,
            2 => ((a - b) / 2.0).abs(),
            _ => {
                let all = || [a, b].into_iter().chain(self.more.iter().copied());
                let mean = all().sum::<f64>() / count as f64;
                (all().map(|share| (share - mean) * (share - mean)).sum::<f64>() / count as f64).sqrt()
            }
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
