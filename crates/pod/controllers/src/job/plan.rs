//! What to do with a job's pods, and how what they did is entered into its status. Pure.

use super::indexes::Indexes;
use super::policy;
use super::tally::{Snapshot, Tally};
use super::view::{self, JobView, backoff, is_failed, new_condition, next_failures, valid_index};
use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::ApiObject;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

const BURST: usize = 500;
/// No more pods than this are entered as ended, but not counted, at a time.
const MAX_UNCOUNTED: usize = 500;

/// A pod to create: for an index, with the failures that index has had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPod {
    pub index: Option<i32>,
    pub failures: Option<(i32, i32)>,
}

#[derive(Debug)]
pub enum Action {
    None,
    Delete(Vec<Arc<Pod>>),
    Create(Vec<NewPod>),
    /// Pods are missing, but it is too early to create them.
    Wait(SignedDuration),
}

pub fn act(snapshot: &Snapshot, tally: &Tally) -> Action {
    let job = snapshot.job;
    let active = tally.active.len() as i32;
    if job.is_suspended() {
        return if active > 0 {
            Action::Delete(surplus(snapshot, tally, active))
        } else {
            Action::None
        };
    }
    let wanted = match job.completions() {
        None if tally.succeeded > 0 => active,
        None => job.parallelism(),
        Some(completions) => (completions - tally.succeeded).min(job.parallelism()).max(0),
    };
    let mut remove = surplus(snapshot, tally, (active - wanted).max(0));
    if !remove.is_empty() {
        remove.truncate(BURST);
        return Action::Delete(remove);
    }
    let terminating = if job.replaces_failed_only() {
        tally.terminating
    } else {
        0
    };
    let missing = (wanted - terminating - active).clamp(0, BURST as i32) as usize;
    if missing == 0 {
        Action::None
    } else {
        create(snapshot, tally, missing)
    }
}

fn create(snapshot: &Snapshot, tally: &Tally, missing: usize) -> Action {
    let (job, now) = (snapshot.job, snapshot.now);
    let per_index = job.limit_per_index().is_some();
    if !per_index {
        let wait = backoff(tally.backoff.failures, tally.backoff.last, now);
        if wait > SignedDuration::ZERO {
            return Action::Wait(wait);
        }
    }
    if !job.is_indexed() {
        return Action::Create(vec![
            NewPod {
                index: None,
                failures: None
            };
            missing
        ]);
    }
    let mut earliest: Option<SignedDuration> = None;
    let mut new = Vec::new();
    for index in pending(snapshot, tally, missing) {
        let last = tally.delayed.get(&index);
        if per_index && let Some(last) = last {
            let wait = backoff(view::index_failures(last) + 1, Some(view::finished_at(last)), now);
            if wait > SignedDuration::ZERO {
                earliest = Some(earliest.map_or(wait, |e| e.min(wait)));
                continue;
            }
        }
        let failures = per_index.then(|| next_failures(job, last.map(|p| &**p)));
        new.push(NewPod {
            index: Some(index),
            failures,
        });
    }
    match earliest {
        Some(wait) if new.is_empty() => Action::Wait(wait),
        _ if new.is_empty() => Action::None,
        _ => Action::Create(new),
    }
}

/// The first indexes that have no pod, and need one.
fn pending(snapshot: &Snapshot, tally: &Tally, count: usize) -> Vec<i32> {
    let job = snapshot.job;
    let mut busy: BTreeSet<i32> = tally.active.iter().filter_map(|p| view::index(p)).collect();
    if job.replaces_failed_only() {
        busy.extend(
            snapshot
                .pods
                .iter()
                .filter(|p| pods::is_terminating(p))
                .filter_map(|p| view::index(p)),
        );
    }
    let failed = tally.failed_indexes.as_ref();
    (0..job.completions().unwrap_or(0))
        .filter(|i| !busy.contains(i) && !tally.succeeded_indexes.has(*i) && !failed.is_some_and(|f| f.has(*i)))
        .take(count)
        .collect()
}

