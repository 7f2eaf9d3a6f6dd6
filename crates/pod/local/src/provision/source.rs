//! What a claim's volume begins with: another claim's content or a snapshot, if the claim may have it. Pure.
//!
//! A claim's own word for which volume it has proves nothing: anybody who may make a claim may write any volume's name into it. The
//! volume has to name that claim too, by its uid, which only the binder writes.

use super::request::{bytes, requested};
use super::snapshots::MANAGED_BY;
use super::{Facts, annotation};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use keelson_client::ApiObject;
use keelson_client::snapshots::{GROUP, VolumeSnapshot, VolumeSnapshotContent};
use keelson_csi::v1::controller_service_capability::rpc::Type as Can;
use std::sync::Arc;

/// Lets a file system's picture become a device, or the other way round.
const ALLOW_MODE_CHANGE: &str = "snapshot.storage.kubernetes.io/allow-volume-mode-change";

/// What a claim says that it is to begin with.
#[derive(Debug, PartialEq)]
pub enum Wish<'a> {
    Nothing,
    /// Another claim of its namespace.
    Claim(&'a str),
    /// A snapshot of its namespace.
    Snapshot(&'a str),
    /// A kind that others fill volumes from.
    Foreign(&'a str),
}

pub fn wish(claim: &PersistentVolumeClaim) -> Result<Wish<'_>, String> {
    let spec = claim.spec.as_ref();
    let by_reference = spec.and_then(|s| s.data_source_ref.as_ref());
    let named = by_reference.map(|r| {
        let (kind, group) = (r.kind.as_str(), r.api_group.as_deref());
        (kind, group, r.name.as_str(), r.namespace.as_deref())
    });
    let named = named.or_else(|| {
        let source = spec?.data_source.as_ref()?;
        Some((
            source.kind.as_str(),
            source.api_group.as_deref(),
            source.name.as_str(),
            None,
        ))
    });
    let Some((kind, group, name, namespace)) = named else {
        return Ok(Wish::Nothing);
    };
    if namespace.is_some_and(|n| !n.is_empty() && n != claim.namespace()) {
        return Err(format!(
            "a data source of another namespace ({}) is not supported",
            namespace.unwrap_or_default()
        ));
    }
    Ok(match (group.unwrap_or_default(), kind) {
        ("", "PersistentVolumeClaim") => Wish::Claim(name),
        (GROUP, "VolumeSnapshot") => Wish::Snapshot(name),
        _ => Wish::Foreign(kind),
    })
}

/// Why a claim can't begin with what it names.
#[derive(Debug, PartialEq)]
pub struct Refused {
    pub text: String,
    /// Another node could do it.
    pub elsewhere: bool,
}

impl From<String> for Refused {
    fn from(text: String) -> Refused {
        Refused { text, elsewhere: false }
    }
}

/// The driver's name of the volume of a claim that is to be copied. `find` and `volume` look up claims of the same namespace, and volumes.
pub fn of_claim(
    facts: &Facts,
    claim: &PersistentVolumeClaim,
    name: &str,
    find: impl Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    volume: impl Fn(&str) -> Option<Arc<PersistentVolume>>,
) -> Result<String, Refused> {
    if !facts.can(Can::CloneVolume) {
        return Err("CSI driver does not support clone operations".to_string().into());
    }
    let namespace = claim.namespace();
    let source = find(name).ok_or_else(|| {
        format!("error getting PVC {name} (namespace {namespace:?}) from api server: persistentvolumeclaim {name:?} not found")
    })?;
    if source.is_deleting() {
        return Err(format!("the PVC DataSource {name} is currently being deleted").into());
    }
    let phase = source
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default();
    if phase != "Bound" {
        return Err(format!("the PVC DataSource {name} must have a status of Bound. Got {phase}").into());
    }
    let spec = source.spec.as_ref();
    let held = spec.and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let found = volume(held).ok_or_else(|| {
        format!("error getting PV {held} from api server: the PVC DataSource {name} has no such volume")
    })?;
    if !is_of(&found, &source) {
        return Err(format!(
            "error getting PV {held} for PVC {namespace}/{name}: the volume is bound to a different claim"
        )
        .into());
    }
    let csi = found.spec.as_ref().and_then(|s| s.csi.as_ref());
    let csi = csi
        .filter(|c| c.driver == facts.name)
        .ok_or_else(|| format!("the source volume {held} for PVC {namespace}/{name} is of another driver"))?;
    if !facts.owns(&found) {
        return Err(Refused {
            text: format!("the volume of PVC {name} is not on node {}", facts.node),
            elsewhere: true,
        });
    }
    let mode = |c: &PersistentVolumeClaim| {
        let mode = c.spec.as_ref().and_then(|s| s.volume_mode.clone());
        mode.unwrap_or_else(|| "Filesystem".into())
    };
    let (theirs, ours) = (mode(&source), mode(claim));
    if theirs != ours {
        return Err(format!(
            "the source PVC and destination PVCs must have the same volume mode for cloning.  Source is {theirs}, but new PVC requested {ours}"
        ).into());
    }
    let has = bytes(source.status.as_ref().and_then(|s| s.capacity.as_ref()));
    let wants = requested(claim);
    if wants < has {
        return Err(format!(
            "error, new PVC request must be greater than or equal in size to the specified PVC data source, requested {wants} but source is {has}"
        ).into());
    }
    Ok(csi.volume_handle.clone())
}

/// The driver's name of the picture that a claim's volume is to begin with.
pub fn of_snapshot(
    facts: &Facts,
    claim: &PersistentVolumeClaim,
    name: &str,
    found: Option<(&VolumeSnapshot, Option<&VolumeSnapshotContent>)>,
) -> Result<String, Refused> {
    let refuse = |why: String| {
        Err(Refused::from(format!(
            "error getting handle for DataSource Type VolumeSnapshot by Name {name}: {why}"
        )))
    };
    let Some((snapshot, content)) = found else {
        return refuse(format!(
            "error getting snapshot {name} from api server: volumesnapshots.{GROUP} {name:?} not found"
        ));
    };
    if snapshot.is_deleting() {
        return refuse(format!("snapshot source {name} is currently being deleted"));
    }
    let Some(content) = content else {
        return refuse(format!("snapshot {name} not bound"));
    };
    // Both have to name each other: anybody may name any content in a snapshot of their own.
    if !content.is_of(snapshot) || snapshot.bound() != Some(content.name()) {
        return refuse(format!(
            "snapshotcontent {} is bound to a different snapshot than {name}",
            content.name()
        ));
    }
    if content.spec.driver != facts.name {
        return refuse(format!(
            "the snapshot {name} is of another driver ({}) than the class",
            content.spec.driver
        ));
    }
    let status = content.status.as_ref();
    if !snapshot.is_ready() {
        return refuse(format!("snapshot {name} is not Ready"));
    }
    let Some(handle) = status.and_then(|s| s.snapshot_handle.clone()) else {
        return refuse(format!("snapshot handle is not available for snapshot {name}"));
    };
    let (has, wants) = (
        status.and_then(|s| s.restore_size).unwrap_or_default(),
        requested(claim),
    );
    if wants < has {
        return refuse(format!(
            "requested volume size {wants} is less than the size {has} for the source snapshot {name}"
        ));
    }
    let mode = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref());
    let mode = mode.unwrap_or("Filesystem");
    let other = content.spec.source_volume_mode.as_deref().is_some_and(|m| m != mode);
    if other && annotation(content, ALLOW_MODE_CHANGE) != Some("true") {
        return refuse(format!(
            "requested volume {}/{} modifies the mode of the source volume but does not have permission to do so. {ALLOW_MODE_CHANGE} annotation is not present on snapshotcontent {}",
            claim.namespace(),
            claim.name(),
            content.name()
        ));
    }
    if node_of(content) != Some(&facts.node) {
        return Err(Refused {
            text: format!("the snapshot {name} is not on node {}", facts.node),
            elsewhere: true,
        });
    }
    Ok(handle)
}

