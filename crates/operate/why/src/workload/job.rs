//! A job that doesn't run, or has failed.

use super::{creation, of_pods};
use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::Picture;
use crate::pod;
use serde_json::Value;

pub fn diagnose(job: &Value, picture: &Picture, report: &mut Report) {
    if job.condition_is("Complete", "True").is_some() {
        report.notes.push("it has completed".into());
        return;
    }
    let failed = job
        .condition_is("Failed", "True")
        .or(job.condition_is("FailureTarget", "True"));
    if job.flag("/spec/suspend") && failed.is_none() {
        report.add(
            Finding::certain("job-suspended", job.shown(), "it is suspended")
                .mended_by(format!(
                    "kubectl patch job {} -n {} --type=merge -p '{{\"spec\":{{\"suspend\":false}}}}', or whoever suspended it (a queue) starts it when there is room.",
                    job.name(),
                    job.namespace()
                )),
        );
        return;
    }
    let pods = picture.controlled_by("Pod", job);
    of_pods(&pods, picture, report);
    if failed.is_none() {
        report.add_all(creation(job, picture));
    }
    if let Some(condition) = failed {
        let own = whole(job, condition);
        let is_explained = !report.findings.is_empty();
        match is_explained {
            // What its pods say is the cause; that it gave up follows.
            true => report.notes.push(own.says),
            false => report.add(own),
        }
    }
    if report.findings.is_empty() {
        report.notes.extend(
            pods.iter()
                .find(|p| pod::is_ready(p))
                .map(|p| format!("{} runs", p.shown())),
        );
    }
}

fn whole(job: &Value, condition: &Value) -> Finding {
    let sure = |cause: &str, says: String, fix: &str| Finding::certain(cause, job.shown(), says).mended_by(fix);
    let limit = job.number("/spec/backoffLimit").unwrap_or(6);
    let found = match condition.text("/reason") {
        "BackoffLimitExceeded" => sure(
            "backoff-limit",
            format!("it has given up: its pods failed more often than its backoffLimit of {limit}"),
            "Its pods' logs tell why, if they are still there; then make the job anew (it can't be started again).",
        ),
        "DeadlineExceeded" => sure(
            "deadline-exceeded",
            "it ran longer than its activeDeadlineSeconds".into(),
            "Raise activeDeadlineSeconds, or find what took so long; then make the job anew.",
        ),
        "PodFailurePolicy" => sure(
            "pod-failure-policy",
            "a pod failed in a way that its podFailurePolicy gives up at".into(),
            "The message above names pod and rule.",
        ),
        "MaxFailedIndexesExceeded" | "FailedIndexes" => sure(
            "failed-indexes",
            "more of its indexes failed than it may have".into(),
            "status.failedIndexes lists them: see the pods of those indexes.",
        ),
        other => sure("job-failed", format!("it has failed: {other}"), "The message is above."),
    };
    found.shown_by(condition.text("/message"))
}
