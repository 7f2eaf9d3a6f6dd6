//! What pods want attached, and what is: volumes of CSI drivers that have an attacher.

use super::super::protect::claim_of;
use super::plan::Wanted;
use crate::{pods, wire};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use keelson_client::{ApiObject, Informer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The index of pods by the claims they use, `namespace/name`.
pub const BY_CLAIM: &str = "claim";
/// The index of volumes by their unique names.
const BY_UNIQUE: &str = "unique-name";
/// The index of attachments by node.
const ON_NODE: &str = "node";
/// The index of attachments by volume object.
const OF_VOLUME: &str = "volume";

/// A kubelet that leaves attaching to the controller says so by this annotation.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// A volume of a CSI driver.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// The name that a node's status has for it.
    pub unique: String,
    pub object: String,
    pub driver: String,
    pub handle: String,
    /// Several nodes may have it at a time.
    pub shared: bool,
}

impl Volume {
    fn of(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        Some(Volume {
            unique: unique(&csi.driver, &csi.volume_handle),
            object: volume.name().into(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            shared: modes.is_empty() || modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany"),
        })
    }

    /// The name of its attachment to a node, which external attachers and kubelets work out too.
    pub fn attachment(&self, node: &str) -> String {
        attachment(&self.driver, &self.handle, node)
    }
}

fn unique(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

fn attachment(driver: &str, handle: &str, node: &str) -> String {
    format!("csi-{}", hex::encode(Sha256::digest(format!("{handle}{driver}{node}"))))
}

/// The driver and the handle in a unique name.
fn parts(unique: &str) -> Option<(&str, &str)> {
    unique.strip_prefix("kubernetes.io/csi/")?.split_once('^')
}

/// Ended, or being deleted and nothing of it runs any more: its volumes may go.
pub fn is_terminated(pod: &Pod) -> bool {
    let quiet = |list: &Option<Vec<ContainerStatus>>| {
        let rests = |c: &ContainerStatus| {
            c.state
                .as_ref()
                .is_some_and(|s| s.terminated.is_some() || s.waiting.is_some())
        };
        list.iter().flatten().all(rests)
    };
    let status = pod.status.as_ref();
    pods::is_finished(pod)
        || pod.is_deleting()
            && status.is_none_or(|s| {
                quiet(&s.init_container_statuses)
                    && quiet(&s.container_statuses)
                    && quiet(&s.ephemeral_container_statuses)
            })
}

/// Everything that the controller reads.
pub struct World {
    pub pods: Informer<Pod>,
    pub nodes: Informer<Node>,
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub drivers: Informer<CSIDriver>,
    pub attachments: Informer<VolumeAttachment>,
}

impl World {
    pub fn index(&self) {
        pods::index(self.pods.store());
        by_claim(&self.pods);
        self.volumes
            .store()
            .add_index(BY_UNIQUE, |v| Volume::of(v).map(|v| v.unique).into_iter().collect());
        self.attachments
            .store()
            .add_index(ON_NODE, |a| vec![a.spec.node_name.clone()]);
        self.attachments.store().add_index(OF_VOLUME, |a| {
            a.spec.source.persistent_volume_name.clone().into_iter().collect()
        });
    }

    /// The volumes to be attached to a node, by unique name.
    pub fn wanted(&self, node: &Node) -> BTreeMap<String, Wanted> {
        let mut wanted = BTreeMap::<String, Wanted>::new();
        if !super::super::has_annotation(node, MANAGED) {
            return wanted;
        }
        for pod in self.pods.store().by_index(pods::BY_NODE, node.name()) {
            if is_terminated(&pod) {
                continue;
            }
            for volume in self.volumes_of(&pod) {
                wanted
                    .entry(volume.unique.clone())
                    .or_insert_with(|| Wanted {
                        volume,
                        pods: Vec::new(),
                    })
                    .pods
                    .push(pod.clone());
            }
        }
        wanted
    }

    fn volumes_of(&self, pod: &Pod) -> Vec<Volume> {
        let all = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        all.filter_map(|v| {
            let claim = self.claims.store().get(pod.namespace(), &claim_of(pod.name(), v)?)?;
            // A claim of this name that was made for something else is not the pod's.
            let foreign = v.ephemeral.is_some() && wire::controller_of(claim.meta()).is_none_or(|o| o.uid != pod.uid());
            self.volume_of(&claim).filter(|_| !foreign)
        })
        .filter(|v| self.has_attacher(&v.driver))
        .collect()
    }

    fn volume_of(&self, claim: &PersistentVolumeClaim) -> Option<Volume> {
        let bound = claim.status.as_ref()?.phase.as_deref() == Some("Bound");
        let name = claim.spec.as_ref()?.volume_name.as_deref().filter(|_| bound)?;
        let volume = self.volumes.store().get("", name)?;
        let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
        (reference.uid.as_deref() == Some(claim.uid())).then(|| Volume::of(&volume))?
    }

    /// A driver that says nothing else has one.
    fn has_attacher(&self, driver: &str) -> bool {
        let found = self.drivers.store().get("", driver);
        found.is_none_or(|d| d.spec.attach_required != Some(false))
    }

    /// The attachments of a node that are of this controller's making, by unique name.
    pub fn attached(&self, name: &str, node: Option<&Node>) -> BTreeMap<String, Arc<VolumeAttachment>> {
        let all = self.attachments.store().by_index(ON_NODE, name);
        all.into_iter()
            .filter_map(|a| Some((self.unique_of(&a, node)?, a)))
            .collect()
    }

    fn unique_of(&self, found: &VolumeAttachment, node: Option<&Node>) -> Option<String> {
        let object = found.spec.source.persistent_volume_name.as_deref()?;
        let of_volume = self.volumes.store().get("", object).and_then(|v| Volume::of(&v));
        if let Some(volume) = of_volume {
            return (volume.attachment(&found.spec.node_name) == found.name()).then_some(volume.unique);
        }
        // The volume's object is gone: the node's status knows which it was.
        let reported = node?.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
        reported.map(|v| v.name.as_str()).find_map(|unique| {
            let (driver, handle) = parts(unique)?;
            (attachment(driver, handle, &found.spec.node_name) == found.name()).then(|| unique.to_string())
        })
    }

    /// The nodes other than this one that a volume is attached to, or being detached from.
    pub fn elsewhere(&self, volume: &Volume, node: &str) -> Vec<String> {
        let objects = self.volumes.store().by_index(BY_UNIQUE, &volume.unique);
        let attachments = objects
            .iter()
            .flat_map(|v| self.attachments.store().by_index(OF_VOLUME, v.name()));
        let mut nodes: Vec<_> = attachments
            .map(|a| a.spec.node_name.clone())
            .filter(|n| n != node)
            .collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }

    /// The pods on some nodes that want a volume.
    pub fn users(&self, volume: &Volume, nodes: &[String]) -> Vec<Arc<Pod>> {
        let on = nodes.iter().filter_map(|n| self.nodes.store().get("", n));
        on.filter_map(|n| self.wanted(&n).remove(&volume.unique))
            .flat_map(|w| w.pods)
            .collect()
    }
}

pub fn by_claim(pods: &Informer<Pod>) {
    pods.store().add_index(BY_CLAIM, |pod| {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let claims = volumes.filter_map(|v| claim_of(pod.name(), v));
        claims.map(|claim| format!("{}/{claim}", pod.namespace())).collect()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_attachers_expect() {
        assert_eq!(
            attachment("d", "h", "n"),
            format!("csi-{}", hex::encode(Sha256::digest("hdn")))
        );
        assert_eq!(parts(&unique("d", "a^b")), Some(("d", "a^b")));
    }

    #[test]
    fn a_pod_lets_go_when_nothing_of_it_runs() {
        let pod = |meta: &str, state: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"p"{meta}}},"status":{{"phase":"Running","containerStatuses":[{{"name":"c","image":"","imageID":"","ready":false,"restartCount":0,"state":{{{state}}}}}]}}}}"#
            );
            Pod::decode(text.as_bytes()).expect("a pod")
        };
        let deleted = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;
        assert!(!is_terminated(&pod("", r#""terminated":{"exitCode":0}"#)));
        assert!(!is_terminated(&pod(deleted, r#""running":{}"#)));
        assert!(is_terminated(&pod(deleted, r#""terminated":{"exitCode":0}"#)));
    }
}
