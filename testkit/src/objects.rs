//! The typed objects that tests look at, and short questions to them.

pub use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
pub use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
pub use k8s_openapi::api::batch::v1::{CronJob, Job};
pub use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
pub use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount, Taint,
};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::api::policy::v1::PodDisruptionBudget;
pub use keelson_client::{ApiObject, Kind};

pub fn phase(pod: &Pod) -> &str {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase.unwrap_or_default()
}

/// A condition's status, reason and message; empty if the pod hasn't it.
pub fn condition(pod: &Pod, kind: &str) -> (String, String, String) {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let found = conditions.into_iter().find(|c| c.type_ == kind);
    found.map_or_else(Default::default, |c| {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        (c.status.clone(), text(&c.reason), text(&c.message))
    })
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").0 == "True"
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Not finished, and not on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !pod.is_deleting() && !is_finished(pod)
}

/// The node a pod was given; empty if none.
pub fn node_of(pod: &Pod) -> &str {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    node.unwrap_or_default()
}

pub fn image_of(pod: &Pod) -> &str {
    let container = pod.spec.as_ref().and_then(|s| s.containers.first());
    container.and_then(|c| c.image.as_deref()).unwrap_or_default()
}

/// Of a node: `True`, `False` or `Unknown`.
pub fn node_ready(node: &Node) -> &str {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
    ready.map_or("", |c| c.status.as_str())
}

pub fn taints(node: &Node) -> Vec<String> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.map(|t| format!("{}:{}", t.key, t.effect)).collect()
}

/// A job's condition of this type, if it is true: its reason.
pub fn job_condition(job: &Job, kind: &str) -> Option<String> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let found = conditions.into_iter().find(|c| c.type_ == kind && c.status == "True");
    found.map(|c| c.reason.clone().unwrap_or_default())
}

/// A line that says how a pod is.
pub fn pod_line(pod: &Pod) -> String {
    let (ready, scheduled) = (condition(pod, "Ready"), condition(pod, "PodScheduled"));
    let mut line = format!("{} {} ready={}", pod.key(), phase(pod), ready.0);
    if !node_of(pod).is_empty() {
        line += &format!(" on {}", node_of(pod));
    }
    if scheduled.0 == "False" {
        line += &format!(" ({})", scheduled.2);
    }
    if pod.is_deleting() {
        line += " deleting";
    }
    line
}
