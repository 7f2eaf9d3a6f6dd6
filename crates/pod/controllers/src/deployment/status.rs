//! A deployment's status: counts, availability and progress.

use super::sets::{Sets, available, fences, replicas, wanted};
use crate::util::{drop_condition, set_condition};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::ApiObject;

pub const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub const COMPLETE: &str = "NewReplicaSetAvailable";

pub fn has_deadline(deployment: &Deployment) -> bool {
    deployment.spec.progress_deadline_seconds.is_some_and(|s| s != i32::MAX)
}

pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_.as_deref() == Some(kind))
}

pub fn new_condition(kind: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(status.into()),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Sets a condition, unless the old one says the same (status and reason) already.
pub fn tell(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let kind = new.type_.clone();
    if let Some(old) = kind.as_deref().and_then(|k| condition(status, k)) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    set_condition(&mut status.conditions, |c| c.type_ == kind, new);
}

fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Counts and availability; progress isn't judged.
pub fn counts(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let works: i32 = sets.all().map(|s| available(s)).sum();
    let total: i32 = sets.all().map(|s| wanted(s)).sum();
    let actual = |set: &k8s_openapi::api::apps::v1::ReplicaSet| set.status.as_ref().map_or(0, |s| s.replicas);
    let mut terminating = Some(0);
    for status in sets.all().filter_map(|s| s.status.as_ref()) {
        match status.terminating_replicas {
            Some(n) => terminating = terminating.map(|t| t + n),
            None if status.observed_generation.unwrap_or(0) == 0 => {}
            None => terminating = None,
        }
    }
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sets.all().map(|s| actual(s)).sum()),
        updated_replicas: some(sets.new.as_ref().map_or(0, |s| actual(s))),
        ready_replicas: some(sets.all().filter_map(|s| s.status.as_ref()?.ready_replicas).sum()),
        available_replicas: some(works),
        unavailable_replicas: some((total - works).max(0)),
        terminating_replicas: terminating,
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let enough = works >= replicas(deployment) - fences(deployment).1;
    let (word, reason, message) = if enough {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    tell(&mut status, new_condition(AVAILABLE, word, reason, message.into(), now));
    status
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let all = some(replicas(deployment));
    status.updated_replicas == all
        && status.replicas == all
        && status.available_replicas == all
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |value: Option<i32>| value.unwrap_or(0);
    let leftover = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || leftover(new) < leftover(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(progress) = condition(status, PROGRESSING) else {
        return false;
    };
    match progress.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => deadline(deployment, progress).is_some_and(|at| at < now),
    }
}

fn deadline(deployment: &Deployment, progress: &DeploymentCondition) -> Option<Timestamp> {
    let seconds = deployment.spec.progress_deadline_seconds?;
    Some(progress.last_update_time.as_ref()?.0 + SignedDuration::from_secs(seconds.into()))
}

/// The whole status during a rollout.
pub fn rollout(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, sets, now);
    if !has_deadline(deployment) {
        drop_condition(&mut status.conditions, |c| c.type_.as_deref() == Some(PROGRESSING));
    }
    let current = condition(&old, PROGRESSING);
    let settled =
        status.replicas == status.updated_replicas && current.is_some_and(|c| c.reason.as_deref() == Some(COMPLETE));
    if has_deadline(deployment) && !settled {
        let subject = match &sets.new {
            Some(set) => format!("ReplicaSet {:?}", set.name()),
            None => format!("Deployment {:?}", deployment.name()),
        };
        if is_complete(deployment, &status) {
            let text = format!("{subject} has successfully progressed.");
            tell(&mut status, new_condition(PROGRESSING, "True", COMPLETE, text, now));
        } else if has_progressed(&old, &status) {
            // Progress renews the time limit, even if it is told in the same words.
            let mut new = new_condition(
                PROGRESSING,
                "True",
                "ReplicaSetUpdated",
                format!("{subject} is progressing."),
                now,
            );
            if let Some(current) = current.filter(|c| c.status.as_deref() == Some("True")) {
                new.last_transition_time = current.last_transition_time.clone();
            }
            set_condition(&mut status.conditions, |c| c.type_.as_deref() == Some(PROGRESSING), new);
        } else if has_timed_out(deployment, &status, now) {
            let text = format!("{subject} has timed out progressing.");
            tell(&mut status, new_condition(PROGRESSING, "False", TIMED_OUT, text, now));
        }
    }
    match failure(sets) {
        Some(failure) => tell(&mut status, failure),
        None => drop_condition(&mut status.conditions, |c| c.type_.as_deref() == Some(FAILURE)),
    }
    status
}

