//! How many volumes of a CSI driver can be attached to a node.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::world::World;
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use std::collections::BTreeSet;

const TOO_MANY: &str = "node(s) exceed max volume count";

pub struct VolumeLimits;

/// Driver and handle.
type Volume = (String, String);

impl Plugin for VolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let wanted = volumes(cycle.pod, cycle.snapshot);
        if wanted.is_empty() {
            return Prepared::Skip;
        }
        let insisting = insisting(&wanted, cycle.snapshot);
        check(move |node| {
            let csi_node = cycle.snapshot.world.csi_node(node.name());
            let drivers = csi_node.as_ref().map(|c| c.spec.drivers.as_slice()).unwrap_or_default();
            if let Some(missing) = insisting.iter().find(|name| drivers.iter().all(|d| d.name != **name)) {
                return Err(Reject::for_now(format!(
                    "{missing} CSI driver is not installed on the node"
                )));
            }
            fits(&wanted, node, csi_node.as_deref(), cycle.snapshot)
        })
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        super::same_volumes(a, b)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::Node(_) | ClusterEvent::Volumes | ClusterEvent::PodLeft(_)
        )
    }
    fn helps(&self, event: &ClusterEvent, _: &PodInfo, _: &dyn World) -> bool {
        matches!(
            event,
            ClusterEvent::Node(_) | ClusterEvent::Volumes | ClusterEvent::PodLeft(_)
        )
    }
}

fn fits(
    wanted: &BTreeSet<Volume>,
    node: &NodeInfo,
    csi_node: Option<&CSINode>,
    snapshot: &Snapshot,
) -> Result<(), Reject> {
    let drivers = csi_node.iter().flat_map(|c| &c.spec.drivers);
    let limits = drivers.filter_map(|d| Some((d.name.as_str(), d.allocatable.as_ref()?.count?)));
    let mut limits: Vec<_> = limits
        .filter(|(name, _)| wanted.iter().any(|(d, _)| d == name))
        .collect();
    if limits.is_empty() {
        return Ok(());
    }
    // Mostly there is room even if each of them were another volume of that driver; which they are needn't be asked then.
    let claims: usize = node.pods().iter().map(|pod| pod.claims.len()).sum();
    let most = claims + snapshot.world.attachments_to(node.name()).len() + wanted.len();
    limits.retain(|(_, limit)| most as i64 > i64::from(*limit));
    if limits.is_empty() {
        return Ok(());
    }
    let used: BTreeSet<Volume> = node.pods().iter().flat_map(|pod| volumes(pod, snapshot)).collect();
    // What is still attached takes its place, used or not.
    let attached = attached(node, snapshot);
    let there = || used.iter().chain(&attached).collect::<BTreeSet<_>>();
    for (driver, limit) in limits {
        let is_of = |volume: &&Volume| volume.0 == driver;
        let new = wanted
            .iter()
            .filter(is_of)
            .filter(|volume| !used.contains(*volume))
            .count();
        if new > 0 && (there().into_iter().filter(is_of).count() + new) as i64 > i64::from(limit) {
            return Err(Reject::for_now(TOO_MANY));
        }
    }
    Ok(())
}

/// Drivers of the volumes whose pods may not go where they aren't installed.
fn insisting<'a>(wanted: &'a BTreeSet<Volume>, snapshot: &Snapshot) -> Vec<String> {
    let drivers: BTreeSet<&'a str> = wanted.iter().map(|(driver, _)| driver.as_str()).collect();
    let insists = |name: &&str| {
        let driver = snapshot.world.csi_driver(name);
        driver.is_some_and(|d| d.spec.prevent_pod_scheduling_if_missing == Some(true))
    };
    drivers.into_iter().filter(insists).map(str::to_owned).collect()
}

/// The CSI volumes that are attached to the node.
fn attached(node: &NodeInfo, snapshot: &Snapshot) -> BTreeSet<Volume> {
    let csi = |attachment: &VolumeAttachment| {
        let volume = attachment.spec.source.persistent_volume_name.as_deref()?;
        let volume = snapshot.world.volume(volume)?;
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        Some((csi.driver.clone(), csi.volume_handle.clone()))
    };
    let attachments = snapshot.world.attachments_to(node.name());
    attachments.iter().filter_map(|attachment| csi(attachment)).collect()
}

/// Driver and handle of each CSI volume of a pod. A claim that has no volume yet stands for one of its class's driver.
fn volumes(pod: &PodInfo, snapshot: &Snapshot) -> BTreeSet<Volume> {
    let namespace = &pod.key.namespace;
    let of_claim = |name: &str| {
        let claim = snapshot.world.claim(namespace, name)?;
        let spec = claim.spec.as_ref()?;
        if let Some(volume) = spec.volume_name.as_deref().filter(|n| !n.is_empty()) {
            let volume = snapshot.world.volume(volume)?;
            let csi = volume.spec.as_ref()?.csi.as_ref()?;
            return Some((csi.driver.clone(), csi.volume_handle.clone()));
        }
        let class = snapshot.world.class(spec.storage_class_name.as_deref()?)?;
        Some((class.provisioner.clone(), format!("{namespace}/{name}")))
    };
    pod.claims.iter().filter_map(|claim| of_claim(&claim.name)).collect()
}
