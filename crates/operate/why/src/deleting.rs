//! Objects that are to go and don't: finalizers, what owns them, and what still uses them.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Lookup, Picture};
use crate::{node, pod};
use k8s_openapi::jiff::SignedDuration;
use serde_json::Value;

/// Finalizers everybody meets, and who removes each.
const KNOWN: &[(&str, &str, &str)] = &[
    (
        "foregroundDeletion",
        "it waits until what it owns is gone (foreground deletion)",
        "See its dependents: one of them has a finalizer of its own, or can't be deleted.",
    ),
    (
        "orphan",
        "it waits until what it owned has been released",
        "The garbage collector does that: see that the controllers run.",
    ),
    (
        "kubernetes.io/pvc-protection",
        "it goes when no pod uses it any more",
        "End the pods that mount it.",
    ),
    (
        "kubernetes.io/pv-protection",
        "it goes when no claim is bound to it any more",
        "Delete its claim.",
    ),
    (
        "external-provisioner.volume.kubernetes.io/finalizer",
        "it goes when its driver has deleted the volume itself",
        "See the storage driver's controller: it has to run, and its log tells why a deletion fails.",
    ),
    (
        "service.kubernetes.io/load-balancer-cleanup",
        "it goes when its load balancer has been removed",
        "See the controller that made the load balancer.",
    ),
    (
        "customresourcecleanup.apiextensions.k8s.io",
        "it goes when all its objects are gone",
        "See its objects: one of them has a finalizer whose controller doesn't run any more.",
    ),
    (
        "batch.kubernetes.io/job-tracking",
        "it goes when its Job has counted it",
        "The job controller does that: see that the controllers run.",
    ),
];

/// Anything with a deletionTimestamp.
pub fn diagnose(object: &Value, picture: &Picture, report: &mut Report) {
    let finalizers: Vec<&str> = object
        .list("/metadata/finalizers")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let since = object.text("/metadata/deletionTimestamp");
    if finalizers.is_empty() {
        return report.notes.push(format!("it is being deleted since {since}"));
    }
    for finalizer in finalizers {
        let known = KNOWN.iter().find(|(name, ..)| *name == finalizer);
        let found = match (finalizer, known) {
            ("kubernetes.io/pvc-protection", _) => in_use(object, picture),
            (_, Some((_, says, fix))) => Finding::certain("finalizer", object.shown(), format!("it is being deleted, and {says}"))
                .mended_by(fix),
            (_, None) => Finding::certain(
                "finalizer",
                object.shown(),
                format!("it is being deleted, and waits for whoever owns the finalizer {finalizer}"),
            )
            .mended_by(format!(
                "Let that controller run. If it is gone for good: kubectl patch {} -p '{{\"metadata\":{{\"finalizers\":null}}}}' --type=merge, which leaves behind what it would have cleaned up.",
                object.shown()
            )),
        };
        report.add(found.shown_by(format!("finalizer {finalizer}, deleted since {since}")));
    }
}

fn in_use(claim: &Value, picture: &Picture) -> Finding {
    let uses = |p: &&Value| {
        let names = p.list("/spec/volumes").iter().map(|v| pod::claim_of(p, v));
        !matches!(p.text("/status/phase"), "Succeeded" | "Failed") && names.into_iter().any(|n| n == claim.name())
    };
    let users: Vec<String> = picture
        .all("Pod", claim.namespace())
        .filter(uses)
        .map(Fields::shown)
        .collect();
    match users.is_empty() {
        true => Finding::likely(
            "finalizer",
            claim.shown(),
            "it is being deleted, and goes when no pod uses it",
        )
        .mended_by("No pod that is known mounts it: it should go in a moment; else see that the controllers run."),
        false => Finding::certain(
            "claim-in-use",
            claim.shown(),
            format!(
                "it is being deleted, and goes when {} no longer use it",
                users.join(", ")
            ),
        )
        .mended_by("End those pods (or their owner)."),
    }
}

/// A pod that is to go.
pub fn pod(pod: &Value, picture: &Picture, report: &mut Report) {
    // The time by which it was to be gone already has its grace in it.
    let over = picture.since(pod.text("/metadata/deletionTimestamp"));
    let grace = pod.number("/metadata/deletionGracePeriodSeconds").unwrap_or(30);
    report.add_all(pod::told_of(pod));
    let finalizers = pod.list("/metadata/finalizers");
    if over.is_none_or(|over| over < SignedDuration::from_secs(5)) {
        return report
            .notes
            .push(format!("it is ending, within its grace period of {grace} s"));
    }
    let name = pod.text("/spec/nodeName");
    let running = pod
        .list("/status/containerStatuses")
        .iter()
        .any(|s| s.has("/state/running"));
    if !name.is_empty() {
        match picture.find("Node", "", name) {
            Lookup::Missing => report.add(
                Finding::certain(
                    "node-missing",
                    pod.shown(),
                    format!("it is being deleted, and its node {name} is gone"),
                )
                .mended_by("It is removed by itself in a moment; else kubectl delete pod --force --grace-period=0"),
            ),
            Lookup::Found(node) if node.condition_is("Ready", "True").is_none() => {
                report.add(
                    Finding::certain(
                        "node-silent",
                        pod.shown(),
                        format!("it is being deleted, and its node {name} doesn't answer, so nobody can say that it has ended"),
                    )
                    .shown_by(node::of_pod(pod, picture).map_or(String::new(), |f| f.says))
                    .mended_by("Bring the node back, or if the machine is certainly off: kubectl taint node NAME node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or delete the node."),
                );
                return;
            }
            _ => {}
        }
    }
    if let Some(event) = picture.event(pod, &["FailedKillPod", "FailedPreStopHook"]) {
        report.add(
            Finding::certain("pod-cannot-end", pod.shown(), "it is being deleted, and its containers can't be ended")
                .shown_by(event.text("/message"))
                .mended_by("The runtime's words are above: a process that hangs in the kernel (a dead network file system) can't be killed."),
        );
    } else if running {
        report.add(
            Finding::likely(
                "pod-still-ending",
                pod.shown(),
                format!("it is being deleted, and a container still runs after its grace period of {grace} s"),
            )
            .mended_by("Its node's kubelet should have killed it by now: see its log."),
        );
    }
    if !finalizers.is_empty() && !running {
        diagnose(pod, picture, report);
    }
}
