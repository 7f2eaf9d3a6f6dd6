//! Where a pod goes: from a picture of the cluster to a plan, without I/O.
//!
//! All nodes are tried; of those that fit, the one with the highest weighted score is taken, one of them at random if several
//! have it. If none fits, preemption looks for a node where removing less important pods would help.

use crate::cluster::Snapshot;
use crate::framework::{Cycle, NodeFilter, Plugin, Prepared, Reject};
use crate::node::NodeInfo;
use crate::plugins::volume_binding::{self, Decision};
use crate::pod::PodInfo;
use crate::preempt::{self, Preemption};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug)]
pub enum Plan {
    Bind { node: String, volumes: Decision },
    Wait(Why),
}

/// Why a pod fits nowhere, node by node.
#[derive(Debug, Default)]
pub struct Why {
    pub total: usize,
    /// The plug-in and its reasons.
    pub nodes: BTreeMap<String, (&'static str, Reject)>,
    /// A plug-in refused all nodes before they were looked at.
    pub outright: Option<Reject>,
    /// What nodes that weren't looked at lack.
    pub rest: Option<String>,
    /// Who refused.
    pub plugins: BTreeSet<&'static str>,
    /// What preemption can do about it.
    pub preemption: Option<Preemption>,
}

pub fn plan(plugins: &[Box<dyn Plugin>], pod: &PodInfo, snapshot: &Snapshot, rng: &mut impl Rng) -> Plan {
    let cycle = Cycle { pod, snapshot };
    let mut why = Why {
        total: snapshot.nodes.len(),
        ..Why::default()
    };
    if snapshot.nodes.is_empty() {
        return Plan::Wait(why);
    }
    let (filters, only) = match Filters::prepare(plugins, cycle, &mut why) {
        Ok(prepared) => prepared,
        Err(reject) => {
            why.outright = Some(reject);
            why.preemption = Some(preempt::outright(&why));
            return Plan::Wait(why);
        }
    };
    let mut feasible = Vec::new();
    for (name, node) in snapshot
        .nodes
        .iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|only| only.contains(*name)))
    {
        match filters.check_with_nominated(cycle, node) {
            None => feasible.push(node.clone()),
            Some((plugin, reject)) => {
                why.plugins.insert(plugin);
                why.nodes.insert(name.clone(), (plugin, reject));
            }
        }
    }
    let Some(node) = choose(plugins, cycle, &feasible, rng) else {
        why.preemption = Some(preempt::find(cycle, &filters, &why));
        return Plan::Wait(why);
    };
    // It was decided once to filter; what came of it is needed now.
    match volume_binding::decide(cycle, node) {
        Ok(volumes) => Plan::Bind {
            node: node.name().to_owned(),
            volumes,
        },
        Err(reject) => {
            why.nodes.insert(node.name().to_owned(), ("VolumeBinding", reject));
            Plan::Wait(why)
        }
    }
}

/// The filters made for one pod.
pub(crate) struct Filters<'a>(Vec<(&'static str, Box<dyn NodeFilter + 'a>)>);

type Prepare<'a> = (Filters<'a>, Option<BTreeSet<String>>);

