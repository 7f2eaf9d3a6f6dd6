//! A job and its pods as the rules see them.

use super::policy::{self, Verdict};
use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::ApiObject;

pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
const LAST_BACKOFF: SignedDuration = SignedDuration::from_secs(600);

/// The numbers a job's spec gives, with their defaults.
pub trait JobView {
    fn parts(&self) -> Option<&JobSpec>;
    fn is_indexed(&self) -> bool {
        self.parts().and_then(|s| s.completion_mode.as_deref()) == Some("Indexed")
    }
    fn completions(&self) -> Option<i32> {
        self.parts().and_then(|s| s.completions)
    }
    fn parallelism(&self) -> i32 {
        self.parts().and_then(|s| s.parallelism).unwrap_or(1)
    }
    fn backoff_limit(&self) -> i32 {
        self.parts().and_then(|s| s.backoff_limit).unwrap_or(6)
    }
    fn limit_per_index(&self) -> Option<i32> {
        self.parts().and_then(|s| s.backoff_limit_per_index)
    }
    fn is_suspended(&self) -> bool {
        self.parts().and_then(|s| s.suspend).unwrap_or(false)
    }
    /// Pods are replaced only once they have failed, not while they end.
    fn replaces_failed_only(&self) -> bool {
        self.parts().and_then(|s| s.pod_replacement_policy.as_deref()) == Some("Failed")
    }
}

impl JobView for Job {
    fn parts(&self) -> Option<&JobSpec> {
        self.spec.as_ref()
    }
}

pub fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    conditions.iter().find(|c| c.type_ == kind)
}

pub fn is_true(job: &Job, kind: &str) -> bool {
    condition(job, kind).is_some_and(|c| c.status == "True")
}

pub fn is_finished(job: &Job) -> bool {
    is_true(job, "Complete") || is_true(job, "Failed")
}

pub fn new_condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

fn number(pod: &Pod, annotation: &str) -> Option<i32> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(annotation)?
        .parse()
        .ok()
        .filter(|n| *n >= 0)
}

pub fn index(pod: &Pod) -> Option<i32> {
    number(pod, INDEX)
}

/// The index, if the job has it.
pub fn valid_index(job: &Job, pod: &Pod) -> Option<i32> {
    index(pod).filter(|i| *i < job.completions().unwrap_or(0))
}

pub fn is_failed(job: &Job, pod: &Pod) -> bool {
    pods::phase(pod) == "Failed"
        || (!job.replaces_failed_only() && pod.is_deleting() && pods::phase(pod) != "Succeeded")
}

/// Whether a pod's failure is the failure of its index.
pub fn fails_index(job: &Job, pod: &Pod) -> bool {
    if !is_failed(job, pod) {
        return false;
    }
    match policy::judge(job, pod) {
        Verdict::FailIndex => true,
        Verdict::Ignore => false,
        _ => job
            .limit_per_index()
            .is_some_and(|limit| number(pod, INDEX_FAILURES).unwrap_or(0) >= limit),
    }
}

/// All failures of the pod's index so far, without the pod's own.
pub fn index_failures(pod: &Pod) -> i32 {
    number(pod, INDEX_FAILURES).unwrap_or(0) + number(pod, INDEX_IGNORED).unwrap_or(0)
}

/// The failure counts that the successor of a failed pod carries.
pub fn next_failures(job: &Job, failed: Option<&Pod>) -> (i32, i32) {
    let Some(pod) = failed else { return (0, 0) };
    let (counted, ignored) = (
        number(pod, INDEX_FAILURES).unwrap_or(0),
        number(pod, INDEX_IGNORED).unwrap_or(0),
    );
    if policy::judge(job, pod).counts() {
        (counted + 1, ignored)
    } else {
        (counted, ignored + 1)
    }
}

