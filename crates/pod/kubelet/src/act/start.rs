//! Starting one container: back-off, image, configuration, create, start, postStart hook.

use super::config::{self, Config};
use super::env::{self, Lookup};
use super::fields::NodeFacts;
use super::images::{self, Failure, Wanted};
use super::kill::{self, Kill};
use super::{hooks, mounts};
use crate::devices::Comes;
use crate::kubelet::Kubelet;
use crate::observe::{self, ContainerView, Observed, State};
use crate::plan::KillReason;
use crate::pods;
use crate::volumes::Mounted;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use keelson_client::EventType;
use keelson_cri::v1 as cri;
use keelson_trace::carried;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// What all containers of one step share.
pub struct Context<'a> {
    pub kl: &'a Arc<Kubelet>,
    pub inflight: &'a TaskTracker,
    pub pod: &'a Arc<Pod>,
    pub observed: &'a Observed,
    pub sandbox_id: String,
    pub sandbox_config: cri::PodSandboxConfig,
    pub handler: String,
    pub pod_ips: Vec<String>,
    pub volumes: &'a BTreeMap<String, Mounted>,
    pub image_volumes: HashMap<String, String>,
    pub pull_secrets: Vec<Arc<Secret>>,
}

/// The key of a container's back-off: a new definition starts anew.
pub fn backoff_key(pod: &Pod, c: &Container) -> String {
    format!("{}_{}_{:x}", pods::uid(pod), c.name, pods::container_hash(c))
}

