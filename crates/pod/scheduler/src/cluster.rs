//! What is known of nodes and the pods on them, and a picture of it for one scheduling cycle.
//!
//! A pod is *assumed* to be on its node from the decision on, until the API shows it there: the next decision already
//! counts it. A picture shares everything with what it was taken from; whichever changes later copies what it changes.

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::world::World;
use k8s_openapi::api::core::v1::Node;
use keelson_client::{ApiObject, ObjectKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Default)]
pub struct Cluster {
    nodes: BTreeMap<String, Arc<NodeInfo>>,
    /// Which node each pod is on, by uid.
    places: HashMap<String, Place>,
    /// Pods that wait for victims to leave a node, by the pods' uid.
    nominated: HashMap<String, (String, Arc<PodInfo>)>,
    /// Volumes that are promised to claims, until the API shows it.
    promised: BTreeMap<String, ObjectKey>,
}

struct Place {
    node: String,
    is_assumed: bool,
}

/// The cluster as one scheduling cycle sees it.
#[derive(Clone)]
pub struct Snapshot {
    /// Only nodes that exist.
    pub nodes: BTreeMap<String, Arc<NodeInfo>>,
    /// By node.
    pub nominated: BTreeMap<String, Vec<Arc<PodInfo>>>,
    pub promised: BTreeMap<String, ObjectKey>,
    pub world: Arc<dyn World>,
}

impl Cluster {
    pub fn snapshot(&self, world: Arc<dyn World>) -> Snapshot {
        let known = self.nodes.iter().filter(|(_, n)| n.is_known());
        let mut nominated: BTreeMap<String, Vec<Arc<PodInfo>>> = BTreeMap::new();
        for (node, pod) in self.nominated.values() {
            nominated.entry(node.clone()).or_default().push(pod.clone());
        }
        for pods in nominated.values_mut() {
            pods.sort_by(|a, b| a.key.cmp(&b.key));
        }
        Snapshot {
            nodes: known.map(|(name, node)| (name.clone(), node.clone())).collect(),
            nominated,
            promised: self.promised.clone(),
            world,
        }
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let slot = self.nodes.entry(node.name().to_owned()).or_default();
        Arc::make_mut(slot).set_node(Some(node));
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.nodes.get_mut(name) else { return };
        Arc::make_mut(slot).set_node(None);
        if slot.pods().is_empty() {
            self.nodes.remove(name);
        }
    }

    /// The API shows the pod on its node.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) {
        let Some(node) = pod.node_name().map(str::to_owned) else {
            return;
        };
        self.remove_pod(pod.uid());
        self.place(node, pod, false);
    }

    pub fn assume(&mut self, pod: Arc<PodInfo>) {
        let Some(node) = pod.node_name().map(str::to_owned) else {
            return;
        };
        self.remove_pod(pod.uid());
        self.nominated.remove(pod.uid());
        self.place(node, pod, true);
    }

    fn place(&mut self, node: String, pod: Arc<PodInfo>, is_assumed: bool) {
        self.places.insert(
            pod.uid().to_owned(),
            Place {
                node: node.clone(),
                is_assumed,
            },
        );
        Arc::make_mut(self.nodes.entry(node).or_default()).add(pod);
    }

    /// The binding failed. What the API has shown meanwhile stays.
    pub fn forget(&mut self, uid: &str) {
        if self.places.get(uid).is_some_and(|p| p.is_assumed) {
            self.remove_pod(uid);
        }
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let place = self.places.remove(uid)?;
        let slot = self.nodes.get_mut(&place.node)?;
        let removed = Arc::make_mut(slot).remove(uid);
        if !slot.is_known() && slot.pods().is_empty() {
            self.nodes.remove(&place.node);
        }
        removed
    }

    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.nominated.insert(pod.uid().to_owned(), (node.to_owned(), pod));
    }
    pub fn clear_nomination(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    pub fn promise(&mut self, volume: &str, claim: ObjectKey) {
        self.promised.insert(volume.to_owned(), claim);
    }
    pub fn release(&mut self, volume: &str) {
        self.promised.remove(volume);
    }
}
