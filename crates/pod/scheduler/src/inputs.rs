//! What the scheduler watches, and how it keeps cluster and queue up to date by it.

use crate::core::Core;
use crate::events::ClusterEvent;
use crate::ledger::{Effect, Ledger};
use crate::plugins::dynamic_resources::allocation;
use crate::pod::PodInfo;
use crate::world::World;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels::{Labels, includes};
use keelson_client::{ApiObject, Change, Informer, InformerOptions, Informers, Kind, Rest, selection};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Pods that have ended occupy nothing.
const UNFINISHED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// The index of attachments.
const BY_NODE: &str = "node";

pub struct Inputs {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    pub world: Arc<Watched>,
}

/// The world, as it is watched.
pub struct Watched {
    namespaces: Informer<Namespace>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    csi_nodes: Informer<CSINode>,
    csi_drivers: Informer<CSIDriver>,
    capacities: Informer<CSIStorageCapacity>,
    attachments: Informer<VolumeAttachment>,
    budgets: Informer<PodDisruptionBudget>,
    services: Informer<Service>,
    controllers: Informer<ReplicationController>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    resource_claims: Informer<ResourceClaim>,
    resource_slices: Informer<ResourceSlice>,
    device_classes: Informer<DeviceClass>,
    taint_rules: Informer<DeviceTaintRule>,
    devices: Arc<Ledger>,
}

impl Inputs {
    pub fn start(rest: &Rest, stop: &CancellationToken) -> Inputs {
        let informers = Informers::new(rest.clone(), stop.clone());
        let services: Informer<Service> = informers.get();
        services
            .store()
            .index_wanted(|s| selection::wanted(s.namespace(), s.spec.as_ref().and_then(|s| s.selector.as_ref())));
        let attachments: Informer<VolumeAttachment> = informers.get();
        attachments
            .store()
            .add_index(BY_NODE, |a| vec![a.spec.node_name.clone()]);
        let unfinished = InformerOptions {
            fields: UNFINISHED.into(),
            ..InformerOptions::default()
        };
        Inputs {
            pods: Informer::start(rest, unfinished, stop),
            nodes: informers.get(),
            world: Arc::new(Watched {
                namespaces: informers.get(),
                claims: informers.get(),
                volumes: informers.get(),
                classes: informers.get(),
                csi_nodes: informers.get(),
                csi_drivers: informers.get(),
                capacities: informers.get(),
                attachments,
                budgets: informers.get(),
                services,
                controllers: informers.get(),
                replica_sets: informers.get(),
                stateful_sets: informers.get(),
                resource_claims: informers.get(),
                resource_slices: informers.get(),
                device_classes: informers.get(),
                taint_rules: informers.get(),
                devices: Arc::default(),
            }),
        }
    }

    /// From now on `core` is told of every change.
    pub fn feed(&self, core: &Arc<Core>) {
        let told = core.clone();
        self.pods.on_change(move |change| pod_changed(&told, change));
        let told = core.clone();
        self.nodes.on_change(move |change| node_changed(&told, change));
        notify(&self.world.claims, core, ClusterEvent::Volumes);
        notify(&self.world.volumes, core, ClusterEvent::Volumes);
        notify(&self.world.classes, core, ClusterEvent::Volumes);
        notify(&self.world.csi_nodes, core, ClusterEvent::Volumes);
        notify(&self.world.csi_drivers, core, ClusterEvent::Volumes);
        notify(&self.world.capacities, core, ClusterEvent::Volumes);
        notify(&self.world.attachments, core, ClusterEvent::Volumes);
        notify(&self.world.namespaces, core, ClusterEvent::Namespace);
        self.world.feed_devices(core);
    }

    pub async fn synced(&self) {
        let world = &self.world;
        self.nodes.synced().await;
        self.pods.synced().await;
        world.namespaces.synced().await;
        world.claims.synced().await;
        world.volumes.synced().await;
        world.classes.synced().await;
        world.csi_nodes.synced().await;
        world.csi_drivers.synced().await;
        world.capacities.synced().await;
        world.attachments.synced().await;
        world.budgets.synced().await;
        world.services.synced().await;
        world.controllers.synced().await;
        world.replica_sets.synced().await;
        world.stateful_sets.synced().await;
        world.resource_claims.synced().await;
        world.resource_slices.synced().await;
        world.device_classes.synced().await;
        world.taint_rules.synced().await;
    }
}

fn notify<K: Kind>(informer: &Informer<K>, core: &Arc<Core>, event: ClusterEvent) {
    let core = core.clone();
    informer.on_change(move |_| core.happened(event.clone()));
}

fn pod_changed(core: &Core, change: &Change<Pod>) {
    let pod = Arc::new(PodInfo::of(change.object().clone()));
    match change {
        Change::Deleted(_) => core.pod_gone(pod),
        _ => core.pod_seen(pod),
    }
}

fn node_changed(core: &Core, change: &Change<Node>) {
    match change {
        Change::Added(node) => core.node_seen(node.clone(), true),
        Change::Updated { old, new } => core.node_seen(new.clone(), matters(old, new)),
        Change::Deleted(node) => core.node_gone(node.name()),
    }
}

/// What a change of a claim means for others, as the watch shows it: to the ledger it may be no news, by the answer to a write of
/// ours, of which nobody was told.
fn effect(ledger: &Ledger, change: &Change<ResourceClaim>) -> Effect {
    let claim = change.object();
    let known = match change {
        Change::Deleted(_) => ledger.claim_gone(claim),
        _ => ledger.claim_seen(claim),
    };
    let Some(old) = change.old() else { return known };
    let is_other = old.status != claim.status || old.metadata.owner_references != claim.metadata.owner_references;
    Effect {
        is_freed: known.is_freed || allocation(old).is_some() && allocation(claim).is_none(),
        matters: known.matters || is_other,
    }
}

