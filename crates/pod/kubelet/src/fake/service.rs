//! The runtime service of the fake.

use super::addresses::Addresses;
use super::annotations::SANDBOX_ERROR;
use super::{BEHIND, Container, FakeRuntime, Sandbox, container_status, sandbox_status};
use futures::StreamExt;
use futures::stream::BoxStream;
use keelson_cri::RuntimeService;
use keelson_cri::v1 as cri;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = BoxStream<'static, Result<T, Status>>;

fn ok<T>(value: T) -> Answer<T> {
    Ok(Response::new(value))
}

fn unknown(what: &str, id: &str) -> Status {
    Status::not_found(format!("{what} \"{id}\" not found"))
}

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("not part of the fake runtime"))
}

fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

#[tonic::async_trait]
impl RuntimeService for FakeRuntime {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        ok(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1.0".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("no configuration"))?;
        if let Some(why) = config.annotations.get(SANDBOX_ERROR) {
            return Err(Status::unknown(why.clone()));
        }
        let nth = self.0.state.lock().next;
        let delay = self.start_delay(&config, nth);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let created = self.now();
        let id = {
            let mut state = self.0.state.lock();
            let id = Self::id(&mut state);
            let host_network = config
                .linux
                .as_ref()
                .and_then(|l| l.security_context.as_ref()?.namespace_options.as_ref())
                .is_some_and(|n| n.network == cri::NamespaceMode::Node as i32);
            let ips = if host_network {
                Vec::new()
            } else {
                let ready = state.sandboxes.values().filter(|s| s.ready);
                let used = ready.flat_map(|s| s.ips.iter().cloned()).collect();
                let ips = state.addresses.next(&used);
                if ips.is_empty() {
                    return Err(Status::resource_exhausted("no address of the node's ranges is free"));
                }
                ips
            };
            state.sandboxes.insert(
                id.clone(),
                Sandbox {
                    config,
                    handler: request.runtime_handler,
                    ready: true,
                    created,
                    ips,
                },
            );
            id
        };
        self.tell(&id, &id, cri::ContainerEventType::ContainerStartedEvent);
        ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let running: Vec<String> = {
            let mut state = self.0.state.lock();
            if let Some(s) = state.sandboxes.get_mut(&id) {
                s.ready = false;
            }
            state
                .containers
                .iter()
                .filter(|(_, c)| c.sandbox == id)
                .map(|(id, _)| id.clone())
                .collect()
        };
        running.iter().for_each(|c| self.end(c, 137));
        self.tell(&id, &id, cri::ContainerEventType::ContainerStoppedEvent);
        ok(cri::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.0.state.lock();
        state.containers.retain(|_, c| c.sandbox != id);
        state.sandboxes.remove(&id);
        ok(cri::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.0.state.lock();
        let s = state.sandboxes.get(&id).ok_or_else(|| unknown("sandbox", &id))?;
        ok(cri::PodSandboxStatusResponse {
            status: Some(sandbox_status(&id, s)),
            ..Default::default()
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.0.state.lock();
        let items = state
            .sandboxes
            .iter()
            .filter(|(id, s)| {
                selected(&s.config.labels, &filter.label_selector) && (filter.id.is_empty() || **id == filter.id)
            })
            .map(|(id, s)| sandbox_status(id, s))
            .filter(|s| filter.state.as_ref().is_none_or(|f| f.state == s.state))
            .map(|s| cri::PodSandbox {
                id: s.id,
                metadata: s.metadata,
                state: s.state,
                created_at: s.created_at,
                labels: s.labels,
                annotations: s.annotations,
                runtime_handler: s.runtime_handler,
            })
            .collect();
        ok(cri::ListPodSandboxResponse { items })
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("no configuration"))?;
        let sandbox = request.pod_sandbox_id;
        let created = self.now();
        let id = {
            let mut state = self.0.state.lock();
            if !state.sandboxes.get(&sandbox).is_some_and(|s| s.ready) {
                return Err(unknown("sandbox", &sandbox));
            }
            let id = Self::id(&mut state);
            let resources = config.linux.as_ref().and_then(|l| l.resources.clone());
            let container = Container {
                sandbox: sandbox.clone(),
                config,
                state: cri::ContainerState::ContainerCreated,
                created,
                started: 0,
                finished: 0,
                exit_code: 0,
                reason: String::new(),
                resources,
                stop: CancellationToken::new(),
            };
            state.containers.insert(id.clone(), container);
            id
        };
        self.tell(&id, &sandbox, cri::ContainerEventType::ContainerCreatedEvent);
        ok(cri::CreateContainerResponse { container_id: id })
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let now = self.now();
        let sandbox = {
            let mut state = self.0.state.lock();
            let c = state.containers.get_mut(&id).ok_or_else(|| unknown("container", &id))?;
            c.state = cri::ContainerState::ContainerRunning;
            c.started = now;
            c.sandbox.clone()
        };
        self.tell(&id, &sandbox, cri::ContainerEventType::ContainerStartedEvent);
        self.play(&id);
        ok(cri::StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        let delay = {
            let state = self.0.state.lock();
            let c = state
                .containers
                .get(&request.container_id)
                .ok_or_else(|| unknown("container", &request.container_id))?;
            self.script_of(&state, c).stop_delay
        };
        let limit = Duration::from_secs(request.timeout.max(0) as u64);
        tokio::time::sleep(delay.min(limit)).await;
        self.end(&request.container_id, if delay > limit { 137 } else { 0 });
        ok(cri::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.end(&id, 137);
        let sandbox = self.0.state.lock().containers.remove(&id).map(|c| c.sandbox);
        if let Some(sandbox) = sandbox {
            self.tell(&id, &sandbox, cri::ContainerEventType::ContainerDeletedEvent);
        }
        ok(cri::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.0.state.lock();
        let containers = state
            .containers
            .iter()
            .filter(|(id, c)| {
                selected(&c.config.labels, &filter.label_selector)
                    && (filter.id.is_empty() || **id == filter.id)
                    && (filter.pod_sandbox_id.is_empty() || c.sandbox == filter.pod_sandbox_id)
                    && filter.state.as_ref().is_none_or(|f| f.state == c.state as i32)
            })
            .map(|(id, c)| {
                let s = container_status(id, c);
                cri::Container {
                    id: s.id,
                    pod_sandbox_id: c.sandbox.clone(),
                    metadata: s.metadata,
                    image: s.image,
                    image_ref: s.image_ref,
                    state: s.state,
                    created_at: s.created_at,
                    labels: s.labels,
                    annotations: s.annotations,
                    image_id: String::new(),
                }
            })
            .collect();
        ok(cri::ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let state = self.0.state.lock();
        let c = state.containers.get(&id).ok_or_else(|| unknown("container", &id))?;
        ok(cri::ContainerStatusResponse {
            status: Some(container_status(&id, c)),
            ..Default::default()
        })
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let mut state = self.0.state.lock();
        let c = state
            .containers
            .get_mut(&request.container_id)
            .ok_or_else(|| unknown("container", &request.container_id))?;
        let wanted = request.linux.unwrap_or_default();
        c.resources = Some(updated(c.resources.clone().unwrap_or_default(), wanted));
        ok(cri::UpdateContainerResourcesResponse {})
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        ok(cri::UpdatePodSandboxResourcesResponse {})
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let state = self.0.state.lock();
        let c = state
            .containers
            .get(&request.container_id)
            .ok_or_else(|| unknown("container", &request.container_id))?;
        if c.state != cri::ContainerState::ContainerRunning {
            return Err(Status::failed_precondition("the container does not run"));
        }
        let first = request.cmd.first().map(String::as_str).unwrap_or_default();
        let exit_code = state.exec.get(first).copied().unwrap_or(i32::from(first == "false"));
        ok(cri::ExecSyncResponse {
            exit_code,
            ..Default::default()
        })
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let up = !self.0.state.lock().down;
        let condition = |kind: &str| cri::RuntimeCondition {
            r#type: kind.into(),
            status: up,
            ..Default::default()
        };
        ok(cri::StatusResponse {
            status: Some(cri::RuntimeStatus {
                conditions: vec![
                    condition(keelson_cri::RUNTIME_READY),
                    condition(keelson_cri::NETWORK_READY),
                ],
            }),
            runtime_handlers: vec![cri::RuntimeHandler {
                name: String::new(),
                features: Some(cri::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: true,
                }),
            }],
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    type GetContainerEventsStream = Stream<cri::ContainerEventResponse>;

    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let (sender, receiver) = mpsc::channel(BEHIND);
        self.0.state.lock().listeners.push(sender);
        // The stream of who has fallen behind ends: who begins again looks at everything.
        ok(ReceiverStream::new(receiver).map(|e| Ok(*e)).boxed())
    }

    async fn reopen_container_log(
        &self,
        _: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        ok(cri::ReopenContainerLogResponse {})
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|c| c.network_config);
        if self.0.manner.takes_ranges
            && let Some(ranges) = network.map(|n| n.pod_cidr)
        {
            let addresses = Addresses::of(&ranges)
                .ok_or_else(|| Status::invalid_argument(format!("no ranges for pods: {ranges}")))?;
            self.0.state.lock().addresses = addresses;
        }
        ok(cri::UpdateRuntimeConfigResponse {})
    }

    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Answer<cri::RuntimeConfigResponse> {
        let linux = cri::LinuxRuntimeConfiguration {
            cgroup_driver: cri::CgroupDriver::Cgroupfs as i32,
        };
        ok(cri::RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn list_container_stats(
        &self,
        _: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let state = self.0.state.lock();
        let stats = state
            .containers
            .iter()
            .filter(|(_, c)| c.state == cri::ContainerState::ContainerRunning)
            .map(|(id, c)| cri::ContainerStats {
                attributes: Some(cri::ContainerAttributes {
                    id: id.clone(),
                    metadata: c.config.metadata.clone(),
                    labels: c.config.labels.clone(),
                    annotations: c.config.annotations.clone(),
                }),
                ..Default::default()
            })
            .collect();
        ok(cri::ListContainerStatsResponse { stats })
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        ok(cri::ListPodSandboxStatsResponse::default())
    }

    // What no simulated node is asked for.
    type StreamPodSandboxesStream = Stream<cri::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        _: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        none()
    }
    type StreamContainersStream = Stream<cri::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        _: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        none()
    }
    type StreamContainerStatsStream = Stream<cri::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        _: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        none()
    }
    type StreamPodSandboxStatsStream = Stream<cri::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        none()
    }
    type StreamPodSandboxMetricsStream = Stream<cri::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        none()
    }
    async fn exec(&self, _: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        none()
    }
    async fn attach(&self, _: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        none()
    }
    async fn port_forward(&self, _: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        none()
    }
    async fn container_stats(&self, _: Request<cri::ContainerStatsRequest>) -> Answer<cri::ContainerStatsResponse> {
        none()
    }
    async fn pod_sandbox_stats(&self, _: Request<cri::PodSandboxStatsRequest>) -> Answer<cri::PodSandboxStatsResponse> {
        none()
    }
    async fn checkpoint_container(
        &self,
        request: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        self.0.state.lock().checkpoints.push(request.into_inner());
        Ok(Response::new(cri::CheckpointContainerResponse {}))
    }
    async fn checkpoint_pod(&self, _: Request<cri::CheckpointPodRequest>) -> Answer<cri::CheckpointPodResponse> {
        none()
    }
    async fn restore_pod(&self, _: Request<cri::RestorePodRequest>) -> Answer<cri::RestorePodResponse> {
        none()
    }
    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        none()
    }
    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        none()
    }
}

/// What an update leaves unsaid stays as it was.
fn updated(
    mut now: cri::LinuxContainerResources,
    wanted: cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    for (now, wanted) in [
        (&mut now.cpu_period, wanted.cpu_period),
        (&mut now.cpu_quota, wanted.cpu_quota),
        (&mut now.cpu_shares, wanted.cpu_shares),
        (&mut now.memory_limit_in_bytes, wanted.memory_limit_in_bytes),
        (&mut now.memory_swap_limit_in_bytes, wanted.memory_swap_limit_in_bytes),
    ] {
        if wanted != 0 {
            *now = wanted;
        }
    }
    if !wanted.cpuset_cpus.is_empty() {
        now.cpuset_cpus = wanted.cpuset_cpus;
    }
    now.unified.extend(wanted.unified);
    now
}
