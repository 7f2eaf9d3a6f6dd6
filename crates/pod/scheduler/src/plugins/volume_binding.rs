//! Claims and their volumes: a bound volume must be reachable from the node; a claim that waits for its first consumer gets
//! a volume that is, or one made for the node.
//!
//! [`decide`] says which volume each waiting claim of a pod gets on a node; binding carries that out.

mod room;

use super::check;
use super::shape::Shape;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject, Scorer};
use crate::node::NodeInfo;
use crate::pod::{Claim, PodInfo};
use crate::select::matches_any;
use crate::snapshot::Snapshot;
use crate::world::World;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use keelson_api::quantity::Quantity;
use keelson_client::{ApiObject, labels};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

const NOT_REACHABLE: &str = "node(s) didn't match PersistentVolume's node affinity";
const NONE_TO_BIND: &str = "node(s) didn't find available persistent volumes to bind";
const NO_ROOM: &str = "node(s) did not have enough free storage";
const NO_SUCH_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

pub struct VolumeBinding {
    /// What a node's storage is worth by how much of it would be used.
    pub shape: Shape,
}

impl Default for VolumeBinding {
    fn default() -> Self {
        VolumeBinding {
            shape: room::default_shape(),
        }
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        if cycle.pod.claims.is_empty() {
            return Prepared::Skip;
        }
        match Claims::of(cycle) {
            Err(reject) => Prepared::Reject(reject),
            Ok(claims) => check(move |node| claims.on(cycle.snapshot, node).map(drop)),
        }
    }
    fn scorer<'a>(&'a self, cycle: Cycle<'a>, _: &[&Arc<NodeInfo>]) -> Option<Box<dyn Scorer + 'a>> {
        if cycle.pod.claims.is_empty() {
            return None;
        }
        let claims = Claims::of(cycle).ok()?;
        let shape = &self.shape;
        (!claims.waiting.is_empty()).then(|| Box::new(room::Room { claims, cycle, shape }) as Box<dyn Scorer>)
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        super::same_volumes(a, b)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_) | ClusterEvent::Volumes)
    }
    fn helps(&self, event: &ClusterEvent, _: &PodInfo, _: &dyn World) -> bool {
        matches!(event, ClusterEvent::Node(_) | ClusterEvent::Volumes)
    }
}

/// What becomes of a pod's waiting claims on one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// An existing volume for a claim.
    pub bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// A volume is to be made.
    pub provision: Vec<Arc<PersistentVolumeClaim>>,
    /// The node is noted already; the volume isn't there yet.
    pub await_volume: Vec<Arc<PersistentVolumeClaim>>,
}

impl Decision {
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty() && self.await_volume.is_empty()
    }
}

pub fn decide(cycle: Cycle<'_>, node: &NodeInfo) -> Result<Decision, Reject> {
    if cycle.pod.claims.is_empty() {
        return Ok(Decision::default());
    }
    Claims::of(cycle)?.on(cycle.snapshot, node)
}

#[derive(Clone)]
struct Claims {
    /// The volumes of bound claims; `None`: there is no such volume.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// With the volumes that would do wherever they are reachable.
    waiting: Vec<(Arc<PersistentVolumeClaim>, Vec<Arc<PersistentVolume>>)>,
}

impl Claims {
    fn of(cycle: Cycle<'_>) -> Result<Claims, Reject> {
        let mut claims = Claims {
            bound: Vec::new(),
            waiting: Vec::new(),
        };
        for wanted in &cycle.pod.claims {
            let claim = find(cycle, wanted)?;
            match (is_bound(&claim), waits_for_consumer(&claim, cycle.snapshot)?) {
                (true, _) => {
                    let volume = volume_name(&claim).and_then(|name| cycle.snapshot.world.volume(name));
                    claims.bound.push(volume);
                }
                // A volume that somebody has chosen is for the controller to bind.
                (false, true) if volume_name(&claim).is_none() => {
                    let suitable = suitable(&claim, cycle.snapshot);
                    claims.waiting.push((claim, suitable));
                }
                (false, _) => {
                    return Err(Reject::for_good("pod has unbound immediate PersistentVolumeClaims"));
                }
            }
        }
        // The smallest first, so that each gets the smallest volume that will do.
        let wanted = |claim: &PersistentVolumeClaim| {
            let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
            storage(resources.and_then(|r| r.requests.as_ref()))
        };
        claims.waiting.sort_by_key(|(claim, _)| wanted(claim));
        Ok(claims)
    }

