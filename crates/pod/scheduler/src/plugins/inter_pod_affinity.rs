//! Near some pods, apart from others; and those others' own wish to be apart, and their preferences.

use crate::events::ClusterEvent;
use crate::framework::{Cycle, MAX_SCORE, NodeFilter, Plugin, Prepared, Reject, Scorer};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::tally::{Answer, Nodes, Question, Who};
use crate::term::Term;
use crate::topology::{Key, Topology};
use crate::world::World;
use std::collections::HashMap;
use std::sync::Arc;

const NOT_NEAR: &str = "node(s) didn't match pod affinity rules";
const NOT_APART: &str = "node(s) didn't match pod anti-affinity rules";
const NOT_WELCOME: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

pub struct InterPodAffinity {
    /// What a pod's required affinity is worth, as a preference of the other side.
    pub hard_weight: i64,
    /// What pods that are there prefer doesn't count for pods that prefer nothing themselves.
    pub ignores_residents: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        InterPodAffinity {
            hard_weight: 1,
            ignores_residents: false,
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let (near, apart) = (&cycle.pod.near.required, &cycle.pod.apart.required);
        let unwelcome = cycle.snapshot.unwelcome(cycle.pod);
        if near.is_empty() && apart.is_empty() && unwelcome.is_empty() {
            return Prepared::Skip;
        }
        let ask = |terms: &[Arc<Term>]| cycle.snapshot.ask(&question(terms));
        let counts = Counts {
            cycle,
            near: (!near.is_empty()).then(|| ask(near)),
            apart: apart.iter().map(|term| ask(std::slice::from_ref(term))).collect(),
            unwelcome: Arc::new(unwelcome),
            changed: Changed {
                apart: vec![Domains::new(); apart.len()],
                ..Changed::default()
            },
        };
        Prepared::Filter(Box::new(counts))
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, _: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        let (near, apart) = (&cycle.pod.near.preferred, &cycle.pod.apart.preferred);
        let prefers = !near.is_empty() || !apart.is_empty();
        if self.ignores_residents && !prefers {
            return None;
        }
        let own = near
            .iter()
            .map(|(term, w)| (term, *w))
            .chain(apart.iter().map(|(term, w)| (term, -*w)));
        let own = own.map(|(term, weight)| (cycle.snapshot.ask(&question(std::slice::from_ref(term))), weight));
        let liked = Liked {
            own: own.filter(|(answer, _)| answer.tally.total > 0).collect(),
            others: cycle.snapshot.liked(cycle.pod, self.hard_weight),
        };
        let is_empty = liked.own.is_empty() && liked.others.is_empty();
        (!is_empty).then(|| Box::new(liked) as Box<dyn Scorer>)
    }

    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        // What others want of it goes by its labels.
        !a.has_terms() && !b.has_terms() && (self.ignores_residents || a.labels() == b.labels())
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::PodPlaced(_) | ClusterEvent::PodLeft(_) | ClusterEvent::Node(_) | ClusterEvent::Namespace
        )
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, world: &dyn World) -> bool {
        let terms = || pod.near.required.iter().chain(&pod.apart.required);
        match event {
            // One that matches is near now.
            ClusterEvent::PodPlaced(other) => pod.near.required.iter().any(|term| term.matches(other, world)),
            // One that it had to be apart from, or that had to be apart from it; or the last of its group has gone.
            ClusterEvent::PodLeft(other) => {
                let mut near = pod.near.required.iter();
                pod.apart.required.iter().any(|term| term.matches(other, world))
                    || other.apart.required.iter().any(|term| term.matches(pod, world))
                    || (near.any(|term| term.matches(other, world)) && is_its_like(pod, world))
            }
            // A node outside of all domains isn't near anything, but nothing is there to be apart from.
            ClusterEvent::Node(node) => {
                let has = |term: &Arc<Term>| {
                    let labels = node.metadata.labels.as_ref();
                    labels.is_some_and(|labels| labels.contains_key(&term.topology_key))
                };
                pod.near.required.is_empty() || terms().any(has)
            }
            ClusterEvent::Namespace => terms().any(|term| term.asks_for_namespaces()),
            _ => false,
        }
    }
}

/// The first of a group that wants to be near itself may go anywhere.
fn is_its_like(pod: &PodInfo, world: &dyn World) -> bool {
    !pod.near.required.is_empty() && matches_all(&pod.near.required, pod, world)
}

/// Where the pods are that all the terms match.
fn question(terms: &[Arc<Term>]) -> Arc<Question> {
    let mut keys: Vec<Key> = Vec::new();
    for term in terms {
        let key = Key::Label(term.topology_key.clone());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Arc::new(Question {
        who: Who::Matched(terms.to_vec()),
        nodes: Nodes::default(),
        keys,
        is_ranked: false,
    })
}

fn matches_all(terms: &[Arc<Term>], pod: &PodInfo, world: &dyn World) -> bool {
    terms.iter().all(|term| term.matches(pod, world))
}

/// A number for domains (key, value).
type Domains = HashMap<(String, String), i64>;

/// What would be different from what is counted, if pods were added and removed.
#[derive(Clone, Default)]
struct Changed {
    near: Domains,
    apart: Vec<Domains>,
    unwelcome: Domains,
}

#[derive(Clone)]
struct Counts<'a> {
    cycle: Cycle<'a>,
    /// Pods that match all of this pod's affinity terms.
    near: Option<Answer>,
    /// Pods that match one of its anti-affinity terms, term by term.
    apart: Vec<Answer>,
    /// Pods one of whose anti-affinity terms this pod matches.
    unwelcome: Arc<Vec<(Arc<Topology>, Vec<i64>)>>,
    changed: Changed,
}

