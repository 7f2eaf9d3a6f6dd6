//! Whether the node takes a pod that was bound to it. The checks are pure but for what `check` reads of the node.

use super::{pod as amounts, quantity};
use crate::kubelet::Kubelet;
use crate::node::status;
use crate::pods;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use keelson_client::declared_features::{missing, needed};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

fn no(reason: &str, message: impl std::fmt::Display) -> Rejection {
    refused(reason, message)
}

pub fn refused(reason: &str, message: impl std::fmt::Display) -> Rejection {
    Rejection {
        reason: reason.into(),
        message: format!("Pod was rejected: {message}"),
    }
}

/// What should not have come to pass: the scheduler is there to prevent it.
pub fn unexpected(what: &str) -> Rejection {
    no("UnexpectedAdmissionError", format!("{what}, which is unexpected"))
}

pub fn check(kl: &Kubelet, pod: &Pod, active: &[Arc<Pod>]) -> Result<(), Rejection> {
    shutting_down(kl.shutdown.is_under_way())?;
    operating_system(pod)?;
    pressure(pod, &kl.node.pressures())?;
    sysctls(pod, &kl.cfg.allowed_unsafe_sysctls)?;
    fits(pod, active, &kl.allocatable())?;
    ports(pod, active)?;
    if !pods::is_static(pod) {
        affinity(pod, &kl.node.labels(), &kl.cfg.node_name)?;
    }
    features(pod, &status::declared(&kl.runtime_name))
}

/// A pod whose author thinks that a field is heeded must not run where it isn't.
pub fn features(pod: &Pod, declared: &[String]) -> Result<(), Rejection> {
    let needed = needed(pods::spec(pod));
    let missing: Vec<&str> = missing(&needed, declared).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(no(
            "PodFeatureUnsupported",
            format!(
                "Pod requires node features that are not available: {}",
                missing.join(", ")
            ),
        )),
    }
}

/// A machine that stops takes no pods.
pub fn shutting_down(stops: bool) -> Result<(), Rejection> {
    match stops {
        true => Err(no("NodeShutdown", "Pod was rejected as the node is shutting down.")),
        false => Ok(()),
    }
}