    fn on(&self, snapshot: &Snapshot, node: &NodeInfo) -> Result<Decision, Reject> {
        for volume in &self.bound {
            let Some(volume) = volume else {
                return Err(Reject::for_good(NO_SUCH_VOLUME));
            };
            if !is_reachable(volume, node.node()) {
                return Err(Reject::for_good(NOT_REACHABLE));
            }
        }
        let mut decision = Decision::default();
        let mut taken = BTreeSet::new();
        for (claim, suitable) in &self.waiting {
            if let Some(selected) = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE)) {
                if selected != node.name() {
                    return Err(Reject::for_good(NONE_TO_BIND));
                }
                room_for(claim, snapshot, node)?;
                decision.await_volume.push(claim.clone());
            } else if let Some(volume) = match_volume(claim, suitable, node, &taken) {
                taken.insert(volume.name().to_owned());
                decision.bind.push((volume, claim.clone()));
            } else {
                room_for(claim, snapshot, node)?;
                decision.provision.push(claim.clone());
            }
        }
        Ok(decision)
    }
}

fn find(cycle: Cycle<'_>, wanted: &Claim) -> Result<Arc<PersistentVolumeClaim>, Reject> {
    let name = &wanted.name;
    let Some(claim) = cycle.snapshot.world.claim(&cycle.pod.key.namespace, name) else {
        return Err(Reject::for_good(match wanted.is_ephemeral {
            true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"),
            false => format!("persistentvolumeclaim {name:?} not found"),
        }));
    };
    if claim.is_deleting() {
        return Err(Reject::for_good(format!(
            "persistentvolumeclaim {name:?} is being deleted"
        )));
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
        let volume = volume_name(&claim).unwrap_or_default();
        let text = format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}");
        return Err(Reject::for_good(text));
    }
    let owners = claim.metadata.owner_references.iter().flatten();
    let is_ours = owners
        .into_iter()
        .any(|o| o.uid == cycle.pod.uid() && o.controller == Some(true));
    if wanted.is_ephemeral && !is_ours {
        let (pod, namespace) = (&cycle.pod.key.name, &cycle.pod.key.namespace);
        let text = format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)");
        return Err(Reject::for_good(text));
    }
    Ok(claim)
}

pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|n| !n.is_empty())
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let completed = claim
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(BIND_COMPLETED));
    volume_name(claim).is_some() && completed
}

fn class_name(claim: &PersistentVolumeClaim) -> &str {
    let older = claim
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    older.map(String::as_str).or(class).unwrap_or_default()
}

fn waits_for_consumer(claim: &PersistentVolumeClaim, snapshot: &Snapshot) -> Result<bool, Reject> {
    let name = class_name(claim);
    if name.is_empty() || is_bound(claim) {
        return Ok(false);
    }
    // A class that doesn't exist: the claim may still get a volume from the controller.
    let Some(class) = snapshot.world.class(name) else {
        return Ok(false);
    };
    Ok(class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

pub fn is_reachable(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    affinity
        .and_then(|a| a.required.as_ref())
        .is_none_or(|required| matches_any(required, node))
}

/// Volumes that are free or reserved for the claim, large enough and of the right kind: asked once, for all nodes. If one is the
/// claim's already, be it by a promise to another pod with the claim, no other is: the claim would have two.
fn suitable(claim: &PersistentVolumeClaim, snapshot: &Snapshot) -> Vec<Arc<PersistentVolume>> {
    let would_do = |volume: &Arc<PersistentVolume>| {
        let promised = snapshot.promised.get(volume.name());
        promised.is_none_or(|to| *to == claim.key())
            && !volume.is_deleting()
            && suits(volume, claim)
            && match is_reserved_for(volume, claim) {
                None => volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available"),
                Some(is_for_us) => is_for_us,
            }
    };
    let mut found: Vec<_> = snapshot.world.volumes().into_iter().filter(would_do).collect();
    let is_its_own = |volume: &Arc<PersistentVolume>| {
        snapshot.promised.contains_key(volume.name()) || is_reserved_for(volume, claim).is_some()
    };
    if found.iter().any(is_its_own) {
        found.retain(is_its_own);
    }
    found
}

/// The smallest that is reachable; before it one that is reserved for the claim.
fn match_volume(
    claim: &PersistentVolumeClaim,
    suitable: &[Arc<PersistentVolume>],
    node: &NodeInfo,
    taken: &BTreeSet<String>,
) -> Option<Arc<PersistentVolume>> {
    let free = suitable
        .iter()
        .filter(|v| !taken.contains(v.name()) && is_reachable(v, node.node()));
    let size = |volume: &PersistentVolume| storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()));
    let best = free.min_by_key(|v| (is_reserved_for(v, claim).is_none(), size(v)));
    best.cloned()
}

