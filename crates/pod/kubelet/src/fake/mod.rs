//! A container runtime in memory, on tokio's clock: hundreds of nodes of it fit into one process. It keeps CRI's promises
//! (states, events, grace) and runs no process: what a container does is read from its command or its pod's annotations.

pub mod addresses;
pub mod annotations;
mod images;
mod service;

pub use annotations::STOP_SECONDS;

use addresses::Addresses;
use annotations::{Script, script};
use keelson_cri::CriClients;
use keelson_cri::v1 as cri;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Sandbox {
    config: cri::PodSandboxConfig,
    handler: String,
    ready: bool,
    created: i64,
    /// None in the machine's own network.
    ips: Vec<String>,
}

struct Container {
    sandbox: String,
    config: cri::ContainerConfig,
    state: cri::ContainerState,
    created: i64,
    started: i64,
    finished: i64,
    exit_code: i32,
    reason: String,
    resources: Option<cri::LinuxContainerResources>,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
    images: BTreeSet<String>,
    checkpoints: Vec<cri::CheckpointContainerRequest>,
    /// Where images are said to be, and what containers write.
    disks: Vec<String>,
    next: u64,
    /// Exit codes for commands executed in containers, by the command's first word.
    exec: HashMap<String, i32>,
    down: bool,
    addresses: Addresses,
    /// Who hears of what happens. Who reads too slowly is no longer told, and begins again.
    listeners: Vec<mpsc::Sender<Box<cri::ContainerEventResponse>>>,
}

/// Events that a listener may be behind.
const BEHIND: usize = 4096;

/// What runtimes are like.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// How long it takes to start a pod, at least and at most.
    pub start: Duration,
    pub start_most: Duration,
    /// How long containers of jobs run whose pods and commands say nothing of it; `None`: for ever.
    pub job: Option<Duration>,
    /// Addresses are from the ranges that the node is given, once it is.
    pub takes_ranges: bool,
}

/// What the job controller labels its pods with.
const JOB: &str = "batch.kubernetes.io/job-name";

struct Shared {
    epoch: jiff::Timestamp,
    start: Instant,
    manner: Manner,
    state: Mutex<State>,
}

#[derive(Clone)]
pub struct FakeRuntime(Arc<Shared>);

impl FakeRuntime {
    /// A runtime whose clock shows `epoch` now; pods get addresses `network.N`.
    pub fn new(epoch: jiff::Timestamp, network: &str) -> Self {
        Self::with(epoch, &format!("{network}.0/24"), Manner::default())
    }

    /// Pods get addresses from these ranges.
    pub fn with(epoch: jiff::Timestamp, ranges: &str, manner: Manner) -> Self {
        let addresses = Addresses::of(ranges).unwrap_or_default();
        FakeRuntime(Arc::new(Shared {
            epoch,
            start: Instant::now(),
            manner,
            state: Mutex::new(State {
                addresses,
                ..State::default()
            }),
        }))
    }

    pub fn clients(&self) -> CriClients {
        CriClients::in_process(self.clone(), self.clone())
    }

    /// The images that are there.
    pub fn images(&self) -> Vec<String> {
        self.0.state.lock().images.iter().cloned().collect()
    }

    /// Puts an image there that no kubelet pulled.
    pub fn bring_image(&self, name: &str) {
        self.0.state.lock().images.insert(name.to_owned());
    }

    /// The checkpoints that were asked for.
    pub fn checkpoints(&self) -> Vec<cri::CheckpointContainerRequest> {
        self.0.state.lock().checkpoints.clone()
    }

    /// Where images are from now on, and what containers write.
    pub fn set_disks(&self, images: &str, containers: &str) {
        self.0.state.lock().disks = vec![images.to_owned(), containers.to_owned()];
    }

    /// Whether the runtime and its network say that they are ready.
    pub fn set_down(&self, down: bool) {
        self.0.state.lock().down = down;
    }

    /// How a command executed in any container ends.
    pub fn set_exec(&self, command: &str, exit_code: i32) {
        self.0.state.lock().exec.insert(command.to_owned(), exit_code);
    }

    /// Ends a container from outside, as a crash would.
    pub fn crash(&self, container: &str, exit_code: i32) {
        let ids: Vec<String> = {
            let state = self.0.state.lock();
            let of = |c: &&Container| c.config.metadata.as_ref().is_some_and(|m| m.name == container);
            state
                .containers
                .iter()
                .filter(|(_, c)| of(c))
                .map(|(id, _)| id.clone())
                .collect()
        };
        ids.iter().for_each(|id| self.end(id, exit_code));
    }

    /// Names of the containers that run.
    pub fn running(&self) -> Vec<String> {
        let state = self.0.state.lock();
        let name = |c: &Container| c.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        state
            .containers
            .values()
            .filter(|c| c.state == cri::ContainerState::ContainerRunning)
            .map(name)
            .collect()
    }

