//! From a volume that names a claim to the persistent volume it is bound to. The API is asked each time: a claim says what
//! it is bound to once, and nobody may mount what another claim has got since.

use super::kind::Bound;
use crate::pods;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use keelson_client::{Objects, Rest};

const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// A claim as a pod names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    /// It was made for the pod, and may not be anybody else's.
    own: bool,
    read_only: bool,
}

pub fn named(pod: &Pod, volume: &Volume) -> Option<Named> {
    if let Some(c) = &volume.persistent_volume_claim {
        return Some(Named {
            name: c.claim_name.clone(),
            own: false,
            read_only: c.read_only == Some(true),
        });
    }
    volume.ephemeral.as_ref().map(|_| Named {
        name: format!("{}-{}", pods::name(pod), volume.name),
        own: true,
        read_only: false,
    })
}

pub async fn resolve(rest: &Rest, pod: &Pod, named: &Named) -> Result<Bound, String> {
    let (ns, name) = (pods::namespace(pod), named.name.as_str());
    let fail = |what: String| format!("error processing PVC {ns}/{name}: {what}");
    let claim = Objects::<PersistentVolumeClaim>::new(rest)
        .get(ns, name)
        .await
        .map_err(|e| {
            let e = crate::error_text(&e);
            fail(format!("failed to fetch PVC from API server: {e}"))
        })?;
    let volume = bound_name(&claim).map_err(fail)?;
    if named.own && !is_for(pod, &claim) {
        return Err(format!(
            "PVC {ns}/{name} was not created for pod {ns}/{} (pod is not owner)",
            pods::name(pod)
        ));
    }
    let volume = Objects::<PersistentVolume>::new(rest)
        .get("", &volume)
        .await
        .map_err(|e| {
            let e = crate::error_text(&e);
            fail(format!("failed to fetch PV {volume} from API server: {e}"))
        })?;
    points_back(&volume, &claim).map_err(fail)?;
    Ok(Bound {
        claim,
        volume,
        read_only: named.read_only,
    })
}

fn is_for(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|o| o.controller == Some(true) && o.uid == pods::uid(pod))
}

/// The volume's name, if the claim may be used.
fn bound_name(claim: &PersistentVolumeClaim) -> Result<String, String> {
    let protected = claim.metadata.finalizers.iter().flatten().any(|f| f == PROTECTION);
    // One that pods still use is protected, and those pods must find it after a restart of the kubelet.
    if claim.metadata.deletion_timestamp.is_some() && !protected {
        return Err("PVC is being deleted".into());
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound".into());
    }
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
    name.filter(|n| !n.is_empty())
        .ok_or_else(|| "PVC has empty pvc.Spec.VolumeName".into())
}

fn points_back(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    let (have, want) = (reference.uid.as_deref(), claim.metadata.uid.as_deref());
    if have != want {
        return Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {}",
            have.unwrap_or_default(),
            want.unwrap_or_default()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(meta: serde_json::Value, phase: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": meta, "spec": {"volumeName": "pv"}, "status": {"phase": phase}}))
            .unwrap()
    }

    #[test]
    fn a_claim_in_use_that_is_being_deleted_still_serves() {
        let at = "2026-01-01T00:00:00Z";
        let in_use = claim(json!({"deletionTimestamp": at, "finalizers": [PROTECTION]}), "Bound");
        assert_eq!(bound_name(&in_use), Ok("pv".into()));
        let unused = claim(json!({"deletionTimestamp": at}), "Bound");
        assert_eq!(bound_name(&unused), Err("PVC is being deleted".into()));
        assert_eq!(bound_name(&claim(json!({}), "Pending")), Err("PVC is not bound".into()));
    }

    #[test]
    fn a_volume_of_another_claim_is_not_taken() {
        let mine = claim(json!({"uid": "1"}), "Bound");
        let pv = |uid: &str| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"uid": uid}}})).unwrap()
        };
        assert!(points_back(&pv("1"), &mine).is_ok());
        assert_eq!(
            points_back(&pv("2"), &mine).unwrap_err(),
            "found PV object pv but its pv.Spec.ClaimRef.UID 2 does not point to claim.UID 1"
        );
    }
}
