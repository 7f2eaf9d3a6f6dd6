//! The whole pod status. Pure: the same inputs give the same status.

use super::containers::{self, Kind, StartFailures};
use super::{conditions, phase};
use crate::observe::{Observed, State};
use crate::pods;
use crate::resources::{pod as amounts, qos};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus};
use std::collections::{HashMap, HashSet};

/// What the probes know, as readiness and start are decided by them.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Readiness by container instance; an instance without a probe isn't listed.
    pub ready: HashMap<String, bool>,
    pub started: HashMap<String, bool>,
    /// Container names that have a readiness or a startup probe.
    pub has_readiness: HashSet<String>,
    pub has_startup: HashSet<String>,
}

pub struct Input<'a> {
    /// With the allocated resources.
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub failures: &'a StartFailures,
    pub readiness: &'a Readiness,
    /// The status last generated, else the one of the API.
    pub old: &'a PodStatus,
    pub terminal: bool,
    pub host_ips: &'a [String],
    pub runtime: &'a str,
    pub recursive_read_only: bool,
    pub restarting: bool,
    /// Resize conditions in force.
    pub resize: &'a [PodCondition],
    /// Set when the node ends the pod: reason and message, and a disruption condition if any.
    pub failure: Option<(&'a str, &'a str)>,
    pub disruption: Option<PodCondition>,
    pub now: jiff::Timestamp,
}

impl Input<'_> {
    /// Whether it is told now that the node ends the pod. Not while something of it runs: who is told gives to others what it holds. And
    /// not of one that had succeeded before.
    fn is_given_up(&self) -> bool {
        let before = [&self.old.phase, &pods::status(self.pod).phase];
        let succeeded = before.iter().any(|phase| phase.as_deref() == Some("Succeeded"));
        !succeeded && (self.terminal || all_stopped(self.observed))
    }
}

/// The most that the termination messages of a pod's containers may be together: each gets the same share.
const MESSAGES: usize = 12 << 10;

fn shorten(status: &mut ContainerStatus, most: usize) {
    for state in [&mut status.state, &mut status.last_state] {
        if let Some(message) = state
            .as_mut()
            .and_then(|s| s.terminated.as_mut())
            .and_then(|t| t.message.as_mut())
        {
            message.truncate(message.floor_char_boundary(most));
        }
    }
}

pub fn status(input: &Input) -> PodStatus {
    let Input { pod, observed, old, .. } = *input;
    let view = containers::Input {
        pod,
        observed,
        failures: input.failures,
        runtime: input.runtime,
        recursive_read_only: input.recursive_read_only,
        restarting: input.restarting,
    };
    let mut main = containers::statuses(
        &view,
        old.container_statuses.as_ref(),
        pods::containers(pod),
        Kind::Main,
    );
    let mut init = containers::statuses(
        &view,
        old.init_container_statuses.as_ref(),
        pods::init_containers(pod),
        Kind::Init,
    );
    let extra: Vec<Container> = pods::ephemeral_containers(pod).iter().map(pods::as_container).collect();
    let mut ephemeral = containers::statuses(
        &view,
        old.ephemeral_container_statuses.as_ref(),
        &extra,
        Kind::Ephemeral,
    );
    for s in &mut main {
        apply_probes(input, s, false);
    }
    for (s, c) in init.iter_mut().zip(pods::init_containers(pod)) {
        apply_probes(input, s, !pods::is_sidecar(c));
    }
    let share = MESSAGES / (main.len() + init.len() + ephemeral.len()).max(1);
    for s in main.iter_mut().chain(&mut init).chain(&mut ephemeral) {
        shorten(s, share);
    }
    let computed = {
        let all: Vec<&ContainerStatus> = main.iter().chain(&init).collect();
        phase::phase(pod, &all, input.terminal, observed.any_main_active(pod))
    };
    if input.terminal {
        end_all(pod, &mut main, &mut init);
    }
    let all: Vec<&ContainerStatus> = main.iter().chain(&init).collect();
    let mut status = PodStatus {
        qos_class: Some(qos::class(pod).as_str().into()),
        observed_generation: pods::generation(pod),
        start_time: old
            .start_time
            .clone()
            .or_else(|| super::time(input.now.as_nanosecond() as i64)),
        ..Default::default()
    };
    let unended = input.terminal && !pods::is_static(pod) && !pods::is_terminal_phase(Some(computed));
    let computed = if unended { "Failed" } else { computed };
    settle_phase(input, &mut status, computed);
    addresses(input, &mut status);
    status.conditions = Some(all_conditions(
        input,
        &all,
        status.phase.as_deref().unwrap_or("Pending"),
    ));
    status.allocated_resources = Some(amounts::pod_requests(pod)).filter(|_| amounts::pod_level(pod).is_some());
    status.resources = amounts::pod_level(pod).map(|_| k8s_openapi::api::core::v1::ResourceRequirements {
        requests: Some(amounts::pod_requests(pod)),
        limits: Some(amounts::pod_limits(pod)).filter(|l| !l.is_empty()),
        claims: None,
    });
    status.container_statuses = Some(main);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status.resource_claim_statuses = pods::status(pod).resource_claim_statuses.clone();
    status.extended_resource_claim_status = pods::status(pod).extended_resource_claim_status.clone();
    status.nominated_node_name = pods::status(pod).nominated_node_name.clone();
    status
}