/// A set's failure is the deployment's; the new set's before others'.
fn failure(sets: &Sets) -> Option<DeploymentCondition> {
    let failures = sets.new.iter().chain(&sets.old).filter_map(|set| set.status.as_ref());
    let found = failures
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_.as_deref() == Some(FAILURE))?;
    Some(DeploymentCondition {
        type_: found.type_.clone(),
        status: found.status.clone(),
        reason: found.reason.clone(),
        message: found.message.clone(),
        last_update_time: found.last_transition_time.clone(),
        last_transition_time: found.last_transition_time.clone(),
    })
}

/// When to look again whether the time limit for progress has passed.
pub fn next_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<SignedDuration> {
    let progress = condition(status, PROGRESSING)?;
    if !has_deadline(deployment) || is_complete(deployment, status) || progress.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let left = deadline(deployment, progress)?.duration_since(now);
    Some(left.max(SignedDuration::ZERO) + SignedDuration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
    use std::sync::Arc;

    fn sets(size: i32, works: i32) -> Sets {
        let mut set = ReplicaSet {
            spec: ReplicaSetSpec {
                replicas: Some(size),
                ..Default::default()
            },
            status: Some(ReplicaSetStatus {
                replicas: size,
                ready_replicas: some(works),
                available_replicas: some(works),
                ..Default::default()
            }),
            ..Default::default()
        };
        set.metadata.name = Some("web-1".into());
        Sets {
            new: Some(Arc::new(set)),
            old: Vec::new(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or_default()
    }

    fn progress(status: &DeploymentStatus) -> (&str, &str) {
        let c = condition(status, PROGRESSING).expect("told");
        (c.status.as_deref().unwrap_or(""), c.reason.as_deref().unwrap_or(""))
    }

    #[test]
    fn progress_completion_and_its_time_limit() {
        let mut d = Deployment {
            spec: DeploymentSpec {
                replicas: Some(3),
                progress_deadline_seconds: Some(10),
                ..Default::default()
            },
            ..Default::default()
        };
        d.metadata.generation = Some(1);
        d.status = Some(rollout(&d, &sets(3, 1), at(100)));
        assert_eq!(progress(d.status.as_ref().expect("set")), ("True", "ReplicaSetUpdated"));
        assert_eq!(
            next_check(&d, d.status.as_ref().expect("set"), at(104)).map(|d| d.as_secs()),
            Some(7)
        );
        let late = rollout(&d, &sets(3, 1), at(111));
        assert_eq!(progress(&late), ("False", TIMED_OUT));
        assert_eq!(
            condition(&late, PROGRESSING).and_then(|c| c.message.as_deref()),
            Some("ReplicaSet \"web-1\" has timed out progressing.")
        );
        d.status = Some(late);
        d.status = Some(rollout(&d, &sets(3, 3), at(120)));
        assert_eq!(progress(d.status.as_ref().expect("set")), ("True", COMPLETE));
        assert_eq!(
            rollout(&d, &sets(3, 3), at(999)),
            d.status.clone().expect("set"),
            "nothing changes, nothing is written"
        );
        let lost = rollout(&d, &sets(3, 2), at(1000));
        assert_eq!(progress(&lost), ("True", COMPLETE), "losing a pod later is no rollout");
    }
}
