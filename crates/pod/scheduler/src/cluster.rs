//! What is known of nodes and the pods on them.
//!
//! A pod is *assumed* to be on its node from the decision on, until the API shows it there: the next decision already
//! counts it. Decisions are made on a [`Snapshot`], which shares the nodes with the cluster; whoever changes a node that is
//! shared copies it. Which nodes have changed is noted until a snapshot takes it over: at most all of them.

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::world::World;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{ApiObject, ObjectKey};
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

#[derive(Default)]
pub struct Cluster {
    slots: Vec<Arc<NodeInfo>>,
    names: HashMap<String, u32>,
    free: Vec<u32>,
    /// Which node each pod is on.
    places: HashMap<ByUid, Place>,
    /// Which node pods wait for victims to leave, by the pods' uid.
    nominated: HashMap<String, u32>,
    /// Volumes that are promised to claims, until the API shows it.
    promised: Arc<BTreeMap<String, ObjectKey>>,
    changed: BTreeSet<u32>,
    namespaces_changed: bool,
}

/// A pod that is found by its uid, which stands in it already.
struct ByUid(Arc<Pod>);

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        self.0.uid()
    }
}
impl Hash for ByUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.uid().hash(state);
    }
}
impl PartialEq for ByUid {
    fn eq(&self, other: &ByUid) -> bool {
        self.0.uid() == other.0.uid()
    }
}
impl Eq for ByUid {}

struct Place {
    node: u32,
    is_assumed: bool,
}

impl Cluster {
    /// A picture made from nothing.
    pub fn snapshot(&self, world: Arc<dyn World>) -> Snapshot {
        let mut snapshot = Snapshot::new(world);
        for (index, node) in self.slots.iter().enumerate() {
            snapshot.set(index as u32, Some(node.clone()));
        }
        snapshot.promised = self.promised.clone();
        snapshot.settle();
        snapshot
    }

    /// Brings up to date the one picture that is kept of this cluster.
    pub fn update(&mut self, snapshot: &mut Snapshot) {
        if std::mem::take(&mut self.namespaces_changed) {
            snapshot.namespaces_changed();
        }
        for index in std::mem::take(&mut self.changed) {
            snapshot.set(index, self.slots.get(index as usize).cloned());
        }
        snapshot.promised = self.promised.clone();
        snapshot.settle();
    }

    fn slot(&mut self, name: &str) -> u32 {
        if let Some(index) = self.names.get(name) {
            return *index;
        }
        let index = self.free.pop().unwrap_or(self.slots.len() as u32);
        let node = Arc::new(NodeInfo::new(index, name));
        match self.slots.get_mut(index as usize) {
            Some(slot) => *slot = node,
            None => self.slots.push(node),
        }
        self.names.insert(name.to_owned(), index);
        index
    }

    fn edit<T>(&mut self, index: u32, f: impl FnOnce(&mut NodeInfo) -> T) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        self.changed.insert(index);
        let result = f(Arc::make_mut(slot));
        if slot.is_empty() {
            self.names.remove(slot.name());
            self.free.push(index);
        }
        Some(result)
    }

    /// The node of this name, if the API shows one.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        let slot = self.slots.get(*self.names.get(name)? as usize)?;
        slot.is_known().then_some(slot)
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let index = self.slot(node.name());
        self.edit(index, |slot| slot.set_node(Some(node)));
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(index) = self.names.get(name) {
            self.edit(*index, |slot| slot.set_node(None));
        }
    }

    /// The API shows the pod on its node.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) {
        self.remove_pod(pod.uid());
        self.place(pod, false);
    }

    pub fn assume(&mut self, pod: Arc<PodInfo>) {
        self.remove_pod(pod.uid());
        self.clear_nomination(pod.uid());
        self.place(pod, true);
    }

    fn place(&mut self, pod: Arc<PodInfo>, is_assumed: bool) {
        let Some(name) = pod.node_name() else { return };
        let node = self.slot(name);
        self.places.insert(ByUid(pod.pod.clone()), Place { node, is_assumed });
        self.edit(node, |slot| slot.add(pod));
    }

    /// The binding failed. What the API has shown meanwhile stays.
    pub fn forget(&mut self, uid: &str) {
        if self.places.get(uid).is_some_and(|p| p.is_assumed) {
            self.remove_pod(uid);
        }
    }

    /// How many nodes there are, pods on them, and of these such as the API doesn't show there yet.
    pub fn sizes(&self) -> [(&'static str, usize); 3] {
        let assumed = self.places.values().filter(|p| p.is_assumed).count();
        [
            ("nodes", self.names.len()),
            ("pods", self.places.len()),
            ("assumed_pods", assumed),
        ]
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let place = self.places.remove(uid)?;
        self.edit(place.node, |slot| slot.remove(uid))?
    }

    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.clear_nomination(pod.uid());
        let index = self.slot(node);
        self.nominated.insert(pod.uid().to_owned(), index);
        self.edit(index, |slot| {
            slot.nominated.push(pod);
            slot.nominated.sort_by(|a, b| a.key.cmp(&b.key));
        });
    }
    pub fn clear_nomination(&mut self, uid: &str) {
        if let Some(index) = self.nominated.remove(uid) {
            self.edit(index, |slot| slot.nominated.retain(|p| p.uid() != uid));
        }
    }

    /// Less important pods than this that wait for the node have to be decided anew.
    pub fn nominated_on(&self, node: &str) -> &[Arc<PodInfo>] {
        let slot = self.names.get(node).and_then(|index| self.slots.get(*index as usize));
        slot.map(|slot| slot.nominated.as_slice()).unwrap_or_default()
    }

    pub fn promise(&mut self, volume: &str, claim: ObjectKey) {
        Arc::make_mut(&mut self.promised).insert(volume.to_owned(), claim);
    }
    pub fn release(&mut self, volume: &str) {
        Arc::make_mut(&mut self.promised).remove(volume);
    }

    /// What was found by namespaces' labels isn't so any more.
    pub fn namespaces_changed(&mut self) {
        self.namespaces_changed = true;
    }
}
