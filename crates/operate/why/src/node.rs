//! A node that isn't ready, is short of something, or takes no pods.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Lookup, Need, Picture};
use crate::pod::taint_shown;
use serde_json::Value;

pub fn diagnose(node: &Value, picture: &Picture, report: &mut Report) {
    report.add_all(unready(node, picture));
    for (pressure, cause, says, fix) in PRESSURES {
        if let Some(condition) = node.condition_is(pressure, "True") {
            report.add(
                Finding::certain(*cause, node.shown(), *says)
                    .shown_by(condition.text("/message"))
                    .mended_by(*fix),
            );
        }
    }
    if node.flag("/spec/unschedulable") {
        report.add(
            Finding::certain("node-cordoned", node.shown(), "it is cordoned: no new pods come to it")
                .mended_by(format!("kubectl uncordon {}", node.name())),
        );
    }
    let own =
        |t: &&Value| !t.text("/key").starts_with("node.kubernetes.io/") && t.text("/effect") != "PreferNoSchedule";
    let taints: Vec<String> = node.list("/spec/taints").iter().filter(own).map(taint_shown).collect();
    if !taints.is_empty() {
        report
            .notes
            .push(format!("only pods come to it that tolerate {}", taints.join(", ")));
    }
}

const PRESSURES: &[(&str, &str, &str, &str)] = &[
    (
        "MemoryPressure",
        "node-memory-pressure",
        "it is short of memory: pods are evicted, and none without requests come",
        "Find what uses the memory (kubectl top pods -A), give pods requests that they keep to, or add memory.",
    ),
    (
        "DiskPressure",
        "node-disk-pressure",
        "it is short of disk: pods are evicted, images removed, and no new pods come",
        "Free or enlarge the disk of the data directory; logs and emptyDir volumes count.",
    ),
    (
        "PIDPressure",
        "node-pid-pressure",
        "it is short of process ids",
        "Find the pod that makes so many processes, and bound them (pod-max-pids).",
    ),
    (
        "NetworkUnavailable",
        "node-network",
        "its pod network isn't set up",
        "The network plug-in or the route controller sets this condition: see its pod on this node.",
    ),
];

fn unready(node: &Value, picture: &Picture) -> Option<Finding> {
    let shown = node.shown();
    let Some(ready) = node.condition("Ready") else {
        return Some(
            Finding::certain("node-never-reported", shown, "its kubelet has never reported")
                .mended_by("Start the agent on the machine; see its log."),
        );
    };
    let message = ready.text("/message");
    let words = message.to_lowercase();
    let has = |any: &[&str]| any.iter().any(|w| words.contains(w));
    let found = match ready.text("/status") {
        "True" => return None,
        "Unknown" => {
            let last = ready.text("/lastHeartbeatTime");
            let since = picture
                .since(last)
                .map_or(String::new(), |a| format!(", {} minutes ago", a.as_mins()));
            Finding::certain("node-silent", shown, "its kubelet doesn't report any more: the machine, its network or the agent is down")
                .shown_by(match last {
                    "" => String::new(),
                    last => format!("last heard at {last}{since}"),
                })
                .mended_by("Look at the machine: is it on, does it reach the API server, does the agent run (systemctl status keelson-agent)?")
        }
        _ if has(&[
            "cni",
            "network plugin",
            "network is not ready",
            "networkready=false",
            "networkpluginnotready",
        ]) =>
        {
            Finding::certain("node-network", shown, "it isn't ready: its pod network isn't set up")
                .mended_by("See the network plug-in's pod on this node; a plug-in's configuration has to be in place.")
        }
        _ if has(&["container runtime", "pleg is not healthy", "runtime is down"]) => Finding::certain(
            "node-runtime",
            shown,
            "it isn't ready: its container runtime doesn't answer",
        )
        .mended_by("See the runtime's log on the machine; a full or failing disk is a usual reason."),
        _ if has(&["shutting down", "shutdown"]) => {
            Finding::certain("node-shutdown", shown, "it isn't ready: it is shutting down")
                .mended_by("It comes back by itself after its start.")
        }
        _ => Finding::certain("node-not-ready", shown, "its kubelet says that it isn't ready")
            .mended_by("The message is the kubelet's own; its log on the machine tells more."),
    };
    Some(found.shown_by(message))
}

/// What of a pod's node is the pod's trouble too.
pub fn of_pod(pod: &Value, picture: &Picture) -> Option<Finding> {
    let name = pod.text("/spec/nodeName");
    match picture.find("Node", "", name) {
        Lookup::Found(node) => unready(node, picture),
        Lookup::Missing => Some(
            Finding::certain(
                "node-missing",
                pod.shown(),
                format!("it is bound to the node {name}, which doesn't exist"),
            )
            .mended_by(
                "Correct spec.nodeName, or bring the node back; a pod of a node that has gone is removed by itself.",
            ),
        ),
        Lookup::Unknown => None,
    }
}

pub fn needs(_: &Value) -> Vec<Need> {
    vec![Need::All("Event", "default".into())]
}