impl Context<'_> {
    fn warn(&self, c: &Container, reason: &str, message: impl Into<String>) {
        self.kl.warn(self.pod, Some(&c.name), reason, message);
    }

    /// Starts the container; `target` is a container whose processes it joins.
    pub async fn start(&self, c: &Container, target: Option<&str>) -> Result<(), Failure> {
        self.back_off(c)?;
        let kl = self.kl;
        let wanted = Wanted {
            pod: self.pod,
            container: &c.name,
            image: c.image.as_deref().unwrap_or_default(),
            policy: c.image_pull_policy.as_deref(),
            secrets: &self.pull_secrets,
            sandbox: &self.sandbox_config,
            handler: &self.handler,
        };
        let image_ref = kl.images.ensure(kl, &wanted).await.inspect_err(|f| {
            self.warn(c, "Failed", format!("Error: {}", f.reason));
        })?;
        let restart_count = self.restart_count(c);
        let config_error = |e: String| {
            self.warn(c, "Failed", format!("Error: {e}"));
            Failure::new("CreateContainerConfigError", e)
        };
        let target = target.map(|t| self.target_id(t)).transpose().map_err(config_error)?;
        let config = self
            .configure(c, restart_count, image_ref, target)
            .await
            .map_err(config_error)?;
        let id = self.create(c, config).await?;
        self.run(c, &id).await?;
        self.post_start(c, &id).await
    }

    /// A container that keeps ending waits longer each time.
    fn back_off(&self, c: &Container) -> Result<(), Failure> {
        let Some(last) = self.observed.find(&c.name).filter(|v| v.state == State::Exited) else {
            return Ok(());
        };
        let key = backoff_key(self.pod, c);
        let ended = self.kl.instant_of(last.finished);
        let now = Instant::now();
        let mut crash = self.kl.crash.lock();
        if crash.remaining(&key, Some(ended), now).is_none() {
            crash.next(&key, ended, now);
            return Ok(());
        }
        let wait = crate::go_duration(crash.wait(&key));
        drop(crash);
        let who = pods::describe(self.pod);
        self.warn(
            c,
            "BackOff",
            format!("Back-off restarting failed container {} in pod {who}", c.name),
        );
        let message = format!("back-off {wait} restarting failed container={} pod={who}", c.name);
        Err(Failure::new("CrashLoopBackOff", message))
    }

    fn restart_count(&self, c: &Container) -> i32 {
        if let Some(last) = self.observed.find(&c.name) {
            return last.restart_count + 1;
        }
        // The runtime may have forgotten: the logs that are there tell how often it has been started.
        let (ns, name, uid) = (pods::namespace(self.pod), pods::name(self.pod), pods::uid(self.pod));
        let dir = self.kl.layout.pod_logs(ns, name, uid).join(&c.name);
        let names = self.kl.host.list_dir(&dir).unwrap_or_default();
        names
            .iter()
            .filter_map(|n| n.split('.').next()?.parse::<i32>().ok())
            .max()
            .map_or(0, |n| n + 1)
    }

    fn target_id(&self, name: &str) -> Result<String, String> {
        match self.observed.find(name) {
            Some(v) if v.state == State::Running => Ok(v.id.clone()),
            _ => Err(format!("unable to find target container {name}")),
        }
    }

    async fn configure(
        &self,
        c: &Container,
        restart_count: i32,
        image_ref: String,
        target: Option<String>,
    ) -> Result<cri::ContainerConfig, String> {
        let (kl, pod) = (self.kl, self.pod);
        let comes = kl.devices.for_start(pod, c).await?;
        let cdi = kl.claims.for_start(pod, c)?;
        let env = self.environment(c)?;
        let (mounts, devices) = mounts::build(
            kl,
            &mounts::Input {
                pod,
                container: c,
                volumes: self.volumes,
                images: &self.image_volumes,
                env: &env,
                pod_ips: &self.pod_ips,
                recursive_read_only: kl.node.recursive_read_only(&self.handler),
            },
        )?;
        let user = images::user(kl, &image_ref).await?;
        let logs = kl
            .layout
            .pod_logs(pods::namespace(pod), pods::name(pod), pods::uid(pod))
            .join(&c.name);
        kl.host
            .make_dir(&logs, 0o755)
            .map_err(|e| format!("create container log directory for container {} failed: {e}", c.name))?;
        let mut config = config::container(Config {
            pod,
            container: c,
            restart_count,
            image_ref,
            env: &env,
            mounts,
            user: &user,
            userns: kl.userns.mapping(kl, pod)?,
            target,
            volume_groups: &kl.volumes.groups(pod),
            seccomp_root: &kl.layout.root.join("seccomp"),
            seccomp_default: kl.cfg.seccomp_default,
            limits: &kl.limits(),
        })?;
        config.devices = devices;
        kl.managers.shape(pods::uid(pod), c, &mut config);
        add_devices(&mut config, comes, cdi);
        Ok(config)
    }

    fn environment(&self, c: &Container) -> Result<Vec<(String, String)>, String> {
        let (kl, pod) = (self.kl, self.pod);
        if !pods::is_static(pod) && !kl.services.is_synced() {
            return Err("services have not yet been read at least once, cannot construct envvars".into());
        }
        let links = pods::spec(pod).enable_service_links.unwrap_or(true);
        let services = env::service_variables(&kl.services.store().list(), pods::namespace(pod), links);
        let allocatable = kl.allocatable();
        let facts = NodeFacts {
            host_ips: &kl.cfg.node_ips,
            pod_ips: &self.pod_ips,
            allocatable: &allocatable,
        };
        env::environment(
            pod,
            c,
            &services,
            &facts,
            &PodLookup {
                kl,
                pod,
                volumes: self.volumes,
            },
        )
    }

    async fn create(&self, c: &Container, config: cri::ContainerConfig) -> Result<String, Failure> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config.clone()),
        };
        let mut client = self.kl.cri.runtime.clone();
        let work = self
            .inflight
            .spawn(carried(async move { client.create_container(request).await }));
        match work.await {
            Ok(Ok(answer)) => {
                self.kl.event(
                    self.pod,
                    Some(&c.name),
                    EventType::Normal,
                    "Created",
                    "Container created".into(),
                );
                Ok(answer.into_inner().container_id)
            }
            Ok(Err(status)) => {
                self.warn(c, "Failed", format!("Error: {}", status.message()));
                Err(Failure::new("CreateContainerError", status.message()))
            }
            Err(e) => Err(Failure::new("CreateContainerError", e.to_string())),
        }
    }

    async fn run(&self, c: &Container, id: &str) -> Result<(), Failure> {
        let request = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        let mut client = self.kl.cri.runtime.clone();
        let work = self
            .inflight
            .spawn(carried(async move { client.start_container(request).await }));
        match work.await {
            Ok(Ok(_)) => {
                self.kl.event(
                    self.pod,
                    Some(&c.name),
                    EventType::Normal,
                    "Started",
                    "Container started".into(),
                );
                Ok(())
            }
            Ok(Err(status)) => {
                self.warn(c, "Failed", format!("Error: {}", status.message()));
                Err(Failure::new("RunContainerError", status.message()))
            }
            Err(e) => Err(Failure::new("RunContainerError", e.to_string())),
        }
    }

    async fn post_start(&self, c: &Container, id: &str) -> Result<(), Failure> {
        let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let ip = self.pod_ips.first().map(String::as_str);
        let Err(message) = hooks::run(self.kl, self.pod, c, id, ip, hook).await else {
            return Ok(());
        };
        self.warn(c, "FailedPostStartHook", "PostStartHook failed");
        let view = ContainerView {
            id: id.to_owned(),
            name: c.name.clone(),
            image: String::new(),
            image_ref: String::new(),
            sandbox_id: self.sandbox_id.clone(),
            hash: 0,
            restart_count: 0,
            state: State::Running,
            created: 0,
            started: 0,
            finished: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            log_path: String::new(),
            resources: None,
            user: None,
            stop_signal: 0,
            annotations: HashMap::new(),
        };
        let kill = Kill {
            pod: self.pod,
            view: &view,
            message: "FailedPostStartHook",
            reason: KillReason::FailedPostStart,
            grace: None,
            ordering: None,
            pod_ip: ip,
        };
        // The hook's failure is what is told; a failing kill was logged.
        let _ = kill::container(self.kl, &kill).await;
        Err(Failure::new("PostStartHookError", message))
    }
}

