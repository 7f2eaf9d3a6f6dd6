//! What the two kinds have in common, and how each writes its status.

use super::plan::Counts;
use crate::util::{drop_condition, set_condition};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController, ReplicationControllerCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use keelson_client::Kind;
use keelson_client::labels::{self, Labels};
use std::borrow::Cow;

pub trait Replicated: Kind {
    const KIND: &'static str;
    const GROUP: &'static str;
    fn wanted(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> PodTemplateSpec;
    fn selects(&self, labels: Option<&Labels>) -> bool;
    fn selector(&self) -> Cow<'_, LabelSelector>;
    /// The object with its new status, or none if nothing changes.
    fn with_status(&self, counts: &Counts, failure: Option<&str>, now: Timestamp) -> Option<Self>;
}

/// Pods are missing, or too many: which of it failed.
fn failure_reason(counts: &Counts, wanted: i32) -> &'static str {
    match counts.replicas.cmp(&wanted) {
        std::cmp::Ordering::Less => "FailedCreate",
        std::cmp::Ordering::Greater => "FailedDelete",
        std::cmp::Ordering::Equal => "",
    }
}

impl Replicated for ReplicaSet {
    const KIND: &'static str = "ReplicaSet";
    const GROUP: &'static str = "apps";

    fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.template.clone().unwrap_or_default()
    }
    fn selects(&self, labels: Option<&Labels>) -> bool {
        !labels::is_empty(&self.spec.selector) && labels::matches(Some(&self.spec.selector), labels)
    }
    fn selector(&self) -> Cow<'_, LabelSelector> {
        Cow::Borrowed(&self.spec.selector)
    }
    fn with_status(&self, counts: &Counts, failure: Option<&str>, now: Timestamp) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut new = old.clone();
        new.replicas = counts.replicas;
        new.fully_labeled_replicas = some(counts.labelled);
        new.ready_replicas = some(counts.ready);
        new.available_replicas = some(counts.available);
        new.terminating_replicas = Some(counts.terminating);
        new.observed_generation = self.metadata.generation;
        let is_failure = |c: &ReplicaSetCondition| c.type_.as_deref() == Some("ReplicaFailure");
        let failing = old.conditions.iter().flatten().any(is_failure);
        match failure {
            Some(text) if !failing => set_condition(
                &mut new.conditions,
                is_failure,
                ReplicaSetCondition {
                    type_: Some("ReplicaFailure".into()),
                    status: Some("True".into()),
                    reason: Some(failure_reason(counts, self.wanted()).into()),
                    message: Some(text.into()),
                    last_transition_time: Some(Time(now)),
                },
            ),
            None if failing => drop_condition(&mut new.conditions, is_failure),
            _ => {}
        }
        (new != old).then(|| ReplicaSet {
            status: Some(new),
            ..self.clone()
        })
    }
}

impl Replicated for ReplicationController {
    const KIND: &'static str = "ReplicationController";
    const GROUP: &'static str = "";

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }
    fn selects(&self, labels: Option<&Labels>) -> bool {
        let selector = self.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector.is_some_and(|s| !s.is_empty() && labels::includes(labels, s))
    }
    fn selector(&self) -> Cow<'_, LabelSelector> {
        Cow::Owned(LabelSelector {
            match_labels: self.spec.as_ref().and_then(|s| s.selector.clone()),
            match_expressions: None,
        })
    }
    fn with_status(&self, counts: &Counts, failure: Option<&str>, now: Timestamp) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut new = old.clone();
        new.replicas = counts.replicas;
        new.fully_labeled_replicas = some(counts.labelled);
        new.ready_replicas = some(counts.ready);
        new.available_replicas = some(counts.available);
        new.observed_generation = self.metadata.generation;
        let is_failure = |c: &ReplicationControllerCondition| c.type_ == "ReplicaFailure";
        let failing = old.conditions.iter().flatten().any(is_failure);
        match failure {
            Some(text) if !failing => set_condition(
                &mut new.conditions,
                is_failure,
                ReplicationControllerCondition {
                    type_: "ReplicaFailure".into(),
                    status: "True".into(),
                    reason: Some(failure_reason(counts, self.wanted()).into()),
                    message: Some(text.into()),
                    last_transition_time: Some(Time(now)),
                },
            ),
            None if failing => drop_condition(&mut new.conditions, is_failure),
            _ => {}
        }
        (new != old).then(|| ReplicationController {
            status: Some(new),
            ..self.clone()
        })
    }
}

/// Zero is written as absence, as the server returns it.
fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;

    #[test]
    fn a_failure_is_told_once_and_withdrawn() {
        let set = ReplicaSet {
            spec: ReplicaSetSpec {
                replicas: Some(2),
                ..Default::default()
            },
            ..Default::default()
        };
        let counts = Counts {
            replicas: 1,
            ..Default::default()
        };
        let now = Timestamp::UNIX_EPOCH;
        let failed = set.with_status(&counts, Some("quota"), now).expect("changes");
        let condition = failed
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .next()
            .expect("told");
        assert_eq!(
            (condition.reason.as_deref(), condition.message.as_deref()),
            (Some("FailedCreate"), Some("quota"))
        );
        assert!(failed.with_status(&counts, Some("other words"), now).is_none());
        let healed = failed.with_status(&counts, None, now).expect("changes");
        assert_eq!(healed.status.and_then(|s| s.conditions), None);
    }
}
