//! How the runtime comes back after its own death.
//!
//! What belongs to one pod can degrade that pod only: a record that cannot be read, a mount that is busy, a process
//! that does not die, a shim that does not answer are said in the log and left for the kubelet or the next start. Only
//! what all pods need, the directories themselves, can keep the runtime from starting.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::containers::Container;
use crate::records::{self, ContainerRecord, SandboxRecord, SandboxState};
use crate::runtime::Inner;
use crate::sandbox::Sandbox;
use crate::shim::Shim;

/// How long a start waits for shims to tell how their containers are; who takes longer is followed in the background.
const PATIENCE: Duration = Duration::from_secs(5);

impl Inner {
    pub async fn restore(self: &Arc<Self>) -> anyhow::Result<()> {
        let root = &self.config.root;
        let (sandboxes, broken) = records::load::<SandboxRecord>(root).context("cannot list the sandboxes")?;
        for id in broken {
            said(
                &id,
                "a sandbox without a readable record",
                self.clear_unknown_sandbox(&id).await,
            );
        }
        let (containers, broken) = records::load::<ContainerRecord>(root).context("cannot list the containers")?;
        for id in broken {
            said(
                &id,
                "a container without a readable record",
                self.clear_container_directory(&id),
            );
        }
        let known: HashSet<String> = sandboxes.iter().map(|s| s.id.clone()).collect();
        for id in self.state_directories()?.iter().filter(|id| !known.contains(*id)) {
            // Removed in between: first the record, then this.
            said(id, "a half-removed sandbox", self.clear_unknown_sandbox(id).await);
        }
        for record in containers {
            if known.contains(&record.sandbox) {
                let container = Arc::new(Container::new(self, record));
                self.containers.lock().insert(container.id.clone(), container);
            } else {
                // Its sandbox was being removed.
                let runtime = self.clone();
                let id = record.id.clone();
                let cleared = tokio::task::spawn_blocking(move || runtime.clear_container(&record)).await;
                said(
                    &id,
                    "a container of a removed sandbox",
                    cleared.map_err(Into::into).and_then(|done| done),
                );
            }
        }
        let mut taken_up = Vec::new();
        for record in sandboxes {
            let sandbox = Arc::new(Sandbox::new(self, record));
            self.sandboxes.lock().insert(sandbox.id.clone(), sandbox.clone());
            taken_up.push(self.readopt(&sandbox));
        }
        if tokio::time::timeout(PATIENCE, futures::future::join_all(taken_up))
            .await
            .is_err()
        {
            tracing::warn!("not all pods of an earlier run answer yet; the start goes on");
        }
        let live: Vec<String> = self
            .sandboxes
            .lock()
            .values()
            .filter(|s| s.record.lock().state == SandboxState::Ready)
            .map(|s| s.id.clone())
            .collect();
        said("-", "the network of pods that are gone", self.network.gc(&live).await);
        said(
            "-",
            "layers that nobody needs",
            self.images.collect(&self.layers_in_use()).map_err(Into::into),
        );
        Ok(())
    }

    async fn clear_unknown_sandbox(&self, id: &str) -> anyhow::Result<()> {
        Shim::new(self.state_dir(id)).shutdown().await?;
        self.clear_sandbox_directories(id)
    }
}

fn said(id: &str, what: &str, result: anyhow::Result<()>) {
    if let Err(error) = result {
        tracing::error!(
            id,
            error = format!("{error:#}"),
            "{what} cannot be cleared away; left for the next start"
        );
    }
}
