//! What a bond between a claim and a volume looks like in each of them. Pure.

use super::matching::{self, BOUND_BY_CONTROLLER};
use super::{BIND_COMPLETED, annotation};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use keelson_api::Quantity;
use keelson_client::events::reference;
use keelson_client::{ApiObject, Kind};

/// What a volume had before it was enlarged, while its file system hasn't been.
pub const BEFORE_RESIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";

pub fn claim_status(
    old: &PersistentVolumeClaimStatus,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> PersistentVolumeClaimStatus {
    let mut status = old.clone();
    let was_bound = old.phase.as_deref() == Some("Bound");
    let was_pending = old.phase.as_deref().is_none_or(|p| p == "Pending");
    status.phase = Some(phase.into());
    let Some((volume, spec)) = volume.and_then(|v| Some((v, v.spec.as_ref()?))) else {
        status.access_modes = None;
        status.capacity = None;
        status.current_volume_attributes_class_name = None;
        return status;
    };
    status.access_modes = spec.access_modes.clone();
    // Once bound, the capacity is the kubelet's and the resizer's to tell.
    if !was_bound || status.capacity.is_none() {
        status.capacity = spec.capacity.clone();
        if let Some(before) = annotation(volume, BEFORE_RESIZE).filter(|q| Quantity::parse(q).is_ok()) {
            let capacity = status.capacity.get_or_insert_default();
            capacity.insert("storage".into(), Text(before.into()));
        }
    }
    if was_pending {
        status.current_volume_attributes_class_name =
            spec.volume_attributes_class_name.clone().filter(|n| !n.is_empty());
    }
    status
}

/// The volume with its reference to a claim; none if it has it.
pub fn with_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let mut changed = volume.clone();
    let reserved = matching::is_reserved_for(volume, claim);
    let old = changed.spec.as_ref().and_then(|s| s.claim_ref.clone());
    if reserved && old.as_ref().and_then(|r| r.uid.as_deref()) == Some(claim.uid()) {
        return None;
    }
    changed.spec.get_or_insert_default().claim_ref = Some(reference(&PersistentVolumeClaim::RESOURCE, claim.meta()));
    if !reserved {
        changed
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    Some(changed)
}

/// The claim with its reference to a volume; none if it has it.
pub fn with_volume(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<PersistentVolumeClaim> {
    let mut changed = claim.clone();
    let spec = changed.spec.get_or_insert_default();
    let annotations = changed.metadata.annotations.get_or_insert_default();
    if spec.volume_name.as_deref() != Some(volume.name()) {
        spec.volume_name = volume.metadata.name.clone();
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    annotations.insert(BIND_COMPLETED.into(), "yes".into());
    (changed != *claim).then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bond_is_written_once() {
        let claim = PersistentVolumeClaim::decode(br#"{"metadata":{"name":"c","namespace":"ns","uid":"u"},"spec":{}}"#)
            .expect("valid");
        let volume = PersistentVolume::decode(
            br#"{"metadata":{"name":"v"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"]}}"#,
        )
        .expect("valid");
        let bound = with_claim(&volume, &claim).expect("changes");
        assert!(matching::is_reserved_for(&bound, &claim) && matching::is_bound_by_controller(&bound));
        assert!(with_claim(&bound, &claim).is_none());
        let taken = with_volume(&claim, &bound).expect("changes");
        assert!(with_volume(&taken, &bound).is_none());
        let status = claim_status(&Default::default(), "Bound", Some(&bound));
        assert_eq!(claim_status(&status, "Bound", Some(&bound)), status);
        assert_eq!(
            status
                .capacity
                .and_then(|c| c.get("storage").cloned())
                .map(|q| q.0)
                .as_deref(),
            Some("1Gi")
        );
        let reserved =
            PersistentVolume::decode(br#"{"metadata":{"name":"v"},"spec":{"claimRef":{"namespace":"ns","name":"c"}}}"#)
                .expect("valid");
        let bound = with_claim(&reserved, &claim).expect("changes");
        assert!(
            !matching::is_bound_by_controller(&bound),
            "a reservation is the user's own"
        );
    }
}