/// What comes with a container's devices. What the container says itself wins.
fn add_devices(config: &mut cri::ContainerConfig, comes: Comes, cdi: Vec<String>) {
    let set = |(key, value): (String, String)| cri::KeyValue {
        key,
        value: value.into_bytes().into(),
    };
    let own = std::mem::take(&mut config.envs);
    config.envs = comes.env.into_iter().map(set).chain(own).collect();
    let bind = |(container_path, host_path, readonly)| cri::Mount {
        container_path,
        host_path,
        readonly,
        ..Default::default()
    };
    let own = std::mem::take(&mut config.mounts);
    config.mounts = comes.mounts.into_iter().map(bind).chain(own).collect();
    let node = |(container_path, host_path, permissions)| cri::Device {
        container_path,
        host_path,
        permissions,
    };
    let own = std::mem::take(&mut config.devices);
    config.devices = comes.devices.into_iter().map(node).chain(own).collect();
    for (key, value) in comes.annotations {
        config.annotations.entry(key).or_insert(value);
    }
    let names = cdi.into_iter().chain(comes.cdi);
    config.cdi_devices = names.map(|name| cri::CdiDevice { name }).collect();
}

/// Config maps, secrets and environment files of one pod.
struct PodLookup<'a> {
    kl: &'a Kubelet,
    pod: &'a Pod,
    volumes: &'a BTreeMap<String, Mounted>,
}

impl Lookup for PodLookup<'_> {
    fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
        self.kl.volumes.tools.config_maps.get(pods::namespace(self.pod), name)
    }

    fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, String> {
        self.kl.volumes.tools.secrets.get(pods::namespace(self.pod), name)
    }

    fn file_key(&self, volume: &str, path: &str, key: &str) -> Result<Option<String>, String> {
        let dir = self
            .volumes
            .get(volume)
            .and_then(|v| v.path.as_ref())
            .ok_or_else(|| format!("cannot find the volume \"{volume}\" referenced by FileKeyRef"))?;
        match self.kl.host.read_inside(dir, path, 64 << 10) {
            Ok(data) => parse_env_file(&String::from_utf8_lossy(&data), key),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => {
                tracing::warn!(pod = %pods::describe(self.pod), "an environment file can't be read: {e}");
                Err("couldn't parse env file".into())
            }
        }
    }
}

/// `KEY='value'` lines, values in single quotes, comments and empty lines left out.
fn parse_env_file(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut found = None;
    let mut rest = text;
    while !rest.is_empty() {
        let line_end = rest.find('\n').unwrap_or(rest.len());
        let line = &rest[..line_end];
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            rest = rest.get(line_end + 1..).unwrap_or_default();
            continue;
        }
        let (name, after) = rest.split_once('=').ok_or("couldn't parse env file")?;
        let value = after.strip_prefix('\'').ok_or("couldn't parse env file")?;
        let end = value.find('\'').ok_or("couldn't parse env file")?;
        if name.trim() == key {
            found = Some(value[..end].to_owned());
        }
        rest = &value[end + 1..];
        rest = rest.find('\n').map_or("", |i| &rest[i + 1..]);
    }
    Ok(found)
}

