//! A rollout that doesn't come to its end.

use super::{creation, of_pods, unobserved};
use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::Picture;
use serde_json::Value;

pub fn diagnose(deployment: &Value, picture: &Picture, report: &mut Report) {
    if deployment.number("/spec/replicas") == Some(0) {
        report.notes.push("it is scaled to 0: it wants no pods".into());
        return;
    }
    let sets = picture.controlled_by("ReplicaSet", deployment);
    let live: Vec<&&Value> = sets
        .iter()
        .filter(|s| s.number("/spec/replicas").unwrap_or(0) > 0)
        .collect();
    // The deployment's condition is made of its set's: told once, of the set that says it.
    let refused: Vec<Finding> = live.iter().filter_map(|s| creation(s, picture)).collect();
    match refused.is_empty() {
        true => report.add_all(creation(deployment, picture).filter(|_| is_behind(deployment))),
        false => report.add_all(refused),
    }
    let pods: Vec<&Value> = live.iter().flat_map(|s| picture.controlled_by("Pod", s)).collect();
    of_pods(&pods, picture, report);
    if deployment.flag("/spec/paused") && is_behind(deployment) {
        report.add(
            Finding::certain("rollout-paused", deployment.shown(), "its rollout is paused").mended_by(format!(
                "kubectl rollout resume deployment/{} -n {}",
                deployment.name(),
                deployment.namespace()
            )),
        );
    }
    report.add_all(unobserved(deployment, picture));
    if report.findings.is_empty()
        && let Some(condition) = deployment.condition_is("Progressing", "False")
    {
        report.add(
            Finding::likely("rollout-stuck", deployment.shown(), "its rollout has not got on within its deadline")
                .shown_by(condition.text("/message"))
                .mended_by("Its pods say nothing that would tell why: they may be slow to become ready (raise progressDeadlineSeconds). Back: kubectl rollout undo."),
        );
    }
    if report.findings.is_empty() {
        report.notes.extend(progress(deployment));
    }
}

/// Not every pod is of the newest template and ready.
fn is_behind(deployment: &Value) -> bool {
    let wanted = deployment.number("/spec/replicas").unwrap_or(1);
    let of = |field: &str| deployment.number(&format!("/status/{field}")).unwrap_or(0);
    of("updatedReplicas") < wanted || of("availableReplicas") < wanted
}

fn progress(deployment: &Value) -> Option<String> {
    let of = |field: &str| deployment.number(&format!("/status/{field}")).unwrap_or(0);
    is_behind(deployment).then(|| {
        format!(
            "its rollout goes on: {} of {} pods are new, {} available",
            of("updatedReplicas"),
            deployment.number("/spec/replicas").unwrap_or(1),
            of("availableReplicas")
        )
    })
}