/// Heartbeats don't.
fn matters(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
    let declared = |node: &Node| node.status.as_ref().and_then(|s| s.declared_features.clone());
    let states = |node: &Node| -> Vec<(String, String)> {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .map(|c| (c.type_.clone(), c.status.clone()))
            .collect()
    };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || allocatable(old) != allocatable(new)
        || declared(old) != declared(new)
        || states(old) != states(new)
}

impl World for Watched {
    fn namespace_labels(&self, name: &str) -> Option<Labels> {
        let namespace = self.namespaces.store().get("", name)?;
        Some(namespace.metadata.labels.clone().unwrap_or_default())
    }
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.store().get(namespace, name)
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.store().get("", name)
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.store().list()
    }
    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.store().get("", name)
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.csi_nodes.store().get("", name)
    }
    fn csi_driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.csi_drivers.store().get("", name)
    }
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.capacities.store().list()
    }
    fn attachments_to(&self, node: &str) -> Vec<Arc<VolumeAttachment>> {
        self.attachments.store().by_index(BY_NODE, node)
    }
    fn budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.store().list_namespace(namespace)
    }

    fn belongs_to(&self, pod: &Pod) -> Vec<LabelSelector> {
        let namespace = pod.namespace();
        let equal = |labels: &Labels| LabelSelector {
            match_labels: Some(labels.clone()),
            ..LabelSelector::default()
        };
        let services = self.services.store().selecting(namespace, pod.metadata.labels.as_ref());
        let of_services = services.iter().filter_map(|s| s.spec.as_ref()?.selector.as_ref());
        let ours = of_services.filter(|s| !s.is_empty() && includes(pod.metadata.labels.as_ref(), s));
        let mut selectors: Vec<_> = ours.map(equal).collect();
        let owner = pod
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.controller == Some(true));
        if let Some(owner) = owner {
            selectors.extend(match owner.kind.as_str() {
                "ReplicationController" => {
                    let owner = self.controllers.store().get(namespace, &owner.name);
                    owner.and_then(|o| o.spec.as_ref()?.selector.as_ref().map(equal))
                }
                "ReplicaSet" => {
                    let owner = self.replica_sets.store().get(namespace, &owner.name);
                    owner.map(|o| o.spec.selector.clone())
                }
                "StatefulSet" => {
                    let owner = self.stateful_sets.store().get(namespace, &owner.name);
                    owner.map(|o| o.spec.selector.clone())
                }
                _ => None,
            });
        }
        selectors
    }

    fn devices(&self) -> Arc<Ledger> {
        self.devices.clone()
    }
}

impl Watched {
    /// The ledger first, then whoever waits for it.
    fn feed_devices(&self, core: &Arc<Core>) {
        let (ledger, told) = (self.devices.clone(), core.clone());
        self.resource_claims.on_change(move |change| {
            let claim = change.object();
            told.happened(ClusterEvent::Claim {
                namespace: claim.namespace().to_owned(),
                name: claim.name().to_owned(),
                effect: effect(&ledger, change),
            });
        });
        let (ledger, told) = (self.devices.clone(), core.clone());
        self.resource_slices.on_change(move |change| {
            match change {
                Change::Deleted(slice) => ledger.slice_gone(slice.name()),
                _ => ledger.slice_seen(change.object()),
            }
            told.happened(ClusterEvent::Devices);
        });
        let (ledger, told) = (self.devices.clone(), core.clone());
        self.device_classes.on_change(move |change| {
            match change {
                Change::Deleted(class) => ledger.class_gone(class.name()),
                _ => ledger.class_seen(change.object()),
            }
            told.happened(ClusterEvent::Devices);
        });
        let (ledger, told) = (self.devices.clone(), core.clone());
        self.taint_rules.on_change(move |change| {
            let rule = change.object();
            if ledger.rule_seen(rule.name(), (!change.is_deleted()).then(|| rule.clone())) {
                told.happened(ClusterEvent::Devices);
            }
        });
    }

    /// Whoever waits for a claim to be bound is woken.
    pub fn on_volume_change(&self, changed: &Arc<tokio::sync::Notify>) {
        let told = changed.clone();
        self.claims.on_change(move |_| told.notify_waiters());
        let told = changed.clone();
        self.volumes.on_change(move |_| told.notify_waiters());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(revision: &str, is_allocated: bool) -> Arc<ResourceClaim> {
        let status = match is_allocated {
            true => json!({"allocation": {}}),
            false => json!({}),
        };
        let metadata = json!({"name": "c", "namespace": "n", "uid": "u", "resourceVersion": revision});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap())
    }

    #[test]
    fn what_an_answer_told_the_ledger_is_told_to_pods_by_the_watch() {
        let ledger = Ledger::default();
        let (allocated, freed) = (claim("1", true), claim("2", false));
        effect(&ledger, &Change::Added(allocated.clone()));
        ledger.claim_answered(&freed);
        let shown = |old: &Arc<ResourceClaim>, new: &Arc<ResourceClaim>| Change::Updated {
            old: old.clone(),
            new: new.clone(),
        };
        let seen = effect(&ledger, &shown(&allocated, &freed));
        assert!(seen.is_freed && seen.matters);
        let taken = claim("3", true);
        ledger.claim_answered(&taken);
        let seen = effect(&ledger, &shown(&freed, &taken));
        assert!(!seen.is_freed && seen.matters);
        assert!(!effect(&ledger, &shown(&taken, &claim("4", true))).matters);
    }
}
