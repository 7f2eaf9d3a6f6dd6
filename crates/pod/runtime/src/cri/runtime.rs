//! RuntimeService.

use std::time::Duration;

use futures::StreamExt;
use keelson_cri::v1::*;
use keelson_cri::{NETWORK_READY, RUNTIME_READY};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::{Answers, in_pieces, matches, not_found, required, unknown};
use crate::Runtime;
use crate::containers::Container as Stored;
use crate::records::ContainerState as State;
use crate::sandbox::Sandbox;
use std::sync::Arc;

type Reply<T> = Result<Response<T>, Status>;

/// What is begun is finished, though its caller has gone or waits no longer: nothing is left half made.
async fn whole<T: Send + 'static>(work: impl Future<Output = anyhow::Result<T>> + Send + 'static) -> Result<T, Status> {
    let done = tokio::spawn(keelson_trace::carried(work))
        .await
        .map_err(|e| unknown(e.into()))?;
    done.map_err(unknown)
}

impl Runtime {
    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        self.0.sandbox(id).ok_or_else(|| not_found("sandbox", id))
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Stored>, Status> {
        self.0.container(id).ok_or_else(|| not_found("container", id))
    }

    pub(crate) fn running(&self, id: &str) -> Result<Arc<Stored>, Status> {
        let container = self.container(id)?;
        match container.state() {
            State::Running => Ok(container),
            state => Err(Status::failed_precondition(format!(
                "container is in {} state",
                match state {
                    State::Created => "CONTAINER_CREATED",
                    _ => "CONTAINER_EXITED",
                }
            ))),
        }
    }

    fn sandboxes_of(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let all: Vec<Arc<Sandbox>> = self.0.sandboxes.lock().values().cloned().collect();
        all.iter()
            .map(|s| s.summary())
            .filter(|s| s.id.starts_with(&filter.id))
            .filter(|s| filter.state.as_ref().is_none_or(|wanted| wanted.state == s.state))
            .filter(|s| matches(&filter.label_selector, &s.labels))
            .collect()
    }

    fn containers_by(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        let filter = filter.unwrap_or_default();
        let all: Vec<Arc<Stored>> = self.0.containers.lock().values().cloned().collect();
        all.iter()
            .map(|c| {
                let image = c.record.lock().image.clone();
                c.summary(self.0.images.find(&image).as_deref())
            })
            .filter(|c| c.id.starts_with(&filter.id) && c.pod_sandbox_id.starts_with(&filter.pod_sandbox_id))
            .filter(|c| filter.state.as_ref().is_none_or(|wanted| wanted.state == c.state))
            .filter(|c| matches(&filter.label_selector, &c.labels))
            .collect()
    }

    async fn container_stats_by(&self, filter: Option<ContainerStatsFilter>) -> Result<Vec<ContainerStats>, Status> {
        let filter = filter.unwrap_or_default();
        let runtime = self.0.clone();
        let work = move || {
            let all: Vec<Arc<Stored>> = runtime.containers.lock().values().cloned().collect();
            all.iter()
                .filter(|c| c.state() == State::Running)
                .filter(|c| c.id.starts_with(&filter.id) && c.sandbox.starts_with(&filter.pod_sandbox_id))
                .filter(|c| matches(&filter.label_selector, &c.record.lock().config.labels))
                .map(|c| runtime.container_stats(c))
                .collect::<anyhow::Result<Vec<_>>>()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| unknown(e.into()))?
            .map_err(unknown)
    }

    async fn metrics_of_sandboxes(&self) -> Result<Vec<PodSandboxMetrics>, Status> {
        let runtime = self.0.clone();
        let work = move || {
            let all: Vec<Arc<Sandbox>> = runtime.sandboxes.lock().values().cloned().collect();
            let ready = all.iter().filter(|s| s.is_ready());
            ready
                .filter_map(|s| runtime.sandbox_metrics(s).transpose())
                .collect::<anyhow::Result<Vec<_>>>()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| unknown(e.into()))?
            .map_err(unknown)
    }

    async fn sandbox_stats_by(&self, filter: Option<PodSandboxStatsFilter>) -> Result<Vec<PodSandboxStats>, Status> {
        let filter = filter.unwrap_or_default();
        let runtime = self.0.clone();
        let work = move || {
            let all: Vec<Arc<Sandbox>> = runtime.sandboxes.lock().values().cloned().collect();
            all.iter()
                .filter(|s| s.is_ready() && s.id.starts_with(&filter.id))
                .filter(|s| matches(&filter.label_selector, &s.record.lock().config.labels))
                .map(|s| runtime.sandbox_stats(s))
                .collect::<anyhow::Result<Vec<_>>>()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| unknown(e.into()))?
            .map_err(unknown)
    }
}

