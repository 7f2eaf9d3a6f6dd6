//! Containers.

mod apparmor;
mod create;
pub mod devices;
mod labels;
mod layer;
mod lifecycle;
pub mod metrics;
mod mounts;
mod resources;
mod seccomp;
mod signals;
mod spec;
pub mod stats;
mod user;
pub mod users;

use std::sync::{Arc, Weak};

use keelson_cri::v1;
use parking_lot::Mutex;
use tokio::sync::watch;

#[cfg(test)]
pub use seccomp::default_profile;
#[cfg(test)]
pub use spec::for_built_in;
pub use spec::namespace_options;
pub use user::User;

use crate::images::Image;
use crate::records::{self, ContainerRecord, ContainerState};
use crate::runtime::Inner;

pub struct Container {
    pub id: String,
    pub sandbox: String,
    pub record: Mutex<ContainerRecord>,
    /// Starting, stopping and removing take turns.
    pub turn: tokio::sync::Mutex<()>,
    state: watch::Sender<ContainerState>,
    layer: layer::Layer,
    runtime: Weak<Inner>,
}

impl Container {
    pub fn new(runtime: &Arc<Inner>, record: ContainerRecord) -> Container {
        Container {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            state: watch::channel(record.state).0,
            record: Mutex::new(record),
            turn: tokio::sync::Mutex::new(()),
            layer: Default::default(),
            runtime: Arc::downgrade(runtime),
        }
    }

    pub fn state(&self) -> ContainerState {
        *self.state.borrow()
    }

    /// Changes the record, on disk and in memory.
    pub fn update(&self, change: impl FnOnce(&mut ContainerRecord)) -> std::io::Result<()> {
        let mut record = self.record.lock();
        change(&mut record);
        let saved = match self.runtime.upgrade() {
            Some(runtime) => records::save(&runtime.config.root, &*record),
            None => Ok(()),
        };
        self.state.send_replace(record.state);
        saved
    }

    pub fn set_running(&self, pid: i32, started_at: i64) -> std::io::Result<()> {
        if self.state() == ContainerState::Running && self.record.lock().pid == pid {
            return Ok(());
        }
        self.update(|r| {
            (r.pid, r.started_at, r.state) = (pid, started_at, ContainerState::Running);
        })
    }

    /// Waits until the container has ended.
    pub async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ended = state.wait_for(|s| *s == ContainerState::Exited).await;
    }

    pub fn summary(&self, image: Option<&Image>) -> v1::Container {
        let r = self.record.lock();
        let (spec, image_ref) = image_names(&r, image);
        v1::Container {
            id: r.id.clone(),
            pod_sandbox_id: r.sandbox.clone(),
            metadata: r.config.metadata.clone(),
            image: Some(spec),
            image_ref,
            state: cri_state(r.state) as i32,
            created_at: r.created_at,
            labels: r.config.labels.clone(),
            annotations: r.config.annotations.clone(),
            image_id: r.image.clone(),
        }
    }

    pub fn status(&self, image: Option<&Image>) -> v1::ContainerStatus {
        let r = self.record.lock();
        let (spec, image_ref) = image_names(&r, image);
        let user = v1::LinuxContainerUser {
            uid: r.user.uid.into(),
            gid: r.user.gid.into(),
            supplemental_groups: r.user.groups.iter().map(|g| i64::from(*g)).collect(),
        };
        v1::ContainerStatus {
            id: r.id.clone(),
            metadata: r.config.metadata.clone(),
            state: cri_state(r.state) as i32,
            created_at: r.created_at,
            started_at: r.started_at,
            finished_at: r.finished_at,
            exit_code: r.exit_code,
            image: Some(spec),
            image_ref,
            reason: r.reason.clone(),
            message: r.message.clone(),
            labels: r.config.labels.clone(),
            annotations: r.config.annotations.clone(),
            mounts: r.config.mounts.clone(),
            log_path: r.log.clone().unwrap_or_default(),
            resources: Some(v1::ContainerResources {
                linux: Some(r.resources.clone()),
                windows: None,
            }),
            image_id: r.image.clone(),
            user: Some(v1::ContainerUser { linux: Some(user) }),
            stop_signal: signals::to_cri(r.stop_signal) as i32,
        }
    }
}

/// The image by the name it was asked for if it still has that, and by the most exact name it has.
fn image_names(record: &ContainerRecord, image: Option<&Image>) -> (v1::ImageSpec, String) {
    let mut spec = record.config.image.clone().unwrap_or_default();
    let asked = if spec.user_specified_image.is_empty() {
        spec.image.clone()
    } else {
        spec.user_specified_image.clone()
    };
    let Some(image) = image else {
        return (v1::ImageSpec { image: asked, ..spec }, record.image.clone());
    };
    let normal = crate::images::reference::Reference::parse(&asked)
        .map(|r| r.to_string())
        .unwrap_or_default();
    spec.image = match image.tags.get(&normal).or_else(|| image.tags.first()) {
        Some(tag) => tag.clone(),
        None => asked,
    };
    (spec, image.digests.first().unwrap_or(&image.id).clone())
}

fn cri_state(state: ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited => v1::ContainerState::ContainerExited,
    }
}
