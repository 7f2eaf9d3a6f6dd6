//! Sandboxes: what the containers of a pod share.

pub mod files;
mod run;
mod stop;
mod takeup;

use std::sync::{Arc, Weak};

use keelson_cri::v1;
use parking_lot::Mutex;

use crate::records::{self, SandboxRecord, SandboxState};
use crate::runtime::Inner;
use crate::shim::Shim;

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