impl<'a> Filters<'a> {
    fn prepare(plugins: &[Box<dyn Plugin>], cycle: Cycle<'a>, why: &mut Why) -> Result<Prepare<'a>, Reject> {
        let mut filters = Vec::new();
        let mut only: Option<BTreeSet<String>> = None;
        for plugin in plugins {
            match plugin.prepare(cycle) {
                Prepared::Skip => {}
                Prepared::Filter(filter) => filters.push((plugin.name(), filter)),
                Prepared::Only(filter, names) => {
                    filters.push((plugin.name(), filter));
                    why.plugins.insert(plugin.name());
                    why.rest = Some(format!("node(s) didn't satisfy plugin(s) [{}]", plugin.name()));
                    only = Some(match only {
                        Some(others) => others.intersection(&names).cloned().collect(),
                        None => names,
                    });
                }
                Prepared::Reject(reject) => {
                    why.plugins.insert(plugin.name());
                    return Err(reject);
                }
            }
        }
        Ok((Filters(filters), only))
    }

    /// Who refuses the node, and why.
    pub(crate) fn check(&self, node: &NodeInfo) -> Option<(&'static str, Reject)> {
        self.0
            .iter()
            .find_map(|(name, filter)| filter.filter(node).err().map(|reject| (*name, reject)))
    }

    /// The pod must fit with the more important pods that are to come to the node, and also if they don't come.
    pub(crate) fn check_with_nominated(&self, cycle: Cycle<'a>, node: &NodeInfo) -> Option<(&'static str, Reject)> {
        let nominated = cycle
            .snapshot
            .nominated
            .get(node.name())
            .map(Vec::as_slice)
            .unwrap_or_default();
        let coming: Vec<_> = nominated
            .iter()
            .filter(|p| p.priority >= cycle.pod.priority && p.uid() != cycle.pod.uid())
            .collect();
        if !coming.is_empty() {
            let (mut filters, mut crowded) = (self.copy(), node.clone());
            for pod in coming {
                filters.add(pod, &crowded);
                crowded.add(pod.clone());
            }
            if let Some(refused) = filters.check(&crowded) {
                return Some(refused);
            }
        }
        self.check(node)
    }

    pub(crate) fn copy(&self) -> Filters<'a> {
        Filters(self.0.iter().map(|(name, filter)| (*name, filter.copy())).collect())
    }
    pub(crate) fn add(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.0.iter_mut().for_each(|(_, filter)| filter.add(pod, node));
    }
    pub(crate) fn remove(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.0.iter_mut().for_each(|(_, filter)| filter.remove(pod, node));
    }
}

fn choose<'a>(
    plugins: &[Box<dyn Plugin>],
    cycle: Cycle<'_>,
    feasible: &'a [Arc<NodeInfo>],
    rng: &mut impl Rng,
) -> Option<&'a Arc<NodeInfo>> {
    if feasible.len() < 2 {
        return feasible.first();
    }
    let mut totals = vec![0; feasible.len()];
    for plugin in plugins {
        let Some(scorer) = plugin.scorer(cycle, feasible) else {
            continue;
        };
        let mut scores: Vec<i64> = feasible.iter().map(|node| scorer.score(node)).collect();
        scorer.normalize(feasible, &mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score * plugin.weight();
        }
    }
    let best = totals.iter().copied().max()?;
    let best: Vec<_> = feasible
        .iter()
        .zip(totals)
        .filter(|(_, total)| *total == best)
        .map(|(node, _)| node)
        .collect();
    Some(best[rng.random_range(0..best.len())])
}

impl Why {
    /// As upstream tells it.
    pub fn message(&self) -> String {
        if self.total == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut text = format!("0/{} nodes are available:", self.total);
        match &self.outright {
            Some(reject) => text.push_str(&format!(" {}.", reject.reasons.join(", "))),
            None => {
                let reasons = self
                    .nodes
                    .values()
                    .flat_map(|(_, reject)| reject.reasons.iter().map(|r| r.as_ref()));
                let rest = self
                    .rest
                    .as_deref()
                    .map(|reason| (reason, self.total - self.nodes.len()));
                text.push_str(&histogram(reasons, rest));
            }
        }
        if let Some(preemption) = &self.preemption {
            text.push_str(&format!(" preemption: {}", preemption.message));
        }
        text
    }
}

/// ` 1 this, 2 that.`
pub(crate) fn histogram<'a>(reasons: impl Iterator<Item = &'a str>, rest: Option<(&'a str, usize)>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    if let Some((reason, count)) = rest.filter(|(_, count)| *count > 0) {
        *counts.entry(reason).or_default() += count;
    }
    let mut texts: Vec<String> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    texts.sort();
    if texts.is_empty() {
        String::new()
    } else {
        format!(" {}.", texts.join(", "))
    }
}
