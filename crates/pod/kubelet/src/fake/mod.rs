//! A container runtime in memory, on tokio's clock: hundreds of nodes of it fit into one process. It keeps CRI's promises
//! (states, events, grace) and runs no process: what a container does is read from its command or its pod's annotations.

mod images;
mod service;

use keelson_cri::CriClients;
use keelson_cri::v1 as cri;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pod annotations that decide over its containers: how long they run, and how they end.
pub const RUN_SECONDS: &str = "fake.keelson.io/run-seconds";
pub const EXIT_CODE: &str = "fake.keelson.io/exit-code";
/// How long a container takes to end after it was asked to.
pub const STOP_SECONDS: &str = "fake.keelson.io/stop-seconds";

/// What a container will do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// `None` runs until it is stopped.
    pub ends_after: Option<Duration>,
    pub exit_code: i32,
    pub stop_delay: Duration,
}

/// Reads `sleep 5`, `exit 3`, `true`, `false` and their sequences; anything else runs for ever.
pub fn script(command: &[String], annotations: &HashMap<String, String>) -> Script {
    let number = |key: &str| annotations.get(key).and_then(|v| v.parse::<f64>().ok());
    let stop_delay = Duration::from_secs_f64(number(STOP_SECONDS).unwrap_or(0.0).max(0.0));
    if let Some(seconds) = number(RUN_SECONDS) {
        let exit_code = number(EXIT_CODE).unwrap_or(0.0) as i32;
        return Script {
            ends_after: Some(Duration::from_secs_f64(seconds.max(0.0))),
            exit_code,
            stop_delay,
        };
    }
    let words: Vec<&str> = command
        .iter()
        .flat_map(|c| c.split([' ', ';', '\n']))
        .filter(|w| !w.is_empty() && !matches!(*w, "sh" | "/bin/sh" | "-c" | "&&" | "bash" | "/bin/bash"))
        .collect();
    let (mut time, mut code, mut ends) = (0.0, 0, false);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word {
            "sleep" | "/bin/sleep" => {
                let Some(seconds) = words.next().and_then(|s| s.parse::<f64>().ok()) else {
                    ends = false;
                    break;
                };
                time += seconds;
                ends = true;
            }
            "exit" => {
                code = words.next().and_then(|s| s.parse().ok()).unwrap_or(0);
                ends = true;
                break;
            }
            "true" | "/bin/true" => (code, ends) = (0, true),
            "false" | "/bin/false" => (code, ends) = (1, true),
            _ => {
                ends = false;
                break;
            }
        }
    }
    Script {
        ends_after: ends.then(|| Duration::from_secs_f64(time)),
        exit_code: code,
        stop_delay,
    }
}

struct Sandbox {
    config: cri::PodSandboxConfig,
    handler: String,
    ready: bool,
    created: i64,
    ip: String,
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
    next: u64,
    /// Exit codes for commands executed in containers, by the command's first word.
    exec: HashMap<String, i32>,
    down: bool,
}

struct Shared {
    epoch: jiff::Timestamp,
    start: Instant,
    /// The first three parts of pod addresses.
    network: String,
    state: Mutex<State>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
}

#[derive(Clone)]
pub struct FakeRuntime(Arc<Shared>);

impl FakeRuntime {
    /// A runtime whose clock shows `epoch` now; pods get addresses `network.N`.
    pub fn new(epoch: jiff::Timestamp, network: &str) -> Self {
        FakeRuntime(Arc::new(Shared {
            epoch,
            start: Instant::now(),
            network: network.to_owned(),
            state: Mutex::default(),
            events: broadcast::Sender::new(4096),
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
        // Nobody may be listening, which is fine.
        let _ = self.0.events.send(cri::ContainerEventResponse {
            container_id: container.to_owned(),
            container_event_type: kind as i32,
            created_at: self.now(),
            pod_sandbox_status: status,
            containers_statuses: Vec::new(),
        });
    }

    /// Lets a started container do what its script says.
    fn play(&self, id: &str) {
        let Some((script, stop)) = ({
            let state = self.0.state.lock();
            state.containers.get(id).map(|c| {
                let annotations = state
                    .sandboxes
                    .get(&c.sandbox)
                    .map(|s| s.config.annotations.clone())
                    .unwrap_or_default();
                let command: Vec<String> = c.config.command.iter().chain(&c.config.args).cloned().collect();
                (script(&command, &annotations), c.stop.clone())
            })
        }) else {
            return;
        };
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
            ip: s.ip.clone(),
            additional_ips: Vec::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read() {
        let read = |parts: &[&str]| {
            let command: Vec<String> = parts.iter().map(|p| (*p).to_owned()).collect();
            let s = script(&command, &HashMap::new());
            (s.ends_after.map(|d| d.as_secs()), s.exit_code)
        };
        assert_eq!(read(&["sleep", "5"]), (Some(5), 0));
        assert_eq!(read(&["sh", "-c", "sleep 2; exit 3"]), (Some(2), 3));
        assert_eq!(read(&["/bin/false"]), (Some(0), 1));
        assert_eq!(read(&["/pause"]), (None, 0));
        assert_eq!(read(&[]), (None, 0));
        assert_eq!(read(&["sh", "-c", "sleep 1; server"]), (None, 0));
    }
}
