//! Which volume a claim gets. Pure.

use crate::volumes::{annotation, has_annotation};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use keelson_api::Quantity;
use keelson_client::{ApiObject, labels};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

pub fn storage(list: Option<&BTreeMap<String, Text>>) -> Quantity {
    list.and_then(|l| l.get("storage"))
        .and_then(|q| Quantity::parse(&q.0).ok())
        .unwrap_or(Quantity::ZERO)
}

pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    storage(
        claim
            .spec
            .as_ref()
            .and_then(|s| s.resources.as_ref())
            .and_then(|r| r.requests.as_ref()),
    )
}

pub fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

/// The storage class, by the old annotation or the field.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .or(spec)
        .unwrap_or_default()
}

pub fn volume_class(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(volume, "volume.beta.kubernetes.io/storage-class")
        .or(spec)
        .unwrap_or_default()
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether a volume's claim reference means this claim; one without a uid is a reservation by name.
pub fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return false;
    };
    let named =
        reference.name.as_deref() == Some(claim.name()) && reference.namespace.as_deref() == Some(claim.namespace());
    named
        && reference
            .uid
            .as_deref()
            .is_none_or(|uid| uid.is_empty() || uid == claim.uid())
}

pub fn is_claimed(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some())
}

/// Why a volume can't serve a claim that names it.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.is_deleting() {
        return Some(format!("the volume is marked for deletion {:?}", volume.name()));
    }
    let text = if capacity(volume) < requested(claim) {
        "requested PV is too small"
    } else if volume_class(volume) != claim_class(claim) {
        "storageClassName does not match"
    } else if !has_same_attributes(volume, claim) {
        "volumeAttributesClassName does not match"
    } else if !has_same_mode(volume, claim) {
        "incompatible volumeMode"
    } else if !offers_modes(volume, claim) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(text.into())
}

fn has_same_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.as_deref());
    let wanted = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.as_deref());
    offered.unwrap_or_default() == wanted.unwrap_or_default()
}

pub fn has_same_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref());
    mode(offered) == mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

fn offers_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume
        .spec
        .as_ref()
        .and_then(|s| s.access_modes.as_deref())
        .unwrap_or_default();
    let mut wanted = claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten());
    wanted.all(|m| offered.contains(m))
}

/// What a volume is for, in a word: the claim it is reserved for, or whoever wants its class.
pub fn meant_for(volume: &PersistentVolume) -> String {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    match reference {
        Some(claim) => named(claim.namespace.as_deref(), claim.name.as_deref()),
        None => free(volume_class(volume)),
    }
}

/// Volumes reserved for the claim are for this.
pub fn reserved(claim: &PersistentVolumeClaim) -> String {
    named(Some(claim.namespace()), Some(claim.name()))
}

/// Volumes that are free and of the class are for this.
pub fn free(class: &str) -> String {
    format!("class\0{class}")
}

fn named(namespace: Option<&str>, name: Option<&str>) -> String {
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// The best volume for a claim: one reserved for it, whatever its class, else of those that are free and fit the one with the
/// fewest access modes, and of these the smallest.
pub fn best(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    reserved_only: bool,
) -> Option<Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    let serves = |v: &PersistentVolume| {
        !v.is_deleting()
            && capacity(v) >= requested(claim)
            && has_same_mode(v, claim)
            && has_same_attributes(v, claim)
            && offers_modes(v, claim)
    };
    let reserved = volumes.iter().find(|v| is_reserved_for(v, claim) && serves(v));
    if reserved.is_some() || reserved_only {
        return reserved.cloned();
    }
    let free = volumes.iter().filter(|v| {
        !is_claimed(v)
            && v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available")
            && serves(v)
            && volume_class(v) == claim_class(claim)
            && selector.is_none_or(|s| labels::matches(Some(s), v.metadata.labels.as_ref()))
    });
    let modes = |v: &PersistentVolume| {
        v.spec
            .as_ref()
            .and_then(|s| s.access_modes.as_ref())
            .map_or(0, Vec::len)
    };
    free.min_by(|a, b| {
        let sizes = capacity(a).cmp(&capacity(b));
        modes(a).cmp(&modes(b)).then(sizes).then_with(|| a.name().cmp(b.name()))
    })
    .cloned()
}

