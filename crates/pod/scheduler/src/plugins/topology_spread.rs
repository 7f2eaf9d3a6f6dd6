//! Spreads like pods over nodes, zones and whatever else labels tell apart: as a condition, or as a preference.

use crate::events::ClusterEvent;
use crate::framework::{Cycle, MAX_SCORE, NodeFilter, Plugin, Prepared, Reject, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::selector::Selector;
use crate::spread::{HOSTNAME, Rule, hard, soft};
use crate::tally::Answer;
use crate::topology::Key;
use crate::world::World;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use std::borrow::Cow;
use std::sync::Arc;

const NOT_SPREAD: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// How pods of a service or a workload are spread that say nothing themselves.
pub struct TopologySpread {
    pub defaults: Vec<TopologySpreadConstraint>,
    /// The defaults are upstream's own: nodes that lack one of their labels count too.
    pub is_system: bool,
}

impl Default for TopologySpread {
    fn default() -> Self {
        let prefers = |key: &str, max_skew| TopologySpreadConstraint {
            topology_key: key.into(),
            max_skew,
            when_unsatisfiable: "ScheduleAnyway".into(),
            ..TopologySpreadConstraint::default()
        };
        TopologySpread {
            defaults: vec![prefers(HOSTNAME, 3), prefers("topology.kubernetes.io/zone", 5)],
            is_system: true,
        }
    }
}

impl TopologySpread {
    /// The selector of the services and the owner a pod belongs to, if some default is `when_unsatisfiable`.
    fn default_selector(&self, cycle: Cycle<'_>, when_unsatisfiable: &str) -> Option<Selector> {
        if !self.defaults.iter().any(|c| c.when_unsatisfiable == when_unsatisfiable) {
            return None;
        }
        let selectors = cycle.snapshot.world.belongs_to(&cycle.pod.pod);
        let all = selectors.iter().map(Selector::of);
        all.reduce(Selector::and).filter(|all| !all.is_empty())
    }
}

impl Plugin for TopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let pod = cycle.pod;
        let rules = match pod.spread.is_own {
            true => Cow::Borrowed(pod.spread.hard.as_slice()),
            false => match self.default_selector(cycle, "DoNotSchedule") {
                Some(selector) => Cow::Owned(hard(&pod.pod, &self.defaults, Some(&selector))),
                None => return Prepared::Skip,
            },
        };
        if rules.is_empty() {
            return Prepared::Skip;
        }
        let count = |rule: &Rule| {
            let answer = cycle.snapshot.ask(&rule.question);
            Counted {
                least: answer.tally.least(&[]),
                answer,
                changed: Vec::new(),
            }
        };
        let filter = Spreading {
            pod,
            counts: rules.iter().map(count).collect(),
            rules,
        };
        Prepared::Filter(Box::new(filter))
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, feasible: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let pod = cycle.pod;
        let with_all = pod.spread.is_own || !self.is_system;
        let rules = match pod.spread.is_own {
            true => Cow::Borrowed(pod.spread.soft.as_slice()),
            false => {
                let selector = self.default_selector(cycle, "ScheduleAnyway")?;
                Cow::Owned(soft(&pod.pod, &self.defaults, Some(&selector), with_all))
            }
        };
        (!rules.is_empty()).then(|| Box::new(Preferred::new(cycle, &rules, with_all, feasible)) as Box<dyn Scorer>)
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        self.defaults.is_empty() && !a.spread.is_own && !b.spread.is_own
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::Node(_) | ClusterEvent::NodeGone | ClusterEvent::PodPlaced(_) | ClusterEvent::PodLeft(_)
        )
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        let rules = &pod.spread.hard;
        let concerns = |other: &PodInfo| {
            other.key.namespace == pod.key.namespace
                && (other.uid() == pod.uid() || rules.is_empty() || rules.iter().any(|r| r.selects(other.labels())))
        };
        match event {
            ClusterEvent::Node(node) => {
                let labels = node.metadata.labels.as_ref();
                rules.iter().all(|r| labels.is_some_and(|l| l.contains_key(&r.key)))
            }
            // A domain that goes may have been the one with the least.
            ClusterEvent::NodeGone => true,
            ClusterEvent::PodPlaced(other) | ClusterEvent::PodLeft(other) => concerns(other),
            _ => false,
        }
    }
}

/// How many like pods there are in each domain.
#[derive(Clone)]
struct Counted {
    answer: Answer,
    least: i64,
    /// By how much some domains differ from the answer, if pods were added and removed.
    changed: Vec<(usize, i64)>,
}

