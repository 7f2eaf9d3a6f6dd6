//! How the devices are that a pod has, as its status tells it.

use super::Devices;
use crate::pods;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus, ResourceHealth, ResourceStatus};

impl Devices {
    /// Writes the health of devices into a pod's status.
    pub fn tell(&self, pod: &Pod, status: &mut PodStatus) {
        let ledger = self.ledger.lock();
        let Some(of_pod) = ledger.of_pod(pods::uid(pod)) else {
            return;
        };
        for s in status.container_statuses.iter_mut().flatten() {
            for (resource, grant) in of_pod.get(&s.name).into_iter().flatten() {
                let health = |id: &String| ResourceHealth {
                    health: Some(
                        if ledger.is_healthy(resource, id) {
                            "Healthy"
                        } else {
                            "Unhealthy"
                        }
                        .into(),
                    ),
                    message: None,
                    resource_id: id.clone(),
                };
                put(s, resource, grant.ids.iter().map(health).collect());
            }
        }
    }
}

/// Puts the health of a resource into a container's status, in place of what stands there.
pub fn put(s: &mut ContainerStatus, name: &str, resources: Vec<ResourceHealth>) {
    let all = s.allocated_resources_status.get_or_insert_default();
    let told = ResourceStatus {
        name: name.to_owned(),
        resources: Some(resources),
    };
    match all.iter_mut().find(|r| r.name == name) {
        Some(old) => *old = told,
        None => all.push(told),
    }
}
