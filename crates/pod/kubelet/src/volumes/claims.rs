//! From a claim to a place on this node: the claim has to be bound, and its volume has to be one that lives here.

use crate::pods;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use keelson_client::{Objects, Rest};

/// A directory or file of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: String,
    /// hostPath type to check, empty for none.
    pub check: String,
    /// It isn't made when it is missing.
    pub must_exist: bool,
    pub block: bool,
}

/// The claim's name, and whether it is the pod's own.
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool, bool)> {
    if let Some(c) = &volume.persistent_volume_claim {
        return Some((c.claim_name.clone(), false, c.read_only == Some(true)));
    }
    volume
        .ephemeral
        .as_ref()
        .map(|_| (format!("{}-{}", pods::name(pod), volume.name), true, false))
}

pub async fn resolve(rest: &Rest, pod: &Pod, claim: &str, own: bool) -> Result<Place, String> {
    let ns = pods::namespace(pod);
    let fail = |what: String| format!("error processing PVC {ns}/{claim}: {what}");
    let pvc = Objects::<PersistentVolumeClaim>::new(rest)
        .get(ns, claim)
        .await
        .map_err(|e| {
            fail(format!(
                "failed to fetch PVC from API server: {}",
                crate::error_text(&e)
            ))
        })?;
    if own
        && !pvc
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.uid == pods::uid(pod))
    {
        return Err(fail(format!(
            "PVC {ns}/{claim} was not created for pod {ns}/{} (pod is not owner)",
            pods::name(pod)
        )));
    }
    if pvc.metadata.deletion_timestamp.is_some() {
        return Err(fail("PVC is being deleted".into()));
    }
    let bound = pvc.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = pvc
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.clone())
        .unwrap_or_default();
    if !bound || name.is_empty() {
        return Err(fail("PVC is not bound".into()));
    }
    let pv = Objects::<PersistentVolume>::new(rest)
        .get("", &name)
        .await
        .map_err(|e| {
            fail(format!(
                "failed to fetch PV {name} from API server: {}",
                crate::error_text(&e)
            ))
        })?;
    let spec = pv.spec.unwrap_or_default();
    if spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref()) != pvc.metadata.uid.as_deref() {
        return Err(fail(format!("PV {name} is not bound to this PVC")));
    }
    let block = spec.volume_mode.as_deref() == Some("Block");
    if let Some(h) = &spec.host_path {
        let check = h.type_.clone().unwrap_or_default();
        return Ok(Place {
            path: h.path.clone(),
            check,
            must_exist: false,
            block,
        });
    }
    if let Some(l) = &spec.local {
        return Ok(Place {
            path: l.path.clone(),
            check: String::new(),
            must_exist: true,
            block,
        });
    }
    Err(fail(format!(
        "no volume plugin of this node can use the persistent volume {name}"
    )))
}
