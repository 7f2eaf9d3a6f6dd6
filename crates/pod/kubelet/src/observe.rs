//! What the runtime says of one pod, in the kubelet's own terms. The conversion is pure; reading it is `read`.
//! Nothing here is remembered between reads but the views of exited containers, which no longer change.

use crate::pods;
use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::v1 as cri;
use std::collections::HashMap;

pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const NOTE_HASH: &str = "io.kubernetes.container.hash";
pub const NOTE_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const NOTE_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const NOTE_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const NOTE_PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
pub const NOTE_PORTS: &str = "io.kubernetes.container.ports";
pub const NOTE_POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
pub const NOTE_DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One container instance. Times are nanoseconds since the epoch.
#[derive(Clone, Debug)]
pub struct ContainerView {
    pub id: String,
    pub name: String,
    pub image: String,
    pub image_ref: String,
    pub sandbox_id: String,
    pub hash: u64,
    pub restart_count: i32,
    pub state: State,
    pub created: i64,
    pub started: i64,
    pub finished: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub log_path: String,
    pub resources: Option<cri::LinuxContainerResources>,
    pub user: Option<cri::LinuxContainerUser>,
    pub stop_signal: i32,
    pub annotations: HashMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct SandboxView {
    pub id: String,
    pub ready: bool,
    pub created: i64,
    pub attempt: u32,
    pub host_network: bool,
    pub ips: Vec<String>,
}

/// A pod as the runtime has it, newest first in both lists.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub sandboxes: Vec<SandboxView>,
    pub containers: Vec<ContainerView>,
}

impl Observed {
    /// The newest instance of a container.
    pub fn find(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest instance in the current sandbox.
    pub fn find_active(&self, name: &str) -> Option<&ContainerView> {
        let sandbox = self.sandboxes.first().filter(|s| s.ready)?;
        self.containers
            .iter()
            .find(|c| c.name == name && c.sandbox_id == sandbox.id)
    }

    pub fn running(&self) -> impl Iterator<Item = &ContainerView> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, State::Running | State::Unknown))
    }

    /// The pod's addresses: those of the newest ready sandbox.
    pub fn ips(&self) -> &[String] {
        self.sandboxes.first().filter(|s| s.ready).map_or(&[], |s| &s.ips)
    }

    pub fn sandbox_id(&self) -> Option<&str> {
        self.sandboxes.first().map(|s| s.id.as_str())
    }

    /// A main container has existed, so every init container has done its work.
    pub fn any_main_created(&self, pod: &Pod) -> bool {
        pods::containers(pod)
            .iter()
            .filter_map(|c| self.find(&c.name))
            .any(|s| s.state != State::Unknown)
    }

    /// A main container has existed in the current sandbox.
    pub fn any_main_active(&self, pod: &Pod) -> bool {
        pods::containers(pod)
            .iter()
            .filter_map(|c| self.find_active(&c.name))
            .any(|s| matches!(s.state, State::Running | State::Exited | State::Unknown))
    }
}

/// Whether the pod needs a (new) sandbox, which attempt it would be, the current sandbox and why.
pub fn sandbox_changed(pod: &Pod, observed: &Observed) -> (bool, u32, Option<String>, &'static str) {
    let Some(newest) = observed.sandboxes.first() else {
        return (true, 0, None, "no pod sandbox exists");
    };
    let next = newest.attempt + 1;
    let ready = observed.sandboxes.iter().filter(|s| s.ready).count();
    if ready > 1 {
        (
            true,
            next,
            Some(newest.id.clone()),
            "multiple pod sandboxes are ready and need to be reconciled",
        )
    } else if !newest.ready {
        (true, next, Some(newest.id.clone()), "pod sandbox is not ready")
    } else if newest.host_network != pods::is_host_network(pod) {
        (
            true,
            next,
            None,
            "network namespace mode changed and sandbox needs to be recreated",
        )
    } else if !pods::is_host_network(pod) && newest.ips.is_empty() {
        (true, next, Some(newest.id.clone()), "pod sandbox has no IP address")
    } else {
        (false, newest.attempt, Some(newest.id.clone()), "")
    }
}

/// Whether a container that isn't running is to be started (again).
pub fn should_start(c: &Container, pod: &Pod, observed: &Observed) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match observed.find(&c.name) {
        None => true,
        Some(v) => match v.state {
            State::Running => false,
            State::Unknown | State::Created => true,
            State::Exited => pods::should_restart(c, pod, v.exit_code),
        },
    }
}

pub fn sandbox_view(s: &cri::PodSandboxStatus) -> SandboxView {
    let options = s.linux.as_ref().and_then(|l| l.namespaces.as_ref()?.options.as_ref());
    let network = s.network.as_ref();
    SandboxView {
        id: s.id.clone(),
        ready: s.state == cri::PodSandboxState::SandboxReady as i32,
        created: s.created_at,
        attempt: s.metadata.as_ref().map_or(0, |m| m.attempt),
        host_network: options.is_some_and(|o| o.network == cri::NamespaceMode::Node as i32),
        ips: network
            .into_iter()
            .flat_map(|n| std::iter::once(&n.ip).chain(n.additional_ips.iter().map(|a| &a.ip)))
            .filter(|ip| ip.parse::<std::net::IpAddr>().is_ok())
            .cloned()
            .collect(),
    }
}

/// The view of a container; `message` is what it left in its termination message or log.
pub fn container_view(s: &cri::ContainerStatus, sandbox_id: &str, message: Option<String>) -> ContainerView {
    let label = |k: &str| s.labels.get(k).cloned().unwrap_or_default();
    let state = match cri::ContainerState::try_from(s.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running,
        Ok(cri::ContainerState::ContainerExited) => State::Exited,
        _ => State::Unknown,
    };
    let own = if state == State::Exited {
        s.message.clone()
    } else {
        String::new()
    };
    let message = match message.filter(|m| !m.is_empty()) {
        Some(m) if own.is_empty() => m,
        Some(m) => format!("{own}: {m}"),
        None => own,
    };
    ContainerView {
        id: s.id.clone(),
        name: label(LABEL_CONTAINER_NAME),
        image: s.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
        image_ref: s.image_ref.clone(),
        sandbox_id: sandbox_id.to_owned(),
        hash: s
            .annotations
            .get(NOTE_HASH)
            .and_then(|h| u64::from_str_radix(h, 16).ok())
            .unwrap_or(0),
        restart_count: s
            .annotations
            .get(NOTE_RESTART_COUNT)
            .and_then(|h| h.parse().ok())
            .unwrap_or(0),
        state,
        created: s.created_at,
        started: if state == State::Created { 0 } else { s.started_at },
        finished: if state == State::Exited { s.finished_at } else { 0 },
        exit_code: if state == State::Exited { s.exit_code } else { 0 },
        reason: if state == State::Exited {
            s.reason.clone()
        } else {
            String::new()
        },
        message,
        log_path: s.log_path.clone(),
        resources: s.resources.as_ref().and_then(|r| r.linux.clone()),
        user: s.user.as_ref().and_then(|u| u.linux.clone()),
        stop_signal: s.stop_signal,
        annotations: s.annotations.clone(),
    }
}

pub fn sort(observed: &mut Observed) {
    observed
        .sandboxes
        .sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
    observed.containers.sort_by(|a, b| {
        b.created
            .cmp(&a.created)
            .then_with(|| b.restart_count.cmp(&a.restart_count))
            .then_with(|| b.id.cmp(&a.id))
    });
}
