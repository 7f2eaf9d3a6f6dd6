//! `batch`: Job and CronJob.

use crate::Admission;
use crate::context::Cx;
use crate::engine::{Deleted, Engine};
use crate::options::DeleteOptions;
use crate::strategy::{Behaviour, GcPolicy, Hooks};
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Value};

struct JobHooks;

#[async_trait]
impl Hooks for JobHooks {
    async fn delete(
        &self,
        _: &Engine,
        cx: &Cx,
        _: &dyn Admission,
        options: &DeleteOptions,
    ) -> Option<ApiResult<Deleted>> {
        if options.propagation_policy.is_none() && options.orphan_dependents.is_none() {
            cx.warn(PODS_STAY);
        }
        None
    }
}

const PODS_STAY: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";

const JOB: Behaviour = Behaviour {
    hooks: Some(&JobHooks),
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
    // Labels that a job has from its template are the template's own, as they are upstream, where both are one map: what
    // is added to these is added to those.
    let inherited = job.meta().and_then(|m| m.obj("labels")).is_some_and(|own| {
        let template = job
            .at(&["spec", "template", "metadata", "labels"])
            .and_then(Value::as_object);
        !own.is_empty() && template.is_some_and(|t| t.is_shared_with(own))
    });
    for (key, value) in labels {
        let path = ["spec", "template", "metadata", "labels", key];
        if job.at(&path).is_none() {
            job.set_at(&path, value.as_str());
        }
    }
    if inherited && let Some(all) = job.at(&["spec", "template", "metadata", "labels"]).cloned() {
        job.meta_mut().insert("labels", all);
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
