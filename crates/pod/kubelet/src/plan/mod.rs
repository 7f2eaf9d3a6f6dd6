//! What to do next for a pod: a pure function of the desired pod, what the runtime shows and what the probes found.
//! Knows nothing of how actions are carried out.

mod init;
mod resize;
#[cfg(test)]
mod tests;

use crate::observe::{self, ContainerView, Observed, State};
use crate::pods;
use crate::resources::allocation::Amounts;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;

/// Why a container is killed: it decides which grace period counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    LivenessProbe,
    StartupProbe,
    FailedPostStart,
    RestartAll,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub reason: KillReason,
}

/// New limits for a running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub id: String,
    pub name: String,
    pub from: Amounts,
    pub to: Amounts,
}

/// A container to remove (killing it first when it runs) so that the pod starts afresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    pub id: String,
    pub name: String,
    pub kill: bool,
}

/// The whole of the next step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub kill_pod: bool,
    pub create_sandbox: bool,
    pub sandbox_id: Option<String>,
    pub attempt: u32,
    /// Indexes into the three lists of the specification.
    pub start_init: Vec<usize>,
    pub start: Vec<usize>,
    pub start_ephemeral: Vec<usize>,
    pub kill: Vec<Kill>,
    pub update: Vec<Update>,
    pub reset: Vec<Reset>,
    /// The pod's own cgroup has to follow a resize.
    pub update_pod_cgroup: bool,
}

/// What the probes know of each container instance, by its id.
#[derive(Clone, Debug, Default)]
pub struct ProbeResults {
    pub startup: HashMap<String, bool>,
    pub liveness: HashMap<String, bool>,
}

/// What was last set on each container, by its name.
pub type Actuated = HashMap<String, Amounts>;

pub struct Input<'a> {
    /// The pod with the resources that were allocated to it.
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub probes: &'a ProbeResults,
    pub actuated: &'a Actuated,
    pub actuated_pod: Option<&'a Amounts>,
    /// The pod is being restarted in place by a container's rule.
    pub restart_all: bool,
}

pub fn compute(input: &Input) -> Actions {
    let Input { pod, observed, .. } = *input;
    let (changed, attempt, sandbox_id, _) = observe::sandbox_changed(pod, observed);
    let mut actions = Actions {
        kill_pod: changed,
        create_sandbox: changed,
        attempt,
        sandbox_id,
        ..Actions::default()
    };
    if input.restart_all {
        actions.kill_pod = false;
        actions.create_sandbox = false;
        actions.reset = resets(pod, observed);
        return actions;
    }
    if changed {
        start_afresh(pod, observed, &mut actions);
        return actions;
    }
    for (i, c) in pods::ephemeral_containers(pod).iter().enumerate() {
        if observed.find(&c.name).is_none() {
            actions.start_ephemeral.push(i);
        }
    }
    let initialized = init::compute(input, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let mut kept = 0;
    for (i, c) in pods::containers(pod).iter().enumerate() {
        kept += main_container(input, i, c, &mut actions);
    }
    if kept == 0 && actions.start.is_empty() {
        actions.kill_pod = true;
        actions.start_init.clear();
    }
    actions.update_pod_cgroup |= resize::pod_changed(input);
    actions
}

/// Decides for one main container; returns 1 when it is kept running.
fn main_container(input: &Input, i: usize, c: &Container, actions: &mut Actions) -> usize {
    let Input { pod, observed, .. } = *input;
    let Some(view) = observed.find(&c.name).filter(|v| v.state == State::Running) else {
        if observe::should_start(c, pod, observed) {
            actions.start.push(i);
            if let Some(v) = observed.find(&c.name).filter(|v| v.state == State::Unknown) {
                let message = "Container is in \"unknown\" state, try killing it before restart";
                actions.kill.push(kill(v, message.into(), KillReason::Other));
            }
        }
        return 0;
    };
    let mut restart = match c.restart_policy.as_deref() {
        Some(own) => own != "Never",
        None => pods::restart_policy(pod) != "Never",
    };
    let (message, reason) = if !pods::made_from(view.hash, c) {
        restart = true;
        (format!("Container {} definition changed", c.name), KillReason::Other)
    } else if input.probes.liveness.get(&view.id) == Some(&false) {
        (
            format!("Container {} failed liveness probe", c.name),
            KillReason::LivenessProbe,
        )
    } else if input.probes.startup.get(&view.id) == Some(&false) {
        (
            format!("Container {} failed startup probe", c.name),
            KillReason::StartupProbe,
        )
    } else {
        match resize::container(input, c, view, actions) {
            resize::Verdict::Keep => return 1,
            resize::Verdict::Restart => {
                actions.start.push(i);
                return 0;
            }
        }
    };
    let message = if restart {
        actions.start.push(i);
        format!("{message}, will be restarted")
    } else {
        message
    };
    actions.kill.push(kill(view, message, reason));
    0
}

fn kill(view: &ContainerView, message: String, reason: KillReason) -> Kill {
    Kill {
        id: view.id.clone(),
        name: view.name.clone(),
        message,
        reason,
    }
}

/// With a new sandbox everything starts from the beginning, unless the pod is done.
fn start_afresh(pod: &Pod, observed: &Observed, actions: &mut Actions) {
    if pods::restart_policy(pod) == "Never" && actions.attempt != 0 && !observed.containers.is_empty() {
        actions.create_sandbox = false;
        return;
    }
    let start: Vec<usize> = pods::containers(pod)
        .iter()
        .enumerate()
        .filter(|(_, c)| {
            let once = c.restart_policy.as_deref().unwrap_or(pods::restart_policy(pod)) == "OnFailure";
            let done = observed
                .find(&c.name)
                .is_some_and(|v| v.state == State::Exited && v.exit_code == 0);
            !(once && done)
        })
        .map(|(i, _)| i)
        .collect();
    if start.is_empty() && observed.any_main_created(pod) {
        actions.create_sandbox = false;
        return;
    }
    if pods::init_containers(pod).is_empty() {
        actions.start = start;
    } else {
        actions.start_init = vec![0];
    }
}

/// Everything goes, in reverse of the starting order; the containers that asked for it go last.
fn resets(pod: &Pod, observed: &Observed) -> Vec<Reset> {
    let split = |list: &[Container]| {
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        for c in list {
            for v in observed.containers.iter().filter(|v| v.name == c.name) {
                let reset = Reset {
                    id: v.id.clone(),
                    name: v.name.clone(),
                    kill: v.state != State::Exited,
                };
                let asked = v.state == State::Exited
                    && pods::matching_rule(c, v.exit_code).is_some_and(|r| r.action == "RestartAllContainers");
                if asked {
                    sources.push(reset)
                } else {
                    targets.push(reset)
                }
            }
        }
        (sources, targets)
    };
    let (init_sources, init_targets) = split(pods::init_containers(pod));
    let (sources, targets) = split(pods::containers(pod));
    [targets, init_targets, sources, init_sources].concat()
}

/// Whether a container's exit asked for the whole pod to be restarted in place and that isn't finished yet.
pub fn wants_restart_all(pod: &Pod, observed: &Observed, status: &k8s_openapi::api::core::v1::PodStatus) -> bool {
    if !pods::could_restart_all(pod) || pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    pods::condition(status, "AllContainersRestarting").is_some_and(|c| c.status == "True")
        || pods::containers(pod).iter().chain(pods::init_containers(pod)).any(|c| {
            observed.find(&c.name).is_some_and(|v| {
                v.state == State::Exited
                    && pods::matching_rule(c, v.exit_code).is_some_and(|r| r.action == "RestartAllContainers")
            })
        })
}
