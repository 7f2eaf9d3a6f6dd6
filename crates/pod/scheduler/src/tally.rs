//! How many pods of a kind there are in each domain, kept up to date event by event rather than counted for each decision.
//!
//! A [`Question`] says which pods, on which nodes, and what a domain is. It is answered by counting once; from then on each
//! pod and node that comes, goes or changes is added or taken away. What is counted doesn't depend on when it was asked first.

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::select::{node_fits, untolerated};
use crate::selector::Selector;
use crate::term::Term;
use crate::topology::{Key, Topology};
use crate::world::World;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    pub who: Who,
    pub nodes: Nodes,
    /// The counts are kept for each of them.
    pub keys: Vec<Key>,
    /// Whether the least count of a domain is asked for, and how many domains there are.
    pub is_ranked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Pods that all terms match.
    Matched(Vec<Arc<Term>>),
    /// Pods of the namespace that are selected and aren't being deleted.
    Like { namespace: String, selector: Selector },
}

impl Who {
    pub fn includes(&self, pod: &PodInfo, world: &dyn World) -> bool {
        match self {
            Who::Matched(terms) => terms.iter().all(|term| term.matches(pod, world)),
            Who::Like { namespace, selector } => {
                pod.key.namespace == *namespace && !pod.is_deleting() && selector.matches(pod.labels())
            }
        }
    }
    pub fn asks_for_namespaces(&self) -> bool {
        matches!(self, Who::Matched(terms) if terms.iter().any(|term| term.asks_for_namespaces()))
    }
}

/// Which nodes' pods count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Nodes {
    /// Those with all these labels.
    pub with: Vec<String>,
    /// Those that the pod's node selector and affinity allow.
    pub allowed: Option<Needs>,
    /// Those whose taints it tolerates.
    pub tolerated: Option<Needs>,
}

impl Nodes {
    pub fn include(&self, node: &NodeInfo) -> bool {
        self.with.iter().all(|key| node.label(key).is_some())
            && self
                .allowed
                .as_ref()
                .is_none_or(|needs| node_fits(&needs.pod, node.node()))
            && self
                .tolerated
                .as_ref()
                .is_none_or(|needs| untolerated(&needs.pod, node.node()).is_none())
    }
}

/// What a pod needs of nodes: pods that need the same are equal in it.
#[derive(Clone, Debug)]
pub struct Needs {
    text: Arc<str>,
    pod: Arc<Pod>,
}

impl Needs {
    /// Node selector and required affinity; `None`: nothing.
    pub fn of_nodes(pod: &Arc<Pod>) -> Option<Needs> {
        let spec = pod.spec.as_ref()?;
        let affinity = crate::select::required(pod);
        let selector = spec.node_selector.as_ref().filter(|s| !s.is_empty());
        if affinity.is_none() && selector.is_none() {
            return None;
        }
        Some(Needs {
            text: serde_json::json!([selector, affinity]).to_string().into(),
            pod: pod.clone(),
        })
    }

    pub fn of_taints(pod: &Arc<Pod>) -> Needs {
        Needs {
            text: serde_json::json!(crate::select::tolerations(pod)).to_string().into(),
            pod: pod.clone(),
        }
    }
}

impl PartialEq for Needs {
    fn eq(&self, other: &Needs) -> bool {
        self.text == other.text
    }
}
impl Eq for Needs {}
impl Hash for Needs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// The counts that answer a question.
#[derive(Clone, Debug)]
pub struct Tally {
    question: Arc<Question>,
    /// For each key, by the domain's number.
    counts: Vec<Vec<u32>>,
    /// How many of the nodes are in each domain of the first key; only if ranked.
    nodes: Vec<u32>,
    /// How many domains have a count; only if ranked.
    ranks: BTreeMap<u32, u32>,
    /// All counts together.
    pub total: u64,
}

/// A tally with the topologies of its keys, for one decision.
#[derive(Clone, Debug)]
pub struct Answer {
    pub tally: Arc<Tally>,
    pub places: Vec<Arc<Topology>>,
}

impl Answer {
    /// How many there are in the node's domain; `None`: it is in none.
    pub fn at(&self, key: usize, node: &NodeInfo) -> Option<u32> {
        let place = self.places[key].place(node)?;
        Some(self.tally.count(key, place))
    }
}

impl Tally {
    pub fn new(question: Arc<Question>) -> Tally {
        Tally {
            counts: vec![Vec::new(); question.keys.len()],
            nodes: Vec::new(),
            ranks: BTreeMap::new(),
            total: 0,
            question,
        }
    }

