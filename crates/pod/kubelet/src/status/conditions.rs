//! The conditions that the kubelet owns. Pure.

use crate::observe::{self, Observed};
use crate::pods;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

/// The kubelet's own conditions: all others are left to whoever set them.
pub fn is_ours(kind: &str) -> bool {
    matches!(
        kind,
        "PodScheduled"
            | "Ready"
            | "ContainersReady"
            | "Initialized"
            | "PodReadyToStartContainers"
            | "PodResizePending"
            | "PodResizeInProgress"
            | "AllContainersRestarting"
    )
}

fn new(pod: &Pod, kind: &str, status: bool, reason: &str, message: String) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: (!reason.is_empty()).then(|| reason.into()),
        message: (!message.is_empty()).then_some(message),
        observed_generation: pods::generation(pod),
        ..Default::default()
    }
}

fn listing(what: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("containers with {what} status: [{}]", names.join(" ")))
}

fn join(parts: [Option<String>; 2]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

pub fn containers_ready(pod: &Pod, statuses: &[&ContainerStatus], phase: &str) -> PodCondition {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let sidecars = pods::init_containers(pod).iter().filter(|c| pods::is_sidecar(c));
    for c in sidecars.chain(pods::containers(pod)) {
        match statuses.iter().find(|s| s.name == c.name) {
            Some(s) if s.ready => {}
            Some(_) => unready.push(c.name.as_str()),
            None => unknown.push(c.name.as_str()),
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return new(pod, "ContainersReady", false, "PodCompleted", String::new());
    }
    if phase == "Failed" {
        return new(pod, "ContainersReady", false, "PodFailed", String::new());
    }
    let message = join([listing("unknown", &unknown), listing("unready", &unready)]);
    if message.is_empty() {
        new(pod, "ContainersReady", true, "", message)
    } else {
        new(pod, "ContainersReady", false, "ContainersNotReady", message)
    }
}

pub fn ready(pod: &Pod, conditions: &[PodCondition], containers_ready: &PodCondition) -> PodCondition {
    if containers_ready.status != "True" {
        return PodCondition {
            type_: "Ready".into(),
            ..containers_ready.clone()
        };
    }
    let messages: Vec<String> = pods::spec(pod)
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match conditions.iter().find(|c| c.type_ == *kind) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                )),
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if messages.is_empty() {
        new(pod, "Ready", true, "", String::new())
    } else {
        new(pod, "Ready", false, "ReadinessGatesNotReady", messages.join(", "))
    }
}

pub fn initialized(pod: &Pod, old: &PodStatus, statuses: &[&ContainerStatus], phase: &str) -> PodCondition {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for c in pods::init_containers(pod) {
        match statuses.iter().find(|s| s.name == c.name) {
            None => unknown.push(c.name.as_str()),
            Some(s) => {
                let done = if pods::is_sidecar(c) {
                    s.started == Some(true)
                } else {
                    s.ready
                };
                if !done {
                    incomplete.push(c.name.as_str());
                }
            }
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return new(pod, "Initialized", true, "PodCompleted", String::new());
    }
    if any_main_started(pod, statuses) {
        return new(pod, "Initialized", true, "", String::new());
    }
    let message = join([listing("unknown", &unknown), listing("incomplete", &incomplete)]);
    let kept = pods::condition(old, "Initialized").is_some_and(|c| c.status == "True");
    if message.is_empty()
        || (kept
            && !old
                .container_statuses
                .iter()
                .flatten()
                .all(|s| s.container_id.is_none()))
    {
        new(pod, "Initialized", true, "", String::new())
    } else {
        new(pod, "Initialized", false, "ContainersNotInitialized", message)
    }
}

fn any_main_started(pod: &Pod, statuses: &[&ContainerStatus]) -> bool {
    pods::containers(pod).iter().any(|c| {
        statuses.iter().find(|s| s.name == c.name).is_some_and(|s| {
            let running = |st: &Option<k8s_openapi::api::core::v1::ContainerState>| {
                st.as_ref()
                    .is_some_and(|st| st.running.is_some() || st.terminated.is_some())
            };
            running(&s.state) || running(&s.last_state)
        })
    })
}

pub fn ready_to_start(pod: &Pod, observed: &Observed) -> PodCondition {
    let (changed, _, _, why) = observe::sandbox_changed(pod, observed);
    if changed {
        new(
            pod,
            "PodReadyToStartContainers",
            false,
            "PodSandboxNotReady",
            why.into(),
        )
    } else {
        new(pod, "PodReadyToStartContainers", true, "", String::new())
    }
}

pub fn scheduled(pod: &Pod) -> PodCondition {
    new(pod, "PodScheduled", true, "", String::new())
}

/// Whether the pod is being restarted in place.
pub fn restarting(pod: &Pod, active: bool) -> PodCondition {
    if active {
        let message = "Containers are being restarted because a container's restart rule asked for it".into();
        new(
            pod,
            "AllContainersRestarting",
            true,
            "RestartAllContainersStarted",
            message,
        )
    } else {
        new(pod, "AllContainersRestarting", false, "", String::new())
    }
}

/// Sets transition times: unchanged statuses keep theirs.
pub fn settle(conditions: &mut [PodCondition], old: &PodStatus, now: jiff::Timestamp) {
    for c in conditions {
        let before = pods::condition(old, &c.type_);
        c.last_transition_time = match before {
            Some(b) if b.status == c.status && b.last_transition_time.is_some() => b.last_transition_time.clone(),
            _ if c.last_transition_time.is_some() && before.is_none() => c.last_transition_time.clone(),
            _ => Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now)),
        };
    }
}
