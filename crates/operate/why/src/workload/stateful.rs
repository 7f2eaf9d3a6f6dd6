//! A stateful set that doesn't get on: one pod at a time, so the first that isn't ready holds the others.

use super::{creation, of_pods, unobserved};
use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::Picture;
use crate::pod;
use serde_json::Value;

pub fn diagnose(set: &Value, picture: &Picture, report: &mut Report) {
    if set.number("/spec/replicas") == Some(0) {
        report.notes.push("it is scaled to 0: it wants no pods".into());
        return;
    }
    report.add_all(creation(set, picture));
    let mut pods = picture.controlled_by("Pod", set);
    pods.sort_by_key(|p| ordinal(p));
    of_pods(&pods, picture, report);
    let in_order = set.text("/spec/podManagementPolicy") != "Parallel";
    let wanted = set.number("/spec/replicas").unwrap_or(1);
    if let Some(first) = pods.iter().find(|p| !pod::is_ready(p))
        && in_order
        && (pods.len() as i64) < wanted
    {
        report.notes.push(format!(
            "the pods after {} are made when it is ready (podManagementPolicy OrderedReady)",
            first.name()
        ));
    }
    let service = set.text("/spec/serviceName");
    if !service.is_empty() && picture.find("Service", set.namespace(), service).is_missing() {
        report.add(
            Finding::certain(
                "governing-service-missing",
                set.shown(),
                format!("its service {service} doesn't exist, so its pods have no names in DNS"),
            )
            .mended_by(format!(
                "Create a Service {service} with clusterIP None and the pods' labels as its selector."
            )),
        );
    }
    report.add_all(waiting(set, &pods));
    report.add_all(unobserved(set, picture));
}

fn ordinal(pod: &Value) -> i64 {
    let (_, number) = pod.name().rsplit_once('-').unwrap_or_default();
    number.parse().unwrap_or(i64::MAX)
}

/// Pods that stay old because they are meant to.
fn waiting(set: &Value, pods: &[&Value]) -> Option<Finding> {
    let newest = set.text("/status/updateRevision");
    if newest.is_empty() || newest == set.text("/status/currentRevision") {
        return None;
    }
    let is_old = |p: &&&Value| p.text("/metadata/labels/controller-revision-hash") != newest;
    let old: Vec<&str> = pods.iter().filter(is_old).map(|p| p.name()).collect();
    if old.is_empty() {
        return None;
    }
    if set.text("/spec/updateStrategy/type") == "OnDelete" {
        return Some(
            Finding::certain(
                "update-on-delete",
                set.shown(),
                format!("{} still run the old template: with updateStrategy OnDelete they change when somebody deletes them", old.join(", ")),
            )
            .mended_by("Delete them one after the other, or set updateStrategy to RollingUpdate."),
        );
    }
    let partition = set.number("/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0);
    let held = pods.iter().filter(is_old).filter(|p| ordinal(p) < partition).count();
    (partition > 0 && held == old.len()).then(|| {
        Finding::certain(
            "update-partition",
            set.shown(),
            format!(
                "{} keep the old template: the update's partition is {partition}",
                old.join(", ")
            ),
        )
        .mended_by("Lower spec.updateStrategy.rollingUpdate.partition when the others have proved well.")
    })
}
