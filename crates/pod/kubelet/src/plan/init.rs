//! Init containers and sidecars: which one is next, which restart, and whether the pod is initialised. Pure.

use super::{Actions, Input, KillReason, kill, resize};
use crate::observe::{self, State};
use crate::pods;

/// Adds the init phase's actions; true when the main containers may run.
///
/// The list is walked from its end, because earlier init containers may already have been removed from the runtime: the
/// last one that left a trace says how far the pod has come.
pub fn compute(input: &Input, actions: &mut Actions) -> bool {
    let Input { pod, observed, .. } = *input;
    let list = pods::init_containers(pod);
    if list.is_empty() {
        return true;
    }
    let mut initialized = observed.any_main_active(pod);
    let mut previously = initialized;
    for (i, c) in list.iter().enumerate().rev() {
        let sidecar = pods::is_sidecar(c);
        let last = i + 1 == list.len();
        let Some(view) = observed.find_active(&c.name) else {
            if previously && sidecar {
                actions.start_init.push(i);
            }
            continue;
        };
        if previously && !sidecar {
            continue;
        }
        match view.state {
            // Created but never started: the runtime failed to start it.
            State::Created => actions.start_init.push(i),
            State::Running if sidecar => {
                if running_sidecar(input, actions, i, previously) && last {
                    initialized = true;
                }
            }
            State::Running => {
                resize::container(input, c, view, actions);
            }
            State::Exited if sidecar => actions.start_init.push(i),
            State::Exited if view.exit_code != 0 => {
                if !observe::should_start(c, pod, observed) {
                    actions.kill_pod = true;
                    actions.start_init.clear();
                    return false;
                }
                actions.start_init.push(i);
            }
            State::Exited if last => initialized = true,
            State::Exited => actions.start_init.push(i + 1),
            State::Unknown => {
                let restart = sidecar
                    || c.restart_policy
                        .as_deref()
                        .map_or(pods::restart_policy(pod) != "Never", |p| p != "Never");
                if !restart {
                    actions.kill_pod = true;
                    actions.start_init.clear();
                    return false;
                }
                let message = "Init container is in \"unknown\" state, try killing it before restart";
                actions.kill.push(kill(view, message.into(), KillReason::Other));
                actions.start_init.push(i);
            }
        }
        previously = true;
    }
    if !previously {
        actions.start_init.push(0);
    }
    actions.start_init.reverse();
    initialized
}

/// A sidecar that runs: true once it counts as started.
fn running_sidecar(input: &Input, actions: &mut Actions, i: usize, previously: bool) -> bool {
    let list = pods::init_containers(input.pod);
    let c = &list[i];
    let Some(view) = input.observed.find_active(&c.name) else {
        return false;
    };
    let restart = |actions: &mut Actions, what: &str, reason| {
        actions
            .kill
            .push(kill(view, format!("Init container {} {what}", c.name), reason));
        actions.start_init.push(i);
    };
    if c.startup_probe.is_some() {
        match input.probes.startup.get(&view.id) {
            Some(true) => {}
            Some(false) => {
                restart(actions, "failed startup probe", KillReason::StartupProbe);
                return false;
            }
            None => return false,
        }
    }
    if i + 1 < list.len() && !previously {
        actions.start_init.push(i + 1);
    }
    if !pods::made_from(view.hash, c) {
        restart(actions, "definition changed", KillReason::Other);
    } else if c.liveness_probe.is_some() && input.probes.liveness.get(&view.id) == Some(&false) {
        restart(actions, "failed liveness probe", KillReason::LivenessProbe);
    } else if let resize::Verdict::Restart = resize::container(input, c, view, actions) {
        actions.start_init.push(i);
    }
    true
}
