//! Spreads like pods over nodes, zones and whatever else labels tell apart: as a condition, or as a preference.

use crate::events::ClusterEvent;
use crate::framework::{Cycle, MAX_SCORE, NodeFilter, Plugin, Prepared, Reject, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::select::{node_fits, untolerated};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels::{self, Labels};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const HOSTNAME: &str = "kubernetes.io/hostname";
/// How pods of a service or a workload that say nothing themselves are preferred to be spread.
const DEFAULTS: &[(&str, i32)] = &[(HOSTNAME, 3), ("topology.kubernetes.io/zone", 5)];

const NOT_SPREAD: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

pub struct TopologySpread;

impl Plugin for TopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
    fn prepare<'a>(&self, cycle: Cycle<'a>) -> Prepared<'a> {
        let rules = rules(cycle.pod, "DoNotSchedule");
        if rules.is_empty() {
            return Prepared::Skip;
        }
        let mut counted = Counted {
            pod: cycle.pod,
            counts: vec![BTreeMap::new(); rules.len()],
            rules,
        };
        for node in cycle.snapshot.nodes.values() {
            counted.count_node(node);
        }
        Prepared::Filter(Box::new(counted))
    }
    fn weight(&self) -> i64 {
        2
    }
    fn scorer<'a>(&self, cycle: Cycle<'a>, feasible: &[Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let has_own = !constraints(cycle.pod).is_empty();
        let rules = if has_own {
            rules(cycle.pod, "ScheduleAnyway")
        } else {
            default_rules(cycle)
        };
        (!rules.is_empty()).then(|| Box::new(Preferred::new(cycle, rules, has_own, feasible)) as Box<dyn Scorer>)
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo) -> bool {
        let concerns = |other: &PodInfo| {
            other.key.namespace == pod.key.namespace
                && (other.uid() == pod.uid() || rules(pod, "DoNotSchedule").iter().any(|r| r.selects(&other.labels)))
        };
        match event {
            ClusterEvent::Node(_) => true,
            ClusterEvent::PodPlaced(other) | ClusterEvent::PodLeft(other) => concerns(other),
            _ => false,
        }
    }
}

/// A constraint, read.
#[derive(Clone)]
struct Rule {
    key: String,
    max_skew: i64,
    min_domains: i64,
    /// All of them.
    selectors: Vec<LabelSelector>,
    also: Labels,
    honor_affinity: bool,
    honor_taints: bool,
}

impl Rule {
    fn selects(&self, pod_labels: &Labels) -> bool {
        let all = self
            .selectors
            .iter()
            .all(|s| labels::matches(Some(s), Some(pod_labels)));
        !self.selectors.is_empty() && all && labels::includes(Some(pod_labels), &self.also)
    }
    fn is_empty(&self) -> bool {
        self.also.is_empty() && self.selectors.iter().all(labels::is_empty)
    }
    /// Whether the node's pods count at all.
    fn includes(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honor_affinity || node_fits(&pod.pod, node.node()))
            && (!self.honor_taints || untolerated(&pod.pod, node.node()).is_none())
    }
    /// Like pods on the node.
    fn count(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        if self.is_empty() {
            return 0;
        }
        let like = |other: &&Arc<PodInfo>| {
            !other.is_deleting() && other.key.namespace == pod.key.namespace && self.selects(&other.labels)
        };
        node.pods().iter().filter(like).count() as i64
    }
}

fn constraints(pod: &PodInfo) -> &[TopologySpreadConstraint] {
    pod.pod
        .spec
        .as_ref()
        .and_then(|s| s.topology_spread_constraints.as_deref())
        .unwrap_or_default()
}

fn rules(pod: &PodInfo, when_unsatisfiable: &str) -> Vec<Rule> {
    let of = |c: &TopologySpreadConstraint| Rule {
        key: c.topology_key.clone(),
        max_skew: c.max_skew.into(),
        min_domains: c.min_domains.unwrap_or(1).into(),
        selectors: c.label_selector.clone().into_iter().collect(),
        also: c
            .match_label_keys
            .iter()
            .flatten()
            .filter_map(|key| Some((key.clone(), pod.labels.get(key)?.clone())))
            .collect(),
        honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
    };
    constraints(pod)
        .iter()
        .filter(|c| c.when_unsatisfiable == when_unsatisfiable)
        .map(of)
        .collect()
}

fn default_rules(cycle: Cycle<'_>) -> Vec<Rule> {
    let selectors = cycle.snapshot.world.belongs_to(&cycle.pod.pod);
    if selectors.iter().all(labels::is_empty) {
        return Vec::new();
    }
    let of = |(key, max_skew): &(&str, i32)| Rule {
        key: (*key).to_owned(),
        max_skew: (*max_skew).into(),
        min_domains: 1,
        selectors: selectors.clone(),
        also: Labels::new(),
        honor_affinity: true,
        honor_taints: false,
    };
    DEFAULTS.iter().map(of).collect()
}

