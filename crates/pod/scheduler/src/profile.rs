//! How the pods of one scheduler name are decided: which plug-ins look at nodes, which prefer some, and how much each counts.

use crate::framework::Plugin;
use crate::plugins;
use crate::plugins::dynamic_resources::{self, DynamicResources};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Profile {
    pub scheduler_name: String,
    /// In the order in which they look at a node.
    pub plugins: Vec<Enabled>,
    /// Of how many nodes in a hundred that would do the best is chosen; 0: the larger the cluster, the fewer.
    pub percentage: u32,
    /// `None`: no pod has to go for another.
    pub preemption: Option<Preempting>,
    /// How long a pod's volumes may take to be bound.
    pub volumes_within: Duration,
    /// How long allocating devices may take, and what has to be done about them.
    pub devices: DynamicResources,
}

#[derive(Clone)]
pub struct Enabled {
    pub plugin: Arc<dyn Plugin>,
    pub filters: bool,
    /// 0: it prefers no node.
    pub weight: i64,
}

impl fmt::Debug for Enabled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filters = if self.filters { "filters, " } else { "" };
        write!(f, "{} ({filters}weight {})", self.plugin.name(), self.weight)
    }
}

/// On how many nodes preemption is tried: a share of those where it may help, and not fewer than a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preempting {
    pub percentage: u32,
    pub absolute: u32,
}

impl Default for Preempting {
    fn default() -> Self {
        Preempting {
            percentage: 10,
            absolute: 100,
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Profile {
            scheduler_name: crate::DEFAULT_NAME.into(),
            plugins: plugins::all(),
            percentage: 0,
            preemption: Some(Preempting::default()),
            volumes_within: Duration::from_secs(600),
            devices: DynamicResources::default(),
        }
    }
}

/// So many nodes are looked for at least.
const FEWEST: usize = 100;
const LEAST_PERCENTAGE: usize = 5;

impl Profile {
    pub fn filters(&self) -> impl Iterator<Item = &dyn Plugin> {
        self.plugins.iter().filter(|e| e.filters).map(|e| &*e.plugin)
    }
    /// Whether claims of devices are looked at.
    pub fn allocates(&self) -> bool {
        self.filters().any(|plugin| plugin.name() == dynamic_resources::NAME)
    }
    /// With their places among the plug-ins, and their weights.
    pub fn scorers(&self) -> impl Iterator<Item = (usize, &dyn Plugin, i64)> {
        let all = self.plugins.iter().enumerate();
        all.filter(|(_, e)| e.weight > 0)
            .map(|(place, e)| (place, &*e.plugin, e.weight))
    }

    /// How many nodes that would do are enough, of so many.
    pub fn enough(&self, nodes: usize) -> usize {
        match self.scorers().next() {
            Some(_) => self.share(nodes),
            None => 1,
        }
    }

    /// How many are enough if somebody weighs them.
    pub fn share(&self, nodes: usize) -> usize {
        if nodes < FEWEST {
            return nodes;
        }
        let percentage = match self.percentage as usize {
            0 => 50usize.saturating_sub(nodes / 125).max(LEAST_PERCENTAGE),
            percentage => percentage,
        };
        (nodes * percentage / 100).max(FEWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's table of `numFeasibleNodesToFind`.
    #[test]
    fn the_larger_the_cluster_the_smaller_the_share() {
        for (percentage, nodes, expected) in [
            (0, 10, 10),
            (40, 10, 10),
            (0, 1000, 420),
            (40, 1000, 400),
            (0, 6000, 300),
            (40, 6000, 2400),
            (0, 50, 50),
            (0, 5000, 500),
        ] {
            let profile = Profile {
                percentage,
                ..Profile::default()
            };
            assert_eq!(profile.enough(nodes), expected, "{percentage} % of {nodes}");
        }
    }
}
