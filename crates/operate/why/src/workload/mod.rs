//! Whoever makes pods: deployments and the rest. What keeps pods from being made stands in the maker's own conditions and
//! events; what keeps them from being ready is the pods' own matter, told once a cause.

mod budget;
mod cron;
mod daemon;
mod deployment;
mod job;
mod refusal;
mod stateful;

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Need, Picture};
use crate::pod;
use serde_json::Value;

pub use refusal::refused;

/// Pods whose trouble is told.
const TOLD: usize = 50;

pub fn diagnose(object: &Value, picture: &Picture, report: &mut Report) -> bool {
    match object.kind() {
        "Deployment" => deployment::diagnose(object, picture, report),
        "ReplicaSet" | "ReplicationController" => replicas(object, picture, report),
        "StatefulSet" => stateful::diagnose(object, picture, report),
        "DaemonSet" => daemon::diagnose(object, picture, report),
        "Job" => job::diagnose(object, picture, report),
        "CronJob" => cron::diagnose(object, picture, report),
        "PodDisruptionBudget" => budget::diagnose(object, picture, report),
        _ => return false,
    }
    true
}

pub fn replicas(set: &Value, picture: &Picture, report: &mut Report) {
    if set.number("/spec/replicas") == Some(0) {
        report.notes.push("it is scaled to 0: it wants no pods".into());
        return;
    }
    report.add_all(creation(set, picture));
    let pods = picture.controlled_by("Pod", set);
    of_pods(&pods, picture, report);
}

/// What keeps an owner from making its pods.
pub fn creation(owner: &Value, picture: &Picture) -> Option<Finding> {
    let condition = owner.condition_is("ReplicaFailure", "True").map(|c| c.text("/message"));
    let made = owner
        .number("/status/replicas")
        .or(owner.number("/status/currentNumberScheduled"));
    let wanted = owner
        .number("/spec/replicas")
        .or(owner.number("/status/desiredNumberScheduled"));
    let is_short = made.unwrap_or(0) < wanted.unwrap_or(1);
    // An event may be of a refusal that is over.
    let event = picture.event(owner, &["FailedCreate"]).map(|e| e.text("/message"));
    let event = event.filter(|_| owner.kind() == "Job" || is_short);
    condition.or(event).map(|message| refused(owner, message))
}

/// The trouble of pods, once a cause.
pub fn of_pods(pods: &[&Value], picture: &Picture, report: &mut Report) {
    let bad: Vec<&&Value> = pods.iter().filter(|p| !pod::is_ready(p) && !p.is_deleting()).collect();
    let mut causes: Vec<(Finding, usize)> = Vec::new();
    for one in bad.iter().take(TOLD) {
        let mut own = Report::default();
        pod::diagnose(one, picture, &mut own);
        for found in own.findings {
            match causes.iter_mut().find(|(f, _)| f.cause == found.cause) {
                Some((_, count)) => *count += 1,
                None => causes.push((found, 1)),
            }
        }
    }
    for (found, count) in causes {
        report.add(match count {
            1 => found,
            _ => found.shown_by(format!("so it is with {count} of {} pods", pods.len())),
        });
    }
}

/// Controllers that don't follow: the object was changed, and nobody has looked at it.
pub fn unobserved(object: &Value, picture: &Picture) -> Option<Finding> {
    let (wanted, seen) = (
        object.number("/metadata/generation")?,
        object.number("/status/observedGeneration").unwrap_or(0),
    );
    let changed = object.text("/metadata/creationTimestamp");
    let is_old = picture.since(changed).is_some_and(|age| age.as_secs() > 30);
    (seen < wanted && is_old).then(|| {
        Finding::likely(
            "controller-silent",
            object.shown(),
            "its controller hasn't looked at its last change",
        )
        .shown_by(format!("generation {wanted}, observed {seen}"))
        .mended_by(
            "See that the controllers run (their lease: kubectl get lease -n kube-system kube-controller-manager).",
        )
    })
}

pub fn needs(object: &Value) -> Vec<Need> {
    let namespace = object.namespace().to_string();
    let mut needs = vec![Need::All("Event", namespace.clone())];
    match object.kind() {
        "PodDisruptionBudget" => needs.push(Need::All("Pod", namespace)),
        "CronJob" => needs.extend([Need::All("Job", namespace.clone()), Need::All("Pod", namespace)]),
        "Deployment" => needs.extend([Need::All("ReplicaSet", namespace.clone()), Need::All("Pod", namespace)]),
        "StatefulSet" => {
            let service = object.text("/spec/serviceName");
            if !service.is_empty() {
                needs.push(Need::One("Service", namespace.clone(), service.into()));
            }
            needs.push(Need::All("Pod", namespace));
        }
        "DaemonSet" => needs.extend([Need::All("Pod", namespace), Need::All("Node", String::new())]),
        _ => needs.push(Need::All("Pod", namespace)),
    }
    needs
}

/// What the pods of an owner need to be judged in turn: those that aren't ready, a few.
pub fn needs_of_pods(picture: &Picture, owner: &Value) -> Vec<Need> {
    const JUDGED: usize = 5;
    let owners: Vec<&Value> = match owner.kind() {
        "Deployment" => picture.controlled_by("ReplicaSet", owner),
        "CronJob" => picture.controlled_by("Job", owner),
        _ => vec![owner],
    };
    let pods = owners.into_iter().flat_map(|o| picture.controlled_by("Pod", o));
    pods.filter(|p| !pod::is_ready(p))
        .take(JUDGED)
        .flat_map(pod::needs)
        .collect()
}
