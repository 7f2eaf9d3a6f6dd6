//! Following shims: those just started, those of an earlier run of the server, those that were out of reach.
//!
//! A pod lives as long as its shim does. That a shim cannot be reached, or says what is not understood, is no proof that
//! it has ended: until there is one, the pod is what its record says, and the shim is asked again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Sandbox;
use crate::records::{ContainerState, SandboxState};
use crate::runtime::Inner;
use crate::shim::protocol::ContainerState as Seen;
use crate::shim::{Events, ShimError};

/// Waits between attempts to reach a shim that answers what is not understood, growing from the first to the last.
const DELAYS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

impl Inner {
    /// Takes up a sandbox of an earlier run of the server. The receiver hears when that is done, which takes for ever
    /// if the shim does not answer.
    pub fn readopt(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> oneshot::Receiver<()> {
        let (done, taken_up) = oneshot::channel();
        if sandbox.is_ready() {
            self.follow(sandbox.clone(), None, Some(done));
            return taken_up;
        }
        let (runtime, sandbox) = (self.clone(), sandbox.clone());
        tokio::spawn(async move {
            runtime.readopt_ended(&sandbox).await;
            // The start need not wait for it any more.
            let _ = done.send(());
        });
        taken_up
    }

    async fn readopt_ended(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        if sandbox.record.lock().state == SandboxState::Creating {
            // Nobody was told of it. The kubelet sees it as not ready and has it removed.
            if let Err(error) = sandbox.shim.shutdown().await {
                tracing::error!(sandbox = sandbox.id, %error, "the shim of a half-made sandbox does not end");
            }
            if let Err(error) = sandbox.update(|r| r.state = SandboxState::NotReady) {
                tracing::error!(sandbox = sandbox.id, %error, "sandbox record not written");
            }
        }
        // A stop ends all containers first, a loss notes them after: one that still runs on record was lost.
        let running = |c: &Arc<crate::containers::Container>| c.state() == ContainerState::Running;
        if self.containers_of(&sandbox.id).iter().any(running) {
            self.sandbox_lost(sandbox).await;
        }
    }

    /// Follows the shim's events until it has ended; `events` if they are open already.
    pub fn follow(
        self: &Arc<Self>,
        sandbox: Arc<Sandbox>,
        mut events: Option<Events>,
        mut taken_up: Option<oneshot::Sender<()>>,
    ) {
        let runtime = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut delay = DELAYS.0;
            loop {
                let why = match &mut events {
                    Some(events) => match events.next().await {
                        Ok(exited) => {
                            let Some(runtime) = runtime.upgrade() else { return };
                            match runtime.container(&exited.container) {
                                Some(container) => runtime.container_exited(&container, &exited).await,
                                None => runtime.forget_unknown(&sandbox, &exited.container).await,
                            }
                            continue;
                        }
                        Err(error) => error,
                    },
                    None => match sandbox.shim.subscribe().await {
                        Ok((seen, opened)) => {
                            let Some(runtime) = runtime.upgrade() else { return };
                            runtime.compare(&sandbox, seen).await;
                            (events, delay) = (Some(opened), DELAYS.0);
                            if let Some(done) = taken_up.take() {
                                // The start may have gone on without.
                                let _ = done.send(());
                            }
                            continue;
                        }
                        Err(error) => error,
                    },
                };
                events = None;
                let Some(runtime) = runtime.upgrade() else { return };
                // A stop ends the shim, too, and has said so before.
                if !sandbox.is_ready() {
                    return;
                }
                if sandbox.shim.has_ended().await {
                    tracing::warn!(sandbox = sandbox.id, error = %why, "the sandbox's shim has ended");
                    runtime.sandbox_lost(&sandbox).await;
                    return;
                }
                if !matches!(why, ShimError::Gone(_)) {
                    tracing::warn!(sandbox = sandbox.id, error = %why, "the sandbox's shim is not understood");
                }
                drop(runtime);
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(DELAYS.1);
            }
        });
    }

    /// What the shim has against what is on record.
    async fn compare(self: &Arc<Self>, sandbox: &Arc<Sandbox>, seen: Vec<Seen>) {
        let containers = self.containers_of(&sandbox.id);
        for container in &containers {
            match seen.iter().find(|s| s.container == container.id) {
                Some(state) => match &state.exited {
                    Some(exited) => self.container_exited(container, exited).await,
                    None => {
                        if let Err(error) = container.set_running(state.pid, state.started_at) {
                            tracing::error!(container = container.id, %error, "container record not written");
                        }
                    }
                },
                None if container.state() == ContainerState::Running => self.container_lost(container).await,
                None => {}
            }
        }
        let unknown = seen.iter().filter(|s| !containers.iter().any(|c| c.id == s.container));
        for state in unknown {
            if state.exited.is_some() {
                self.forget_unknown(sandbox, &state.container).await;
                continue;
            }
            // Its record could not be read: the kubelet does not know it, and makes another.
            tracing::warn!(
                sandbox = sandbox.id,
                container = state.container,
                "a container without a record is killed"
            );
            if let Err(error) = sandbox.shim.signal(&state.container, nix::libc::SIGKILL, true).await {
                tracing::error!(container = state.container, %error, "it cannot be killed");
            }
        }
    }

    async fn forget_unknown(&self, sandbox: &Sandbox, container: &str) {
        if let Err(error) = sandbox.shim.delete(container).await {
            tracing::warn!(sandbox = sandbox.id, container, %error, "the shim keeps an unknown container");
        }
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
