//! The next steps of a stateful set: pods come and go in order, unless the set says otherwise. Pure.

use super::identity::{in_range, ordinal, replicas, revision, start};
use crate::pod_control::BURST;
use crate::pods;
use crate::util::scaled;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::ApiObject;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub enum Step {
    /// Create the pod of an ordinal, of the current or the updated revision.
    Create {
        ordinal: i32,
        updated: bool,
    },
    Delete(Arc<Pod>),
    /// See to a pod's claims and identity.
    Tend(Arc<Pod>),
}

pub struct Revisions<'a> {
    pub current: &'a str,
    pub update: &'a str,
}

fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() == Some("Parallel")
}

fn min_ready(set: &StatefulSet) -> i32 {
    set.spec.min_ready_seconds.unwrap_or(0)
}

fn is_running(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

/// The lowest ordinal that is of the updated revision.
fn partition(set: &StatefulSet) -> Option<i32> {
    Some(
        set.spec
            .update_strategy
            .as_ref()?
            .rolling_update
            .as_ref()?
            .partition
            .unwrap_or(0),
    )
}

fn rolls(set: &StatefulSet) -> bool {
    set.spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.type_.as_deref())
        .is_none_or(|t| t == "RollingUpdate")
}

/// Of which revision a pod is created.
fn is_updated(set: &StatefulSet, ordinal: i32) -> bool {
    let current = match partition(set) {
        Some(partition) => partition,
        None if rolls(set) => set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0),
        None => 0,
    };
    ordinal >= start(set) + current
}

pub fn steps(set: &StatefulSet, all: &[Arc<Pod>], revisions: &Revisions, now: Timestamp) -> Vec<Step> {
    if set.is_deleting() {
        return Vec::new();
    }
    let mut by_ordinal: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in all {
        if let Some(ordinal) = ordinal(set, pod) {
            by_ordinal.insert(ordinal, pod.clone());
        }
    }
    let available = |pod: &Pod| pods::is_available(pod, min_ready(set), now);
    let parallel = is_parallel(set);
    let mut steps = Vec::new();
    let mut created = 0;
    for ordinal in start(set)..start(set).saturating_add(replicas(set)) {
        let Some(pod) = by_ordinal.get(&ordinal) else {
            steps.push(Step::Create {
                ordinal,
                updated: is_updated(set, ordinal),
            });
            created += 1;
            if !parallel {
                return steps;
            }
            // However many are wanted; these will tell when to go on.
            if created == BURST {
                break;
            }
            continue;
        };
        if pods::is_finished(pod) {
            if !pod.is_deleting() {
                steps.push(Step::Delete(pod.clone()));
            }
        } else {
            steps.push(Step::Tend(pod.clone()));
            if !pod.is_deleting() && is_running(pod) && available(pod) {
                continue;
            }
        }
        if !parallel {
            return steps;
        }
    }
    let condemned: Vec<&Arc<Pod>> = by_ordinal
        .iter()
        .rev()
        .filter(|(o, _)| !in_range(set, **o))
        .map(|(_, pod)| pod)
        .collect();
    steps.extend(condemned.iter().map(|pod| Step::Tend((*pod).clone())));
    // The first pod that doesn't work may be removed though others must wait for it.
    let broken = |pod: &&Arc<Pod>| pod.is_deleting() || !available(pod);
    let members = by_ordinal
        .iter()
        .filter(|(o, _)| in_range(set, **o))
        .map(|(_, pod)| pod);
    let first_broken = members
        .chain(condemned.iter().rev().copied())
        .find(broken)
        .map(|p| p.uid().to_string());
    for pod in condemned {
        if pod.is_deleting() {
            if parallel {
                continue;
            }
            return steps;
        }
        let works = is_running(pod) && available(pod);
        if !parallel && !works && first_broken.as_deref() != Some(pod.uid()) {
            return steps;
        }
        steps.push(Step::Delete(pod.clone()));
        if !parallel {
            return steps;
        }
    }
    // In order, an update begins only when all is as it should be.
    let busy = |step: &Step| !matches!(step, Step::Tend(_));
    if rolls(set) && (parallel || !steps.iter().any(busy)) {
        steps.extend(update(set, &by_ordinal, revisions, &available));
    }
    steps
}