/// At least `least` active pods to remove: those whose index is taken or invalid, then the least useful.
fn surplus(snapshot: &Snapshot, tally: &Tally, least: i32) -> Vec<Arc<Pod>> {
    let order = |a: &Arc<Pod>, b: &Arc<Pod>| pods::deletion_order((a, 0), (b, 0), snapshot.now);
    let mut remove = Vec::new();
    let mut left = Vec::new();
    if snapshot.job.is_indexed() {
        let mut by_index: BTreeMap<i32, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in &tally.active {
            match valid_index(snapshot.job, pod) {
                Some(index) => by_index.entry(index).or_default().push(pod.clone()),
                None => remove.push(pod.clone()),
            }
        }
        for mut same in by_index.into_values() {
            same.sort_by(order);
            left.extend(same.pop());
            remove.append(&mut same);
        }
    } else {
        left = tally.active.clone();
    }
    let more = (least as usize).saturating_sub(remove.len());
    if more > 0 {
        left.sort_by(order);
        remove.extend(left.into_iter().take(more));
    }
    remove
}

/// Whether the job's work is done.
pub fn is_complete(job: &Job, succeeded: i32, active: i32) -> bool {
    active == 0
        && job
            .completions()
            .map_or(succeeded > 0, |completions| succeeded >= completions)
}

pub fn success(now: Timestamp) -> JobCondition {
    new_condition(
        "SuccessCriteriaMet",
        "CompletionsReached",
        "Reached expected number of succeeded pods",
        now,
    )
}

/// How ended pods are entered.
#[derive(Debug)]
pub struct Accounts {
    pub status: JobStatus,
    /// Pods that may go once the status is written.
    pub release: Vec<Arc<Pod>>,
    /// The condition with which the job finishes, once all are gone.
    pub last: Option<JobCondition>,
    /// There are more pods than are entered at a time.
    pub is_full: bool,
}

/// Enters pods that have ended. `job` has the counts of active pods already; `end` is why the job ends, if it does.
pub fn account(snapshot: &Snapshot, job: &Job, tally: &Tally, end: Option<JobCondition>) -> Accounts {
    let mut status = job.status.clone().unwrap_or_default();
    let with_finalizer: HashSet<&str> = snapshot
        .pods
        .iter()
        .filter(|p| snapshot.is_tracked(p))
        .map(|p| p.uid())
        .collect();
    settle(&mut status, |uid| with_finalizer.contains(uid));
    let failing = end.as_ref().is_some_and(|c| c.type_ != "SuccessCriteriaMet");
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let mut succeeded = uncounted.succeeded.take().unwrap_or_default();
    let mut failed = uncounted.failed.take().unwrap_or_default();
    let mut new_indexes: Vec<i32> = Vec::new();
    let mut release = Vec::new();
    let mut is_full = false;
    let mut sorted: Vec<&Arc<Pod>> = snapshot.pods.iter().collect();
    if job.is_indexed() {
        sorted.sort_by_key(|p| view::index(p).unwrap_or(-1));
    }
    for pod in sorted {
        let bad = is_failed(job, pod);
        if !snapshot.is_tracked(pod) || !may_release(job, tally, end.is_some(), pod, bad) {
            continue;
        }
        release.push(pod.clone());
        let known = |list: &[String]| list.iter().any(|uid| uid == pod.uid());
        let index = valid_index(job, pod);
        if pods::phase(pod) == "Succeeded" && !known(&failed) {
            if job.is_indexed() {
                new_indexes.extend(index.filter(|i| !tally.counted.has(*i)));
            } else if !known(&succeeded) {
                succeeded.push(pod.uid().to_string());
            }
        } else if (bad || failing)
            && !known(&failed)
            && (!job.is_indexed() || index.is_some())
            && policy::judge(job, pod).counts()
        {
            failed.push(pod.uid().to_string());
        }
        if new_indexes.len() + succeeded.len() + failed.len() >= MAX_UNCOUNTED {
            is_full = true;
            break;
        }
    }
    let list = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
    uncounted.succeeded = list(succeeded);
    uncounted.failed = list(failed);
    status.uncounted_terminated_pods = Some(uncounted);
    if job.is_indexed() {
        let mut done = tally.succeeded_indexes.clone();
        new_indexes.into_iter().for_each(|i| done.insert(i));
        status.succeeded = some(done.len());
        status.completed_indexes = Some(done.to_string()).filter(|t| !t.is_empty());
        status.failed_indexes = tally.failed_indexes.as_ref().map(Indexes::to_string);
    }
    let last = end.map(|condition| conclude(&mut status, condition, snapshot.now));
    Accounts {
        status,
        release,
        last,
        is_full,
    }
}