/// A pod that has ended has no container that hasn't: what left no trace is told as lost, never as still to come.
fn end_all(pod: &Pod, main: &mut [ContainerStatus], init: &mut [ContainerStatus]) {
    let traced = |s: &ContainerStatus| {
        let ended = |st: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            st.as_ref()
                .is_some_and(|s| s.terminated.is_some() || s.running.is_some())
        };
        ended(&s.state) || ended(&s.last_state)
    };
    let initialized = pods::init_containers(pod).is_empty()
        || main.iter().any(traced)
        || init.last().is_some_and(|s| {
            s.state
                .as_ref()
                .and_then(|st| st.terminated.as_ref())
                .is_some_and(|t| t.exit_code == 0)
        });
    let begun = init.iter().rposition(traced).map_or(0, |i| i + 1);
    let lost = init
        .iter_mut()
        .take(begun)
        .chain(main.iter_mut().filter(|_| initialized));
    for s in lost {
        if s.state.as_ref().is_none_or(|st| st.terminated.is_none()) {
            s.state = Some(containers::lost(
                "ContainerStatusUnknown",
                "The container could not be located when the pod was terminated",
            ));
            s.ready = false;
            s.started = Some(false);
        }
    }
}

/// A container is started when its startup probe (or the lack of one) says so, and ready likewise.
fn apply_probes(input: &Input, s: &mut ContainerStatus, plain_init: bool) {
    let running = s.state.as_ref().is_some_and(|st| st.running.is_some());
    let id = s
        .container_id
        .as_deref()
        .and_then(|id| id.split_once("://"))
        .map(|(_, id)| id)
        .unwrap_or_default();
    let started = running
        && if input.readiness.has_startup.contains(&s.name) {
            input
                .readiness
                .started
                .get(id)
                .copied()
                .unwrap_or(s.started.unwrap_or(false))
        } else {
            true
        };
    if plain_init {
        s.started = Some(running);
        s.ready = s
            .state
            .as_ref()
            .and_then(|st| st.terminated.as_ref())
            .is_some_and(|t| t.exit_code == 0);
        return;
    }
    s.started = Some(started);
    s.ready = started
        && (!input.readiness.has_readiness.contains(&s.name)
            || input.readiness.ready.get(id).copied().unwrap_or(false));
}

/// A phase never leaves a terminal one; reason and message stay with the phase.
fn settle_phase(input: &Input, status: &mut PodStatus, computed: &str) {
    let api = pods::status(input.pod);
    let mut phase = computed.to_owned();
    for before in [&input.old.phase, &api.phase] {
        if let Some(p) = before.as_ref().filter(|p| pods::is_terminal_phase(Some(p))) {
            phase = p.clone();
        }
    }
    if Some(&phase) == input.old.phase.as_ref() {
        status.reason = input.old.reason.clone().or_else(|| api.reason.clone());
        status.message = input.old.message.clone().or_else(|| api.message.clone());
    }
    if let Some((reason, message)) = input.failure.filter(|_| input.is_given_up()) {
        phase = "Failed".into();
        status.reason = Some(reason.into());
        status.message = Some(message.into());
    }
    status.phase = Some(phase);
}

