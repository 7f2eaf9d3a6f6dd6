//! What is asked of a runtime, how long it takes and whether it fails: told to whoever keeps count, and as part of a trace.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use keelson_trace::rpc;
use tonic::body::Body;
use tower::Service;

use crate::clients::CriService;

/// Is told of each call: its name as upstream's kubelet counts it, how long it took, and whether it went well.
pub type Observer = Arc<dyn Fn(&'static str, Duration, bool) + Send + Sync>;

/// A transport whose calls are told of.
#[derive(Clone)]
pub struct Observed {
    inner: CriService,
    observer: Observer,
}

impl Observed {
    pub fn new(inner: CriService, observer: Observer) -> Self {
        Observed { inner, observer }
    }
}

impl Service<http::Request<Body>> for Observed {
    type Response = http::Response<Body>;
    type Error = <CriService as Service<http::Request<Body>>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let span = rpc::call(&mut request);
        let name = request.uri().path().rsplit('/').next().and_then(operation);
        let call = self.inner.call(request);
        let Some(name) = name else { return call };
        let (observer, begin) = (self.observer.clone(), Instant::now());
        Box::pin(async move {
            let answer = call.await;
            match &answer {
                Ok(answer) => rpc::answered(&span, answer.headers()),
                Err(error) => span.fail(error.to_string()),
            }
            // A call of one answer that fails has its status in the head, and no body.
            let good = answer.as_ref().is_ok_and(|a| {
                let status = a.headers().get("grpc-status");
                status.is_none_or(|s| s.as_bytes() == b"0")
            });
            observer(name, begin.elapsed(), good);
            answer
        })
    }
}

/// What upstream's kubelet calls an operation in its metrics.
fn operation(method: &str) -> Option<&'static str> {
    let found = OPERATIONS.iter().find(|(name, _)| *name == method);
    found.map(|(_, operation)| *operation)
}

const OPERATIONS: &[(&str, &str)] = &[
    ("Version", "version"),
    ("Status", "status"),
    ("CreateContainer", "create_container"),
    ("StartContainer", "start_container"),
    ("StopContainer", "stop_container"),
    ("RemoveContainer", "remove_container"),
    ("ListContainers", "list_containers"),
    ("ContainerStatus", "container_status"),
    ("UpdateContainerResources", "update_container"),
    ("ReopenContainerLog", "reopen_container_log"),
    ("ExecSync", "exec_sync"),
    ("Exec", "exec"),
    ("Attach", "attach"),
    ("RunPodSandbox", "run_podsandbox"),
    ("StopPodSandbox", "stop_podsandbox"),
    ("RemovePodSandbox", "remove_podsandbox"),
    ("PodSandboxStatus", "podsandbox_status"),
    ("ListPodSandbox", "list_podsandbox"),
    ("ContainerStats", "container_stats"),
    ("ListContainerStats", "list_container_stats"),
    ("PodSandboxStats", "podsandbox_stats"),
    ("ListPodSandboxStats", "list_podsandbox_stats"),
    ("PortForward", "port_forward"),
    ("UpdateRuntimeConfig", "update_runtime_config"),
    ("ListImages", "list_images"),
    ("ImageStatus", "image_status"),
    ("PullImage", "pull_image"),
    ("RemoveImage", "remove_image"),
    ("ImageFsInfo", "image_fs_info"),
    ("CheckpointContainer", "checkpoint_container"),
    ("ListMetricDescriptors", "list_metric_descriptors"),
    ("ListPodSandboxMetrics", "list_podsandbox_metrics"),
    ("RuntimeConfig", "runtime_config"),
    ("UpdatePodSandboxResources", "update_podsandbox_resources"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_upstreams_names() {
        assert_eq!(operation("RunPodSandbox"), Some("run_podsandbox"));
        // A stream lasts as long as its reader wants.
        assert_eq!(operation("GetContainerEvents"), None);
    }
}
