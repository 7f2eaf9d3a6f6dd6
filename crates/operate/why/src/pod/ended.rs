//! Pods that have failed, or that somebody is ending.

use super::{Container, exit};
use crate::finding::Finding;
use crate::object::Fields;
use crate::picture::Picture;
use serde_json::Value;

/// A pod's own reason, the cause, the sentence, what mends it.
const REASONS: &[(&str, &str, &str, &str)] = &[
    (
        "NodeAffinity",
        "node-affinity-changed",
        "its node no longer has the labels that the pod asks for",
        "Label the node again, or change the pod's nodeSelector or affinity.",
    ),
    (
        "NodeShutdown",
        "node-shutdown",
        "its node was shut down",
        "Its owner makes another one. A pod without an owner has to be made anew.",
    ),
    (
        "Terminated",
        "node-shutdown",
        "it was ended because its node shut down",
        "Its owner makes another one. A pod without an owner has to be made anew.",
    ),
    (
        "NodeLost",
        "node-lost",
        "its node has gone",
        "Bring the node back, or delete it: pods are made elsewhere then.",
    ),
    (
        "DeadlineExceeded",
        "deadline-exceeded",
        "it ran longer than its activeDeadlineSeconds",
        "Raise activeDeadlineSeconds, or find what took so long.",
    ),
    (
        "UnexpectedAdmissionError",
        "node-refused",
        "its node refused it: a device or resource that it was promised could not be given",
        "See the message above; the device plug-in of the node has usually been restarted or its device failed.",
    ),
    (
        "TopologyAffinityError",
        "node-topology",
        "its node can't give it CPUs, memory and devices of one NUMA node, as its policy demands",
        "Ask for less, or relax the node's topology manager policy.",
    ),
    (
        "Preempting",
        "preempted",
        "it made way for a more important pod on its node",
        "Give it a PriorityClass, or the cluster more room.",
    ),
    (
        "SysctlForbidden",
        "sysctl-forbidden",
        "it sets a sysctl that its node doesn't allow",
        "Allow it on the node (allowed-unsafe-sysctls), or leave it out.",
    ),
    (
        "AppArmor",
        "apparmor-profile",
        "its node can't enforce its AppArmor profile",
        "Load the profile on the nodes, or change appArmorProfile.",
    ),
    (
        "PodOSNotSupported",
        "wrong-system",
        "it is for another operating system than its node's",
        "Correct spec.os, or bind it to nodes of that system (kubernetes.io/os).",
    ),
];

pub fn failed(pod: &Value, picture: &Picture) -> Vec<Finding> {
    let (reason, message) = (pod.text("/status/reason"), pod.text("/status/message"));
    if reason == "Evicted" {
        return vec![evicted(pod, message)];
    }
    if let Some(resource) = reason.strip_prefix("OutOf") {
        return vec![
            Finding::certain(
                "node-full",
                pod.shown(),
                format!("its node refused it: not enough {resource} was free when it came"),
            )
            .shown_by(message)
            .mended_by("Its owner makes another one. It had been bound to the node past the scheduler (nodeName), or something else took the room at the same time."),
        ];
    }
    if let Some((_, cause, says, fix)) = REASONS.iter().find(|r| r.0 == reason) {
        return vec![
            Finding::certain(*cause, pod.shown(), says)
                .shown_by(message)
                .mended_by(fix),
        ];
    }
    let target = disruption(pod).into_iter();
    let ends = Container::all(pod).filter_map(|c| exit::diagnose(&c, &c.status["state"]["terminated"], picture));
    let mut found: Vec<Finding> = target.chain(ends).collect();
    if found.is_empty() {
        found.push(
            Finding::likely("failed", pod.shown(), "it has failed, and its containers don't say why")
                .shown_by(format!("{reason} {message}"))
                .mended_by("Its node's kubelet log may tell; its owner makes another one."),
        );
    }
    found
}

fn evicted(pod: &Value, message: &str) -> Finding {
    let words = message.to_lowercase();
    let found = |cause: &str, says: &str, fix: &str| Finding::certain(cause, pod.shown(), says).mended_by(fix);
    let found = if words.contains("low on resource: memory") {
        found(
            "evicted-memory",
            "its node ran out of memory, and it used more than it had asked for",
            "Give it a memory request that it keeps to; find what uses the node's memory (kubectl top pods -A).",
        )
    } else if words.contains("ephemeral local storage")
        || (words.contains("usage of emptydir") && words.contains("exceeds"))
    {
        found(
            "evicted-own-disk",
            "it wrote more to its node's disk than its limit (ephemeral-storage, or an emptyDir's sizeLimit)",
            "Raise the limit, or write less: logs and emptyDir volumes count.",
        )
    } else if words.contains("ephemeral-storage")
        || words.contains("nodefs")
        || words.contains("imagefs")
        || words.contains("inodes")
    {
        found(
            "evicted-disk",
            "its node's disk ran full",
            "Free or enlarge the node's disk; an ephemeral-storage request keeps pods on nodes that have room.",
        )
    } else if words.contains("pids") {
        found(
            "evicted-pids",
            "its node ran out of process ids",
            "Find the pod that makes so many processes; bound them by pod-max-pids.",
        )
    } else {
        found(
            "evicted",
            "it was evicted from its node",
            "The message says why; its owner makes another one.",
        )
    };
    found.shown_by(message)
}

/// A pod that somebody is ending, or has ended, in order.
fn disruption(pod: &Value) -> Option<Finding> {
    let condition = pod.condition_is("DisruptionTarget", "True")?;
    let found = |cause: &str, says: &str, fix: &str| Finding::certain(cause, pod.shown(), says).mended_by(fix);
    let found = match condition.text("/reason") {
        "PreemptionByScheduler" => found(
            "preempted",
            "it made way for a more important pod",
            "Give it a PriorityClass of its worth, or the cluster more room.",
        ),
        "DeletionByTaintManager" => found(
            "evicted-by-taint",
            "its node got a taint that it doesn't tolerate",
            "Remove the taint, or add a toleration. Nodes that aren't ready are tainted by themselves: see keelson why node/NAME.",
        ),
        "EvictionByEvictionAPI" => found(
            "evicted-by-request",
            "somebody asked for its eviction (kubectl drain, an autoscaler, the descheduler)",
            "Its owner makes another one; who asked stands in the audit log (keelson audit who evicted pod/NAME).",
        ),
        "DeletionByPodGC" => found(
            "node-lost",
            "its node has gone",
            "Its owner makes another one. A pod without an owner has to be made anew.",
        ),
        "TerminationByKubelet" => found(
            "evicted",
            "its node's kubelet ended it (pressure, a more important pod, or shutdown)",
            "The message says which; see keelson why node/NAME.",
        ),
        _ => return None,
    };
    Some(found.shown_by(condition.text("/message")))
}

/// A pod that still runs and is to go.
pub fn leaving(pod: &Value) -> Option<Finding> {
    disruption(pod)
}
