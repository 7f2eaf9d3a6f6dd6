//! What becomes of a volume whose claim has gone. Pure.
//!
//! Volumes of external provisioners are theirs to delete. What remains in Kubernetes of others is never deleted here: the paths of
//! a `hostPath` volume are on some node, not on the controller's, and recycling is deprecated.

use super::annotation;
use k8s_openapi::api::core::v1::PersistentVolume;
use keelson_client::ApiObject;

pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Why a released volume has failed: reason and message. None: it is kept, or a provisioner sees to it.
pub fn failure(volume: &PersistentVolume) -> Option<(&'static str, String)> {
    let spec = volume.spec.as_ref()?;
    match spec.persistent_volume_reclaim_policy.as_deref() {
        Some("Retain") | None => None,
        Some("Recycle") => Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!".into())),
        Some("Delete") => match annotation(volume, PROVISIONED_BY).filter(|p| !p.is_empty()) {
            Some(provisioner) if !provisioner.starts_with("kubernetes.io/") => None,
            Some(provisioner) => Some((
                "VolumeFailedDelete",
                format!("no volume plugin matched name: {provisioner}"),
            )),
            None if spec.csi.is_some() || annotation(volume, "pv.kubernetes.io/migrated-to").is_some() => None,
            None => Some((
                "VolumeFailedDelete",
                format!(
                    "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                    volume.name()
                ),
            )),
        },
        Some(_) => Some((
            "VolumeUnknownReclaimPolicy",
            "Volume has unrecognized PersistentVolumeReclaimPolicy".into(),
        )),
    }
}

/// A volume that was made for its claim and has no use without it.
pub fn goes_with_claim(volume: &PersistentVolume) -> bool {
    let policy = volume
        .spec
        .as_ref()
        .and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    annotation(volume, PROVISIONED_BY).is_some() && policy == Some("Delete")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_deletes() {
        let volume = |policy: &str, annotations: &str, source: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"v","annotations":{{{annotations}}}}},"spec":{{"persistentVolumeReclaimPolicy":"{policy}",{source}}}}}"#
            );
            PersistentVolume::decode(text.as_bytes()).expect("a volume")
        };
        let csi = r#""csi":{"driver":"d","volumeHandle":"h"}"#;
        let path = r#""hostPath":{"path":"/x"}"#;
        let reason = |v: PersistentVolume| failure(&v).map(|(reason, _)| reason);
        assert_eq!(reason(volume("Retain", "", path)), None);
        assert_eq!(reason(volume("Delete", "", csi)), None);
        assert_eq!(reason(volume("Delete", "", path)), Some("VolumeFailedDelete"));
        let external = format!(r#""{PROVISIONED_BY}":"example.com/p""#);
        assert_eq!(reason(volume("Delete", &external, path)), None);
        assert_eq!(reason(volume("Recycle", "", path)), Some("VolumeFailedRecycle"));
    }
}
