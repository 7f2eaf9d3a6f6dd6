//! What else the scheduler reads: namespaces, volumes, budgets, devices, and the objects that own pods.

use crate::ledger::Ledger;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels::Labels;
use std::collections::BTreeMap;
use std::sync::Arc;

pub trait World: Send + Sync {
    fn namespace_labels(&self, name: &str) -> Option<Labels>;
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>>;
    fn csi_driver(&self, name: &str) -> Option<Arc<CSIDriver>>;
    /// How much room there is for volumes, of all classes.
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>>;
    fn attachments_to(&self, node: &str) -> Vec<Arc<VolumeAttachment>>;
    fn budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>>;
    /// The selectors of the services and the owner that the pod belongs to: its like are spread by them.
    fn belongs_to(&self, pod: &Pod) -> Vec<LabelSelector>;
    fn devices(&self) -> Arc<Ledger>;
}

/// A world that is written down, for tests and simulations.
#[derive(Clone, Default)]
pub struct Fixed {
    pub namespaces: BTreeMap<String, Labels>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
    pub csi_nodes: Vec<Arc<CSINode>>,
    pub csi_drivers: Vec<Arc<CSIDriver>>,
    pub capacities: Vec<Arc<CSIStorageCapacity>>,
    pub attachments: Vec<Arc<VolumeAttachment>>,
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    pub selectors: Vec<LabelSelector>,
    pub devices: Arc<Ledger>,
}

impl World for Fixed {
    fn namespace_labels(&self, name: &str) -> Option<Labels> {
        self.namespaces.get(name).cloned()
    }
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        let is_it = |c: &&Arc<PersistentVolumeClaim>| {
            c.metadata.namespace.as_deref() == Some(namespace) && c.metadata.name.as_deref() == Some(name)
        };
        self.claims.iter().find(is_it).cloned()
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes
            .iter()
            .find(|v| v.metadata.name.as_deref() == Some(name))
            .cloned()
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.clone()
    }
    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes
            .iter()
            .find(|c| c.metadata.name.as_deref() == Some(name))
            .cloned()
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.csi_nodes
            .iter()
            .find(|c| c.metadata.name.as_deref() == Some(name))
            .cloned()
    }
    fn csi_driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.csi_drivers
            .iter()
            .find(|d| d.metadata.name.as_deref() == Some(name))
            .cloned()
    }
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.capacities.clone()
    }
    fn attachments_to(&self, node: &str) -> Vec<Arc<VolumeAttachment>> {
        let there = self.attachments.iter().filter(|a| a.spec.node_name == node);
        there.cloned().collect()
    }
    fn budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets
            .iter()
            .filter(|b| b.metadata.namespace.as_deref() == Some(namespace))
            .cloned()
            .collect()
    }
    fn belongs_to(&self, _: &Pod) -> Vec<LabelSelector> {
        self.selectors.clone()
    }
    fn devices(&self) -> Arc<Ledger> {
        self.devices.clone()
    }
}
