//! Near some pods, apart from others; and those others' own wish to be apart, and their preferences.

use crate::events::ClusterEvent;
use crate::framework::{Cycle, MAX_SCORE, NodeFilter, Plugin, Prepared, Reject, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::select::Term;
use crate::world::World;
use std::collections::HashMap;
use std::sync::Arc;

/// What a pod's required affinity is worth, as a preference of the other side.
const HARD_WEIGHT: i64 = 1;

const NOT_NEAR: &str = "node(s) didn't match pod affinity rules";
const NOT_APART: &str = "node(s) didn't match pod anti-affinity rules";
const NOT_WELCOME: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

pub struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
    fn prepare<'a>(&self, cycle: Cycle<'a>) -> Prepared<'a> {
        let mut counts = Counts {
            cycle,
            near: HashMap::new(),
            apart: HashMap::new(),
            unwelcome: HashMap::new(),
        };
        for node in cycle.snapshot.nodes.values() {
            for other in node.pods() {
                counts.change(other, node, 1);
            }
        }
        let required = &cycle.pod.near.required;
        if required.is_empty() && cycle.pod.apart.required.is_empty() && counts.unwelcome.is_empty() {
            return Prepared::Skip;
        }
        Prepared::Filter(Box::new(counts))
    }
    fn weight(&self) -> i64 {
        2
    }
    fn scorer<'a>(&self, cycle: Cycle<'a>, _: &[Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let mut liked = Liked::default();
        for node in cycle.snapshot.nodes.values() {
            for other in node.pods() {
                liked.consider(cycle, other, node);
            }
        }
        (!liked.0.is_empty()).then(|| Box::new(liked) as Box<dyn Scorer>)
    }
    fn helps(&self, event: &ClusterEvent, _: &PodInfo) -> bool {
        // Whom a pod wants near or far is rarely told by one pod alone: any may do.
        !matches!(event, ClusterEvent::Volumes)
    }
}

/// How many pods count in each topology domain (key, value).
type Domains = HashMap<(String, String), i64>;

#[derive(Clone)]
struct Counts<'a> {
    cycle: Cycle<'a>,
    /// Pods that match all of this pod's affinity terms.
    near: Domains,
    /// Pods that match one of its anti-affinity terms.
    apart: Domains,
    /// Pods one of whose anti-affinity terms this pod matches.
    unwelcome: Domains,
}

impl Counts<'_> {
    fn change(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        let (pod, world) = (self.cycle.pod, &*self.cycle.snapshot.world);
        if !pod.near.required.is_empty() && matches_all(&pod.near.required, other, world) {
            for term in &pod.near.required {
                bump(&mut self.near, term, node, by);
            }
        }
        for term in pod.apart.required.iter().filter(|term| matches(term, other, world)) {
            bump(&mut self.apart, term, node, by);
        }
        for term in other.apart.required.iter().filter(|term| matches(term, pod, world)) {
            bump(&mut self.unwelcome, term, node, by);
        }
    }

    fn is_near(&self, node: &NodeInfo) -> bool {
        let terms = &self.cycle.pod.near.required;
        let Some(places) = terms.iter().map(|term| place(term, node)).collect::<Option<Vec<_>>>() else {
            return false;
        };
        if places.iter().all(|place| self.near.get(place).is_some_and(|n| *n > 0)) {
            return true;
        }
        // The first of a group that wants to be near itself may go anywhere.
        self.near.values().all(|n| *n <= 0) && matches_all(terms, self.cycle.pod, &*self.cycle.snapshot.world)
    }
}

fn matches(term: &Term, pod: &PodInfo, world: &dyn World) -> bool {
    term.matches(&pod.key.namespace, &pod.labels, world)
}

fn matches_all(terms: &[Term], pod: &PodInfo, world: &dyn World) -> bool {
    terms.iter().all(|term| matches(term, pod, world))
}

fn place(term: &Term, node: &NodeInfo) -> Option<(String, String)> {
    Some((term.topology_key.clone(), node.label(&term.topology_key)?.to_owned()))
}

fn bump(domains: &mut Domains, term: &Term, node: &NodeInfo, by: i64) {
    if let Some(place) = place(term, node) {
        *domains.entry(place).or_default() += by;
    }
}

impl NodeFilter for Counts<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let pod = self.cycle.pod;
        if !pod.near.required.is_empty() && !self.is_near(node) {
            return Err(Reject::for_good(NOT_NEAR));
        }
        let is_at = |domains: &Domains, term: &Term| {
            place(term, node)
                .and_then(|place| domains.get(&place))
                .is_some_and(|n| *n > 0)
        };
        if pod.apart.required.iter().any(|term| is_at(&self.apart, term)) {
            return Err(Reject::for_now(NOT_APART));
        }
        let unwelcome = |((key, value), n): (&(String, String), &i64)| *n > 0 && node.label(key) == Some(value);
        if self.unwelcome.iter().any(unwelcome) {
            return Err(Reject::for_now(NOT_WELCOME));
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

/// What each domain is worth.
#[derive(Default)]
struct Liked(Domains);

impl Liked {
    fn consider(&mut self, cycle: Cycle<'_>, other: &PodInfo, node: &NodeInfo) {
        let (pod, world) = (cycle.pod, &*cycle.snapshot.world);
        let mut add = |terms: &[Term], whom: &PodInfo, sign: i64| {
            for term in terms.iter().filter(|term| matches(term, whom, world)) {
                bump(&mut self.0, term, node, sign * term.weight);
            }
        };
        add(&pod.near.preferred, other, 1);
        add(&pod.apart.preferred, other, -1);
        add(&other.near.required, pod, HARD_WEIGHT);
        add(&other.near.preferred, pod, 1);
        add(&other.apart.preferred, pod, -1);
    }
}

impl Scorer for Liked {
    fn score(&self, node: &NodeInfo) -> i64 {
        let here = self.0.iter().filter(|((key, value), _)| node.label(key) == Some(value));
        here.map(|(_, worth)| *worth).sum()
    }
    fn normalize(&self, _: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let (least, most) = (
            scores.iter().copied().min().unwrap_or(0),
            scores.iter().copied().max().unwrap_or(0),
        );
        for score in scores.iter_mut() {
            *score = if most > least {
                MAX_SCORE * (*score - least) / (most - least)
            } else {
                0
            };
        }
    }
}