/// `None`: for nobody in particular.
fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<bool> {
    let reserved = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let same_name =
        reserved.name.as_deref() == Some(claim.name()) && reserved.namespace.as_deref() == Some(claim.namespace());
    let same_uid = reserved
        .uid
        .as_deref()
        .is_none_or(|uid| uid.is_empty() || uid == claim.uid());
    Some(same_name && same_uid)
}

fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(volume_spec), Some(spec)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    let wanted = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let has_modes = |wanted: &String| volume_spec.access_modes.iter().flatten().any(|has| has == wanted);
    storage(volume_spec.capacity.as_ref()) >= storage(wanted)
        && mode(&volume_spec.volume_mode) == mode(&spec.volume_mode)
        && volume_spec.storage_class_name.as_deref().unwrap_or_default() == class_name(claim)
        && volume_spec.volume_attributes_class_name.as_deref().unwrap_or_default()
            == spec.volume_attributes_class_name.as_deref().unwrap_or_default()
        && spec.access_modes.iter().flatten().all(has_modes)
        && spec
            .selector
            .as_ref()
            .is_none_or(|s| labels::matches(Some(s), volume.metadata.labels.as_ref()))
}

/// Bytes.
fn storage(list: Option<&BTreeMap<String, Text>>) -> i64 {
    let text = list.and_then(|l| l.get("storage"));
    text.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.value())
}

/// Whether the claim's class makes volumes for the node, and there is room for one as large: which, if the driver tells.
fn room_for(
    claim: &PersistentVolumeClaim,
    snapshot: &Snapshot,
    node: &NodeInfo,
) -> Result<Option<Arc<CSIStorageCapacity>>, Reject> {
    let class = snapshot.world.class(class_name(claim));
    let class = class.ok_or_else(|| Reject::for_good(NONE_TO_BIND))?;
    let allowed = class.allowed_topologies.as_deref().unwrap_or_default();
    if class.provisioner == NO_PROVISIONER || class.provisioner.is_empty() || !is_allowed(allowed, node) {
        return Err(Reject::for_good(NONE_TO_BIND));
    }
    let driver = snapshot.world.csi_driver(&class.provisioner);
    // Only of drivers that tell how much room there is.
    if driver.is_none_or(|d| d.spec.storage_capacity != Some(true)) {
        return Ok(None);
    }
    let requests = claim
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref()?.requests.as_ref());
    if requests.is_none_or(|r| !r.contains_key("storage")) {
        return Ok(None);
    }
    let size = storage(requests);
    let has_room = |capacity: &Arc<CSIStorageCapacity>| {
        // The largest volume there can be tells more than how much is left in all.
        let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
        let limit = limit.and_then(|q| Quantity::parse(&q.0).ok()).map(|q| q.value());
        capacity.storage_class_name == class.name()
            && limit.is_some_and(|limit| limit >= size)
            && labels::matches(capacity.node_topology.as_ref(), node.labels())
    };
    match snapshot.world.capacities().into_iter().find(has_room) {
        Some(room) => Ok(Some(room)),
        None => Err(Reject::for_good(NO_ROOM)),
    }
}

fn is_allowed(terms: &[TopologySelectorTerm], node: &NodeInfo) -> bool {
    let matches = |term: &TopologySelectorTerm| {
        let mut rules = term.match_label_expressions.iter().flatten();
        rules.all(|rule| {
            node.label(&rule.key)
                .is_some_and(|value| rule.values.iter().any(|v| v == value))
        })
    };
    terms.is_empty() || terms.iter().any(matches)
}