#[tonic::async_trait]
impl keelson_cri::RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Reply<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "keelson".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Reply<RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = required(request.config, "sandbox config")?;
        let runtime = self.0.clone();
        let id = whole(async move { runtime.run_sandbox(config, &request.runtime_handler).await }).await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Reply<StopPodSandboxResponse> {
        // Stopping what is gone has succeeded already.
        if let Some(sandbox) = self.0.sandbox(&request.into_inner().pod_sandbox_id) {
            let runtime = self.0.clone();
            whole(async move { runtime.stop_sandbox(&sandbox).await }).await?;
        }
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Reply<RemovePodSandboxResponse> {
        if let Some(sandbox) = self.0.sandbox(&request.into_inner().pod_sandbox_id) {
            let runtime = self.0.clone();
            whole(async move { runtime.remove_sandbox(&sandbox).await }).await?;
        }
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Reply<PodSandboxStatusResponse> {
        let sandbox = self.sandbox(&request.into_inner().pod_sandbox_id)?;
        let statuses = self
            .0
            .containers_of(&sandbox.id)
            .iter()
            .map(|c| self.0.status_of(c))
            .collect();
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(sandbox.status()),
            info: Default::default(),
            containers_statuses: statuses,
            timestamp: crate::runtime::now(),
        }))
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Reply<ListPodSandboxResponse> {
        let items = self.sandboxes_of(request.into_inner().filter);
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Answers<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let items = self.sandboxes_of(request.into_inner().filter);
        Ok(Response::new(in_pieces(items, |pod_sandboxes| {
            StreamPodSandboxesResponse { pod_sandboxes }
        })))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Reply<CreateContainerResponse> {
        let request = request.into_inner();
        let config = required(request.config, "container config")?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let runtime = self.0.clone();
        let work = async move {
            let created = runtime.create_container(&sandbox, config, request.sandbox_config);
            created.await
        };
        let id = whole(work).await?;
        Ok(Response::new(CreateContainerResponse { container_id: id }))
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Reply<StartContainerResponse> {
        let container = self.container(&request.into_inner().container_id)?;
        let runtime = self.0.clone();
        whole(async move { runtime.start_container(&container).await }).await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Reply<StopContainerResponse> {
        let request = request.into_inner();
        if let Some(container) = self.0.container(&request.container_id) {
            let patience = Duration::from_secs(request.timeout.try_into().unwrap_or(0));
            let runtime = self.0.clone();
            whole(async move { runtime.stop_container(&container, patience).await }).await?;
        }
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Reply<RemoveContainerResponse> {
        if let Some(container) = self.0.container(&request.into_inner().container_id) {
            let runtime = self.0.clone();
            whole(async move { runtime.remove_container(&container).await }).await?;
        }
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Reply<ListContainersResponse> {
        let containers = self.containers_by(request.into_inner().filter);
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type StreamContainersStream = Answers<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let containers = self.containers_by(request.into_inner().filter);
        Ok(Response::new(in_pieces(containers, |containers| {
            StreamContainersResponse { containers }
        })))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Reply<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.container(&request.container_id)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose {
            let record = container.record.lock();
            let text = format!("{{\"sandboxID\":\"{}\",\"pid\":{}}}", record.sandbox, record.pid);
            info.insert("info".to_owned(), text);
        }
        Ok(Response::new(ContainerStatusResponse {
            status: Some(self.0.status_of(&container)),
            info,
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Reply<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let container = self.container(&request.container_id)?;
        let resources = required(request.linux, "linux resources")?;
        self.0.update_resources(&container, &resources).map_err(unknown)?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Reply<ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let container = self.container(&id)?;
        if container.state() != State::Running {
            return Err(Status::unknown("container is not running"));
        }
        let sandbox = self.sandbox(&container.sandbox)?;
        sandbox
            .shim
            .reopen_log(&container.id)
            .await
            .map_err(|e| unknown(e.into()))?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Reply<ExecSyncResponse> {
        let request = request.into_inner();
        let container = self.running(&request.container_id)?;
        let sandbox = self.sandbox(&container.sandbox)?;
        let timeout = u64::try_from(request.timeout)
            .ok()
            .filter(|t| *t > 0)
            .map(Duration::from_secs);
        let answer = crate::streaming::exec_sync(&sandbox.shim, &container.id, request.cmd, timeout).await?;
        Ok(Response::new(answer))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Reply<ExecResponse> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        let url = self.0.streaming.exec(request)?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Reply<AttachResponse> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        let url = self.0.streaming.attach(request)?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Reply<PortForwardResponse> {
        let request = request.into_inner();
        if !self.sandbox(&request.pod_sandbox_id)?.is_ready() {
            return Err(Status::failed_precondition("sandbox container is not running"));
        }
        let url = self.0.streaming.port_forward(request)?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Reply<ContainerStatsResponse> {
        let container = self.container(&request.into_inner().container_id)?;
        let runtime = self.0.clone();
        let stats = tokio::task::spawn_blocking(move || runtime.container_stats(&container))
            .await
            .map_err(|e| unknown(e.into()))?
            .map_err(unknown)?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Reply<ListContainerStatsResponse> {
        let stats = self.container_stats_by(request.into_inner().filter).await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Answers<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let stats = self.container_stats_by(request.into_inner().filter).await?;
        Ok(Response::new(in_pieces(stats, |container_stats| {
            StreamContainerStatsResponse { container_stats }
        })))
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Reply<PodSandboxStatsResponse> {
        let sandbox = self.sandbox(&request.into_inner().pod_sandbox_id)?;
        let runtime = self.0.clone();
        let stats = tokio::task::spawn_blocking(move || runtime.sandbox_stats(&sandbox))
            .await
            .map_err(|e| unknown(e.into()))?
            .map_err(unknown)?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Reply<ListPodSandboxStatsResponse> {
        let stats = self.sandbox_stats_by(request.into_inner().filter).await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Answers<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let stats = self.sandbox_stats_by(request.into_inner().filter).await?;
        Ok(Response::new(in_pieces(stats, |pod_sandbox_stats| {
            StreamPodSandboxStatsResponse { pod_sandbox_stats }
        })))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Reply<UpdateRuntimeConfigResponse> {
        let network = request
            .into_inner()
            .runtime_config
            .and_then(|c| c.network_config)
            .unwrap_or_default();
        if !network.pod_cidr.is_empty() {
            self.0.network.set_pod_cidr(&network.pod_cidr).await.map_err(unknown)?;
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Reply<StatusResponse> {
        let condition = |kind: &str, problem: Option<(&str, String)>| RuntimeCondition {
            r#type: kind.to_owned(),
            status: problem.is_none(),
            reason: problem.as_ref().map_or("", |p| p.0).to_owned(),
            message: problem.map_or_else(String::new, |p| p.1),
        };
        let network = self
            .0
            .network
            .ready()
            .await
            .err()
            .map(|why| ("NetworkPluginNotReady", why));
        let mut handlers = Vec::new();
        for name in self.0.config.handler_names() {
            handlers.push(RuntimeHandler {
                name: name.to_owned(),
                features: Some(RuntimeHandlerFeatures {
                    recursive_read_only_mounts: self.0.recursive_read_only,
                    user_namespaces: self.0.user_namespaces(name).await.is_ok(),
                }),
            });
        }
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![condition(RUNTIME_READY, None), condition(NETWORK_READY, network)],
            }),
            info: Default::default(),
            runtime_handlers: handlers,
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                ..RuntimeFeatures::default()
            }),
        }))
    }

    async fn checkpoint_container(&self, _: Request<CheckpointContainerRequest>) -> Reply<CheckpointContainerResponse> {
        Err(Status::unimplemented("checkpoints are not supported by this runtime"))
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Reply<CheckpointPodResponse> {
        Err(Status::unimplemented("checkpoints are not supported by this runtime"))
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Reply<RestorePodResponse> {
        Err(Status::unimplemented("checkpoints are not supported by this runtime"))
    }

    type GetContainerEventsStream = Answers<ContainerEventResponse>;

    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Reply<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.0.events.subscribe());
        // A listener that fell behind is cut off: it lists and listens again.
        let events = events.map(|e| e.map_err(|lagged| Status::data_loss(lagged.to_string())));
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Reply<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse {
            descriptors: crate::containers::metrics::descriptors(),
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Reply<ListPodSandboxMetricsResponse> {
        let pod_metrics = self.metrics_of_sandboxes().await?;
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Answers<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        let all = self.metrics_of_sandboxes().await?;
        Ok(Response::new(in_pieces(all, |pod_sandbox_metrics| {
            StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
        })))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Reply<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration {
            cgroup_driver: CgroupDriver::Cgroupfs as i32,
        };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Reply<UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        // The pod's own control group is the kubelet's; we only remember what it says.
        sandbox
            .update(|r| {
                let linux = r.config.linux.get_or_insert_default();
                (linux.overhead, linux.resources) = (request.overhead, request.resources);
            })
            .map_err(|e| unknown(e.into()))?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }
}
