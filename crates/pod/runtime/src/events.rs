//! Events of containers, for kubelets that listen instead of asking.

use keelson_cri::v1::{ContainerEventResponse, ContainerEventType};

use crate::runtime::{Inner, now};
use crate::sandbox::Sandbox;

impl Inner {
    /// Tells listeners, with the pod as it is now. `id` is a container's or the sandbox's own.
    pub fn emit(&self, id: &str, sandbox: &str, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let statuses = self.containers_of(sandbox).iter().map(|c| self.status_of(c)).collect();
        self.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: self.sandbox(sandbox).map(|s| s.status()),
            containers_statuses: statuses,
        });
    }

    /// The end of a sandbox, which can no longer be found.
    pub fn emit_last(&self, sandbox: &Sandbox) {
        self.send(ContainerEventResponse {
            container_id: sandbox.id.clone(),
            container_event_type: ContainerEventType::ContainerDeletedEvent as i32,
            created_at: now(),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: Vec::new(),
        });
    }

    fn send(&self, event: ContainerEventResponse) {
        // Nobody listens: then nobody misses it.
        let _ = self.events.send(event);
    }

    pub fn status_of(&self, container: &crate::containers::Container) -> keelson_cri::v1::ContainerStatus {
        let image = self.images.find(&container.record.lock().image.clone());
        container.status(image.as_deref())
    }
}
