//! A pod's sandbox: its configuration from what the node knows, and its creation.

use super::config::{self, SandboxInput};
use crate::kubelet::Kubelet;
use crate::observe;
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use keelson_cri::v1 as cri;
use keelson_trace::carried;
use std::sync::Arc;
use tokio_util::task::TaskTracker;

pub fn config(kl: &Kubelet, pod: &Pod, attempt: u32) -> Result<cri::PodSandboxConfig, String> {
    let logs = kl
        .layout
        .pod_logs(pods::namespace(pod), pods::name(pod), pods::uid(pod));
    let mut config = config::sandbox(&SandboxInput {
        pod,
        attempt,
        dns: kl.dns_config(pod),
        cluster_domain: &kl.cfg.cluster_domain,
        cgroup_parent: kl.cgroup_of(pod),
        log_directory: logs.to_string_lossy().into_owned(),
        userns: kl.userns.mapping(kl, pod)?,
        volume_groups: &kl.volumes.groups(pod),
        limits: &kl.limits(),
    })?;
    let resources = config.linux.as_mut().and_then(|l| l.resources.as_mut());
    if let Some(resources) = resources.filter(|_| kl.managers.cpus.has_exclusive(pods::uid(pod))) {
        resources.cpu_quota = -1;
    }
    Ok(config)
}

/// Makes the sandbox; returns it as the runtime shows it.
pub async fn create(
    kl: &Arc<Kubelet>,
    inflight: &TaskTracker,
    pod: &Pod,
    attempt: u32,
) -> Result<observe::SandboxView, String> {
    let config = config(kl, pod, attempt).map_err(|e| {
        format!(
            "failed to generate sandbox config for pod \"{}\": {e}",
            pods::describe(pod)
        )
    })?;
    kl.host
        .make_dir(config.log_directory.as_ref(), 0o755)
        .map_err(|e| format!("failed to create log directory for pod: {e}"))?;
    let runtime_handler = kl.runtime_handler(pod)?;
    let mut client = kl.cri.runtime.clone();
    // Once begun it is finished, even if the pod is deleted meanwhile: half a sandbox is nobody's.
    let metrics = kl.metrics.clone();
    let work = inflight.spawn(carried(async move {
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: runtime_handler.clone(),
        };
        let running = metrics.run_sandbox.with_label_values(&[&runtime_handler]).start_timer();
        let made = client.run_pod_sandbox(request).await;
        running.observe_duration();
        if made.is_err() {
            metrics.run_sandbox_errors.with_label_values(&[&runtime_handler]).inc();
        }
        let id = made?.into_inner().pod_sandbox_id;
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id,
            verbose: false,
        };
        Ok::<_, tonic::Status>(client.pod_sandbox_status(request).await?.into_inner())
    }));
    let answer = work
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| crate::rpc_text(&e))?;
    answer
        .status
        .as_ref()
        .map(observe::sandbox_view)
        .ok_or_else(|| "pod sandbox status is nil".into())
}
