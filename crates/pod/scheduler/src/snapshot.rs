//! The cluster as one scheduling cycle sees it. It is kept from cycle to cycle and brought up to date by what has changed; what
//! it says is the same as if it had been made anew.

use crate::counts::{Counts, Worth};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::tally::{Answer, Question};
use crate::world::World;
use keelson_client::ObjectKey;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub struct Snapshot {
    /// By index; only nodes that exist.
    slots: Vec<Option<Arc<NodeInfo>>>,
    names: HashMap<String, u32>,
    /// In which nodes are looked at: from each zone in turn.
    order: Vec<u32>,
    is_reordered: bool,
    /// How often it was another node that had some index, or was elsewhere.
    layout: u64,
    /// Volumes that are promised to claims.
    pub promised: Arc<BTreeMap<String, ObjectKey>>,
    pub world: Arc<dyn World>,
    counts: Mutex<Counts>,
    /// How many nodes have each image.
    images: HashMap<String, usize>,
    /// How often pods on nodes use each claim.
    claims: HashMap<ObjectKey, usize>,
    /// How many nodes have a taint that pods would rather avoid.
    softly_tainted: usize,
}

impl Snapshot {
    pub fn new(world: Arc<dyn World>) -> Snapshot {
        Snapshot {
            slots: Vec::new(),
            names: HashMap::new(),
            order: Vec::new(),
            is_reordered: false,
            layout: 0,
            promised: Arc::default(),
            world,
            counts: Mutex::default(),
            images: HashMap::new(),
            claims: HashMap::new(),
            softly_tainted: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.at(*self.names.get(name)?)
    }
    pub fn at(&self, index: u32) -> Option<&Arc<NodeInfo>> {
        self.slots.get(index as usize)?.as_ref()
    }
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// As long as this is the same, indexes are the same nodes', with the same labels and taints.
    pub fn layout(&self) -> u64 {
        self.layout
    }

    /// What is known now of the node with this index, if there is one.
    pub fn set(&mut self, index: u32, node: Option<Arc<NodeInfo>>) {
        let at = index as usize;
        if self.slots.len() <= at {
            self.slots.resize(at + 1, None);
        }
        let old = self.slots[at].take();
        let new = node.filter(|node| node.is_known());
        if let (Some(old), Some(new)) = (&old, &new)
            && Arc::ptr_eq(old, new)
        {
            self.slots[at] = old.clone().into();
            return;
        }
        self.note(old.as_deref(), new.as_deref());
        let others = self.slots.iter().flatten();
        let counts = self.counts.get_mut();
        counts.changed(old.as_deref(), new.as_deref(), others, &*self.world);
        let has_moved = match (&old, &new) {
            (Some(old), Some(new)) => !old.is_where(new),
            _ => true,
        };
        if has_moved {
            self.is_reordered = true;
            self.layout += 1;
            // A place is used again: the name may have moved to another one already.
            if let Some(old) = &old
                && self.names.get(old.name()) == Some(&index)
            {
                self.names.remove(old.name());
            }
            if let Some(new) = &new {
                self.names.insert(new.name().to_owned(), index);
            }
        }
        self.slots[at] = new;
    }

    fn note(&mut self, old: Option<&NodeInfo>, new: Option<&NodeInfo>) {
        let is_soft =
            |node: Option<&NodeInfo>| node.is_some_and(|n| n.taints().iter().any(|t| t.effect == "PreferNoSchedule"));
        self.softly_tainted += usize::from(is_soft(new));
        self.softly_tainted -= usize::from(is_soft(old));
        let images = |node: Option<&NodeInfo>| node.map(|n| n.images.clone()).unwrap_or_default();
        let (had, has) = (images(old), images(new));
        if !Arc::ptr_eq(&had, &has) {
            has.keys().for_each(|name| change(&mut self.images, name, 1));
            had.keys().for_each(|name| change(&mut self.images, name, -1));
        }
        let (gone, came) = match (old, new) {
            (Some(old), Some(new)) => old.pods_until(new),
            (Some(old), None) => (old.pods().to_vec(), Vec::new()),
            (None, Some(new)) => (Vec::new(), new.pods().to_vec()),
            (None, None) => return,
        };
        for (pods, by) in [(gone, -1), (came, 1)] {
            for key in pods.iter().flat_map(|pod| claims(pod)) {
                change(&mut self.claims, &key, by);
            }
        }
    }

    /// To be called after the last [`set`](Snapshot::set).
    pub fn settle(&mut self) {
        if !std::mem::take(&mut self.is_reordered) {
            return;
        }
        let mut zones: BTreeMap<String, Vec<(&str, u32)>> = BTreeMap::new();
        for node in self.slots.iter().flatten() {
            zones.entry(zone(node)).or_default().push((node.name(), node.index));
        }
        zones.values_mut().for_each(|nodes| nodes.sort());
        let most = zones.values().map(Vec::len).max().unwrap_or(0);
        let turn = |n: usize| zones.values().filter_map(move |nodes| Some(nodes.get(n)?.1));
        self.order = (0..most).flat_map(turn).collect();
    }

    pub fn namespaces_changed(&mut self) {
        self.counts.get_mut().namespaces_changed();
    }

    pub fn ask(&self, question: &Arc<Question>) -> Answer {
        let nodes = self.slots.iter().flatten();
        self.counts.lock().ask(question, nodes, &*self.world)
    }
    /// In how many cases, in each domain, a pod there must be apart from this one.
    pub fn unwelcome(&self, pod: &PodInfo) -> Vec<Worth> {
        self.counts.lock().unwelcome(pod, &*self.world)
    }
    /// What pods that are there think of this one.
    pub fn liked(&self, pod: &PodInfo, hard: i64) -> Vec<Worth> {
        self.counts.lock().liked(pod, &*self.world, hard)
    }
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }
    pub fn uses_of_claim(&self, key: &ObjectKey) -> usize {
        self.claims.get(key).copied().unwrap_or(0)
    }
    pub fn has_soft_taints(&self) -> bool {
        self.softly_tainted > 0
    }
}

fn claims(pod: &PodInfo) -> impl Iterator<Item = ObjectKey> {
    let key = |claim: &crate::pod::Claim| ObjectKey {
        namespace: pod.key.namespace.clone(),
        name: claim.name.clone(),
    };
    pod.claims.iter().map(key)
}

fn change<K: Clone + Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: &K, by: isize) {
    let count = counts.entry(key.clone()).or_default();
    *count = count.saturating_add_signed(by);
    if *count == 0 {
        counts.remove(key);
    }
}

/// Region and zone.
fn zone(node: &NodeInfo) -> String {
    let label = |name: &str, older: &str| {
        node.label(name)
            .or_else(|| node.label(older))
            .unwrap_or_default()
            .to_owned()
    };
    let region = label(
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    );
    let zone = label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
    format!("{region}\0{zone}")
}