/// This node runs Linux.
pub fn operating_system(pod: &Pod) -> Result<(), Rejection> {
    let spec = pods::spec(pod);
    let selected = spec.node_selector.as_ref().and_then(|s| s.get("kubernetes.io/os"));
    if selected.is_some_and(|os| os != "linux") {
        return Err(no(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(no(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    Ok(())
}

/// A node under memory pressure takes no pod that asks for nothing; under other pressure it takes none but the critical.
pub fn pressure(pod: &Pod, conditions: &[&str]) -> Result<(), Rejection> {
    if conditions.is_empty() || pods::is_critical(pod) {
        return Ok(());
    }
    if conditions == ["MemoryPressure"] {
        let tolerated = pods::spec(pod).tolerations.iter().flatten().any(|t| {
            t.key.as_deref() == Some("node.kubernetes.io/memory-pressure")
                && t.effect.as_deref().is_none_or(|e| e == "NoSchedule")
        });
        if super::qos::class(pod) != super::qos::Qos::BestEffort || tolerated {
            return Ok(());
        }
    }
    Err(no(
        "Evicted",
        format!("The node had condition: [{}]. ", conditions.join(" ")),
    ))
}

const SAFE: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];
/// Sysctls that belong to a namespace: the IPC one and the network one.
const IPC: [&str; 3] = ["kernel.sem", "kernel.shm", "kernel.msg"];

pub fn sysctls(pod: &Pod, unsafe_allowed: &[String]) -> Result<(), Rejection> {
    let list = pods::spec(pod)
        .security_context
        .as_ref()
        .and_then(|s| s.sysctls.as_ref());
    for s in list.into_iter().flatten() {
        let name = s.name.replace('/', ".");
        let forbidden = |why: &str| Err(no("SysctlForbidden", format!("forbidden sysctl: {why}")));
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        };
        if !SAFE.contains(&name.as_str()) && !unsafe_allowed.iter().any(|p| matches(p)) {
            return forbidden(&format!("\"{}\" not allowlisted", s.name));
        }
        let ipc = IPC.iter().any(|p| name.starts_with(p)) || name.starts_with("fs.mqueue.");
        if ipc && pods::spec(pod).host_ipc == Some(true) {
            return forbidden(&format!("\"{}\" not allowed with host ipc enabled", s.name));
        }
        if name.starts_with("net.") && pods::is_host_network(pod) {
            return forbidden(&format!("\"{}\" not allowed with host net enabled", s.name));
        }
    }
    Ok(())
}

pub fn fits(pod: &Pod, active: &[Arc<Pod>], allocatable: &quantity::ResourceList) -> Result<(), Rejection> {
    let out = |name: &str, requested: i64, used: i64, capacity: i64| {
        Err(no(
            &format!("OutOf{name}"),
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        ))
    };
    let room = quantity::value_of(Some(allocatable), "pods");
    let others = active.len() as i64;
    if others + 1 > room {
        return out("pods", 1, others, room);
    }
    let mut used = quantity::ResourceList::new();
    for other in active {
        quantity::add(&mut used, &amounts::pod_requests(other));
    }
    for (name, q) in amounts::pod_requests(pod) {
        let amount = |l: &quantity::ResourceList| {
            if name == "cpu" {
                quantity::milli_of(Some(l), &name)
            } else {
                quantity::value_of(Some(l), &name)
            }
        };
        let requested = if name == "cpu" {
            quantity::milli(&q)
        } else {
            quantity::value(&q)
        };
        // Extended resources that no one manages here were granted by the scheduler.
        let known = allocatable.contains_key(&name);
        if requested > 0 && known && requested + amount(&used) > amount(allocatable) {
            return out(&name, requested, amount(&used), amount(allocatable));
        }
    }
    Ok(())
}

pub fn ports(pod: &Pod, active: &[Arc<Pod>]) -> Result<(), Rejection> {
    let host_ports = |p: &Pod| -> Vec<(String, String, i32)> {
        pods::containers(p)
            .iter()
            .chain(pods::init_containers(p).iter().filter(|c| pods::is_sidecar(c)))
            .flat_map(|c| c.ports.iter().flatten())
            .filter(|p| p.host_port.unwrap_or(0) > 0)
            .map(|p| {
                let ip = p
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".into());
                (
                    ip,
                    p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                    p.host_port.unwrap_or(0),
                )
            })
            .collect()
    };
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return Ok(());
    }
    let taken: Vec<_> = active.iter().flat_map(|p| host_ports(p)).collect();
    let clash = wanted.iter().any(|(ip, protocol, port)| {
        taken
            .iter()
            .any(|(i, pr, po)| pr == protocol && po == port && (i == ip || i == "0.0.0.0" || ip == "0.0.0.0"))
    });
    if clash {
        return Err(no(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
    }
    Ok(())
}

pub fn affinity(pod: &Pod, labels: &BTreeMap<String, String>, node: &str) -> Result<(), Rejection> {
    let spec = pods::spec(pod);
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(k, v)| labels.get(k) == Some(v));
    let terms = spec.affinity.as_ref().and_then(|a| {
        a.node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let wanted = terms.is_none_or(|s| selects(s, labels, node));
    if selected && wanted {
        Ok(())
    } else {
        Err(no(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ))
    }
}

/// Whether a selector takes this node.
pub fn selects(selector: &NodeSelector, labels: &BTreeMap<String, String>, node: &str) -> bool {
    selector.node_selector_terms.iter().any(|t| term(t, labels, node))
}

fn term(t: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let (fields, expressions) = (
        t.match_fields.as_deref().unwrap_or_default(),
        t.match_expressions.as_deref().unwrap_or_default(),
    );
    // A term without any requirement selects nothing.
    (!fields.is_empty() || !expressions.is_empty())
        && expressions
            .iter()
            .all(|r| requirement(r, labels.get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && requirement(r, Some(node)))
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match r.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(v, w)| v > w),
        "Lt" => numbers().is_some_and(|(v, w)| v < w),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn resources_ports_and_selectors() {
        let node: quantity::ResourceList =
            serde_json::from_value(json!({"cpu": "1", "memory": "1Gi", "pods": "2"})).unwrap();
        let other = Arc::new(pod(
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}},
            "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        ));
        let big = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "600m"}}}]}));
        let e = fits(&big, std::slice::from_ref(&other), &node).unwrap_err();
        assert_eq!(e.reason, "OutOfcpu");
        assert_eq!(
            e.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000"
        );
        assert_eq!(
            fits(&big, &[other.clone(), other.clone()], &node).unwrap_err().reason,
            "OutOfpods"
        );
        let port = pod(
            json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"}]}]}),
        );
        assert_eq!(ports(&port, &[other]).unwrap_err().reason, "NodePorts");
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        assert!(
            affinity(
                &pod(json!({"containers": [], "nodeSelector": {"a": "1"}})),
                &labels,
                "n"
            )
            .is_ok()
        );
        assert_eq!(
            affinity(
                &pod(json!({"containers": [], "nodeSelector": {"a": "2"}})),
                &labels,
                "n"
            )
            .unwrap_err()
            .reason,
            "NodeAffinity"
        );
    }

    #[test]
    fn unsafe_sysctls_need_leave() {
        let p =
            pod(json!({"containers": [], "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}));
        assert_eq!(
            sysctls(&p, &[]).unwrap_err().message,
            "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted"
        );
        assert!(sysctls(&p, &["kernel.msg*".into()]).is_ok());
        let p = pod(
            json!({"containers": [], "securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}}),
        );
        assert!(sysctls(&p, &[]).is_ok());
    }
    #[test]
    fn what_this_node_does_not_heed_is_not_run() {
        let p = pod(json!({"containers": [], "hostNetwork": true, "hostUsers": false}));
        assert_eq!(
            features(&p, &status::declared("keelson")).unwrap_err().message,
            "Pod was rejected: Pod requires node features that are not available: UserNamespacesHostNetworkSupport"
        );
        let all = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
        let p = pod(json!({"containers": [{"name": "c", "restartPolicyRules": all}]}));
        assert_eq!(features(&p, &status::declared("other")), Ok(()));
        assert!(features(&p, &[]).is_err());
    }
}