impl Counts<'_> {
    fn change(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        let (pod, world) = (self.cycle.pod, &*self.cycle.snapshot.world);
        let near = &pod.near.required;
        if !near.is_empty() && matches_all(near, other, world) {
            let mut keys: Vec<&str> = near.iter().map(|term| term.topology_key.as_str()).collect();
            keys.sort();
            keys.dedup();
            keys.iter().for_each(|key| bump(&mut self.changed.near, key, node, by));
        }
        for (term, changed) in pod.apart.required.iter().zip(&mut self.changed.apart) {
            if term.matches(other, world) {
                bump(changed, &term.topology_key, node, by);
            }
        }
        for term in other.apart.required.iter().filter(|term| term.matches(pod, world)) {
            bump(&mut self.changed.unwelcome, &term.topology_key, node, by);
        }
    }

    fn is_near(&self, node: &NodeInfo, near: &Answer) -> bool {
        let mut everywhere = true;
        for (at, key) in near.tally.question().keys.iter().enumerate() {
            let Key::Label(key) = key else { continue };
            let Some(count) = near.at(at, node) else {
                return false;
            };
            everywhere &= i64::from(count) + changed(&self.changed.near, key, node) > 0;
        }
        let counted = || i64::try_from(near.tally.total).unwrap_or(i64::MAX) + self.changed.near.values().sum::<i64>();
        everywhere || (counted() == 0 && is_its_like(self.cycle.pod, &*self.cycle.snapshot.world))
    }
}

fn bump(domains: &mut Domains, key: &str, node: &NodeInfo, by: i64) {
    if let Some(value) = node.label(key) {
        *domains.entry((key.to_owned(), value.to_owned())).or_default() += by;
    }
}

fn changed(domains: &Domains, key: &str, node: &NodeInfo) -> i64 {
    if domains.is_empty() {
        return 0;
    }
    let place = node.label(key).map(|value| (key.to_owned(), value.to_owned()));
    place.and_then(|place| domains.get(&place).copied()).unwrap_or(0)
}

impl NodeFilter for Counts<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        if let Some(near) = &self.near
            && !self.is_near(node, near)
        {
            return Err(Reject::for_good(NOT_NEAR));
        }
        let terms = &self.cycle.pod.apart.required;
        for ((term, answer), domains) in terms.iter().zip(&self.apart).zip(&self.changed.apart) {
            let count = i64::from(answer.at(0, node).unwrap_or(0));
            if count + changed(domains, &term.topology_key, node) > 0 {
                return Err(Reject::for_now(NOT_APART));
            }
        }
        let mut rest = self.changed.unwelcome.clone();
        for (topology, counts) in self.unwelcome.iter() {
            let mut count = topology
                .place(node)
                .and_then(|place| counts.get(place).copied())
                .unwrap_or(0);
            if let (Key::Label(key), Some(value)) = (topology.key(), topology.value_of(node))
                && !rest.is_empty()
            {
                count += rest.remove(&(key.clone(), value.to_owned())).unwrap_or(0);
            }
            if count > 0 {
                return Err(Reject::for_now(NOT_WELCOME));
            }
        }
        // What would be there by pods that are added, and isn't yet.
        let is_here = |((key, value), count): (&(String, String), &i64)| *count > 0 && node.label(key) == Some(value);
        match rest.iter().any(is_here) {
            true => Err(Reject::for_now(NOT_WELCOME)),
            false => Ok(()),
        }
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

/// What a node's domains are worth.
struct Liked {
    /// Pods that this one likes, with the weight of each.
    own: Vec<(Answer, i64)>,
    /// What others think of it.
    others: Vec<(Arc<Topology>, Vec<i64>)>,
}

impl Scorer for Liked {
    fn score(&self, node: &NodeInfo) -> i64 {
        let own = self
            .own
            .iter()
            .filter_map(|(answer, weight)| Some(i64::from(answer.at(0, node)?) * weight));
        let others = self
            .others
            .iter()
            .filter_map(|(topology, worth)| worth.get(topology.place(node)?).copied());
        own.chain(others).sum()
    }
    fn normalize(&self, _: &[&Arc<NodeInfo>], scores: &mut [i64]) {
        let (least, most) = (
            scores.iter().copied().min().unwrap_or(0),
            scores.iter().copied().max().unwrap_or(0),
        );
        for score in scores.iter_mut() {
            *score = if most > least {
                (MAX_SCORE as f64 * ((*score - least) as f64 / (most - least) as f64)) as i64
            } else {
                0
            };
        }
    }
}
