//! The pools that reach a node: of each, the slices of its newest generation, if all of them are there and agree.

use super::slice::{Amounts, Device, PoolId, Scope, Slice};
use crate::select;
use k8s_openapi::api::core::v1::Node;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// All slices, by whom they reach.
#[derive(Debug, Default)]
pub struct Reach {
    /// Those of one node each.
    by_node: HashMap<String, Vec<Arc<Slice>>>,
    others: Vec<Arc<Slice>>,
    by_pool: HashMap<PoolId, Vec<Arc<Slice>>>,
}

/// A pool, as it is seen from a node.
#[derive(Debug)]
pub struct Pool {
    pub id: PoolId,
    /// Slices are missing: nothing is allocated from it.
    pub is_incomplete: bool,
    /// What is wrong with it.
    pub fault: Option<String>,
    /// With devices that the node may reach, by name.
    pub slices: Vec<Arc<Slice>>,
    /// Of the same pool, out of reach: their devices consume counters, too.
    pub elsewhere: Vec<Arc<Slice>>,
    pub counters: BTreeMap<String, Amounts>,
}

impl Scope {
    pub fn includes(&self, node: &Node) -> bool {
        match self {
            Scope::Node(name) => node.metadata.name.as_ref() == Some(name),
            Scope::All => true,
            Scope::Selected(selector) => select::matches_any(selector, node),
            Scope::Nowhere => false,
        }
    }
}

impl Slice {
    fn reaches(&self, node: &Node) -> bool {
        match &self.scope {
            Some(scope) => scope.includes(node),
            None => self.devices.iter().any(|device| device.scope.includes(node)),
        }
    }
    /// Whether one of its devices can be had on the node, to which the slice reaches.
    pub fn offers(&self, device: &Device, node: &Node) -> bool {
        self.scope.is_some() || device.scope.includes(node)
    }
}

impl Reach {
    pub fn of(slices: impl IntoIterator<Item = Arc<Slice>>) -> Reach {
        let mut reach = Reach::default();
        for slice in slices {
            reach.by_pool.entry(slice.pool.clone()).or_default().push(slice.clone());
            match &slice.scope {
                Some(Scope::Node(node)) => reach.by_node.entry(node.clone()).or_default().push(slice),
                _ => reach.others.push(slice),
            }
        }
        reach
    }

    /// In the order in which devices are tried: by name, those that need something done before a pod starts last.
    pub fn pools(&self, node: &Node) -> Vec<Pool> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let own = self.by_node.get(name).into_iter().flatten();
        let mut newest: BTreeMap<&PoolId, Vec<&Arc<Slice>>> = BTreeMap::new();
        for slice in own.chain(&self.others).filter(|s| !s.is_unknown && s.reaches(node)) {
            let slices = newest.entry(&slice.pool).or_default();
            match slices.first().map_or(slice.generation, |s| s.generation) {
                known if slice.generation < known => {}
                known => {
                    if slice.generation > known {
                        slices.clear();
                    }
                    slices.push(slice);
                }
            }
        }
        let mut pools: Vec<Pool> = newest.into_values().filter_map(|slices| self.pool(slices)).collect();
        pools.sort_by_key(|pool| pool.slices.iter().any(|slice| slice.has_binding_conditions()));
        pools
    }

    /// `None`: a newer generation is there, which doesn't reach the node.
    fn pool(&self, mut here: Vec<&Arc<Slice>>) -> Option<Pool> {
        let (id, generation, count) = here.first().map(|s| (s.pool.clone(), s.generation, s.slices))?;
        let mut pool = Pool {
            is_incomplete: false,
            fault: None,
            slices: Vec::new(),
            elsewhere: Vec::new(),
            counters: BTreeMap::new(),
            id,
        };
        let mut elsewhere = Vec::new();
        if here.len() as i64 != count {
            let all = self.by_pool.get(&pool.id).into_iter().flatten();
            if all.clone().any(|slice| slice.generation > generation) {
                return None;
            }
            let all = all.filter(|slice| slice.generation == generation && !slice.is_unknown);
            let known: HashSet<&str> = here.iter().map(|slice| slice.name.as_str()).collect();
            elsewhere = all.filter(|slice| !known.contains(slice.name.as_str())).collect();
            if (here.len() + elsewhere.len()) as i64 != count {
                pool.is_incomplete = true;
                return Some(pool);
            }
        }
        here.sort_by(|a, b| a.name.cmp(&b.name));
        pool.fill(&here, &elsewhere);
        Some(pool)
    }
}

impl Pool {
    pub fn is_usable(&self) -> bool {
        !self.is_incomplete && self.fault.is_none()
    }

    fn fill(&mut self, here: &[&Arc<Slice>], elsewhere: &[&Arc<Slice>]) {
        let with_devices = |slices: &[&Arc<Slice>]| -> Vec<Arc<Slice>> {
            let slices = slices.iter().filter(|slice| slice.counters.is_empty());
            slices.map(|slice| Arc::clone(slice)).collect()
        };
        (self.slices, self.elsewhere) = (with_devices(here), with_devices(elsewhere));
        let mut names = HashSet::new();
        for device in self.slices.iter().flat_map(|slice| &slice.devices) {
            if !names.insert(&device.id.device) {
                self.fault = Some(format!("duplicate device name {}", device.id.device));
                return;
            }
        }
        for (name, counters) in here.iter().chain(elsewhere).flat_map(|slice| &slice.counters) {
            if self.counters.insert(name.clone(), counters.clone()).is_some() {
                self.fault = Some(format!("duplicate counter set name {name}"));
                return;
            }
        }
        self.fault = self.unknown_counter();
    }

    fn unknown_counter(&self) -> Option<String> {
        let devices = self
            .slices
            .iter()
            .chain(&self.elsewhere)
            .flat_map(|slice| &slice.devices);
        for (set, consumed) in devices.flat_map(|device| &device.consumes) {
            let Some(counters) = self.counters.get(set) else {
                return Some(format!("counter set {set} not found"));
            };
            if let Some(name) = consumed.keys().find(|name| !counters.contains_key(*name)) {
                return Some(format!("counter {name} not found in counter set {set}"));
            }
        }
        None
    }
}
