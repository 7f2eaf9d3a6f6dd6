//! What pods that are on nodes want of others: their (anti-)affinity terms, each with how many there are of it in each domain.
//!
//! A pod to be decided needs those that match it. They are found by a label that whatever a term matches must have; terms
//! without such a label are looked at one by one.

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::term::Term;
use crate::topology::{Key, Topology};
use crate::world::World;
use std::collections::HashMap;
use std::sync::Arc;

/// By a domain's number.
type Domains = HashMap<u32, i64>;

/// One term, with all who have it.
#[derive(Debug, Default)]
pub struct Resident {
    /// Who must be apart.
    pub apart: Domains,
    /// Who must be near.
    pub near: Domains,
    /// The weights of those who would like to be near, less those of those who would like to be apart.
    pub worth: Domains,
    users: usize,
}

#[derive(Debug, Default)]
pub struct Residents {
    terms: HashMap<Arc<Term>, Resident>,
    anchored: HashMap<String, HashMap<String, Vec<Arc<Term>>>>,
    others: Vec<Arc<Term>>,
}

impl Residents {
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The topology keys of the pod's terms, one for each.
    pub fn keys(pod: &PodInfo) -> impl Iterator<Item = Key> {
        terms(pod).map(|(term, _)| Key::Label(term.topology_key.clone()))
    }

    /// A pod came to the node (1), or left it (-1).
    pub fn change(&mut self, pod: &PodInfo, node: &NodeInfo, by: i64, place_of: &HashMap<Key, Arc<Topology>>) {
        for (term, kind) in terms(pod) {
            let place = place_of
                .get(&Key::Label(term.topology_key.clone()))
                .and_then(|topology| topology.place(node));
            if by > 0 && !self.terms.contains_key(term) {
                self.shelf(term).push(term.clone());
                self.terms.insert(term.clone(), Resident::default());
            }
            let Some(resident) = self.terms.get_mut(term) else {
                continue;
            };
            if let Some(place) = place {
                let (domains, by) = match kind {
                    Kind::Apart => (&mut resident.apart, by),
                    Kind::Near => (&mut resident.near, by),
                    Kind::Liked(weight) => (&mut resident.worth, by * weight),
                };
                let count = domains.entry(place as u32).or_default();
                *count += by;
                if *count == 0 {
                    domains.remove(&(place as u32));
                }
            }
            resident.users = resident.users.saturating_add_signed(by as isize);
            if resident.users == 0 {
                self.terms.remove(term);
                self.shelf(term).retain(|other| other != term);
            }
        }
    }

    fn shelf(&mut self, term: &Term) -> &mut Vec<Arc<Term>> {
        match term.anchor() {
            Some((key, value)) => {
                let values = self.anchored.entry(key.to_owned()).or_default();
                values.entry(value.to_owned()).or_default()
            }
            None => &mut self.others,
        }
    }

    /// The terms that match the pod.
    pub fn matching<'a>(
        &'a self,
        pod: &'a PodInfo,
        world: &'a dyn World,
    ) -> impl Iterator<Item = (&'a Arc<Term>, &'a Resident)> {
        let anchored = pod
            .labels()
            .iter()
            .filter_map(|(key, value)| self.anchored.get(key)?.get(value));
        anchored
            .flatten()
            .chain(&self.others)
            .filter(|term| term.matches(pod, world))
            .filter_map(|term| Some((term, self.terms.get(term)?)))
    }
}

enum Kind {
    Apart,
    Near,
    Liked(i64),
}

fn terms(pod: &PodInfo) -> impl Iterator<Item = (&Arc<Term>, Kind)> {
    let apart = pod.apart.required.iter().map(|term| (term, Kind::Apart));
    let near = pod.near.required.iter().map(|term| (term, Kind::Near));
    let liked = pod.near.preferred.iter().map(|(term, w)| (term, Kind::Liked(*w)));
    let disliked = pod.apart.preferred.iter().map(|(term, w)| (term, Kind::Liked(-*w)));
    apart.chain(near).chain(liked).chain(disliked)
}
