//! Container statuses: from the runtime's views, the previous status and the reasons why starts failed. Pure.

use super::time;
use crate::observe::{self, ContainerView, Observed, State};
use crate::pods;
use crate::resources::cgroup;
use crate::resources::quantity::{self, ResourceList};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod};
use std::collections::HashMap;

/// Why a container could not be started: reason and message, by container name.
pub type StartFailures = HashMap<String, (String, String)>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Init,
    Main,
    Ephemeral,
}

pub struct Input<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub failures: &'a StartFailures,
    /// Prefix of container ids, e.g. `keelson`.
    pub runtime: &'a str,
    /// The runtime can make mounts recursively read-only.
    pub recursive_read_only: bool,
    /// All containers are being restarted in place.
    pub restarting: bool,
}

pub fn statuses(
    input: &Input,
    old: Option<&Vec<ContainerStatus>>,
    specs: &[Container],
    kind: Kind,
) -> Vec<ContainerStatus> {
    let mut list: Vec<ContainerStatus> = specs.iter().map(|c| one(input, old, c, kind)).collect();
    if kind != Kind::Init {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    list
}

fn one(input: &Input, old: Option<&Vec<ContainerStatus>>, c: &Container, kind: Kind) -> ContainerStatus {
    let old = pods::find_status(old, &c.name);
    let mut views = input.observed.containers.iter().filter(|v| v.name == c.name);
    let mut status = match views.next() {
        Some(newest) => {
            let mut status = seen(input, c, newest, old);
            if let Some(previous) = views.next() {
                status.last_state = Some(state(input, previous, None));
            }
            status
        }
        None => unseen(input, c, old, kind),
    };
    status.volume_mounts = volume_mounts(c, input.recursive_read_only);
    waiting(input, c, kind, &mut status);
    status
}

/// The runtime has an instance of the container.
fn seen(input: &Input, c: &Container, v: &ContainerView, old: Option<&ContainerStatus>) -> ContainerStatus {
    let id = format!("{}://{}", input.runtime, v.id);
    let mut status = ContainerStatus {
        name: c.name.clone(),
        image: v.image.clone(),
        image_id: v.image_ref.clone(),
        restart_count: v.restart_count,
        state: Some(state(input, v, old)),
        container_id: Some(id),
        ..Default::default()
    };
    if let Some(old) = old {
        status.restart_count = status.restart_count.max(old.restart_count);
        let old_end = old.state.as_ref().and_then(|s| s.terminated.clone());
        if old.container_id != status.container_id && old_end.is_some() {
            status.last_state = Some(ContainerState {
                terminated: old_end.clone(),
                ..Default::default()
            });
            if v.state == State::Running && old.restart_count >= v.restart_count {
                status.restart_count = old.restart_count + 1;
            }
        } else if old.last_state.as_ref().is_some_and(|l| l.terminated.is_some()) {
            status.last_state = old.last_state.clone();
        }
        if v.state == State::Running && old.container_id == status.container_id {
            status.started = old.started;
        }
        if v.state == State::Unknown && old.state.as_ref().is_some_and(|s| s.running.is_some()) {
            status.restart_count = old.restart_count + 1;
        }
    }
    status.resources = actual_resources(c, v);
    status.allocated_resources = c.resources.as_ref().and_then(|r| r.requests.clone());
    status.user = v.user.as_ref().map(|u| api::ContainerUser {
        linux: Some(api::LinuxContainerUser {
            uid: u.uid,
            gid: u.gid,
            supplemental_groups: (!u.supplemental_groups.is_empty()).then(|| u.supplemental_groups.clone()),
        }),
    });
    status
}

fn state(input: &Input, v: &ContainerView, old: Option<&ContainerStatus>) -> ContainerState {
    match v.state {
        State::Running => ContainerState {
            running: Some(api::ContainerStateRunning {
                started_at: time(v.started),
            }),
            ..Default::default()
        },
        State::Exited => ContainerState {
            terminated: Some(api::ContainerStateTerminated {
                exit_code: v.exit_code,
                reason: (!v.reason.is_empty()).then(|| v.reason.clone()),
                message: (!v.message.is_empty()).then(|| v.message.clone()),
                started_at: time(v.started),
                finished_at: time(v.finished),
                container_id: Some(format!("{}://{}", input.runtime, v.id)),
                signal: None,
            }),
            ..Default::default()
        },
        State::Unknown if old.is_some_and(|o| o.state.as_ref().is_some_and(|s| s.running.is_some())) => lost(
            if input.restarting {
                "RestartingAllContainers"
            } else {
                "ContainerStatusUnknown"
            },
            "The container could not be located when the pod was terminated",
        ),
        _ => ContainerState {
            waiting: Some(api::ContainerStateWaiting::default()),
            ..Default::default()
        },
    }
}

pub fn lost(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(api::ContainerStateTerminated {
            reason: Some(reason.into()),
            message: Some(message.into()),
            exit_code: 137,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn waits(reason: &str, message: Option<&str>) -> ContainerState {
    ContainerState {
        waiting: Some(api::ContainerStateWaiting {
            reason: Some(reason.into()),
            message: message.map(Into::into),
        }),
        ..Default::default()
    }
}

/// The runtime has no instance: it waits, has ended before, or got lost.
fn unseen(input: &Input, c: &Container, old: Option<&ContainerStatus>, kind: Kind) -> ContainerStatus {
    let reason = if pods::init_containers(input.pod).is_empty() {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    let mut status = ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        state: Some(waits(reason, None)),
        ..Default::default()
    };
    let Some(old) = old else { return status };
    let old_state = old.state.clone().unwrap_or_default();
    if input.restarting && old_state.waiting.is_none() {
        let text = "The container is removed because RestartAllContainers in place";
        status.state = Some(waits("RestartingAllContainers", Some(text)));
        status.last_state = Some(lost("RestartingAllContainers", text));
        status.restart_count = old.restart_count + 1;
        return status;
    }
    if old_state.terminated.is_some() {
        return old.clone();
    }
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    let never_ended = status.last_state.as_ref().is_none_or(|l| l.terminated.is_none());
    if old_state.running.is_some() && never_ended {
        let text = "The container could not be located when the pod was deleted.  The container used to be Running";
        status.last_state = Some(lost("ContainerStatusUnknown", text));
        status.restart_count += i32::from(input.pod.metadata.deletion_timestamp.is_none());
    }
    if kind == Kind::Init
        && !pods::is_sidecar(c)
        && input.observed.any_main_created(input.pod)
        && status.state.as_ref().is_some_and(|s| s.waiting.is_some())
    {
        let text = "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally";
        status.state = Some(ContainerState {
            terminated: Some(api::ContainerStateTerminated {
                reason: Some("Completed".into()),
                message: Some(text.into()),
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    status
}

/// A container that is to be started but could not be: it waits, for the reason the start failed.
fn waiting(input: &Input, c: &Container, kind: Kind, status: &mut ContainerStatus) {
    if kind == Kind::Init {
        let done = input
            .observed
            .find(&c.name)
            .is_some_and(|v| v.state == State::Exited && v.exit_code == 0);
        if done && !pods::is_sidecar(c) {
            return;
        }
    }
    if !observe::should_start(c, input.pod, input.observed) {
        return;
    }
    let Some((reason, message)) = input.failures.get(&c.name) else {
        return;
    };
    if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        status.last_state = status.state.take();
    }
    status.state = Some(waits(reason, (!message.is_empty()).then_some(message.as_str())));
}

/// The amounts in force: the allocated ones, corrected by what the runtime reports of a running container.
fn actual_resources(c: &Container, v: &ContainerView) -> Option<api::ResourceRequirements> {
    let mut resources = c.resources.clone().unwrap_or_default();
    let Some(actual) = v.resources.as_ref().filter(|_| v.state == State::Running) else {
        return Some(resources);
    };
    let set = |list: &mut Option<ResourceList>, name: &str, milli: Option<i64>, floor: i64| {
        if let (Some(list), Some(m)) = (list.as_mut(), milli)
            && let Some(q) = list.get(name)
            && (m > floor || quantity::milli(q) > floor)
            && quantity::milli(q) != m
        {
            let new = if name == "cpu" {
                quantity::from_milli(m)
            } else {
                quantity::bytes(m / 1000)
            };
            list.insert(name.to_owned(), new);
        }
    };
    let cpu_limit = cgroup::quota_to_milli(actual.cpu_quota, actual.cpu_period);
    set(&mut resources.limits, "cpu", cpu_limit, 10);
    let memory = actual.memory_limit_in_bytes;
    set(
        &mut resources.limits,
        "memory",
        (memory > 0).then(|| memory.saturating_mul(1000)),
        0,
    );
    if actual.cpu_shares > 0 {
        let requested = resources
            .requests
            .as_ref()
            .and_then(|r| r.get("cpu"))
            .map(quantity::milli);
        // The weight is coarse: an equal weight means the request is in force as written.
        if requested.is_none_or(|r| cgroup::shares(r) != actual.cpu_shares) {
            set(
                &mut resources.requests,
                "cpu",
                Some(cgroup::shares_to_milli(actual.cpu_shares)),
                2,
            );
        }
    }
    Some(resources)
}

fn volume_mounts(c: &Container, supported: bool) -> Option<Vec<api::VolumeMountStatus>> {
    let list: Vec<api::VolumeMountStatus> = c
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| {
            let read_only = m.read_only.unwrap_or(false);
            let recursive = match m.recursive_read_only.as_deref() {
                Some("Enabled") => true,
                Some("IfPossible") => supported,
                _ => false,
            };
            api::VolumeMountStatus {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.into()),
                ..Default::default()
            }
        })
        .collect();
    (!list.is_empty()).then_some(list)
}
