//! Who owns a claim, so that it goes with its pod or its set as the retention policy says. Pure.

use crate::claim::Owner;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

#[derive(Debug, PartialEq)]
pub enum Upkeep {
    Fine,
    /// These should be the claim's owners.
    Write(Vec<OwnerReference>),
    /// Another controller owns the claim: the policy can't be kept. Our own references, if any, are removed.
    Conflict(Option<Vec<OwnerReference>>),
}

fn names(reference: &OwnerReference, owner: &Owner) -> bool {
    reference.api_version == owner.resource.api_version()
        && reference.kind == owner.resource.kind
        && reference.name == owner.name
}

/// The claim still belongs to an earlier pod or set of the same name, and will go with it.
pub fn is_stale(claim: &PersistentVolumeClaim, owner: &Owner) -> bool {
    claim
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|r| names(r, owner) && r.uid != owner.uid)
}

pub fn deletes_when_scaled(set: &StatefulSet) -> bool {
    policy(set).1
}

/// Whether claims are deleted with the set, and with their pods when it is scaled down.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |p: Option<&String>| p.is_some_and(|p| p == "Delete");
    (
        deletes(policy.and_then(|p| p.when_deleted.as_ref())),
        deletes(policy.and_then(|p| p.when_scaled.as_ref())),
    )
}

pub fn upkeep(set: &StatefulSet, pod: &Pod, in_range: bool, claim: &PersistentVolumeClaim) -> Upkeep {
    let (set_owner, pod_owner) = (Owner::of(set), Owner::of(pod));
    if is_stale(claim, &set_owner) || is_stale(claim, &pod_owner) {
        return Upkeep::Fine;
    }
    let now = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = |r: &OwnerReference| names(r, &set_owner) || names(r, &pod_owner);
    let others: Vec<OwnerReference> = now.iter().filter(|r| !ours(r)).cloned().collect();
    let (with_set, with_pods) = policy(set);
    if (with_set || with_pods) && others.iter().any(|r| r.controller == Some(true)) {
        return Upkeep::Conflict((others.len() < now.len()).then_some(others));
    }
    let mut wanted = others;
    if with_set && (in_range || !with_pods) {
        wanted.push(set_owner.reference());
    }
    if with_pods && !in_range {
        wanted.push(pod_owner.reference());
    }
    let key = |refs: &[OwnerReference]| {
        let mut keys: Vec<_> = refs
            .iter()
            .map(|r| (r.uid.clone(), r.controller == Some(true)))
            .collect();
        keys.sort();
        keys
    };
    if key(&now) == key(&wanted) {
        Upkeep::Fine
    } else {
        Upkeep::Write(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use keelson_client::ApiObject;

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        let text = format!(
            r#"{{"metadata":{{"name":"web","uid":"set"}},"spec":{{"selector":{{}},"template":{{}},"persistentVolumeClaimRetentionPolicy":{{"whenDeleted":"{deleted}","whenScaled":"{scaled}"}}}}}}"#
        );
        StatefulSet::decode(text.as_bytes()).expect("valid")
    }

    fn owners(set: &StatefulSet, in_range: bool, have: &[OwnerReference]) -> String {
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some("web-0".into()),
                uid: Some("pod".into()),
                ..Default::default()
            },
            ..Default::default()
        };
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                owner_references: Some(have.to_vec()),
                ..Default::default()
            },
            ..Default::default()
        };
        let uids = |refs: Vec<OwnerReference>| refs.into_iter().map(|r| r.uid).collect::<Vec<_>>().join(" ");
        match upkeep(set, &pod, in_range, &claim) {
            Upkeep::Fine => "fine".into(),
            Upkeep::Write(refs) => format!("[{}]", uids(refs)),
            Upkeep::Conflict(refs) => format!("conflict {}", refs.map(uids).unwrap_or_default()),
        }
    }

    #[test]
    fn owners_follow_the_policy() {
        let reference = |kind: &str, api: &str, name: &str, uid: &str| OwnerReference {
            kind: kind.into(),
            api_version: api.into(),
            name: name.into(),
            uid: uid.into(),
            controller: Some(true),
            ..Default::default()
        };
        let by_set = reference("StatefulSet", "apps/v1", "web", "set");
        let by_pod = reference("Pod", "v1", "web-0", "pod");
        let other = reference("Thing", "v1", "x", "other");
        let old = reference("StatefulSet", "apps/v1", "web", "earlier");
        for (deleted, scaled, in_range, have, expected) in [
            ("Retain", "Retain", true, vec![], "fine"),
            ("Retain", "Retain", true, vec![by_set.clone()], "[]"),
            ("Delete", "Retain", true, vec![], "[set]"),
            ("Delete", "Retain", false, vec![by_pod.clone()], "[set]"),
            ("Retain", "Delete", true, vec![by_pod.clone()], "[]"),
            ("Retain", "Delete", false, vec![], "[pod]"),
            ("Delete", "Delete", true, vec![by_set.clone()], "fine"),
            ("Delete", "Delete", false, vec![by_set.clone()], "[pod]"),
            ("Delete", "Delete", true, vec![other.clone()], "conflict "),
            (
                "Delete",
                "Delete",
                true,
                vec![other.clone(), by_set.clone()],
                "conflict other",
            ),
            ("Delete", "Delete", true, vec![old], "fine"),
        ] {
            assert_eq!(
                owners(&set(deleted, scaled), in_range, &have),
                expected,
                "{deleted} {scaled} {in_range}"
            );
        }
    }
}
