//! StopPodSandbox and RemovePodSandbox: everything back, in the reverse order; each step can be repeated.

use std::sync::Arc;

use anyhow::Context;
use keelson_cri::v1;

use super::Sandbox;
use crate::records::{ContainerState, SandboxState};
use crate::runtime::Inner;

impl Inner {
    /// Ends the containers, gives back the network, ends the shim.
    pub async fn stop_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> anyhow::Result<()> {
        let _turn = sandbox.turn.lock().await;
        let was_ready = sandbox.is_ready();
        let running = self
            .containers_of(&sandbox.id)
            .into_iter()
            .filter(|c| c.state() == ContainerState::Running);
        let stops = running.map(|container| async move {
            self.stop_container(&container, std::time::Duration::ZERO)
                .await
                .with_context(|| format!("failed to stop container \"{}\"", container.id))
        });
        futures::future::try_join_all(stops).await?;
        // Before the shim ends, so that its end is not taken for an accident.
        sandbox.update(|r| r.state = SandboxState::NotReady)?;
        self.tear_down(sandbox).await?;
        if was_ready {
            self.emit(&sandbox.id, &sandbox.id, v1::ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// What `set_up` did to the host, undone.
    pub(super) async fn tear_down(&self, sandbox: &Arc<Sandbox>) -> anyhow::Result<()> {
        if sandbox.record.lock().own_network {
            self.network
                .teardown(&sandbox.id)
                .await
                .with_context(|| format!("failed to destroy network for sandbox \"{}\"", sandbox.id))?;
        }
        sandbox
            .shim
            .shutdown()
            .await
            .context("failed to end the sandbox's shim")?;
        let directory = crate::records::directory::<crate::records::SandboxRecord>(&self.config.root, &sandbox.id);
        for mounted in [
            directory.join("shm"),
            self.state_dir(&sandbox.id).join(crate::shim::PROC),
        ] {
            keelson_sys::mount::unmount(&mounted).with_context(|| format!("cannot unmount {}", mounted.display()))?;
        }
        Ok(())
    }

    /// Forgets a sandbox with its containers, ending what still runs.
    pub async fn remove_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> anyhow::Result<()> {
        self.stop_sandbox(sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container)
                .await
                .with_context(|| format!("failed to remove container \"{}\"", container.id))?;
        }
        let _turn = sandbox.turn.lock().await;
        self.clear_sandbox_directories(&sandbox.id)?;
        let removed = self.sandboxes.lock().remove(&sandbox.id);
        if removed.is_some() {
            self.emit_last(sandbox);
        }
        Ok(())
    }
}