    /// Sandboxes and containers there are, in any state.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.0.state.lock();
        (state.sandboxes.len(), state.containers.len())
    }

    /// What a running container is held to.
    pub fn resources(&self, container: &str) -> Option<cri::LinuxContainerResources> {
        let state = self.0.state.lock();
        let running = |c: &&Container| c.state == cri::ContainerState::ContainerRunning;
        let mut found = state.containers.values().filter(running);
        let of = |c: &Container| c.config.metadata.as_ref().is_some_and(|m| m.name == container);
        found.find(|c| of(c))?.resources.clone()
    }

    /// The configuration a container was made with.
    pub fn config(&self, container: &str) -> Option<cri::ContainerConfig> {
        let state = self.0.state.lock();
        let mut all = state.containers.values();
        all.find(|c| c.config.metadata.as_ref().is_some_and(|m| m.name == container))
            .map(|c| c.config.clone())
    }

    fn now(&self) -> i64 {
        (self.0.epoch.as_nanosecond() + self.0.start.elapsed().as_nanos() as i128) as i64
    }

    fn id(state: &mut State) -> String {
        state.next += 1;
        format!("{:064x}", state.next)
    }

    fn tell(&self, container: &str, sandbox: &str, kind: cri::ContainerEventType) {
        let status = {
            let state = self.0.state.lock();
            state.sandboxes.get(sandbox).map(|s| sandbox_status(sandbox, s))
        };
        let event = cri::ContainerEventResponse {
            container_id: container.to_owned(),
            container_event_type: kind as i32,
            created_at: self.now(),
            pod_sandbox_status: status,
            containers_statuses: Vec::new(),
        };
        let listeners = &mut self.0.state.lock().listeners;
        listeners.retain(|l| l.try_send(Box::new(event.clone())).is_ok());
    }

    /// What annotations and command have a container do.
    fn script_of(&self, state: &State, c: &Container) -> Script {
        let sandbox = state.sandboxes.get(&c.sandbox).map(|s| &s.config);
        let command: Vec<String> = c.config.command.iter().chain(&c.config.args).cloned().collect();
        let mut script = script(&command, |key| sandbox?.annotations.get(key));
        if script.ends_after.is_none() && sandbox.is_some_and(|s| s.labels.contains_key(JOB)) {
            script.ends_after = self.0.manner.job;
        }
        script
    }

    /// How long the start of a pod takes.
    fn start_delay(&self, config: &cri::PodSandboxConfig, nth: u64) -> Duration {
        let manner = &self.0.manner;
        annotations::seconds(config.annotations.get(annotations::START_SECONDS)).unwrap_or_else(|| {
            // Spread without chance: neighbours are far from each other.
            let share = (nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1u64 << 24) as f64;
            manner.start + manner.start_most.saturating_sub(manner.start).mul_f64(share)
        })
    }

    /// Lets a started container do what its script says.
    fn play(&self, id: &str) {
        let found = {
            let state = self.0.state.lock();
            (state.containers.get(id)).map(|c| (self.script_of(&state, c), c.stop.clone()))
        };
        let Some((script, stop)) = found else { return };
        let Some(after) = script.ends_after else { return };
        let (runtime, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(after) => runtime.end(&id, script.exit_code),
            }
        });
    }

    fn end(&self, id: &str, exit_code: i32) {
        let now = self.now();
        let sandbox = {
            let mut state = self.0.state.lock();
            let Some(c) = state.containers.get_mut(id) else { return };
            if c.state != cri::ContainerState::ContainerRunning {
                return;
            }
            c.state = cri::ContainerState::ContainerExited;
            c.finished = now;
            c.exit_code = exit_code;
            c.reason = if exit_code == 0 { "Completed" } else { "Error" }.into();
            c.stop.cancel();
            c.sandbox.clone()
        };
        self.tell(id, &sandbox, cri::ContainerEventType::ContainerStoppedEvent);
    }
}

fn sandbox_status(id: &str, s: &Sandbox) -> cri::PodSandboxStatus {
    let options = s
        .config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref()?.namespace_options.clone());
    cri::PodSandboxStatus {
        id: id.to_owned(),
        metadata: s.config.metadata.clone(),
        state: if s.ready {
            cri::PodSandboxState::SandboxReady
        } else {
            cri::PodSandboxState::SandboxNotready
        } as i32,
        created_at: s.created,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: s.ips.first().cloned().unwrap_or_default(),
            additional_ips: (s.ips.iter().skip(1)).map(|ip| cri::PodIp { ip: ip.clone() }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options }),
        }),
        labels: s.config.labels.clone(),
        annotations: s.config.annotations.clone(),
        runtime_handler: s.handler.clone(),
    }
}

fn container_status(id: &str, c: &Container) -> cri::ContainerStatus {
    cri::ContainerStatus {
        id: id.to_owned(),
        metadata: c.config.metadata.clone(),
        state: c.state as i32,
        created_at: c.created,
        started_at: c.started,
        finished_at: c.finished,
        exit_code: c.exit_code,
        image: c.config.image.clone().map(|i| cri::ImageSpec {
            image: i.user_specified_image,
            ..Default::default()
        }),
        image_ref: c.config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
        reason: c.reason.clone(),
        labels: c.config.labels.clone(),
        annotations: c.config.annotations.clone(),
        mounts: c.config.mounts.clone(),
        resources: Some(cri::ContainerResources {
            linux: c.resources.clone(),
            windows: None,
        }),
        ..Default::default()
    }
}