fn addresses(input: &Input, status: &mut PodStatus) {
    let host: Vec<String> = input.host_ips.to_vec();
    if let Some(first) = host.first() {
        status.host_ip = Some(first.clone());
        status.host_ips = Some(host.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    }
    let mut ips: Vec<String> = sort_ips(input.observed.ips(), input.host_ips);
    if ips.is_empty() && pods::is_host_network(input.pod) {
        ips = host;
    }
    if ips.is_empty() && !pods::is_host_network(input.pod) {
        // Addresses stay known while the sandbox is gone: clients of a finished pod still read them.
        ips = input.old.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect();
        let new_sandbox_coming = input.observed.sandboxes.first().is_some_and(|s| !s.ready)
            && !input.terminal
            && !pods::is_terminal_phase(status.phase.as_deref());
        if new_sandbox_coming {
            ips.clear();
        }
    }
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
}

/// At most one address a family, the node's own family first.
pub fn sort_ips(ips: &[String], host_ips: &[String]) -> Vec<String> {
    let v6_first = host_ips.first().is_some_and(|ip| ip.contains(':'));
    let pick = |v6: bool| ips.iter().find(|ip| ip.contains(':') == v6).cloned();
    [pick(v6_first), pick(!v6_first)].into_iter().flatten().collect()
}

fn all_conditions(input: &Input, all: &[&ContainerStatus], phase: &str) -> Vec<PodCondition> {
    let Input { pod, old, .. } = *input;
    let mut list: Vec<PodCondition> = pods::status(pod)
        .conditions
        .iter()
        .flatten()
        .filter(|c| !conditions::is_ours(&c.type_))
        .cloned()
        .collect();
    if !input.terminal {
        list.extend(input.resize.iter().cloned());
    }
    let disruption = input
        .disruption
        .clone()
        .filter(|_| input.is_given_up())
        .or_else(|| pods::condition(old, "DisruptionTarget").cloned());
    if let Some(d) = disruption {
        list.retain(|c| c.type_ != d.type_);
        list.push(d);
    }
    list.push(conditions::ready_to_start(pod, input.observed));
    list.push(conditions::initialized(pod, old, all, phase));
    let containers_ready = conditions::containers_ready(pod, all, phase);
    list.push(conditions::ready(pod, &list, &containers_ready));
    list.push(containers_ready);
    list.push(conditions::scheduled(pod));
    if pods::could_restart_all(pod) {
        list.push(conditions::restarting(pod, input.restarting));
    }
    let base = PodStatus {
        conditions: Some(
            pods::status(pod)
                .conditions
                .iter()
                .flatten()
                .chain(old.conditions.iter().flatten())
                .cloned()
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect(),
        ),
        ..Default::default()
    };
    conditions::settle(&mut list, &base, input.now);
    list
}

/// Whether all containers have stopped, so that a terminal status may be told.
pub fn all_stopped(observed: &Observed) -> bool {
    observed
        .containers
        .iter()
        .all(|c| !matches!(c.state, State::Running | State::Unknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_message_is_cut_between_characters() {
        let text = "a".repeat(9) + "é";
        let mut status: ContainerStatus = serde_json::from_value(json!({"name": "c", "image": "", "imageID": "",
            "ready": false, "restartCount": 1, "lastState": {"terminated": {"exitCode": 1, "message": text}}}))
        .unwrap();
        shorten(&mut status, 10);
        let cut = status.last_state.and_then(|s| s.terminated?.message);
        assert_eq!(cut.as_deref(), Some("aaaaaaaaa"));
    }

    /// The phase before → phase, reason and whether a disruption is told when the node ends the pod.
    #[test]
    fn a_pod_that_has_succeeded_is_not_failed_by_its_node() {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}})).unwrap();
        let disruption = PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            ..PodCondition::default()
        };
        for (before, wanted) in [
            ("Running", ("Failed", Some("Evicted"), true)),
            ("Succeeded", ("Succeeded", None, false)),
        ] {
            let old = PodStatus {
                phase: Some(before.into()),
                ..PodStatus::default()
            };
            let told = status(&Input {
                pod: &pod,
                observed: &Observed::default(),
                failures: &StartFailures::new(),
                readiness: &Readiness::default(),
                old: &old,
                terminal: false,
                host_ips: &[],
                runtime: "r",
                recursive_read_only: false,
                restarting: false,
                resize: &[],
                failure: Some(("Evicted", "the node was low on resource")),
                disruption: Some(disruption.clone()),
                now: jiff::Timestamp::UNIX_EPOCH,
            });
            let disrupted = pods::condition(&told, "DisruptionTarget").is_some();
            assert_eq!(
                (told.phase.as_deref(), told.reason.as_deref(), disrupted),
                (Some(wanted.0), wanted.1, wanted.2)
            );
        }
    }
}
