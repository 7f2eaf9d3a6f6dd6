//! `batch`: Job and CronJob.

use crate::context::Cx;
use crate::strategy::{Behaviour, GcPolicy};
use keelson_api::{Object, Value};

const JOB: Behaviour = Behaviour {
    gc: GcPolicy::Orphan,
    prepare_create: job_create,
    ..Behaviour::WITH_STATUS
};

/// The selector and the labels that a job's pods are known by, unless the user sees to them.
fn job_create(_: &Cx, job: &mut Object) {
    if job.at(&["spec", "manualSelector"]).and_then(Value::as_bool) == Some(true) {
        return;
    }
    let (name, uid) = (job.name().to_string(), job.uid().to_string());
    let labels = [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ];
    for (key, value) in labels {
        let path = ["spec", "template", "metadata", "labels", key];
        if job.at(&path).is_none() {
            job.set_at(&path, value.as_str());
        }
    }
    let selector = ["spec", "selector", "matchLabels", "batch.kubernetes.io/controller-uid"];
    if job.at(&selector).is_none() {
        job.set_at(&selector, uid.as_str());
    }
}

pub fn behaviour(kind: &str) -> Option<&'static Behaviour> {
    Some(match kind {
        "Job" => &JOB,
        "CronJob" => &Behaviour::WITH_STATUS,
        _ => return None,
    })
}