fn node_of(content: &VolumeSnapshotContent) -> Option<&String> {
    content.metadata.labels.as_ref()?.get(MANAGED_BY)
}

/// Whether a volume is bound to this very claim.
pub fn is_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference.is_some_and(|r| {
        !claim.uid().is_empty()
            && r.uid.as_deref() == Some(claim.uid())
            && r.name.as_deref() == Some(claim.name())
            && r.namespace.as_deref() == Some(claim.namespace())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn facts() -> Facts {
        Facts {
            name: "d".into(),
            node: "n".into(),
            segments: BTreeMap::from([("where".into(), "n".into())]),
            can: [Can::CloneVolume.into()].into(),
        }
    }

    fn claim(text: &str) -> Arc<PersistentVolumeClaim> {
        Arc::new(PersistentVolumeClaim::decode(text.as_bytes()).expect("a claim"))
    }

    fn source(more: &str, status: &str) -> Arc<PersistentVolumeClaim> {
        claim(&format!(
            r#"{{"metadata":{{"name":"from","namespace":"ns","uid":"from-uid"{more}}},"spec":{{"volumeName":"pv"}},
                "status":{{"phase":"{status}","capacity":{{"storage":"2Gi"}}}}}}"#
        ))
    }

    fn copy(size: &str, more: &str) -> Arc<PersistentVolumeClaim> {
        claim(&format!(
            r#"{{"metadata":{{"name":"to","namespace":"ns","uid":"to-uid"}},"spec":{{"storageClassName":"s",
                "resources":{{"requests":{{"storage":"{size}"}}}}{more}}}}}"#
        ))
    }

    fn volume(uid: &str) -> Arc<PersistentVolume> {
        let text = format!(
            r#"{{"metadata":{{"name":"pv"}},"spec":{{"claimRef":{{"namespace":"ns","name":"from","uid":"{uid}"}},
                "csi":{{"driver":"d","volumeHandle":"h"}},"nodeAffinity":{{"required":{{"nodeSelectorTerms":[
                {{"matchExpressions":[{{"key":"where","operator":"In","values":["n"]}}]}}]}}}}}}}}"#
        );
        Arc::new(PersistentVolume::decode(text.as_bytes()).expect("a volume"))
    }

    fn judge(
        from: &Arc<PersistentVolumeClaim>,
        of: &Arc<PersistentVolume>,
        to: &PersistentVolumeClaim,
    ) -> Result<String, Refused> {
        let find = |name: &str| (name == "from").then(|| from.clone());
        of_claim(&facts(), to, "from", find, |name| (name == "pv").then(|| of.clone()))
    }

    #[test]
    fn a_source_that_names_another_claims_volume_is_refused() {
        let (from, to) = (source("", "Bound"), copy("2Gi", ""));
        assert_eq!(judge(&from, &volume("from-uid"), &to), Ok("h".to_string()));
        let foreign = judge(&from, &volume("somebody-elses"), &to);
        assert!(
            foreign
                .expect_err("refused")
                .text
                .contains("bound to a different claim")
        );
        let unbound = PersistentVolume {
            spec: volume("").spec.clone().map(|mut s| {
                s.claim_ref = None;
                s
            }),
            ..Default::default()
        };
        assert!(judge(&from, &Arc::new(unbound), &to).is_err());
    }

    #[test]
    fn a_source_is_whole_and_stays() {
        let (of, to) = (volume("from-uid"), copy("2Gi", ""));
        for phase in ["Pending", "Lost", ""] {
            assert!(judge(&source("", phase), &of, &to).is_err(), "{phase}");
        }
        let going = source(r#","deletionTimestamp":"2026-01-01T00:00:00Z""#, "Bound");
        assert!(judge(&going, &of, &to).is_err());
        let from = source("", "Bound");
        assert!(judge(&from, &of, &copy("1Gi", "")).is_err(), "smaller than its source");
        assert!(judge(&from, &of, &copy("2Gi", r#","volumeMode":"Block""#)).is_err());
    }

    #[test]
    fn a_snapshot_and_its_content_name_each_other() {
        let snapshot = |uid: &str, more: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"snap","namespace":"ns","uid":"{uid}"{more}}},
                    "status":{{"boundVolumeSnapshotContentName":"c","readyToUse":true}}}}"#
            );
            VolumeSnapshot::decode(text.as_bytes()).expect("a snapshot")
        };
        let content = |uid: &str, node: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"c","labels":{{"{MANAGED_BY}":"{node}"}}}},"spec":{{"driver":"d","sourceVolumeMode":"Filesystem",
                    "volumeSnapshotRef":{{"name":"snap","namespace":"ns","uid":"{uid}"}}}},
                    "status":{{"snapshotHandle":"h","restoreSize":2147483648,"readyToUse":true}}}}"#
            );
            VolumeSnapshotContent::decode(text.as_bytes()).expect("a content")
        };
        let of = |s: &VolumeSnapshot, c: &VolumeSnapshotContent, to: &PersistentVolumeClaim| {
            of_snapshot(&facts(), to, "snap", Some((s, Some(c))))
        };
        let (mine, to) = (snapshot("u", ""), copy("2Gi", ""));
        assert_eq!(of(&mine, &content("u", "n"), &to), Ok("h".to_string()));
        let foreign = of(&mine, &content("somebody-elses", "n"), &to).expect_err("refused");
        assert!(
            foreign.text.contains("bound to a different snapshot"),
            "{}",
            foreign.text
        );
        assert!(of(&mine, &content("u", "other"), &to).expect_err("refused").elsewhere);
        assert!(of(&mine, &content("u", "n"), &copy("1Gi", "")).is_err(), "smaller");
        assert!(of(&mine, &content("u", "n"), &copy("2Gi", r#","volumeMode":"Block""#)).is_err());
        let going = snapshot("u", r#","deletionTimestamp":"2026-01-01T00:00:00Z""#);
        assert!(of(&going, &content("u", "n"), &to).is_err());
        assert!(of_snapshot(&facts(), &to, "snap", None).is_err());
    }

    #[test]
    fn kinds_are_told_apart_by_their_group_too() {
        let named = |source: &str| {
            let claim = copy("2Gi", &format!(r#","dataSourceRef":{source}"#));
            wish(&claim).map(|w| format!("{w:?}"))
        };
        assert_eq!(
            named(r#"{"kind":"PersistentVolumeClaim","name":"a"}"#).as_deref(),
            Ok(r#"Claim("a")"#)
        );
        assert_eq!(
            named(r#"{"apiGroup":"example.com","kind":"PersistentVolumeClaim","name":"a"}"#).as_deref(),
            Ok(r#"Foreign("PersistentVolumeClaim")"#)
        );
        assert!(named(r#"{"kind":"PersistentVolumeClaim","name":"a","namespace":"other"}"#).is_err());
    }
}
