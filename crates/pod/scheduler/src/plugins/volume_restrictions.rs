//! What another pod uses already: a claim for one pod at a time (`ReadWriteOncePod`), and on its node a disk that the pod names itself.

use crate::events::ClusterEvent;
use crate::framework::{Cycle, NodeFilter, Plugin, Prepared, Reject};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::world::World;
use k8s_openapi::api::core::v1::Volume;
use keelson_client::ObjectKey;

const IN_USE: &str =
    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

const NO_DISK: &str = "node(s) had no available disk";

pub struct VolumeRestrictions;

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let namespace = &cycle.pod.key.namespace;
        let for_one = |name: &&str| {
            let claim = cycle.snapshot.world.claim(namespace, name);
            let modes = claim.as_ref().and_then(|c| c.spec.as_ref()?.access_modes.as_ref());
            modes.is_some_and(|modes| modes.iter().any(|m| m == "ReadWriteOncePod"))
        };
        let claims = cycle.pod.claims.iter().map(|c| c.name.as_str());
        let claims: Vec<&str> = claims.filter(for_one).collect();
        if claims.is_empty() && disks(cycle.pod).next().is_none() {
            return Prepared::Skip;
        }
        let uses = |name: &&str| cycle.snapshot.uses_of_claim(&ObjectKey::new(namespace.as_str(), *name));
        Prepared::Filter(Box::new(Alone {
            namespace,
            uses: claims.iter().map(uses).sum(),
            claims,
            pod: cycle.pod,
        }))
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
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        match event {
            ClusterEvent::PodLeft(gone) => {
                let shares = pod.claims.iter().any(|c| gone.claims.iter().any(|g| g.name == c.name));
                gone.key.namespace == pod.key.namespace && (shares || in_the_way(pod, gone))
            }
            ClusterEvent::Volumes | ClusterEvent::Node(_) => true,
            _ => false,
        }
    }
}

#[derive(Clone)]
struct Alone<'a> {
    namespace: &'a str,
    claims: Vec<&'a str>,
    /// By other pods, anywhere.
    uses: usize,
    pod: &'a PodInfo,
}

/// Disks that a pod names itself.
fn disks(pod: &PodInfo) -> impl Iterator<Item = &Volume> {
    let volumes = pod.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|v| {
        v.gce_persistent_disk.is_some() || v.aws_elastic_block_store.is_some() || v.iscsi.is_some() || v.rbd.is_some()
    })
}

/// Whether the other has a disk that the pod can't have at the same time.
fn in_the_way(pod: &PodInfo, other: &PodInfo) -> bool {
    disks(pod).any(|disk| disks(other).any(|there| excludes(disk, there)))
}

/// Whether both are one disk that at least one of them would write.
fn excludes(a: &Volume, b: &Volume) -> bool {
    let writes = |a: Option<bool>, b: Option<bool>| !(a == Some(true) && b == Some(true));
    let gce = a.gce_persistent_disk.as_ref().zip(b.gce_persistent_disk.as_ref());
    let aws = a
        .aws_elastic_block_store
        .as_ref()
        .zip(b.aws_elastic_block_store.as_ref());
    let iscsi = a.iscsi.as_ref().zip(b.iscsi.as_ref());
    let rbd = a.rbd.as_ref().zip(b.rbd.as_ref());
    gce.is_some_and(|(a, b)| a.pd_name == b.pd_name && writes(a.read_only, b.read_only))
        || aws.is_some_and(|(a, b)| a.volume_id == b.volume_id)
        || iscsi.is_some_and(|(a, b)| a.iqn == b.iqn && writes(a.read_only, b.read_only))
        || rbd.is_some_and(|(a, b)| {
            let meet = a.monitors.iter().any(|monitor| b.monitors.contains(monitor));
            meet && a.pool == b.pool && a.image == b.image && writes(a.read_only, b.read_only)
        })
}

impl Alone<'_> {
    fn uses_of(&self, pod: &PodInfo) -> usize {
        let same = pod.key.namespace == self.namespace;
        if same {
            pod.claims
                .iter()
                .filter(|c| self.claims.contains(&c.name.as_str()))
                .count()
        } else {
            0
        }
    }
}

impl NodeFilter for Alone<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        if node.pods().iter().any(|there| in_the_way(self.pod, there)) {
            Err(Reject::for_now(NO_DISK))
        } else if self.uses > 0 {
            Err(Reject::for_now(IN_USE))
        } else {
            Ok(())
        }
    }
    fn add(&mut self, pod: &PodInfo, _: &NodeInfo) {
        self.uses += self.uses_of(pod);
    }
    fn remove(&mut self, pod: &PodInfo, _: &NodeInfo) {
        self.uses = self.uses.saturating_sub(self.uses_of(pod));
    }
    fn copy<'a>(&self) -> Option<Box<dyn NodeFilter + 'a>>
    where
        Self: 'a,
    {
        Some(Box::new(self.clone()))
    }
}