/// How many like pods there are in each domain.
#[derive(Clone)]
struct Counted<'a> {
    pod: &'a PodInfo,
    rules: Vec<Rule>,
    counts: Vec<BTreeMap<String, i64>>,
}

impl Counted<'_> {
    fn has_all_labels(&self, node: &NodeInfo) -> bool {
        self.rules.iter().all(|rule| node.label(&rule.key).is_some())
    }

    fn count_node(&mut self, node: &NodeInfo) {
        if !self.has_all_labels(node) {
            return;
        }
        for (rule, counts) in self.rules.iter().zip(&mut self.counts) {
            if let Some(domain) = node.label(&rule.key).filter(|_| rule.includes(self.pod, node)) {
                *counts.entry(domain.to_owned()).or_default() += rule.count(self.pod, node);
            }
        }
    }

    fn change(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        if other.key.namespace != self.pod.key.namespace || !self.has_all_labels(node) {
            return;
        }
        for (rule, counts) in self.rules.iter().zip(&mut self.counts) {
            if let Some(domain) = node.label(&rule.key)
                && rule.selects(&other.labels)
                && rule.includes(self.pod, node)
            {
                *counts.entry(domain.to_owned()).or_default() += by;
            }
        }
    }
}

impl NodeFilter for Counted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        for (rule, counts) in self.rules.iter().zip(&self.counts) {
            let Some(domain) = node.label(&rule.key) else {
                return Err(Reject::for_good(NO_LABEL));
            };
            let enough_domains = counts.len() as i64 >= rule.min_domains;
            let least = if enough_domains {
                counts.values().copied().min().unwrap_or(0)
            } else {
                0
            };
            let here = counts.get(domain).copied().unwrap_or(0);
            let itself = i64::from(rule.selects(&self.pod.labels));
            if here + itself - least > rule.max_skew {
                return Err(Reject::for_now(NOT_SPREAD));
            }
        }
        Ok(())
    }
    fn add(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, 1);
    }
    fn remove(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, -1);
    }
    fn copy<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(self.clone())
    }
}

struct Preferred<'a> {
    pod: &'a PodInfo,
    rules: Vec<Rule>,
    counts: Vec<BTreeMap<String, i64>>,
    weights: Vec<f64>,
    /// Nodes without a label that counts.
    ignored: BTreeSet<String>,
}

impl<'a> Preferred<'a> {
    fn new(cycle: Cycle<'a>, rules: Vec<Rule>, all_labels: bool, feasible: &[Arc<NodeInfo>]) -> Self {
        let has_all = |node: &NodeInfo| !all_labels || rules.iter().all(|rule| node.label(&rule.key).is_some());
        let (usable, rest): (Vec<_>, Vec<_>) = feasible.iter().partition(|node| has_all(node));
        let mut counts = vec![BTreeMap::new(); rules.len()];
        for (rule, counts) in rules.iter().zip(&mut counts) {
            for node in usable.iter().filter(|_| rule.key != HOSTNAME) {
                counts.insert(node.label(&rule.key).unwrap_or_default().to_owned(), 0);
            }
        }
        let sizes = rules
            .iter()
            .zip(&counts)
            .map(|(r, c)| if r.key == HOSTNAME { usable.len() } else { c.len() });
        let weights = sizes.map(|size| ((size + 2) as f64).ln()).collect();
        for node in cycle.snapshot.nodes.values().filter(|node| has_all(node)) {
            for (rule, counts) in rules
                .iter()
                .zip(&mut counts)
                .filter(|(rule, _)| rule.includes(cycle.pod, node))
            {
                let domain = node.label(&rule.key).unwrap_or_default();
                if let Some(count) = counts.get_mut(domain) {
                    *count += rule.count(cycle.pod, node);
                }
            }
        }
        let ignored = rest.iter().map(|node| node.name().to_owned()).collect();
        Preferred {
            pod: cycle.pod,
            rules,
            counts,
            weights,
            ignored,
        }
    }
}

impl Scorer for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        if self.ignored.contains(node.name()) {
            return 0;
        }
        let mut score = 0.0;
        for ((rule, counts), weight) in self.rules.iter().zip(&self.counts).zip(&self.weights) {
            let Some(domain) = node.label(&rule.key) else { continue };
            let count = match rule.key == HOSTNAME {
                true => rule.count(self.pod, node),
                false => counts.get(domain).copied().unwrap_or(0),
            };
            score += count as f64 * weight + (rule.max_skew - 1) as f64;
        }
        score.round() as i64
    }

    fn normalize(&self, nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let is_ignored: Vec<bool> = nodes.iter().map(|node| self.ignored.contains(node.name())).collect();
        let counted = || {
            scores
                .iter()
                .zip(&is_ignored)
                .filter(|(_, ignored)| !**ignored)
                .map(|(score, _)| *score)
        };
        let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        for (score, ignored) in scores.iter_mut().zip(is_ignored) {
            *score = match () {
                () if ignored => 0,
                () if most == 0 => MAX_SCORE,
                () => MAX_SCORE * (most + least - *score) / most,
            };
        }
    }
}