impl Counted {
    fn at(&self, place: usize) -> i64 {
        let changed = self.changed.iter().find(|(p, _)| *p == place);
        i64::from(self.answer.tally.count(0, place)) + changed.map_or(0, |(_, by)| *by)
    }

    fn change(&mut self, node: &NodeInfo, by: i64) {
        let Some(place) = self.answer.places[0].place(node) else {
            return;
        };
        match self.changed.iter_mut().find(|(p, _)| *p == place) {
            Some((_, sum)) => *sum += by,
            None => self.changed.push((place, by)),
        }
        let counts: Vec<_> = self.changed.iter().map(|(p, _)| (*p, self.at(*p))).collect();
        self.least = self.answer.tally.least(&counts);
    }
}

#[derive(Clone)]
struct Spreading<'a> {
    pod: &'a PodInfo,
    rules: Cow<'a, [Rule]>,
    counts: Vec<Counted>,
}

impl Spreading<'_> {
    fn change(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        if other.key.namespace != self.pod.key.namespace {
            return;
        }
        for (rule, counted) in self.rules.iter().zip(&mut self.counts) {
            if rule.selects(other.labels()) && rule.question.nodes.include(node) {
                counted.change(node, by);
            }
        }
    }
}

impl NodeFilter for Spreading<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        for (rule, counted) in self.rules.iter().zip(&self.counts) {
            let Some(place) = counted.answer.places[0].place(node) else {
                return Err(Reject::for_good(NO_LABEL));
            };
            let tally = &counted.answer.tally;
            let enough_domains = tally.domains() as i64 >= rule.min_domains;
            let least = if enough_domains { counted.least } else { 0 };
            // A domain none of whose nodes counts has nobody in it.
            let here = if tally.is_domain(place) { counted.at(place) } else { 0 };
            let itself = i64::from(rule.selects(self.pod.labels()));
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
    fn copy<'a>(&self) -> Option<Box<dyn NodeFilter + 'a>>
    where
        Self: 'a,
    {
        Some(Box::new(self.clone()))
    }
}

struct Preferred {
    /// With the weight of a like pod, and what is added for the skew.
    counts: Vec<(Answer, f64, f64)>,
    /// Nodes that lack one of the labels don't count.
    with_all: bool,
    /// Labels of which the answers don't tell whether a node has them, for each node is a domain of its own.
    names: Vec<String>,
}

impl Preferred {
    fn new(cycle: Cycle<'_>, rules: &[Rule], with_all: bool, feasible: &[&Arc<NodeInfo>]) -> Self {
        let own = rules.iter().filter(|rule| rule.question.keys.contains(&Key::Node));
        let mut preferred = Preferred {
            names: own.map(|rule| rule.key.clone()).collect(),
            counts: Vec::with_capacity(rules.len()),
            with_all,
        };
        for rule in rules {
            let answer = cycle.snapshot.ask(&rule.question);
            preferred.counts.push((answer, 0.0, (rule.max_skew - 1) as f64));
        }
        let usable: Vec<_> = feasible.iter().filter(|node| preferred.has_all(node)).collect();
        for (rule, (answer, weight, _)) in rules.iter().zip(&mut preferred.counts) {
            let size = if rule.key == HOSTNAME {
                usable.len()
            } else {
                let mut places: Vec<_> = usable.iter().map(|node| answer.places[0].place(node)).collect();
                places.sort_unstable();
                places.dedup();
                places.len()
            };
            *weight = ((size + 2) as f64).ln();
        }
        preferred
    }

    fn has_all(&self, node: &NodeInfo) -> bool {
        let mut places = self.counts.iter().map(|(answer, _, _)| answer.places[0].place(node));
        !self.with_all
            || (places.all(|place| place.is_some()) && self.names.iter().all(|name| node.label(name).is_some()))
    }
}

impl Scorer for Preferred {
    fn score(&self, node: &NodeInfo) -> i64 {
        if !self.has_all(node) {
            return 0;
        }
        let score = |(answer, weight, skew): &(Answer, f64, f64)| Some(f64::from(answer.at(0, node)?) * weight + skew);
        self.counts.iter().filter_map(score).sum::<f64>().round() as i64
    }

    fn normalize(&self, nodes: &[&Arc<NodeInfo>], scores: &mut [i64]) {
        let (mut least, mut most) = (i64::MAX, 0);
        for (_, score) in nodes.iter().zip(scores.iter()).filter(|(node, _)| self.has_all(node)) {
            least = least.min(*score);
            most = most.max(*score);
        }
        for (node, score) in nodes.iter().zip(scores) {
            *score = match () {
                () if !self.has_all(node) => 0,
                () if most == 0 => MAX_SCORE,
                () => MAX_SCORE * (most + least - *score) / most,
            };
        }
    }
}