/// When a pod ended: by its containers, its readiness, its deletion, or at worst its creation.
pub fn finished_at(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .filter(|c| c.restart_policy.as_deref() == Some("Always"))
        .map(|c| c.name.as_str())
        .collect();
    let main = status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let init = status.iter().flat_map(|s| s.init_container_statuses.iter().flatten());
    let all: Vec<Option<Timestamp>> = main
        .chain(init.filter(|c| sidecars.contains(&c.name.as_str())))
        .map(ended)
        .collect();
    let by_containers = || {
        if all.iter().all(Option::is_some) {
            all.iter().flatten().max().copied()
        } else {
            None
        }
    };
    let by_readiness = || {
        let ready = pods::condition(pod, "Ready").filter(|c| c.status == "False")?;
        ready.last_transition_time.as_ref().map(|t| t.0)
    };
    let by_deletion = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        pod.metadata
            .deletion_timestamp
            .as_ref()
            .and_then(|t| t.0.checked_sub(SignedDuration::from_secs(grace)).ok())
    };
    let created = || {
        pod.metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0)
    };
    by_containers()
        .or_else(by_readiness)
        .or_else(by_deletion)
        .unwrap_or_else(created)
}

fn ended(container: &ContainerStatus) -> Option<Timestamp> {
    container
        .state
        .as_ref()?
        .terminated
        .as_ref()?
        .finished_at
        .as_ref()
        .map(|t| t.0)
}

/// How long to wait before a pod is created after `failures` in a row.
pub fn backoff(failures: i32, last: Option<Timestamp>, now: Timestamp) -> SignedDuration {
    let Some(last) = last.filter(|_| failures > 0) else {
        return SignedDuration::ZERO;
    };
    let factor = 1i32 << (failures - 1).min(10);
    let wait = (FIRST_BACKOFF * factor).min(LAST_BACKOFF);
    (wait - now.duration_since(last)).max(SignedDuration::ZERO)
}

/// Failures since the last success, by which the creation of pods is slowed down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    pub failures: i32,
    pub last: Option<Timestamp>,
}

impl Backoff {
    /// With what has newly ended.
    pub fn with(self, succeeded: &[Timestamp], failed: &[Timestamp]) -> Self {
        match (succeeded.iter().max(), failed.iter().max()) {
            (None, None) => self,
            (None, last) => Backoff {
                failures: self.failures + failed.len() as i32,
                last: last.copied(),
            },
            (Some(success), _) => {
                let later: Vec<&Timestamp> = failed.iter().filter(|f| *f > success).collect();
                Backoff {
                    failures: later.len() as i32,
                    last: later.into_iter().max().copied(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or_default()
    }

    #[test]
    fn back_off_doubles_up_to_ten_minutes() {
        let wait = |failures| backoff(failures, Some(at(0)), at(4)).as_secs();
        assert_eq!(
            [wait(0), wait(1), wait(2), wait(3), wait(7), wait(30)],
            [0, 6, 16, 36, 596, 596]
        );
        assert_eq!(backoff(1, Some(at(0)), at(11)), SignedDuration::ZERO);
    }

    #[test]
    fn any_grace_period_can_be_taken_off_a_deletion() {
        let text = r#"{"metadata":{"name":"p","creationTimestamp":"2026-01-01T00:00:00Z",
            "deletionTimestamp":"2026-01-01T00:01:00Z","deletionGracePeriodSeconds":GRACE},"status":{"containerStatuses":[
            {"name":"c","image":"","imageID":"","ready":true,"restartCount":0,"state":{"running":{}}}]}}"#;
        let ended = |grace: i64| {
            let text = text.replace("GRACE", &grace.to_string());
            finished_at(&Pod::decode(text.as_bytes()).expect("valid")).to_string()
        };
        assert_eq!(ended(30), "2026-01-01T00:00:30Z");
        assert_eq!(ended(i64::MAX), "2026-01-01T00:00:00Z", "its creation is what is left");
    }

    #[test]
    fn success_ends_a_run_of_failures() {
        let run = Backoff::default().with(&[], &[at(1), at(3)]);
        assert_eq!(
            run,
            Backoff {
                failures: 2,
                last: Some(at(3))
            }
        );
        assert_eq!(
            run.with(&[at(5)], &[at(4), at(6)]),
            Backoff {
                failures: 1,
                last: Some(at(6))
            }
        );
        assert_eq!(run.with(&[at(5)], &[]), Backoff::default());
    }
}
