//! Names, ordinals and volumes: what makes each pod of a stateful set itself.

use crate::claim::Owner;
use crate::history::REVISION_LABEL;
use crate::pods;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use keelson_client::ApiObject;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in a pod's name, if it is a name of this set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (parent, number) = pod.name().rsplit_once('-')?;
    if parent != set.name() || number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse().ok()
}

pub fn start(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

pub fn replicas(set: &StatefulSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub fn in_range(set: &StatefulSet, ordinal: i32) -> bool {
    (start(set)..start(set).saturating_add(replicas(set))).contains(&ordinal)
}

pub fn revision(pod: &Pod) -> &str {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(REVISION_LABEL))
        .map_or("", String::as_str)
}

pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.name(), set.name())
}

/// The claims of one pod.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(claim_name(set, template, ordinal));
            claim.metadata.namespace = set.metadata.namespace.clone();
            claim.status = None;
            for (key, value) in set.spec.selector.match_labels.iter().flatten() {
                claim
                    .metadata
                    .labels
                    .get_or_insert_default()
                    .insert(key.clone(), value.clone());
            }
            claim
        })
        .collect()
}

/// The pod for an ordinal, of a revision.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pods::from_template(template, &Owner::of(set));
    pod.metadata.name = Some(format!("{}-{ordinal}", set.name()));
    identify(set, &mut pod, ordinal);
    pod.metadata
        .labels
        .get_or_insert_default()
        .insert(REVISION_LABEL.into(), revision.into());
    let name = pod.metadata.name.clone();
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = name;
    spec.subdomain = set.spec.service_name.clone();
    mount(set, &mut pod, ordinal);
    pod
}

fn identify(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), format!("{}-{ordinal}", set.name()));
    labels.insert(POD_INDEX.into(), ordinal.to_string());
}

/// Volumes of the claims take the place of volumes of the same name.
fn mount(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let mut volumes: Vec<Volume> = templates
        .map(|template| Volume {
            name: template.name().to_string(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: None,
            }),
            ..Default::default()
        })
        .collect();
    let spec = pod.spec.get_or_insert_default();
    let others = spec.volumes.take().unwrap_or_default();
    volumes.extend(others.into_iter().filter(|v| {
        !set.spec
            .volume_claim_templates
            .iter()
            .flatten()
            .any(|t| t.name() == v.name)
    }));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
}

/// The pod with its identity restored; none if it has it.
pub fn restored(set: &StatefulSet, pod: &Pod, ordinal: i32) -> Option<Pod> {
    let mut fixed = pod.clone();
    let labels = fixed.metadata.labels.get_or_insert_default();
    if labels.get(POD_NAME).is_none_or(|n| n != pod.name()) {
        identify(set, &mut fixed, ordinal);
    }
    (fixed != *pod).then_some(fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_and_volumes() {
        let text = r#"{"metadata":{"name":"web","namespace":"ns","uid":"u"},"spec":{"replicas":2,"ordinals":{"start":3},"serviceName":"svc",
            "selector":{"matchLabels":{"a":"b"}},"template":{"spec":{"containers":[],"volumes":[{"name":"data"},{"name":"other"}]}},
            "volumeClaimTemplates":[{"metadata":{"name":"data"}}]}}"#;
        let set = StatefulSet::decode(text.as_bytes()).expect("valid");
        let made = pod(&set, &set.spec.template, "web-1", 4);
        assert_eq!(
            (made.name(), ordinal(&set, &made), revision(&made)),
            ("web-4", Some(4), "web-1")
        );
        assert!(in_range(&set, 4) && !in_range(&set, 5) && !in_range(&set, 2));
        let spec = made.spec.as_ref().expect("spec");
        let volumes: Vec<_> = spec
            .volumes
            .iter()
            .flatten()
            .map(|v| {
                (
                    v.name.as_str(),
                    v.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str()),
                )
            })
            .collect();
        assert_eq!(volumes, [("data", Some("data-web-4")), ("other", None)]);
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("web-4"), Some("svc"))
        );
        assert!(restored(&set, &made, 4).is_none());
        for name in ["web", "web-", "web-x", "other-1", "web-1-x"] {
            let stray = Pod {
                metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                    name: Some(name.into()),
                    ..Default::default()
                },
                ..Default::default()
            };
            assert_eq!(ordinal(&set, &stray), None, "{name}");
        }
        assert_eq!(claims(&set, 4)[0].metadata.labels.as_ref().map(|l| l.len()), Some(1));
    }
}