/// An interim condition is written before pods are let go; the final one after.
fn conclude(status: &mut JobStatus, condition: JobCondition, now: Timestamp) -> JobCondition {
    let conditions = status.conditions.get_or_insert_default();
    let reason = condition.reason.clone().unwrap_or_default();
    let message = condition.message.clone().unwrap_or_default();
    let last = match condition.type_.as_str() {
        "FailureTarget" => new_condition("Failed", &reason, &message, now),
        "SuccessCriteriaMet" => new_condition("Complete", &reason, &message, now),
        _ => return condition,
    };
    if !conditions
        .iter()
        .any(|c| c.type_ == condition.type_ && c.status == "True")
    {
        conditions.push(condition);
    }
    last
}

fn may_release(job: &Job, tally: &Tally, ends: bool, pod: &Pod, failed: bool) -> bool {
    if job.is_deleting() || ends || pods::phase(pod) == "Succeeded" {
        return true;
    }
    failed && view::index(pod).is_none_or(|i| tally.delayed.get(&i).is_none_or(|d| d.uid() != pod.uid()))
}

/// Counts pods that are gone from the uncounted lists.
pub fn settle(status: &mut JobStatus, is_there: impl Fn(&str) -> bool) {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else {
        return;
    };
    for (list, count) in [
        (&mut uncounted.succeeded, &mut status.succeeded),
        (&mut uncounted.failed, &mut status.failed),
    ] {
        let Some(uids) = list else { continue };
        let before = uids.len();
        uids.retain(|uid| is_there(uid));
        *count = some(count.unwrap_or(0) + (before - uids.len()) as i32);
        if uids.is_empty() {
            *list = None;
        }
    }
}

/// Marks the job finished, if nothing is left to count or to wait for.
pub fn finish(status: &mut JobStatus, last: &JobCondition) -> bool {
    let uncounted = status.uncounted_terminated_pods.as_ref();
    let left = uncounted.is_some_and(|u| u.succeeded.is_some() || u.failed.is_some());
    if left || status.terminating.unwrap_or(0) > 0 {
        return false;
    }
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != last.type_);
    conditions.push(last.clone());
    if last.type_ == "Complete" {
        status.completion_time = last.last_transition_time.clone();
    }
    true
}

