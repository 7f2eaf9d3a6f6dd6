//! A container from start to end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use keelson_cri::v1::{self, ContainerEventType};

use super::create::{Extras, SPEC};
use super::{Container, devices, resources};
use crate::records::{ContainerRecord, ContainerState};
use crate::runtime::{Inner, now};
use crate::sandbox::Sandbox;
use crate::shim::ShimError;
use crate::shim::protocol::{Exited, Joins, Start};

/// As upstream's kubelet and its peers report a container that never ran.
const START_ERROR: (i32, &str) = (128, "StartError");
const UNKNOWN: (i32, &str) = (255, "Unknown");
/// How long processes may take to go after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(120);

impl Inner {
    fn sandbox_of(&self, container: &Container) -> anyhow::Result<Arc<Sandbox>> {
        self.sandbox(&container.sandbox)
            .with_context(|| format!("sandbox \"{}\" not found", container.sandbox))
    }

    pub async fn start_container(self: &Arc<Self>, container: &Arc<Container>) -> anyhow::Result<()> {
        let _turn = container.turn.lock().await;
        let sandbox = self.sandbox_of(container)?;
        if container.state() != ContainerState::Created {
            bail!(
                "container is in {:?} state",
                super::cri_state(container.state()).as_str_name()
            );
        }
        if !sandbox.is_ready() {
            bail!("sandbox container \"{}\" is not running", sandbox.id);
        }
        let record = container.record.lock().clone();
        match self.launch(&sandbox, &record).await {
            Ok(pid) => {
                // The shim's event of a very short life may have been quicker, or come right now: decided under the lock.
                container.update(|r| {
                    if r.state == ContainerState::Created {
                        (r.pid, r.started_at, r.state) = (pid, now(), ContainerState::Running);
                    }
                })?;
                self.emit(&container.id, &sandbox.id, ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Err(error) => {
                let message = format!("{error:#}");
                container.update(|r| {
                    r.state = ContainerState::Exited;
                    (r.exit_code, r.reason) = (START_ERROR.0, START_ERROR.1.to_owned());
                    (r.message, r.finished_at) = (message.clone(), now());
                })?;
                self.release(&sandbox, container).await;
                self.emit(&container.id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
                Err(error)
            }
        }
    }

    async fn launch(&self, sandbox: &Sandbox, record: &ContainerRecord) -> anyhow::Result<i32> {
        let bundle = self.bundle(record);
        let extras: Extras = serde_json::from_slice(&std::fs::read(bundle.join(Extras::FILE))?)?;
        let external = sandbox.record.lock().external.clone();
        self.cgroups
            .create(&record.cgroup)
            .context("cannot make the container's control group")?;
        if external.is_none() {
            self.cgroups
                .apply(&record.cgroup, &resources::for_cgroup(&record.resources))
                .context("cannot set the container's limits")?;
            let rules: Vec<_> = extras.devices.iter().map(devices::from_line).collect();
            self.cgroups
                .restrict_devices(&record.cgroup, &rules)
                .context("cannot restrict devices")?;
        }
        let users =
            super::users::Range::of(&super::namespace_options(&sandbox.config())).map_err(anyhow::Error::msg)?;
        let host = |id: u32| match users {
            Some(range) => range.host(id).context("the container's user is not in the pod"),
            None => Ok(id),
        };
        let start = Start {
            container: record.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            cgroup: record.cgroup.clone(),
            terminal: record.config.tty,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            log: record.log.clone(),
            uid: host(record.user.uid)?,
            gid: host(record.user.gid)?,
            oom_score_adj: i32::try_from(record.resources.oom_score_adj).ok(),
            own_pid_namespace: super::spec::pid_mode(&record.config) == v1::NamespaceMode::Container,
            joins: self.joins(sandbox, record)?,
            propagation: extras.propagation,
            labels: extras.labels,
            external,
        };
        debug_assert!(bundle.join(SPEC).exists());
        sandbox.shim.start(start).await.map_err(|error| match error {
            ShimError::Refused(why) => anyhow::anyhow!(
                "failed to create containerd task: failed to create shim task: OCI runtime create failed: \
                 unable to start container process: {why}"
            ),
            error => error.into(),
        })
    }

    /// Whose process namespace the container is to be in, if there is one already.
    fn joins(&self, sandbox: &Sandbox, record: &ContainerRecord) -> anyhow::Result<Option<Joins>> {
        let shared = super::namespace_options(&sandbox.config()).pid() == v1::NamespaceMode::Pod;
        Ok(match super::spec::pid_mode(&record.config) {
            v1::NamespaceMode::Pod if shared => Some(Joins::Pods),
            v1::NamespaceMode::Target => {
                let options = super::spec::security(&record.config).namespace_options.as_ref();
                let target = options.map_or("", |n| n.target_id.as_str());
                let found = self.container(target);
                let found = found.with_context(|| format!("invalid target container: \"{target}\" not found"))?;
                Some(Joins::Container(found.id.clone()))
            }
            _ => None,
        })
    }

    /// The shim says that the container has ended.
    pub async fn container_exited(self: &Arc<Self>, container: &Arc<Container>, exited: &Exited) {
        if container.state() == ContainerState::Exited {
            return;
        }
        let reason = match (exited.oom_killed, exited.code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        let saved = container.update(|r| {
            r.state = ContainerState::Exited;
            (r.pid, r.exit_code, r.reason) = (0, exited.code, reason.to_owned());
            (r.started_at, r.finished_at) = (exited.started_at, exited.at);
        });
        self.after_end(container, saved).await;
    }

    /// Nobody knows how the container ended.
    pub async fn container_lost(self: &Arc<Self>, container: &Arc<Container>) {
        if container.state() == ContainerState::Exited {
            return;
        }
        let saved = container.update(|r| {
            r.state = ContainerState::Exited;
            (r.pid, r.exit_code, r.reason) = (0, UNKNOWN.0, UNKNOWN.1.to_owned());
            r.finished_at = now();
        });
        self.after_end(container, saved).await;
    }

    async fn after_end(self: &Arc<Self>, container: &Arc<Container>, saved: std::io::Result<()>) {
        if let Err(error) = saved {
            tracing::error!(container = container.id, %error, "container record not written");
        }
        self.emit(
            &container.id,
            &container.sandbox,
            ContainerEventType::ContainerStoppedEvent,
        );
        match self.sandbox_of(container) {
            Ok(sandbox) => self.release(&sandbox, container).await,
            Err(error) => tracing::debug!(container = container.id, %error, "its sandbox was quicker"),
        }
    }

    /// What only a running container needs goes at once; removal goes over it again.
    async fn release(self: &Arc<Self>, sandbox: &Sandbox, container: &Arc<Container>) {
        if let Err(error) = sandbox.shim.delete(&container.id).await {
            tracing::debug!(container = container.id, %error, "the shim keeps it until it ends");
        }
        let record = container.record.lock().clone();
        let runtime = self.clone();
        let done = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            if runtime.cgroups.exists(&record.cgroup) {
                runtime.cgroups.kill(&record.cgroup)?;
                runtime.cgroups.remove(&record.cgroup)?;
            }
            let directory = crate::records::directory::<ContainerRecord>(&runtime.config.root, &record.id);
            keelson_sys::mount::unmount(&directory.join("rootfs"))
        })
        .await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(container = container.id, %error, "not all of the container released"),
            Err(error) => tracing::error!(container = container.id, %error, "releasing panicked"),
        }
    }

    /// Asks the container to end, and ends it when it has not after `patience`.
    pub async fn stop_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        patience: Duration,
    ) -> anyhow::Result<()> {
        if container.state() != ContainerState::Running {
            return Ok(());
        }
        let sandbox = self.sandbox_of(container)?;
        let signal = container.record.lock().stop_signal;
        if !patience.is_zero() {
            match sandbox.shim.signal(&container.id, signal, false).await {
                // The shim's own end ends the container; its watcher is on it.
                Err(ShimError::Gone(error)) => tracing::debug!(container = container.id, %error, "no shim to signal"),
                Err(ShimError::Refused(why)) if why.starts_with("no container") => {
                    self.container_lost(container).await;
                    return Ok(());
                }
                done => done.with_context(|| format!("failed to stop container \"{}\"", container.id))?,
            }
            if tokio::time::timeout(patience, container.ended()).await.is_ok() {
                return Ok(());
            }
        }
        match sandbox.shim.signal(&container.id, nix::libc::SIGKILL, true).await {
            Err(ShimError::Gone(error)) => tracing::debug!(container = container.id, %error, "no shim to signal"),
            Err(ShimError::Refused(why)) if why.starts_with("no container") => {
                self.container_lost(container).await;
                return Ok(());
            }
            done => done.with_context(|| format!("failed to kill container \"{}\"", container.id))?,
        }
        tokio::time::timeout(KILL_PATIENCE, container.ended())
            .await
            .with_context(|| format!("container \"{}\" outlives SIGKILL", container.id))
    }

