//! In-place resize on the node's side: which resources a pod was allocated and which were set on its cgroups.
//! The record lives beside the pod's data, so a restart finds it. Decisions are pure.

use super::{pod as amounts, qos, quantity};
use crate::pods;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// CPU in milli-units, memory in bytes; zero is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    pub cpu_request: i64,
    pub cpu_limit: i64,
    pub memory_request: i64,
    pub memory_limit: i64,
}

/// What a container's cgroup is to carry.
pub fn container_amounts(pod: &Pod, c: &Container) -> Amounts {
    let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
    Amounts {
        cpu_request: quantity::milli_of(requests, "cpu"),
        memory_request: quantity::value_of(requests, "memory"),
        cpu_limit: amounts::effective_limit(pod, c, "cpu").map_or(0, quantity::milli),
        memory_limit: amounts::effective_limit(pod, c, "memory").map_or(0, quantity::value),
    }
}

/// What the pod's cgroup is to carry.
pub fn pod_amounts(pod: &Pod) -> Amounts {
    let requests = amounts::pod_requests(pod);
    let (cpu, memory) = super::cgroup::ceilings(pod);
    Amounts {
        cpu_request: quantity::milli_of(Some(&requests), "cpu"),
        memory_request: quantity::value_of(Some(&requests), "memory"),
        cpu_limit: cpu.unwrap_or(0),
        memory_limit: memory.unwrap_or(0),
    }
}

/// What is remembered of a pod across restarts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Allocated resources by container name; the pod's own under the empty name.
    pub allocated: BTreeMap<String, ResourceRequirements>,
    /// What was set on the containers' cgroups.
    pub actuated: BTreeMap<String, Amounts>,
    pub actuated_pod: Option<Amounts>,
}

fn is_resizable(pod: &Pod, c: &Container) -> bool {
    pods::containers(pod).iter().any(|m| m.name == c.name)
        || pods::init_containers(pod).iter().any(|m| m.name == c.name)
}

/// The allocation that grants all the pod asks for.
pub fn grant(pod: &Pod) -> BTreeMap<String, ResourceRequirements> {
    let mut all: BTreeMap<String, ResourceRequirements> = pods::containers(pod)
        .iter()
        .chain(pods::init_containers(pod))
        .map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()))
        .collect();
    if let Some(level) = &pods::spec(pod).resources {
        all.insert(String::new(), level.clone());
    }
    all
}

/// The pod with the allocated resources in place of the desired ones.
pub fn apply(pod: &Pod, allocated: &BTreeMap<String, ResourceRequirements>) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = pod.spec.as_mut() {
        let all = spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten());
        for c in all {
            if let Some(r) = allocated.get(&c.name) {
                let claims = c.resources.as_ref().and_then(|r| r.claims.clone());
                let empty = r.limits.is_none() && r.requests.is_none() && claims.is_none();
                c.resources = if empty && c.resources.is_none() {
                    None
                } else {
                    Some(ResourceRequirements { claims, ..r.clone() })
                };
            }
        }
        if let Some(level) = allocated.get("") {
            spec.resources = Some(level.clone());
        }
    }
    pod
}

/// Whether the pod asks for other CPU or memory than it was allocated.
pub fn wants_resize(pod: &Pod, allocated: &BTreeMap<String, ResourceRequirements>) -> bool {
    grant(pod).iter().any(|(name, want)| {
        let Some(have) = allocated.get(name) else { return true };
        let differs = |a: &Option<quantity::ResourceList>, b: &Option<quantity::ResourceList>| {
            ["cpu", "memory"].iter().any(|n| {
                let get = |l: &Option<quantity::ResourceList>| l.as_ref().and_then(|l| l.get(*n)).map(quantity::amount);
                get(a) != get(b)
            })
        };
        differs(&want.requests, &have.requests) || differs(&want.limits, &have.limits)
    })
}

/// Whether a pod that may have CPUs or memory for itself asks for more or less of that.
pub fn moves(pod: &Pod, allocated: &BTreeMap<String, ResourceRequirements>, resource: &str) -> bool {
    let amount = |r: Option<&ResourceRequirements>| quantity::milli_of(r.and_then(|r| r.requests.as_ref()), resource);
    let mut all = pods::containers(pod).iter().chain(pods::init_containers(pod));
    qos::class(pod) == qos::Qos::Guaranteed
        && all.any(|c| is_resizable(pod, c) && amount(c.resources.as_ref()) != amount(allocated.get(&c.name)))
}

/// What the node answers to a resize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Accept,
    /// Not now: the node is too full.
    Deferred(String),
    /// Never on this node.
    Infeasible(String),
}

/// Judges a resize against the node and its other pods.
pub fn judge(
    pod: &Pod,
    allocatable: &quantity::ResourceList,
    others: &quantity::ResourceList,
    static_pod: bool,
) -> Answer {
    if static_pod {
        return Answer::Infeasible("In-place resize of static-pods is not supported".into());
    }
    let want = amounts::pod_requests(pod);
    for (name, milli) in [("cpu", true), ("memory", false)] {
        let amount = |l: &quantity::ResourceList| {
            if milli {
                quantity::milli_of(Some(l), name)
            } else {
                quantity::value_of(Some(l), name)
            }
        };
        if amount(&want) > amount(allocatable) {
            return Answer::Infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
                amount(&want),
                amount(allocatable)
            ));
        }
    }
    for (name, milli) in [("cpu", true), ("memory", false)] {
        let amount = |l: &quantity::ResourceList| {
            if milli {
                quantity::milli_of(Some(l), name)
            } else {
                quantity::value_of(Some(l), name)
            }
        };
        if amount(&want) > 0 && amount(&want) + amount(others) > amount(allocatable) {
            return Answer::Deferred(format!(
                "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                amount(&want),
                amount(others),
                amount(allocatable)
            ));
        }
    }
    Answer::Accept
}

/// The amounts of a container as the runtime reports them, where it does.
pub fn resizable(pod: &Pod, c: &Container) -> bool {
    is_resizable(pod, c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cpu: &str) -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    fn list(cpu: &str) -> quantity::ResourceList {
        serde_json::from_value(serde_json::json!({"cpu": cpu, "memory": "1Gi"})).unwrap()
    }

    #[test]
    fn a_resize_is_judged_by_the_node() {
        assert_eq!(judge(&pod("1"), &list("2"), &list("500m"), false), Answer::Accept);
        assert!(matches!(
            judge(&pod("3"), &list("2"), &list("0"), false),
            Answer::Infeasible(_)
        ));
        assert!(matches!(
            judge(&pod("2"), &list("2"), &list("1"), false),
            Answer::Deferred(_)
        ));
    }

    #[test]
    fn allocation_replaces_what_is_desired() {
        let first = grant(&pod("1"));
        assert!(!wants_resize(&pod("1000m"), &first));
        assert!(wants_resize(&pod("2"), &first));
        let applied = apply(&pod("2"), &first);
        assert_eq!(
            container_amounts(&applied, &pods::containers(&applied)[0]).cpu_limit,
            1000
        );
    }
}