pub fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::super::tally::tally;
    use super::super::view::Backoff;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or_default()
    }

    fn job(spec: &str) -> Job {
        Job::decode(format!(r#"{{"metadata":{{"name":"j","uid":"j"}},"spec":{{"template":{{}},{spec}}}}}"#).as_bytes())
            .expect("valid")
    }

    fn pod(uid: &str, phase: &str, index: Option<i32>, failures: i32) -> Arc<Pod> {
        let annotations = match index {
            Some(i) => format!(r#""{}":"{i}","{}":"{failures}""#, view::INDEX, view::INDEX_FAILURES),
            None => String::new(),
        };
        let text = format!(
            r#"{{"metadata":{{"name":"{uid}","uid":"{uid}","creationTimestamp":"1970-01-01T00:01:35Z","finalizers":["{}"],"annotations":{{{annotations}}}}},"status":{{"phase":"{phase}"}}}}"#,
            view::FINALIZER
        );
        Arc::new(Pod::decode(text.as_bytes()).expect("valid"))
    }

    struct Turn {
        tally: Tally,
        action: String,
        end: Option<String>,
        accounts: Accounts,
    }

    fn turn(job: &Job, pods: &[Arc<Pod>]) -> Turn {
        let released = HashSet::new();
        let snapshot = Snapshot {
            job,
            pods,
            released: &released,
            backoff: Backoff::default(),
            now: at(100),
        };
        let tally = tally(&snapshot);
        let action = match act(&snapshot, &tally) {
            Action::None => "none".to_string(),
            Action::Delete(pods) => format!("delete {}", pods.iter().map(|p| p.name()).collect::<Vec<_>>().join(" ")),
            Action::Create(new) if new[0].index.is_none() => format!("create {}", new.len()),
            Action::Create(new) => format!(
                "create {:?}",
                new.iter()
                    .map(|n| (n.index.unwrap_or(-1), n.failures))
                    .collect::<Vec<_>>()
            ),
            Action::Wait(wait) => format!("wait {}", wait.as_secs()),
        };
        let accounts = account(&snapshot, job, &tally, tally.end.clone());
        Turn {
            end: tally
                .end
                .as_ref()
                .map(|c| format!("{} {}", c.type_, c.reason.as_deref().unwrap_or(""))),
            tally,
            action,
            accounts,
        }
    }

    #[test]
    fn a_plain_job() {
        let j = job(r#""completions":3,"parallelism":2,"backoffLimit":1"#);
        assert_eq!(turn(&j, &[]).action, "create 2");
        assert_eq!(turn(&j, &[pod("a", "Running", None, 0)]).action, "create 1");
        let t = turn(&j, &[pod("a", "Succeeded", None, 0), pod("b", "Running", None, 0)]);
        assert_eq!((t.action.as_str(), t.tally.succeeded), ("create 1", 1));
        assert_eq!(
            t.accounts.status.uncounted_terminated_pods.and_then(|u| u.succeeded),
            Some(vec!["a".to_string()])
        );
        assert_eq!(t.accounts.release.len(), 1);
        let t = turn(&j, &[pod("a", "Failed", None, 0), pod("b", "Running", None, 0)]);
        assert_eq!(
            (t.action.as_str(), t.end),
            ("wait 5", None),
            "ten seconds after a failure"
        );
        let t = turn(&j, &[pod("a", "Failed", None, 0), pod("b", "Failed", None, 0)]);
        assert_eq!(t.end.as_deref(), Some("FailureTarget BackoffLimitExceeded"));
        assert_eq!(t.accounts.last.map(|c| c.type_), Some("Failed".to_string()));
    }

    #[test]
    fn indexes_are_given_once_and_twins_removed() {
        let j = job(r#""completions":4,"parallelism":3,"completionMode":"Indexed""#);
        assert_eq!(
            turn(&j, &[pod("a", "Running", Some(1), 0)]).action,
            "create [(0, None), (2, None)]"
        );
        let t = turn(
            &j,
            &[
                pod("a", "Running", Some(1), 0),
                pod("b", "Pending", Some(1), 0),
                pod("c", "Running", None, 0),
            ],
        );
        assert_eq!(t.action, "delete c b");
        let t = turn(
            &j,
            &[
                pod("a", "Succeeded", Some(0), 0),
                pod("b", "Succeeded", Some(2), 0),
                pod("x", "Succeeded", Some(9), 0),
            ],
        );
        assert_eq!(t.accounts.status.completed_indexes.as_deref(), Some("0,2"));
        assert_eq!(t.action, "create [(1, None), (3, None)]");
    }

    #[test]
    fn an_index_fails_alone() {
        let j = job(r#""completions":2,"parallelism":2,"completionMode":"Indexed","backoffLimitPerIndex":1"#);
        let t = turn(&j, &[pod("a", "Failed", Some(0), 0), pod("b", "Running", Some(1), 0)]);
        assert_eq!(t.action, "wait 5", "the index waits for its back-off to pass");
        assert!(
            t.accounts.release.is_empty(),
            "the failed pod stays until its successor has its count"
        );
        let t = turn(&j, &[pod("a", "Failed", Some(0), 1), pod("b", "Running", Some(1), 0)]);
        assert_eq!(
            (t.accounts.status.failed_indexes.as_deref(), t.action.as_str(), t.end),
            (Some("0"), "none", None)
        );
        let t = turn(&j, &[pod("a", "Failed", Some(0), 1), pod("b", "Succeeded", Some(1), 0)]);
        assert_eq!(t.end.as_deref(), Some("FailureTarget FailedIndexes"));
    }

    #[test]
    fn counting_goes_by_way_of_the_lists() {
        let mut status = JobStatus {
            succeeded: Some(1),
            ..Default::default()
        };
        status.uncounted_terminated_pods = Some(k8s_openapi::api::batch::v1::UncountedTerminatedPods {
            succeeded: Some(vec!["a".into(), "b".into()]),
            failed: Some(vec!["c".into()]),
        });
        let last = new_condition("Complete", "r", "m", at(7));
        assert!(!finish(&mut status, &last));
        settle(&mut status, |uid| uid == "b");
        assert_eq!((status.succeeded, status.failed), (Some(2), Some(1)));
        settle(&mut status, |_| false);
        assert!(finish(&mut status, &last));
        assert_eq!(status.succeeded, Some(3));
        assert_eq!(status.completion_time.map(|t| t.0), Some(at(7)));
    }
}