/// The claim reference was made by a controller, and may be undone by it.
pub fn is_bound_by_controller(volume: &PersistentVolume) -> bool {
    has_annotation(volume, BOUND_BY_CONTROLLER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, size: &str, class: &str, more: &str) -> Arc<PersistentVolume> {
        let text = format!(
            r#"{{"metadata":{{"name":"{name}","labels":{{"n":"{name}"}}}},"spec":{{"capacity":{{"storage":"{size}"}},"accessModes":["ReadWriteOnce"],"storageClassName":"{class}"{more}}},"status":{{"phase":"Available"}}}}"#
        );
        Arc::new(PersistentVolume::decode(text.as_bytes()).expect("valid"))
    }

    fn claim(size: &str, class: &str, more: &str) -> PersistentVolumeClaim {
        let text = format!(
            r#"{{"metadata":{{"name":"c","namespace":"ns","uid":"u"}},"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}},"accessModes":["ReadWriteOnce"],"storageClassName":"{class}"{more}}}}}"#
        );
        PersistentVolumeClaim::decode(text.as_bytes()).expect("valid")
    }

    #[test]
    fn the_smallest_that_fits() {
        let mine = r#","claimRef":{"namespace":"ns","name":"c"}"#;
        let other = r#","claimRef":{"namespace":"ns","name":"other","uid":"x"}"#;
        let all = [
            volume("a", "1Gi", "", ""),
            volume("b", "5Gi", "", ""),
            volume("c", "2Gi", "", ""),
            volume("d", "2Gi", "fast", ""),
            volume("e", "2Gi", "", other),
        ];
        let pick =
            |c: &PersistentVolumeClaim, v: &[Arc<PersistentVolume>]| best(c, v, false).map(|v| v.name().to_string());
        assert_eq!(pick(&claim("1500Mi", "", ""), &all).as_deref(), Some("c"));
        assert_eq!(pick(&claim("1Gi", "fast", ""), &all).as_deref(), Some("d"));
        assert_eq!(pick(&claim("9Gi", "", ""), &all), None);
        assert_eq!(
            pick(&claim("1Gi", "", r#","selector":{"matchLabels":{"n":"b"}}"#), &all).as_deref(),
            Some("b")
        );
        let with_mine = [all[0].clone(), volume("z", "9Gi", "", mine)];
        assert_eq!(pick(&claim("1Gi", "", ""), &with_mine).as_deref(), Some("z"));
        assert_eq!(
            best(&claim("1Gi", "", ""), &all, true).map(|v| v.name().to_string()),
            None
        );
        assert_eq!(
            mismatch(
                &volume("b", "5Gi", "", r#","volumeMode":"Block""#),
                &claim("1Gi", "", "")
            ),
            Some("incompatible volumeMode".into())
        );
        let gold = r#","volumeAttributesClassName":"gold""#;
        let all = [volume("a", "1Gi", "", gold), volume("b", "9Gi", "", "")];
        assert_eq!(pick(&claim("1Gi", "", ""), &all).as_deref(), Some("b"));
        assert_eq!(pick(&claim("1Gi", "", gold), &all).as_deref(), Some("a"));
        let mut modes = (*volume("c", "1Gi", "", "")).clone();
        let spec = modes.spec.get_or_insert_default();
        spec.access_modes.get_or_insert_default().push("ReadOnlyMany".into());
        let all = [Arc::new(modes), volume("b", "9Gi", "", "")];
        assert_eq!(
            pick(&claim("1Gi", "", ""), &all).as_deref(),
            Some("b"),
            "the fewest modes come first"
        );
        let other = volume("r", "1Gi", "slow", mine);
        assert_eq!(
            pick(&claim("1Gi", "fast", ""), &[other]).as_deref(),
            Some("r"),
            "a reservation needs no class"
        );
    }
}