    pub fn question(&self) -> &Arc<Question> {
        &self.question
    }
    pub fn count(&self, key: usize, place: usize) -> u32 {
        self.counts[key].get(place).copied().unwrap_or(0)
    }
    /// Whether any of the nodes is in the domain.
    pub fn is_domain(&self, place: usize) -> bool {
        self.nodes.get(place).is_some_and(|n| *n > 0)
    }
    pub fn domains(&self) -> usize {
        self.ranks.values().map(|n| *n as usize).sum()
    }

    /// The least count of a domain, if these domains (each named once) had the counts given with them; 0 if there is none.
    pub fn least(&self, changed: &[(usize, i64)]) -> i64 {
        let unchanged = self.ranks.iter().find(|(count, domains)| {
            let there = changed.iter().filter(|(place, _)| self.count(0, *place) == **count);
            **domains as usize > there.count()
        });
        let unchanged = unchanged.map(|(count, _)| i64::from(*count));
        let counts = unchanged.into_iter().chain(changed.iter().map(|(_, count)| *count));
        counts.min().unwrap_or(0)
    }

    pub fn enter(&mut self, node: &NodeInfo, places: &[&Topology], world: &dyn World) {
        if !self.question.nodes.include(node) {
            return;
        }
        if self.question.is_ranked
            && let Some(place) = places[0].place(node)
        {
            if self.nodes.len() <= place {
                self.nodes.resize(place + 1, 0);
            }
            self.nodes[place] += 1;
            if self.nodes[place] == 1 {
                self.rank(self.count(0, place), 1);
            }
        }
        self.all(node, places, world, 1);
    }

    /// The node, with its pods, as it was when it was counted.
    pub fn leave(&mut self, node: &NodeInfo, places: &[&Topology], world: &dyn World) {
        if !self.question.nodes.include(node) {
            return;
        }
        self.all(node, places, world, -1);
        if self.question.is_ranked
            && let Some(place) = places[0].place(node)
        {
            self.nodes[place] -= 1;
            if self.nodes[place] == 0 {
                self.rank(self.count(0, place), -1);
            }
        }
    }

    fn all(&mut self, node: &NodeInfo, places: &[&Topology], world: &dyn World, by: i32) {
        let question = self.question.clone();
        for _ in node.pods().iter().filter(|pod| question.who.includes(pod, world)) {
            self.add(node, places, by);
        }
    }

    /// A pod that counts came to the node (1), or left it (-1).
    pub fn shift(&mut self, node: &NodeInfo, places: &[&Topology], by: i32) {
        if self.question.nodes.include(node) {
            self.add(node, places, by);
        }
    }

    fn add(&mut self, node: &NodeInfo, places: &[&Topology], by: i32) {
        for (key, topology) in places.iter().enumerate() {
            let Some(place) = topology.place(node) else { continue };
            let counts = &mut self.counts[key];
            if counts.len() <= place {
                counts.resize(place + 1, 0);
            }
            let old = counts[place];
            let new = old.saturating_add_signed(by);
            counts[place] = new;
            self.total = self.total.saturating_add_signed(by.into());
            if key == 0 && self.question.is_ranked && self.is_domain(place) {
                self.rank(old, -1);
                self.rank(new, 1);
            }
        }
    }

    fn rank(&mut self, count: u32, by: i32) {
        let domains = self.ranks.entry(count).or_default();
        *domains = domains.saturating_add_signed(by);
        if *domains == 0 {
            self.ranks.remove(&count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Domains with these counts, by their numbers.
    fn tally(counts: &[u32]) -> Tally {
        let question = Question {
            who: Who::Matched(Vec::new()),
            nodes: Nodes::default(),
            keys: Vec::new(),
            is_ranked: true,
        };
        let mut tally = Tally::new(Arc::new(question));
        tally.counts = vec![counts.to_vec()];
        tally.nodes = vec![1; counts.len()];
        counts.iter().for_each(|count| tally.rank(*count, 1));
        tally
    }

    #[test]
    fn the_least_count_follows_what_is_tried() {
        type Case<'a> = (&'a [u32], &'a [(usize, i64)], i64);
        let cases: [Case; 9] = [
            (&[], &[], 0),
            (&[3, 1, 2], &[], 1),
            // The least goes up: another is the least now, or it still is.
            (&[3, 1, 2], &[(1, 5)], 2),
            (&[3, 1, 4], &[(1, 2)], 2),
            // Another one of the same count stays.
            (&[1, 1, 2], &[(1, 5)], 1),
            (&[1, 1, 2], &[(0, 5), (1, 5)], 2),
            // One goes below all others.
            (&[3, 1, 2], &[(0, 0)], 0),
            // All are changed.
            (&[3, 1], &[(0, 7), (1, 6)], 6),
            (&[2], &[(0, 3)], 3),
        ];
        for (counts, changed, least) in cases {
            assert_eq!(tally(counts).least(changed), least, "{counts:?} with {changed:?}");
        }
    }
}