fn update(
    set: &StatefulSet,
    by_ordinal: &BTreeMap<i32, Arc<Pod>>,
    revisions: &Revisions,
    available: &dyn Fn(&Pod) -> bool,
) -> Vec<Step> {
    let total = replicas(set);
    let rolling = set
        .spec
        .update_strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let most = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
        Some(value) => scaled(Some(value), total, false).max(1),
        None => 1,
    };
    let members = || by_ordinal.iter().rev().filter(|(o, _)| in_range(set, **o));
    let works = |pod: &Pod| !pod.is_deleting() && available(pod);
    let is_old = |pod: &Pod| revision(pod) != revisions.update && !pod.is_deleting() && !pods::is_finished(pod);
    let unavailable = total - members().filter(|(_, pod)| works(pod)).count() as i32;
    let lowest = start(set).saturating_add(partition(set).unwrap_or(0));
    let candidates = || {
        members()
            .filter(|(o, _)| **o >= lowest)
            .map(|(_, pod)| pod)
            .filter(|pod| is_old(pod))
    };
    let room = (most - unavailable).max(0) as usize;
    if is_parallel(set) {
        // What doesn't work costs nothing to replace.
        let (good, bad): (Vec<_>, Vec<_>) = candidates().partition(|pod| available(pod));
        return bad
            .into_iter()
            .chain(good.into_iter().take(room))
            .map(|pod| Step::Delete(pod.clone()))
            .collect();
    }
    candidates().take(room).map(|pod| Step::Delete(pod.clone())).collect()
}

pub fn status(
    set: &StatefulSet,
    all: &[Arc<Pod>],
    revisions: &Revisions,
    collisions: i32,
    now: Timestamp,
) -> StatefulSetStatus {
    let some = |n: usize| (n != 0).then_some(n as i32);
    let number = |keep: &dyn Fn(&Pod) -> bool| all.iter().filter(|pod| keep(pod)).count();
    let of = |name: &str| number(&|pod| !pod.is_deleting() && revision(pod) == name);
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: all.len() as i32,
        ready_replicas: some(number(&is_running)),
        available_replicas: some(number(&|pod| {
            is_running(pod) && pods::is_available(pod, min_ready(set), now)
        })),
        current_replicas: some(of(revisions.current)),
        updated_replicas: some(of(revisions.update)),
        current_revision: Some(revisions.current.into()),
        update_revision: Some(revisions.update.into()),
        collision_count: Some(collisions),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    };
    let total = some(replicas(set) as usize);
    if status.updated_replicas == total && status.ready_replicas == total && status.replicas == replicas(set) {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
    status
}

