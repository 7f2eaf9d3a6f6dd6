//! `apps` and `batch`.

use super::pod::{label_like_template, pod_spec, template};
use super::{core, each, fill, fill_absent, has_items, inner};
use keelson_api::{Map, Object};

pub fn of(kind: &str) -> fn(&mut Object) {
    match kind {
        "Deployment" => |o| deployment(o.object_mut("spec")),
        "ReplicaSet" => replica_set,
        "StatefulSet" => |o| stateful_set(o.object_mut("spec")),
        "DaemonSet" => |o| daemon_set(o.object_mut("spec")),
        "Job" => |o| {
            label_like_template(o);
            job_spec(o.object_mut("spec"));
        },
        "CronJob" => |o| cron_job(o.object_mut("spec")),
        _ => |_| (),
    }
}

fn deployment(spec: &mut Map) {
    fill_absent(spec, "replicas", 1i64);
    let strategy = spec.object_mut("strategy");
    fill(strategy, "type", "RollingUpdate");
    if strategy.str("type") == Some("RollingUpdate") {
        let rolling = strategy.object_mut("rollingUpdate");
        fill_absent(rolling, "maxUnavailable", "25%");
        fill_absent(rolling, "maxSurge", "25%");
    }
    fill_absent(spec, "revisionHistoryLimit", 10i64);
    fill_absent(spec, "progressDeadlineSeconds", 600i64);
    template(spec);
}

fn replica_set(o: &mut Object) {
    let spec = o.object_mut("spec");
    fill_absent(spec, "replicas", 1i64);
    template(spec);
}

fn daemon_set(spec: &mut Map) {
    let strategy = spec.object_mut("updateStrategy");
    fill(strategy, "type", "RollingUpdate");
    if strategy.str("type") == Some("RollingUpdate") {
        let rolling = strategy.object_mut("rollingUpdate");
        fill_absent(rolling, "maxUnavailable", 1i64);
        fill_absent(rolling, "maxSurge", 0i64);
    }
    fill_absent(spec, "revisionHistoryLimit", 10i64);
    template(spec);
}

fn stateful_set(spec: &mut Map) {
    fill(spec, "podManagementPolicy", "OrderedReady");
    let strategy = spec.object_mut("updateStrategy");
    if strategy.str("type").unwrap_or_default().is_empty() {
        strategy.insert("type", "RollingUpdate");
        fill_absent(strategy, "rollingUpdate", Map::new());
    }
    if strategy.str("type") == Some("RollingUpdate")
        && let Some(rolling) = inner(strategy, "rollingUpdate")
    {
        fill_absent(rolling, "partition", 0i64);
        fill_absent(rolling, "maxUnavailable", 1i64);
    }
    let retention = spec.object_mut("persistentVolumeClaimRetentionPolicy");
    fill(retention, "whenDeleted", "Retain");
    fill(retention, "whenScaled", "Retain");
    fill_absent(spec, "replicas", 1i64);
    fill_absent(spec, "revisionHistoryLimit", 10i64);
    template(spec);
    each(spec, "volumeClaimTemplates", |claim| {
        claim.insert("apiVersion", "v1");
        claim.insert("kind", "PersistentVolumeClaim");
        core::claim(claim);
    });
}

fn job_spec(spec: &mut Map) {
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions", 1i64);
    }
    fill_absent(spec, "parallelism", 1i64);
    let limit = if spec.contains_key("backoffLimitPerIndex") {
        i64::from(i32::MAX)
    } else {
        6
    };
    fill_absent(spec, "backoffLimit", limit);
    fill_absent(spec, "completionMode", "NonIndexed");
    fill_absent(spec, "suspend", false);
    let replacement = if spec.contains_key("podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    fill_absent(spec, "podReplacementPolicy", replacement);
    fill_absent(spec, "manualSelector", false);
    job_template(spec);
}

/// What the jobs of a cron job get before they are jobs.
fn job_template(spec: &mut Map) {
    if let Some(policy) = inner(spec, "podFailurePolicy") {
        each(policy, "rules", |r| {
            each(r, "onPodConditions", |c| fill(c, "status", "True"))
        });
    }
    if let Some(pod) = inner(spec, "template").and_then(|t| inner(t, "spec")) {
        pod_spec(pod);
    }
}

fn cron_job(spec: &mut Map) {
    fill(spec, "concurrencyPolicy", "Allow");
    fill_absent(spec, "suspend", false);
    fill_absent(spec, "successfulJobsHistoryLimit", 3i64);
    fill_absent(spec, "failedJobsHistoryLimit", 1i64);
    if has_items(spec, "jobTemplate")
        && let Some(job) = inner(spec, "jobTemplate").and_then(|t| inner(t, "spec"))
    {
        job_template(job);
    }
}
