//! How many volumes of a CSI driver can be attached to a node.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::world::World;
use std::collections::BTreeSet;

pub struct VolumeLimits;

impl Plugin for VolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let wanted = volumes(cycle.pod, cycle.snapshot);
        if wanted.is_empty() {
            return Prepared::Skip;
        }
        check(move |node| {
            let csi_node = cycle.snapshot.world.csi_node(node.name());
            let drivers = csi_node.iter().flat_map(|c| &c.spec.drivers);
            let limits = drivers.filter_map(|d| Some((d.name.as_str(), d.allocatable.as_ref()?.count?)));
            for (driver, limit) in limits.filter(|(driver, _)| wanted.iter().any(|(d, _)| d == driver)) {
                let there = node.pods().iter().flat_map(|pod| volumes(pod, cycle.snapshot));
                let all: BTreeSet<_> = there
                    .chain(wanted.iter().cloned())
                    .filter(|(d, _)| d == driver)
                    .collect();
                if all.len() as i64 > i64::from(limit) {
                    return Err(Reject::for_now("node(s) exceed max volume count"));
                }
            }
            Ok(())
        })
    }
    fn helps(&self, event: &ClusterEvent, _: &PodInfo, _: &dyn World) -> bool {
        matches!(
            event,
            ClusterEvent::Node(_) | ClusterEvent::Volumes | ClusterEvent::PodLeft(_)
        )
    }
}

/// Driver and handle of each CSI volume of a pod. A claim that has no volume yet stands for one of its class's driver.
fn volumes(pod: &PodInfo, snapshot: &Snapshot) -> BTreeSet<(String, String)> {
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