    pub async fn remove_container(self: &Arc<Self>, container: &Arc<Container>) -> anyhow::Result<()> {
        self.stop_container(container, Duration::ZERO).await?;
        let _turn = container.turn.lock().await;
        if let Some(sandbox) = self.sandbox(&container.sandbox).filter(|s| s.is_ready()) {
            match sandbox.shim.delete(&container.id).await {
                Err(ShimError::Gone(error)) => tracing::debug!(container = container.id, %error, "no shim to tell"),
                done => done?,
            }
        }
        let record = container.record.lock().clone();
        let runtime = self.clone();
        let image = record.image.clone();
        tokio::task::spawn_blocking(move || runtime.clear_container(&record)).await??;
        if self.containers.lock().remove(&container.id).is_some() {
            self.emit(
                &container.id,
                &container.sandbox,
                ContainerEventType::ContainerDeletedEvent,
            );
            if self.images.find(&image).is_none() {
                // The last one that needed layers of an image that is gone.
                self.images.collect(&self.layers_in_use())?;
            }
        }
        Ok(())
    }

    /// Changes the limits of a container that has not ended.
    pub fn update_resources(
        &self,
        container: &Arc<Container>,
        wanted: &v1::LinuxContainerResources,
    ) -> anyhow::Result<()> {
        if container.state() == ContainerState::Exited {
            bail!("container \"{}\" is in CONTAINER_EXITED state", container.id);
        }
        let (group, merged) = {
            let record = container.record.lock();
            (record.cgroup.clone(), resources::merge(&record.resources, wanted))
        };
        if container.state() == ContainerState::Running {
            let mut limits = resources::for_cgroup(wanted);
            // Without a word about memory, swap stays what it is.
            if wanted.memory_limit_in_bytes == 0 && wanted.memory_swap_limit_in_bytes == 0 {
                limits.memory_swap = None;
            }
            self.cgroups
                .apply(&group, &limits)
                .context("failed to update container resources")?;
        }
        container.update(|r| r.resources = merged)?;
        Ok(())
    }
}
