//! A deployment's replica sets: which is the new one, their revisions and the annotations that tell them.

use crate::util::scaled;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use keelson_client::ApiObject;
use std::collections::BTreeMap;
use std::sync::Arc;

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
pub const ROLLBACK: &str = "deprecated.deployment.rollback.to";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Older revisions are forgotten when the list grows longer than this.
const HISTORY_LENGTH: usize = 2000;

/// Annotations that belong to either a deployment or a replica set, and aren't copied between them.
fn is_own(annotation: &str) -> bool {
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED, MAXIMUM, ROLLBACK].contains(&annotation)
}

#[derive(Clone, Debug, Default)]
pub struct Sets {
    /// The one with the deployment's present template.
    pub new: Option<Arc<ReplicaSet>>,
    /// All others, the oldest first.
    pub old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    pub fn split(deployment: &Deployment, mut all: Vec<Arc<ReplicaSet>>) -> Self {
        all.sort_by_key(|a| age(a));
        let at = all
            .iter()
            .position(|set| same_template(&set.spec.template, &deployment.spec.template));
        let new = at.map(|at| all.remove(at));
        Sets { new, old: all }
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    pub fn active(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.all().filter(|set| wanted(set) > 0)
    }

    pub fn replace(&mut self, set: ReplicaSet) {
        let set = Arc::new(set);
        for slot in self.old.iter_mut().chain(&mut self.new) {
            if slot.uid() == set.uid() {
                *slot = set.clone();
            }
        }
    }
}

/// From the oldest to the youngest.
pub fn age(set: &ReplicaSet) -> (Option<jiff::Timestamp>, String) {
    (
        set.metadata.creation_timestamp.as_ref().map(|t| t.0),
        set.name().to_string(),
    )
}

pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

pub fn is_rolling(deployment: &Deployment) -> bool {
    let kind = deployment.spec.strategy.as_ref().and_then(|s| s.type_.as_deref());
    kind.is_none_or(|k| k == "RollingUpdate")
}

/// How many pods there may be too many, and too few, during a rolling update. Never are both zero.
pub fn fences(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let total = replicas(deployment);
    let rolling = deployment
        .spec
        .strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), total, true);
    let unavailable = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), total, false);
    if surge == 0 && unavailable == 0 {
        (0, 1.min(total))
    } else {
        (surge, unavailable.min(total))
    }
}

pub fn same_template(a: &Option<PodTemplateSpec>, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(meta) = &mut template.metadata {
            if let Some(labels) = &mut meta.labels {
                labels.remove(HASH_LABEL);
            }
            meta.labels = meta.labels.take().filter(|l| !l.is_empty());
            meta.creation_timestamp = None;
        }
        template.metadata = template.metadata.take().filter(|m| *m != Default::default());
        template
    };
    a.as_ref().is_some_and(|a| bare(a) == bare(b))
}

pub fn annotation<'a>(object: &'a impl ApiObject, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

pub fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

pub fn max_revision<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i64 {
    sets.into_iter().map(|set| revision(set)).max().unwrap_or(0)
}

/// Brings the new set's annotations up to date; says whether that changed any.
pub fn annotate(deployment: &Deployment, set: &mut ReplicaSet, new_revision: i64) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !is_own(key) && annotations.get(key) != Some(value) {
            annotations.insert(key.clone(), value.clone());
            changed = true;
        }
    }
    let before = annotations.get(REVISION).cloned();
    let old = match before.as_deref() {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            // Somebody wrote nonsense there: it is left to them.
            Err(_) => return changed,
        },
    };
    if old >= new_revision {
        return changed;
    }
    annotations.insert(REVISION.into(), new_revision.to_string());
    if let Some(before) = before {
        remember(annotations, &before);
    }
    true
}

/// A set that becomes new again keeps the revisions it had.
fn remember(annotations: &mut BTreeMap<String, String>, revision: &str) {
    let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
    let mut list: Vec<&str> = history.split(',').filter(|r| !r.is_empty()).collect();
    list.push(revision);
    while list.len() > 1 && list.iter().map(|r| r.len() + 1).sum::<usize>() > HISTORY_LENGTH {
        list.remove(0);
    }
    let joined = list.join(",");
    annotations.insert(REVISION_HISTORY.into(), joined);
}

/// Notes what size the deployment had when the set was last scaled; says whether that changed anything.
pub fn note_size(deployment: &Deployment, set: &mut ReplicaSet) -> bool {
    let total = replicas(deployment);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (name, value) in [(DESIRED, total), (MAXIMUM, total + fences(deployment).0)] {
        let value = value.to_string();
        changed |= annotations.insert(name.into(), value.clone()) != Some(value);
    }
    changed
}

/// The deployment's annotations when it goes back to a set: the set's, but for its own.
pub fn rolled_back_annotations(deployment: &Deployment, set: &ReplicaSet) -> BTreeMap<String, String> {
    let own = deployment
        .metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(k, _)| is_own(k));
    let theirs = set.metadata.annotations.iter().flatten().filter(|(k, _)| !is_own(k));
    own.chain(theirs).map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_only_grow_and_are_remembered() {
        let mut deployment = Deployment::default();
        deployment.metadata.annotations = Some(
            [
                ("note".to_string(), "a".to_string()),
                (LAST_APPLIED.to_string(), "x".to_string()),
            ]
            .into(),
        );
        let mut set = ReplicaSet::default();
        assert!(annotate(&deployment, &mut set, 1));
        assert!(!annotate(&deployment, &mut set, 1));
        assert_eq!(annotation(&set, "note"), Some("a"));
        assert_eq!(annotation(&set, LAST_APPLIED), None);
        assert_eq!(annotation(&set, REVISION_HISTORY), None);
        assert!(annotate(&deployment, &mut set, 3));
        assert!(annotate(&deployment, &mut set, 5));
        assert_eq!((revision(&set), annotation(&set, REVISION_HISTORY)), (5, Some("1,3")));
        assert!(!annotate(&deployment, &mut set, 4));
        assert_eq!(revision(&set), 5);
    }

    #[test]
    fn templates_are_equal_but_for_the_hash() {
        let template = |labels: &[(&str, &str)]| PodTemplateSpec {
            metadata: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                labels: Some(labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
                ..Default::default()
            }),
            spec: None,
        };
        assert!(same_template(
            &Some(template(&[("a", "1"), (HASH_LABEL, "x")])),
            &template(&[("a", "1")])
        ));
        assert!(!same_template(&Some(template(&[("a", "2")])), &template(&[("a", "1")])));
        assert!(same_template(
            &Some(template(&[(HASH_LABEL, "x")])),
            &PodTemplateSpec::default()
        ));
    }
}
