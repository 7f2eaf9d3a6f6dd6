//! A world in memory that can be added to: what volumes, claims, namespaces and services decisions ask for.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::ApiObject;
use keelson_client::labels::{Labels, includes};
use keelson_scheduler::ledger::Ledger;
use keelson_scheduler::world::World;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Default)]
pub struct Memory(RwLock<Things>);

#[derive(Default)]
struct Things {
    namespaces: HashMap<String, Labels>,
    claims: HashMap<(String, String), Arc<PersistentVolumeClaim>>,
    volumes: HashMap<String, Arc<PersistentVolume>>,
    csi_nodes: HashMap<String, Arc<CSINode>>,
    services: Vec<Service>,
    devices: Arc<Ledger>,
}

impl Memory {
    pub fn namespace(&self, name: &str, labels: Labels) {
        self.0.write().namespaces.insert(name.to_owned(), labels);
    }
    pub fn bound(&self, volume: PersistentVolume, claim: PersistentVolumeClaim) {
        let mut things = self.0.write();
        things.volumes.insert(volume.name().to_owned(), Arc::new(volume));
        let key = (claim.namespace().to_owned(), claim.name().to_owned());
        things.claims.insert(key, Arc::new(claim));
    }
    pub fn csi(&self, node: CSINode) {
        self.0.write().csi_nodes.insert(node.name().to_owned(), Arc::new(node));
    }
    pub fn service(&self, service: Service) {
        self.0.write().services.push(service);
    }
    pub fn service_gone(&self, name: &str) {
        self.0.write().services.retain(|service| service.name() != name);
    }
}

impl World for Memory {
    fn namespace_labels(&self, name: &str) -> Option<Labels> {
        self.0.read().namespaces.get(name).cloned()
    }
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.0
            .read()
            .claims
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.0.read().volumes.get(name).cloned()
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.0.read().volumes.values().cloned().collect()
    }
    fn class(&self, _: &str) -> Option<Arc<StorageClass>> {
        None
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.0.read().csi_nodes.get(name).cloned()
    }
    fn csi_driver(&self, _: &str) -> Option<Arc<CSIDriver>> {
        None
    }
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        Vec::new()
    }
    fn attachments_to(&self, _: &str) -> Vec<Arc<VolumeAttachment>> {
        Vec::new()
    }
    fn budgets(&self, _: &str) -> Vec<Arc<PodDisruptionBudget>> {
        Vec::new()
    }
    fn belongs_to(&self, pod: &Pod) -> Vec<LabelSelector> {
        let things = self.0.read();
        let ours = things
            .services
            .iter()
            .filter(|service| service.namespace() == pod.namespace());
        let selectors = ours.filter_map(|service| service.spec.as_ref()?.selector.as_ref());
        let matching = selectors.filter(|s| !s.is_empty() && includes(pod.metadata.labels.as_ref(), s));
        matching
            .map(|labels| LabelSelector {
                match_labels: Some(labels.clone()),
                ..LabelSelector::default()
            })
            .collect()
    }
    fn devices(&self) -> Arc<Ledger> {
        self.0.read().devices.clone()
    }
}
