//! Where a job stands: its pods counted, and whether that ends it. Pure.

use super::indexes::Indexes;
use super::policy::{self, Verdict};
use super::view::{self, Backoff, JobView, finished_at, has_finalizer, is_failed, new_condition, valid_index};
use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::ApiObject;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// A job and what is known of its pods.
pub struct Snapshot<'a> {
    pub job: &'a Job,
    pub pods: &'a [Arc<Pod>],
    /// Pods whose finalizer is gone already, though the cache still shows it.
    pub released: &'a HashSet<String>,
    pub backoff: Backoff,
    pub now: Timestamp,
}

impl Snapshot<'_> {
    /// Whether a pod is still to be accounted for.
    pub fn is_tracked(&self, pod: &Pod) -> bool {
        has_finalizer(pod) && !self.released.contains(pod.uid())
    }
}

#[derive(Debug, Default)]
pub struct Tally {
    pub active: Vec<Arc<Pod>>,
    pub ready: i32,
    pub terminating: i32,
    pub succeeded: i32,
    pub failed: i32,
    /// What the status already counts.
    pub counted: Indexes,
    pub succeeded_indexes: Indexes,
    pub failed_indexes: Option<Indexes>,
    /// Failed pods that wait for their successor, which inherits their count.
    pub delayed: BTreeMap<i32, Arc<Pod>>,
    /// Why the job is about to end.
    pub end: Option<JobCondition>,
    pub backoff: Backoff,
    /// When the job will have been active too long.
    pub deadline_in: Option<SignedDuration>,
}

pub fn tally(snapshot: &Snapshot) -> Tally {
    let job = snapshot.job;
    let status = job.status.clone().unwrap_or_default();
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let (uncounted_ok, uncounted_bad) = (
        uncounted.succeeded.unwrap_or_default(),
        uncounted.failed.unwrap_or_default(),
    );
    let fresh = |pod: &&Arc<Pod>, seen: &[String]| {
        snapshot.is_tracked(pod)
            && !seen.iter().any(|uid| uid == pod.uid())
            && (!job.is_indexed() || valid_index(job, pod).is_some())
    };
    let new_ok: Vec<&Arc<Pod>> = snapshot
        .pods
        .iter()
        .filter(|p| fresh(p, &uncounted_ok) && pods::phase(p) == "Succeeded")
        .collect();
    let new_bad: Vec<&Arc<Pod>> = snapshot
        .pods
        .iter()
        .filter(|p| fresh(p, &uncounted_bad) && is_failed(job, p))
        .collect();
    let counting = new_bad.iter().filter(|p| policy::judge(job, p).counts()).count();
    let ends = |pods: &[&Arc<Pod>]| pods.iter().map(|p| finished_at(p)).collect::<Vec<_>>();

    let active: Vec<Arc<Pod>> = snapshot.pods.iter().filter(|p| pods::is_active(p)).cloned().collect();
    let mut tally = Tally {
        ready: active.iter().filter(|p| pods::is_ready(p)).count() as i32,
        terminating: snapshot.pods.iter().filter(|p| pods::is_terminating(p)).count() as i32,
        succeeded: status.succeeded.unwrap_or(0) + (new_ok.len() + uncounted_ok.len()) as i32,
        failed: status.failed.unwrap_or(0) + (counting + uncounted_bad.len()) as i32,
        backoff: snapshot.backoff.with(&ends(&new_ok), &ends(&new_bad)),
        active,
        ..Default::default()
    };
    tally.end = earlier_end(snapshot).or_else(|| limits(snapshot, &tally));
    if tally.end.is_none() {
        tally.deadline_in = deadline_in(job, snapshot.now);
    }
    if job.is_indexed() {
        count_indexes(snapshot, &mut tally);
    }
    tally
}

/// What earlier turns decided stands.
fn earlier_end(snapshot: &Snapshot) -> Option<JobCondition> {
    let (job, now) = (snapshot.job, snapshot.now);
    if view::is_true(job, "SuccessCriteriaMet") {
        return view::condition(job, "SuccessCriteriaMet").cloned();
    }
    if view::is_true(job, "FailureTarget") {
        let target = view::condition(job, "FailureTarget")?;
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        return Some(new_condition(
            "Failed",
            &text(&target.reason),
            &text(&target.message),
            now,
        ));
    }
    let failed = snapshot.pods.iter().filter(|p| is_failed(job, p));
    failed.into_iter().find_map(|pod| match policy::judge(job, pod) {
        Verdict::FailJob(message) => Some(new_condition("FailureTarget", "PodFailurePolicy", &message, now)),
        _ => None,
    })
}

