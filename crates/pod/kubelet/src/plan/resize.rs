//! In-place resize: how the limits set on running containers get to the allocated ones. Pure.

use super::{Actions, Input, KillReason, Update, kill};
use crate::observe::{ContainerView, State};
use crate::resources::allocation::{Amounts, container_amounts, pod_amounts};
use k8s_openapi::api::core::v1::Container;

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Restart,
}

/// Compares what is set on a running container with what it was allocated.
pub fn container(input: &Input, c: &Container, view: &ContainerView, actions: &mut Actions) -> Verdict {
    if view.state != State::Running {
        return Verdict::Keep;
    }
    // Without a record there is nothing to compare with: what runs is what was asked.
    let Some(from) = input.actuated.get(&c.name) else {
        return Verdict::Keep;
    };
    let to = container_amounts(input.pod, c);
    if *from == to {
        return Verdict::Keep;
    }
    let restarts = |resource: &str| {
        c.resize_policy.as_ref().is_some_and(|p| {
            p.iter()
                .any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
        })
    };
    let cpu = from.cpu_request != to.cpu_request || from.cpu_limit != to.cpu_limit;
    let memory = from.memory_request != to.memory_request || from.memory_limit != to.memory_limit;
    if (cpu && restarts("cpu")) || (memory && restarts("memory")) {
        let message = format!("Container {} resize requires restart", c.name);
        actions.kill.push(kill(view, message, KillReason::Other));
        actions.update_pod_cgroup = true;
        return Verdict::Restart;
    }
    let update = Update {
        id: view.id.clone(),
        name: c.name.clone(),
        from: from.clone(),
        to,
    };
    // What shrinks makes room before what grows takes it.
    if grows(&update) {
        actions.update.push(update)
    } else {
        actions.update.insert(0, update)
    }
    actions.update_pod_cgroup = true;
    Verdict::Keep
}

fn grows(u: &Update) -> bool {
    u.to.memory_limit > u.from.memory_limit || u.to.cpu_limit > u.from.cpu_limit
}

/// Whether the pod-level amounts differ from those set on its cgroup.
pub fn pod_changed(input: &Input) -> bool {
    input
        .actuated_pod
        .is_some_and(|set: &Amounts| *set != pod_amounts(input.pod))
}
