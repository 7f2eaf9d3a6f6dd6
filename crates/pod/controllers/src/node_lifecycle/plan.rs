//! What a node's silence and its conditions mean for it. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const MEMORY: &str = "node.kubernetes.io/memory-pressure";
const DISK: &str = "node.kubernetes.io/disk-pressure";
const PROCESSES: &str = "node.kubernetes.io/pid-pressure";
const NETWORK: &str = "node.kubernetes.io/network-unavailable";
/// The taints this controller alone puts on nodes and takes off.
const BY_CONDITION: &[&str] = &[NOT_READY, UNREACHABLE, UNSCHEDULABLE, MEMORY, DISK, PROCESSES, NETWORK];

pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
}

/// `True`, `False` or `Unknown`; the latter also if the node never said.
pub fn ready(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

pub fn is_ready(node: &Node) -> bool {
    ready(node) == "True"
}

/// Whether pods are being evicted from the node already.
pub fn is_given_up(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints
        .into_iter()
        .any(|t| t.effect == "NoExecute" && (t.key == NOT_READY || t.key == UNREACHABLE))
}

/// The node, its conditions marked as unknown; none if they are already.
pub fn silenced(node: &Node, now: Timestamp) -> Option<Node> {
    let mut node = node.clone();
    let created = node.metadata.creation_timestamp.clone();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut changed = false;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            None => {
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: created.clone(),
                    last_transition_time: Some(Time(now)),
                });
                changed = true;
            }
            Some(old) if old.status != "Unknown" => {
                old.status = "Unknown".into();
                old.reason = Some("NodeStatusUnknown".into());
                old.message = Some("Kubelet stopped posting node status.".into());
                old.last_transition_time = Some(Time(now));
                changed = true;
            }
            Some(_) => {}
        }
    }
    changed.then_some(node)
}

/// The node's taints as its conditions want them; none if they are so. With `hold`, nothing is evicted: when no node is
/// ready, the fault is more likely elsewhere, and there is no node to go to.
pub fn taints(node: &Node, hold: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let old = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let is_true = |kind: &str| condition(node, kind).is_some_and(|c| c.status == "True");
    let cause = match condition(node, "Ready").map(|c| c.status.as_str()) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        // Before its first report a node has the taint it was registered with.
        None => old.iter().any(|t| t.key == NOT_READY).then_some(NOT_READY),
        _ => None,
    };
    if let Some(cause) = cause {
        wanted.push((cause, "NoSchedule"));
        if !hold && condition(node, "Ready").is_some() {
            wanted.push((cause, "NoExecute"));
        }
    }
    for (kind, key) in [
        ("MemoryPressure", MEMORY),
        ("DiskPressure", DISK),
        ("PIDPressure", PROCESSES),
        ("NetworkUnavailable", NETWORK),
    ] {
        if is_true(kind) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Taint| {
        BY_CONDITION.contains(&t.key.as_str())
            && (t.effect == "NoSchedule" || (t.effect == "NoExecute" && (t.key == NOT_READY || t.key == UNREACHABLE)))
    };
    let mut new: Vec<Taint> = old
        .iter()
        .filter(|t| !ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !new.iter().any(|t| t.key == key && t.effect == effect) {
            new.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_client::ApiObject;

    fn node(ready: &str, taints: &str, unschedulable: bool) -> Node {
        let conditions = if ready.is_empty() {
            String::new()
        } else {
            format!(r#"{{"type":"Ready","status":"{ready}"}}"#)
        };
        Node::decode(
            format!(r#"{{"metadata":{{"name":"n"}},"spec":{{"unschedulable":{unschedulable},"taints":[{taints}]}},"status":{{"conditions":[{conditions}]}}}}"#).as_bytes(),
        )
        .expect("valid")
    }

    fn show(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        taints.map(|t| {
            t.iter()
                .map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap_or(""), t.effect))
                .collect()
        })
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let own = r#"{"key":"dedicated","effect":"NoExecute"}"#;
        assert_eq!(taints(&node("True", "", false), false, now), None);
        assert_eq!(
            show(taints(&node("True", "", true), false, now)),
            Some(vec!["unschedulable:NoSchedule".into()])
        );
        let lost = node("Unknown", own, false);
        assert_eq!(
            show(taints(&lost, false, now)).map(|t| t.join(" ")).as_deref(),
            Some("dedicated:NoExecute unreachable:NoSchedule unreachable:NoExecute")
        );
        assert_eq!(
            show(taints(&lost, true, now)).map(|t| t.join(" ")).as_deref(),
            Some("dedicated:NoExecute unreachable:NoSchedule")
        );
        let back = node(
            "True",
            r#"{"key":"node.kubernetes.io/unreachable","effect":"NoExecute"},{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}"#,
            false,
        );
        assert_eq!(show(taints(&back, false, now)), Some(vec![]));
        let new = node(
            "",
            r#"{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}"#,
            false,
        );
        assert_eq!(
            taints(&new, false, now),
            None,
            "a node that never reported keeps its first taint"
        );
    }

    #[test]
    fn silence_is_told_once() {
        let now = Timestamp::UNIX_EPOCH;
        let lost = silenced(&node("True", "", false), now).expect("changes");
        assert_eq!(ready(&lost), "Unknown");
        assert_eq!(
            condition(&lost, "Ready").and_then(|c| c.reason.as_deref()),
            Some("NodeStatusUnknown")
        );
        assert_eq!(
            condition(&lost, "DiskPressure").and_then(|c| c.reason.as_deref()),
            Some("NodeStatusNeverUpdated")
        );
        assert!(silenced(&lost, now).is_none());
    }
}