/// When the next ready pod becomes available.
pub fn next_check(set: &StatefulSet, all: &[Arc<Pod>], now: Timestamp) -> Option<SignedDuration> {
    if min_ready(set) <= 0 {
        return None;
    }
    let waits = all
        .iter()
        .filter_map(|pod| pods::available_in(pod, min_ready(set), now));
    waits.filter(|wait| *wait > SignedDuration::ZERO).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32, policy: &str, more: &str) -> StatefulSet {
        let text = format!(
            r#"{{"metadata":{{"name":"web","uid":"u"}},"spec":{{"replicas":{replicas},"podManagementPolicy":"{policy}","selector":{{}},"template":{{}},
            "updateStrategy":{{"type":"RollingUpdate","rollingUpdate":{{{more}}}}}}}}}"#
        );
        StatefulSet::decode(text.as_bytes()).expect("valid")
    }

    fn pod(ordinal: i32, phase: &str, ready: bool, revision: &str, deleting: bool) -> Arc<Pod> {
        let deleting = if deleting {
            r#","deletionTimestamp":"2026-01-01T00:00:00Z""#
        } else {
            ""
        };
        let text = format!(
            r#"{{"metadata":{{"name":"web-{ordinal}","uid":"{ordinal}","labels":{{"controller-revision-hash":"{revision}"}}{deleting}}},
            "status":{{"phase":"{phase}","conditions":[{{"type":"Ready","status":"{}"}}]}}}}"#,
            if ready { "True" } else { "False" }
        );
        Arc::new(Pod::decode(text.as_bytes()).expect("valid"))
    }

    fn good(ordinal: i32, revision: &str) -> Arc<Pod> {
        pod(ordinal, "Running", true, revision, false)
    }

    fn show(set: &StatefulSet, pods: &[Arc<Pod>]) -> String {
        let revisions = Revisions {
            current: "old",
            update: "new",
        };
        let steps = steps(set, pods, &revisions, Timestamp::UNIX_EPOCH);
        let words = steps.iter().filter_map(|step| match step {
            Step::Create { ordinal, updated } => Some(format!("+{ordinal}{}", if *updated { "" } else { " old" })),
            Step::Delete(pod) => Some(format!("-{}", pod.uid())),
            Step::Tend(_) => None,
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn in_order() {
        let s = set(3, "OrderedReady", r#""partition":0"#);
        assert_eq!(show(&s, &[]), "+0");
        assert_eq!(
            show(&s, &[pod(0, "Pending", false, "new", false)]),
            "",
            "waits for readiness"
        );
        assert_eq!(show(&s, &[good(0, "new")]), "+1");
        assert_eq!(
            show(
                &s,
                &[good(0, "new"), pod(1, "Failed", false, "new", false), good(2, "new")]
            ),
            "-1"
        );
        assert_eq!(show(&s, &[good(0, "new"), good(1, "new"), good(2, "new")]), "");
    }

    #[test]
    fn scaling_down_goes_from_the_top_and_waits() {
        let s = set(1, "OrderedReady", r#""partition":0"#);
        assert_eq!(show(&s, &[good(0, "new"), good(1, "new"), good(2, "new")]), "-2");
        assert_eq!(
            show(
                &s,
                &[good(0, "new"), good(1, "new"), pod(2, "Running", true, "new", true)]
            ),
            ""
        );
        assert_eq!(
            show(
                &s,
                &[good(0, "new"), pod(1, "Running", false, "new", false), good(2, "new")]
            ),
            "-2"
        );
        assert_eq!(
            show(
                &s,
                &[
                    good(0, "new"),
                    pod(1, "Running", false, "new", false),
                    pod(2, "Running", false, "new", false)
                ]
            ),
            "",
            "the first broken one goes first"
        );
        assert_eq!(
            show(&s, &[pod(0, "Running", false, "new", false), good(1, "new")]),
            "",
            "an unready member halts it"
        );
    }

    #[test]
    fn updates_go_from_the_top_down_to_the_partition() {
        let s = set(3, "OrderedReady", r#""partition":1"#);
        assert_eq!(show(&s, &[good(0, "old"), good(1, "old"), good(2, "old")]), "-2");
        assert_eq!(show(&s, &[good(0, "old"), good(1, "old")]), "+2");
        assert_eq!(show(&s, &[good(0, "old"), good(1, "old"), good(2, "new")]), "-1");
        assert_eq!(show(&s, &[good(0, "old"), good(1, "new"), good(2, "new")]), "");
        assert_eq!(show(&s, &[]), "+0 old");
    }

    #[test]
    fn in_parallel() {
        let s = set(3, "Parallel", r#""partition":0"#);
        assert_eq!(show(&s, &[]), "+0 +1 +2");
        assert_eq!(show(&s, &[pod(0, "Pending", false, "new", false)]), "+1 +2");
        let s = set(1, "Parallel", r#""partition":0"#);
        assert_eq!(show(&s, &[good(0, "new"), good(1, "new"), good(2, "new")]), "-2 -1");
        let s = set(3, "Parallel", r#""partition":0,"maxUnavailable":2"#);
        assert_eq!(show(&s, &[good(0, "old"), good(1, "old"), good(2, "old")]), "-2 -1");
        assert_eq!(
            show(
                &s,
                &[good(0, "old"), pod(1, "Running", false, "old", false), good(2, "old")]
            ),
            "-1 -2"
        );
    }

    #[test]
    fn however_many_are_wanted_they_come_by_and_by() {
        let s = set(i32::MAX, "Parallel", r#""partition":0"#);
        let revisions = Revisions {
            current: "new",
            update: "new",
        };
        let steps = steps(&s, &[good(0, "new"), good(7, "new")], &revisions, Timestamp::UNIX_EPOCH);
        let creates = steps.iter().filter(|s| matches!(s, Step::Create { .. })).count();
        assert_eq!(creates, BURST);
    }

    #[test]
    fn the_status_is_complete_when_all_are_updated() {
        let s = set(2, "OrderedReady", "");
        let revisions = Revisions {
            current: "old",
            update: "new",
        };
        let part = status(
            &s,
            &[good(0, "old"), good(1, "new")],
            &revisions,
            0,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(
            (
                part.current_revision.as_deref(),
                part.current_replicas,
                part.updated_replicas
            ),
            (Some("old"), Some(1), Some(1))
        );
        let all = status(
            &s,
            &[good(0, "new"), good(1, "new")],
            &revisions,
            0,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(
            (all.current_revision.as_deref(), all.current_replicas),
            (Some("new"), Some(2))
        );
    }
}
