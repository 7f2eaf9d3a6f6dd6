//! Equal pods in a row: what was found for one is used for the next.
//!
//! Of a decision the nodes stay that would have done, with what each plug-in said of them. If the next pod is the same to all
//! plug-ins ([`Plugin::is_same`]), only the node that was taken is looked at again: it is weighed anew if there is room for another,
//! and the best of all is proposed. A proposal is filtered like any node; if it won't do, the search is made as always. Whatever comes
//! between two such pods (another pod, one that fits nowhere, a node that comes or goes, half a second) ends the row.
//!
//! The conditions are those of upstream's `OpportunisticBatching`. With its own default of spreading pods over nodes and zones no two
//! pods are the same; without it (`defaultConstraints: []`) those of one workload are.

use crate::framework::{Cycle, Plugin};
use crate::node::NodeInfo;
use crate::plan::Filters;
use crate::pod::PodInfo;
use crate::profile::Profile;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Nothing is kept for longer.
const MOST_AGE: Duration = Duration::from_millis(500);

/// What the decision on one pod leaves to the next.
pub struct Batch {
    pod: PodInfo,
    since: Instant,
    /// Which nodes there were ([`Snapshot::layout`](crate::snapshot::Snapshot::layout)), so that indexes mean the same.
    layout: u64,
    /// The node that was taken.
    taken: u32,
    candidates: Candidates,
}

/// Nodes that would do, by index, and what was said of them.
#[derive(Default)]
pub struct Candidates {
    nodes: Vec<u32>,
    totals: Vec<i64>,
    /// By the plug-in's place in the profile; before they are normalised.
    raw: Vec<(usize, Vec<i64>)>,
}

impl Candidates {
    pub fn new(nodes: &[&Arc<NodeInfo>]) -> Candidates {
        Candidates {
            nodes: nodes.iter().map(|node| node.index).collect(),
            ..Candidates::default()
        }
    }

    pub fn said(&mut self, plugin: usize, scores: &[i64]) {
        self.raw.push((plugin, scores.to_vec()));
    }

    /// What is left when one of them is taken.
    pub fn without(mut self, at: usize, totals: Vec<i64>) -> Candidates {
        self.totals = totals;
        self.take(at);
        self
    }

    fn take(&mut self, at: usize) -> u32 {
        self.totals.swap_remove(at);
        for (_, scores) in &mut self.raw {
            scores.swap_remove(at);
        }
        self.nodes.swap_remove(at)
    }

    /// One more, of which the plug-ins are asked; what they said of the others is weighed anew with it. `None`: another
    /// plug-in has a preference than had before, or a node is gone.
    fn add(&mut self, profile: &Profile, cycle: Cycle<'_>, node: &Arc<NodeInfo>) -> Option<()> {
        self.nodes.push(node.index);
        let nodes: Option<Vec<_>> = self.nodes.iter().map(|index| cycle.snapshot.at(*index)).collect();
        let nodes = nodes?;
        self.totals.clear();
        self.totals.resize(nodes.len(), 0);
        let mut raw = self.raw.iter_mut();
        for (place, plugin, weight) in profile.scorers() {
            let Some(scorer) = plugin.scorer(cycle, &nodes) else {
                continue;
            };
            let (_, scores) = raw.next().filter(|(of, _)| *of == place)?;
            scores.push(scorer.score(node));
            let mut normal = scores.clone();
            scorer.normalize(&nodes, &mut normal);
            for (total, score) in self.totals.iter_mut().zip(normal) {
                *total += score * weight;
            }
        }
        raw.next().is_none().then_some(())
    }
}

/// The place of the highest, one of them at random if several are.
pub fn best(totals: &[i64], rng: &mut impl Rng) -> Option<usize> {
    let best = totals.iter().copied().max()?;
    let count = totals.iter().filter(|total| **total == best).count();
    let mut places = totals.iter().enumerate().filter(|(_, total)| **total == best);
    places.nth(rng.random_range(0..count)).map(|(at, _)| at)
}

/// Whether all plug-ins say the same of both pods.
pub fn is_same(profile: &Profile, a: &PodInfo, b: &PodInfo) -> bool {
    let mut plugins = profile.plugins.iter().map(|enabled| &enabled.plugin);
    a.scheduler_name() == b.scheduler_name()
        && a.key.namespace == b.key.namespace
        && plugins.all(|plugin: &Arc<dyn Plugin>| plugin.is_same(a, b))
}

impl Batch {
    pub fn new(cycle: Cycle<'_>, now: Instant, taken: &NodeInfo, candidates: Candidates) -> Option<Batch> {
        (!candidates.nodes.is_empty()).then(|| Batch {
            pod: cycle.pod.clone(),
            since: now,
            layout: cycle.snapshot.layout(),
            taken: taken.index,
            candidates,
        })
    }

    /// The node to try first for the next pod, and what is left then for the one after it.
    pub(crate) fn hint<'a>(
        mut self,
        profile: &Profile,
        cycle: Cycle<'a>,
        filters: &Filters<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<(&'a Arc<NodeInfo>, Batch)> {
        let is_old = now.duration_since(self.since) > MOST_AGE || self.layout != cycle.snapshot.layout();
        if is_old || cycle.pod.nominated_node().is_some() || !is_same(profile, &self.pod, cycle.pod) {
            return None;
        }
        let taken = cycle.snapshot.at(self.taken)?;
        if filters.check(taken).is_none() {
            self.candidates.add(profile, cycle, taken)?;
        }
        let at = best(&self.candidates.totals, rng)?;
        let node = cycle.snapshot.at(self.candidates.take(at))?;
        self.taken = node.index;
        Some((node, self))
    }
}