fn limits(snapshot: &Snapshot, tally: &Tally) -> Option<JobCondition> {
    let (job, now) = (snapshot.job, snapshot.now);
    if tally.failed > job.backoff_limit() || restarts_exceed(snapshot) {
        let text = "Job has reached the specified backoff limit";
        return Some(new_condition("FailureTarget", "BackoffLimitExceeded", text, now));
    }
    if deadline_in(job, now).is_some_and(|left| left <= SignedDuration::ZERO) {
        let text = "Job was active longer than specified deadline";
        return Some(new_condition("FailureTarget", "DeadlineExceeded", text, now));
    }
    None
}

/// Containers that are restarted in place count too.
fn restarts_exceed(snapshot: &Snapshot) -> bool {
    let job = snapshot.job;
    let template = job.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    if template.and_then(|t| t.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running = snapshot
        .pods
        .iter()
        .filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
    let restarts: i32 = running
        .filter_map(|p| p.status.as_ref())
        .flat_map(|s| {
            s.init_container_statuses
                .iter()
                .flatten()
                .chain(s.container_statuses.iter().flatten())
        })
        .map(|c| c.restart_count)
        .sum();
    if job.backoff_limit() == 0 {
        restarts > 0
    } else {
        restarts >= job.backoff_limit()
    }
}

fn deadline_in(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    if job.is_suspended() {
        return None;
    }
    let allowed = SignedDuration::from_secs(job.spec.as_ref()?.active_deadline_seconds?);
    let start = job
        .status
        .as_ref()
        .and_then(|s| s.start_time.as_ref())
        .map_or(now, |t| t.0);
    Some(allowed.saturating_sub(now.duration_since(start)))
}

fn count_indexes(snapshot: &Snapshot, tally: &mut Tally) {
    let (job, now) = (snapshot.job, snapshot.now);
    let completions = job.completions().unwrap_or(0);
    let status = job.status.as_ref();
    tally.counted = Indexes::parse(
        status.and_then(|s| s.completed_indexes.as_deref()).unwrap_or_default(),
        completions,
    );
    tally.succeeded_indexes = tally.counted.clone();
    let tracked = || snapshot.pods.iter().filter(|p| has_finalizer(p));
    for pod in tracked().filter(|p| pods::phase(p) == "Succeeded") {
        if let Some(index) = valid_index(job, pod) {
            tally.succeeded_indexes.insert(index);
        }
    }
    tally.succeeded = tally.succeeded_indexes.len();
    if job.limit_per_index().is_some() {
        let before = status.and_then(|s| s.failed_indexes.as_deref()).unwrap_or_default();
        let mut failed = Indexes::parse(before, completions);
        for pod in tracked().filter(|p| view::fails_index(job, p)) {
            if let Some(index) = valid_index(job, pod) {
                failed.insert(index);
            }
        }
        if tally.end.is_none() {
            let most = job.spec.as_ref().and_then(|s| s.max_failed_indexes);
            if most.is_some_and(|most| failed.len() > most) {
                let text = "Job has exceeded the specified maximal number of failed indexes";
                tally.end = Some(new_condition("FailureTarget", "MaxFailedIndexesExceeded", text, now));
            } else if !failed.is_empty() && failed.len() + tally.succeeded >= completions {
                tally.end = Some(new_condition(
                    "FailureTarget",
                    "FailedIndexes",
                    "Job has failed indexes",
                    now,
                ));
            }
        }
        tally.delayed = delayed(snapshot, tally, &failed);
        tally.failed_indexes = Some(failed);
    }
    if tally.end.is_none() {
        let rules = job.spec.as_ref().and_then(|s| s.success_policy.as_ref());
        if let Some(text) = policy::success(rules, completions, &tally.succeeded_indexes) {
            tally.end = Some(new_condition("SuccessCriteriaMet", "SuccessPolicy", &text, now));
        }
    }
}

/// For each index that needs a new pod, the last one that failed.
fn delayed(snapshot: &Snapshot, tally: &Tally, failed: &Indexes) -> BTreeMap<i32, Arc<Pod>> {
    let running: BTreeSet<i32> = tally.active.iter().filter_map(|p| view::index(p)).collect();
    let mut last: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in snapshot
        .pods
        .iter()
        .filter(|p| snapshot.is_tracked(p) && is_failed(snapshot.job, p))
    {
        let Some(index) = valid_index(snapshot.job, pod) else {
            continue;
        };
        if tally.succeeded_indexes.has(index) || failed.has(index) || running.contains(&index) {
            continue;
        }
        let newer = last.get(&index).is_none_or(|old| {
            view::index_failures(old) <= view::index_failures(pod) && finished_at(old) <= finished_at(pod)
        });
        if newer {
            last.insert(index, pod.clone());
        }
    }
    last
}