/// Reads what the runtime shows of a pod. Views of containers that have ended are kept in `ended` and not read again.
pub async fn observe(
    kl: &Kubelet,
    uid: &str,
    ended: &mut HashMap<String, ContainerView>,
) -> Result<Observed, tonic::Status> {
    let labels = HashMap::from([(observe::LABEL_POD_UID.to_owned(), uid.to_owned())]);
    let filter = cri::PodSandboxFilter {
        label_selector: labels.clone(),
        ..Default::default()
    };
    let mut client = kl.cri.runtime.clone();
    let sandboxes = client
        .list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) })
        .await?
        .into_inner();
    let mut observed = Observed::default();
    for s in sandboxes.items {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: s.id,
            verbose: false,
        };
        match client.pod_sandbox_status(request).await {
            Ok(answer) => observed
                .sandboxes
                .extend(answer.into_inner().status.as_ref().map(observe::sandbox_view)),
            // Removed since it was listed.
            Err(e) if e.code() == tonic::Code::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let filter = cri::ContainerFilter {
        label_selector: labels,
        ..Default::default()
    };
    let containers = client
        .list_containers(cri::ListContainersRequest { filter: Some(filter) })
        .await?
        .into_inner();
    let ids: Vec<&String> = containers.containers.iter().map(|c| &c.id).collect();
    ended.retain(|id, _| ids.contains(&id));
    for c in &containers.containers {
        if let Some(view) = ended.get(&c.id) {
            observed.containers.push(view.clone());
            continue;
        }
        let request = cri::ContainerStatusRequest {
            container_id: c.id.clone(),
            verbose: false,
        };
        match client.container_status(request).await {
            Ok(answer) => {
                let Some(status) = answer.into_inner().status else {
                    continue;
                };
                let message = termination_message(kl, &status);
                let view = observe::container_view(&status, &c.pod_sandbox_id, message);
                if view.state == State::Exited {
                    ended.insert(c.id.clone(), view.clone());
                }
                observed.containers.push(view);
            }
            Err(e) if e.code() == tonic::Code::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    observe::sort(&mut observed);
    Ok(observed)
}

/// The most that a termination message or a log's end may be.
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

fn termination_message(kl: &Kubelet, status: &cri::ContainerStatus) -> Option<String> {
    if status.state != cri::ContainerState::ContainerExited as i32 {
        return None;
    }
    let path = status
        .annotations
        .get(observe::NOTE_MESSAGE_PATH)
        .filter(|p| !p.is_empty());
    let mount = path.and_then(|p| status.mounts.iter().find(|m| m.container_path == *p));
    if let Some(mount) = mount {
        match kl.host.read_end(mount.host_path.as_ref(), MAX_MESSAGE) {
            Ok(data) if !data.is_empty() => return Some(String::from_utf8_lossy(&data).into_owned()),
            Ok(_) => {}
            Err(e) => return Some(format!("Error on reading termination log {}: {e}", mount.host_path)),
        }
    }
    let fallback = status
        .annotations
        .get(observe::NOTE_MESSAGE_POLICY)
        .is_some_and(|p| p == "FallbackToLogsOnError");
    if !fallback || status.exit_code == 0 || status.reason == "ContainerCannotRun" {
        return None;
    }
    match crate::server::logs::tail(&*kl.host, status.log_path.as_ref(), MAX_LOG_LINES, MAX_LOG_MESSAGE) {
        Ok(text) => Some(text),
        Err(e) => Some(format!("Error on reading termination message from logs: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files() {
        let text = "# c\nA='1'\n\nB='two\nlines'\nA='3'\n";
        assert_eq!(parse_env_file(text, "A").unwrap().as_deref(), Some("3"));
        assert_eq!(parse_env_file(text, "B").unwrap().as_deref(), Some("two\nlines"));
        assert_eq!(parse_env_file(text, "C").unwrap(), None);
        assert!(parse_env_file("A=1", "A").is_err());
    }
}
