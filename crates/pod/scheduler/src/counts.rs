//! Everything that is counted for plug-ins, kept up to date by the differences between two states of a node.

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::residents::{Resident, Residents};
use crate::tally::{Answer, Question, Tally};
use crate::topology::{Key, Topology};
use crate::world::World;
use std::collections::HashMap;
use std::sync::Arc;

/// As many questions are kept answered. Each costs four bytes a domain, and a look at each pod that changes; beyond this the
/// one that wasn't asked for the longest is forgotten, and would be counted anew.
const MOST_TALLIES: usize = 256;

#[derive(Debug, Default)]
pub struct Counts {
    topologies: HashMap<Key, Arc<Topology>>,
    tallies: HashMap<Arc<Question>, Kept>,
    residents: Residents,
    asked: u64,
}

#[derive(Debug)]
struct Kept {
    tally: Arc<Tally>,
    asked: u64,
}

/// A number for each domain of a topology.
pub type Worth = (Arc<Topology>, Vec<i64>);

impl Counts {
    /// `nodes` are all that have been reported by [`changed`](Counts::changed).
    pub fn ask<'a>(
        &mut self,
        question: &Arc<Question>,
        nodes: impl Iterator<Item = &'a Arc<NodeInfo>> + Clone,
        world: &dyn World,
    ) -> Answer {
        self.asked += 1;
        if !self.tallies.contains_key(question) {
            if self.tallies.len() >= MOST_TALLIES {
                self.forget_oldest();
            }
            for key in &question.keys {
                self.use_key(key, nodes.clone());
            }
            let mut tally = Tally::new(question.clone());
            let places = places(&self.topologies, &question.keys);
            nodes.for_each(|node| tally.enter(node, &places, world));
            let kept = Kept {
                tally: Arc::new(tally),
                asked: 0,
            };
            self.tallies.insert(question.clone(), kept);
        }
        let topologies = question.keys.iter().filter_map(|key| self.topologies.get(key).cloned());
        let places = topologies.collect();
        let asked = self.asked;
        let tally = self.tallies.get_mut(question).map(|kept| {
            kept.asked = asked;
            kept.tally.clone()
        });
        Answer {
            tally: tally.unwrap_or_else(|| Arc::new(Tally::new(question.clone()))),
            places,
        }
    }

    fn use_key<'a>(&mut self, key: &Key, nodes: impl Iterator<Item = &'a Arc<NodeInfo>>) {
        let topology = self.topologies.entry(key.clone()).or_insert_with(|| {
            let mut topology = Topology::new(key.clone());
            nodes.for_each(|node| topology.enter(node));
            Arc::new(topology)
        });
        Arc::make_mut(topology).users += 1;
    }

    fn drop_key(&mut self, key: &Key) {
        let Some(topology) = self.topologies.get_mut(key) else {
            return;
        };
        let topology = Arc::make_mut(topology);
        topology.users -= 1;
        if topology.users == 0 {
            self.topologies.remove(key);
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.tallies.iter().min_by_key(|(_, kept)| kept.asked);
        if let Some(question) = oldest.map(|(question, _)| question.clone()) {
            self.forget(&question);
        }
    }

    fn forget(&mut self, question: &Arc<Question>) {
        self.tallies.remove(question);
        question.keys.iter().for_each(|key| self.drop_key(key));
    }

    /// What was counted by the labels of namespaces isn't so any more.
    pub fn namespaces_changed(&mut self) {
        let stale = self.tallies.keys().filter(|q| q.who.asks_for_namespaces());
        for question in stale.cloned().collect::<Vec<_>>() {
            self.forget(&question);
        }
    }

    /// A node came, went or changed, or pods on it. `others` are the nodes that are and stay.
    pub fn changed<'a>(
        &mut self,
        old: Option<&NodeInfo>,
        new: Option<&NodeInfo>,
        others: impl Iterator<Item = &'a Arc<NodeInfo>> + Clone,
        world: &dyn World,
    ) {
        if let (Some(old), Some(new)) = (old, new)
            && old.is_where(new)
        {
            let (gone, came) = old.pods_until(new);
            return self.pods_changed(new, &gone, &came, others, world);
        }
        if let Some(old) = old {
            self.tally_all(|tally, places| tally.leave(old, places, world));
            self.reside(old, old.pods(), -1, std::iter::empty());
            let topologies = self.topologies.values_mut();
            topologies.for_each(|topology| Arc::make_mut(topology).leave(old));
        }
        if let Some(new) = new {
            let topologies = self.topologies.values_mut();
            topologies.for_each(|topology| Arc::make_mut(topology).enter(new));
            self.tally_all(|tally, places| tally.enter(new, places, world));
            self.reside(new, new.pods(), 1, others);
        }
    }

    fn tally_all(&mut self, mut f: impl FnMut(&mut Tally, &[&Topology])) {
        for (question, kept) in &mut self.tallies {
            let places = places(&self.topologies, &question.keys);
            f(Arc::make_mut(&mut kept.tally), &places);
        }
    }

    fn pods_changed<'a>(
        &mut self,
        node: &NodeInfo,
        gone: &[Arc<PodInfo>],
        came: &[Arc<PodInfo>],
        others: impl Iterator<Item = &'a Arc<NodeInfo>> + Clone,
        world: &dyn World,
    ) {
        for (question, kept) in &mut self.tallies {
            let counted =
                |pods: &[Arc<PodInfo>]| pods.iter().filter(|p| question.who.includes(p, world)).count() as i32;
            let by = counted(came) - counted(gone);
            if by != 0 {
                let places = places(&self.topologies, &question.keys);
                Arc::make_mut(&mut kept.tally).shift(node, &places, by);
            }
        }
        self.reside(node, gone, -1, others.clone());
        self.reside(node, came, 1, others);
    }

    fn reside<'a>(
        &mut self,
        node: &NodeInfo,
        pods: &[Arc<PodInfo>],
        by: i64,
        others: impl Iterator<Item = &'a Arc<NodeInfo>> + Clone,
    ) {
        for pod in pods.iter().filter(|pod| pod.has_terms()) {
            if by > 0 {
                for key in Residents::keys(pod) {
                    let is_new = !self.topologies.contains_key(&key);
                    self.use_key(&key, others.clone());
                    if is_new && let Some(topology) = self.topologies.get_mut(&key) {
                        Arc::make_mut(topology).enter(node);
                    }
                }
            }
            self.residents.change(pod, node, by, &self.topologies);
            if by < 0 {
                Residents::keys(pod).for_each(|key| self.drop_key(&key));
            }
        }
    }

    /// In how many cases, in each domain, a pod there must be apart from this one. Only topologies where any does.
    pub fn unwelcome(&self, pod: &PodInfo, world: &dyn World) -> Vec<Worth> {
        self.sum(pod, world, |resident, add| add(&resident.apart, 1))
    }

    /// What pods that are there think of this one, in each domain; `hard` is the weight of having to be near.
    pub fn liked(&self, pod: &PodInfo, world: &dyn World, hard: i64) -> Vec<Worth> {
        self.sum(pod, world, |resident, add| {
            if hard != 0 {
                add(&resident.near, hard);
            }
            add(&resident.worth, 1);
        })
    }

    fn sum(
        &self,
        pod: &PodInfo,
        world: &dyn World,
        what: impl Fn(&Resident, &mut dyn FnMut(&HashMap<u32, i64>, i64)),
    ) -> Vec<Worth> {
        let mut sums: Vec<(&str, Worth)> = Vec::new();
        if self.residents.is_empty() {
            return Vec::new();
        }
        for (term, resident) in self.residents.matching(pod, world) {
            let key = term.topology_key.as_str();
            what(resident, &mut |domains, factor| {
                if domains.is_empty() {
                    return;
                }
                let at = sums.iter().position(|(k, _)| *k == key).or_else(|| {
                    let topology = self.topologies.get(&Key::Label(key.to_owned()))?.clone();
                    let zeros = vec![0; topology.len()];
                    sums.push((key, (topology, zeros)));
                    Some(sums.len() - 1)
                });
                let Some(at) = at else { return };
                for (place, count) in domains {
                    sums[at].1.1[*place as usize] += count * factor;
                }
            });
        }
        sums.into_iter().map(|(_, worth)| worth).collect()
    }
}

fn places<'a>(topologies: &'a HashMap<Key, Arc<Topology>>, keys: &[Key]) -> Vec<&'a Topology> {
    let places = keys.iter().filter_map(|key| topologies.get(key).map(|t| &**t));
    places.collect()
}
