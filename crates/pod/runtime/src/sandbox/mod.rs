//! Sandboxes: what the containers of a pod share.

pub mod files;
mod run;
mod stop;

use std::sync::{Arc, Weak};

use keelson_cri::v1;
use parking_lot::Mutex;

use crate::records::{self, ContainerState, SandboxRecord, SandboxState};
use crate::runtime::Inner;
use crate::shim::{Shim, ShimError};

pub struct Sandbox {
    pub id: String,
    pub record: Mutex<SandboxRecord>,
    pub shim: Shim,
    /// Making, stopping and removing take turns.
    pub turn: tokio::sync::Mutex<()>,
    runtime: Weak<Inner>,
}

impl Sandbox {
    pub fn new(runtime: &Arc<Inner>, record: SandboxRecord) -> Sandbox {
        Sandbox {
            id: record.id.clone(),
            shim: Shim::new(runtime.state_dir(&record.id)),
            record: Mutex::new(record),
            turn: tokio::sync::Mutex::new(()),
            runtime: Arc::downgrade(runtime),
        }
    }

    pub fn config(&self) -> v1::PodSandboxConfig {
        self.record.lock().config.clone()
    }

    pub fn is_ready(&self) -> bool {
        self.record.lock().state == SandboxState::Ready
    }

    /// Changes the record, on disk and in memory.
    pub fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> std::io::Result<()> {
        let mut record = self.record.lock();
        change(&mut record);
        match self.runtime.upgrade() {
            Some(runtime) => records::save(&runtime.config.root, &*record),
            None => Ok(()),
        }
    }

    pub fn summary(&self) -> v1::PodSandbox {
        let r = self.record.lock();
        v1::PodSandbox {
            id: r.id.clone(),
            metadata: r.config.metadata.clone(),
            state: cri_state(r.state) as i32,
            created_at: r.created_at,
            labels: r.config.labels.clone(),
            annotations: r.config.annotations.clone(),
            runtime_handler: r.handler.clone(),
        }
    }

    pub fn status(&self) -> v1::PodSandboxStatus {
        let r = self.record.lock();
        let mut ips = r.ips.iter().cloned();
        let options = crate::containers::namespace_options(&r.config);
        v1::PodSandboxStatus {
            id: r.id.clone(),
            metadata: r.config.metadata.clone(),
            state: cri_state(r.state) as i32,
            created_at: r.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(options) }),
            }),
            labels: r.config.labels.clone(),
            annotations: r.config.annotations.clone(),
            runtime_handler: r.handler.clone(),
        }
    }
}

fn cri_state(state: SandboxState) -> v1::PodSandboxState {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::Creating | SandboxState::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

impl Inner {
    /// Takes up a sandbox of an earlier run of the server.
    pub async fn readopt(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> anyhow::Result<()> {
        if sandbox.record.lock().state == SandboxState::Creating {
            // Nobody was told of it. The kubelet sees it as not ready and has it removed.
            sandbox.shim.shutdown().await?;
            sandbox.update(|r| r.state = SandboxState::NotReady)?;
        }
        if !sandbox.is_ready() {
            // A stop ends all containers first, a loss notes them after: one that still runs on record was lost.
            if self
                .containers_of(&sandbox.id)
                .iter()
                .any(|c| c.state() == ContainerState::Running)
            {
                self.sandbox_lost(sandbox).await;
            }
            return Ok(());
        }
        match sandbox.shim.subscribe().await {
            Ok((states, events)) => {
                for container in self.containers_of(&sandbox.id) {
                    match states.iter().find(|s| s.container == container.id) {
                        Some(state) => match &state.exited {
                            Some(exited) => self.container_exited(&container, exited).await,
                            None => container.set_running(state.pid, state.started_at)?,
                        },
                        None if container.state() == ContainerState::Running => self.container_lost(&container).await,
                        None => {}
                    }
                }
                self.listen(sandbox.clone(), events);
                Ok(())
            }
            Err(error) => {
                tracing::info!(sandbox = sandbox.id, %error, "sandbox is gone");
                self.sandbox_lost(sandbox).await;
                Ok(())
            }
        }
    }

    /// Follows the shim's events until it ends.
    pub fn listen(self: &Arc<Self>, sandbox: Arc<Sandbox>, mut events: crate::shim::Events) {
        let runtime = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let event = events.next().await;
                let Some(runtime) = runtime.upgrade() else { return };
                match event {
                    Ok(exited) => {
                        if let Some(container) = runtime.container(&exited.container) {
                            runtime.container_exited(&container, &exited).await;
                        }
                    }
                    Err(ShimError::Gone(_) | ShimError::Refused(_)) => {
                        // A stop ends the shim, too, and has said so before.
                        if sandbox.is_ready() {
                            tracing::warn!(sandbox = sandbox.id, "the sandbox's shim ended unexpectedly");
                            runtime.sandbox_lost(&sandbox).await;
                        }
                        return;
                    }
                }
            }
        });
    }

    /// Without its shim a pod cannot go on: what is left of it ends.
    async fn sandbox_lost(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        if let Err(error) = sandbox.update(|r| r.state = SandboxState::NotReady) {
            tracing::error!(sandbox = sandbox.id, %error, "sandbox record not written");
        }
        let noted = sandbox.shim.noted_exits().unwrap_or_else(|error| {
            tracing::warn!(sandbox = sandbox.id, %error, "the shim's notes cannot be read");
            Vec::new()
        });
        for container in self.containers_of(&sandbox.id) {
            match noted.iter().find(|e| e.container == container.id) {
                Some(exited) => self.container_exited(&container, exited).await,
                None if container.state() == ContainerState::Running => self.container_lost(&container).await,
                None => {}
            }
        }
    }
}
