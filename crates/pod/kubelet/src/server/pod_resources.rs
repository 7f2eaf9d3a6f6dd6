//! The pod-resources API: which devices and CPUs the pods of this node have, for monitors on the node, at a socket of the kubelet's.

use crate::devices::Grant;
use crate::kubelet::Kubelet;
use crate::managers::memory::policy::Block;
use crate::managers::set::Set;
use crate::pods;
use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_devices::podresources as api;
use keelson_devices::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// How long an answer may take, and how many one connection may wait for.
const ANSWER: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 8;

/// Serves until the kubelet stops.
pub fn start(kl: &Arc<Kubelet>) {
    let dir = kl.layout.root.join("pod-resources");
    let listening = kl.host.make_dir(&dir, 0o750).and_then(|()| {
        let listener = kl.host.listen(&dir.join("kubelet.sock"))?;
        tokio::net::UnixListener::from_std(listener)
    });
    let listener = match listening {
        Ok(listener) => listener,
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return,
        Err(e) => {
            tracing::error!("which devices pods have can't be asked: {e}");
            return;
        }
    };
    let (service, stop) = (Service(kl.clone()), kl.stop.clone());
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .timeout(ANSWER)
            .concurrency_limit_per_connection(AT_ONCE)
            .add_service(PodResourcesListerServer::new(service))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned());
        if let Err(e) = served.await {
            tracing::error!("which devices pods have can't be asked any more: {e}");
        }
    });
}

struct Service(Arc<Kubelet>);

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<api::ListPodResourcesRequest>,
    ) -> Result<Response<api::ListPodResourcesResponse>, Status> {
        let active = self.0.workers.active("");
        Ok(Response::new(api::ListPodResourcesResponse {
            pod_resources: active.iter().map(|p| self.pod(p)).collect(),
        }))
    }

    async fn get(
        &self,
        request: Request<api::GetPodResourcesRequest>,
    ) -> Result<Response<api::GetPodResourcesResponse>, Status> {
        let asked = request.into_inner();
        let (ns, name) = (&asked.pod_namespace, &asked.pod_name);
        let Some(handle) = self.0.workers.by_name(ns, name) else {
            return Err(Status::unknown(format!("pod {name} in namespace {ns} not found")));
        };
        Ok(Response::new(api::GetPodResourcesResponse {
            pod_resources: Some(self.pod(&handle.pod())),
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<api::AllocatableResourcesRequest>,
    ) -> Result<Response<api::AllocatableResourcesResponse>, Status> {
        let usable = self.0.devices.usable();
        let devices = usable
            .into_iter()
            .map(|(resource, id, numa)| device(resource, id, &numa));
        Ok(Response::new(api::AllocatableResourcesResponse {
            devices: devices.collect(),
            cpu_ids: ids(&self.0.managers.cpus.allocatable()),
            memory: memory(self.0.managers.memory.allocatable()),
        }))
    }
}

impl Service {
    fn pod(&self, pod: &Pod) -> api::PodResources {
        let sidecars = pods::init_containers(pod).iter().filter(|c| pods::is_sidecar(c));
        api::PodResources {
            name: pods::name(pod).to_owned(),
            namespace: pods::namespace(pod).to_owned(),
            containers: sidecars
                .chain(pods::containers(pod))
                .map(|c| self.container(pod, c))
                .collect(),
            ..Default::default()
        }
    }

    fn container(&self, pod: &Pod, c: &Container) -> api::ContainerResources {
        api::ContainerResources {
            name: c.name.clone(),
            devices: devices(self.0.devices.of_container(pods::uid(pod), &c.name)),
            cpu_ids: ids(&self
                .0
                .managers
                .cpus
                .exclusive(pods::uid(pod), &c.name)
                .unwrap_or_default()),
            memory: memory(self.0.managers.memory.blocks(pods::uid(pod), &c.name)),
            dynamic_resources: self.0.claims.of_container(pod, c).into_iter().map(claim).collect(),
        }
    }
}

fn ids(cpus: &Set) -> Vec<i64> {
    cpus.iter().map(i64::from).collect()
}

fn memory(blocks: Vec<Block>) -> Vec<api::ContainerMemory> {
    let node = |id: u32| api::NumaNode { id: i64::from(id) };
    let one = |b: Block| api::ContainerMemory {
        memory_type: b.kind,
        size: b.size,
        topology: Some(api::TopologyInfo {
            nodes: b.numa_affinity.into_iter().map(node).collect(),
        }),
    };
    blocks.into_iter().map(one).collect()
}

fn device(resource: String, id: String, numa: &[i64]) -> api::ContainerDevices {
    api::ContainerDevices {
        resource_name: resource,
        device_ids: vec![id],
        topology: (!numa.is_empty()).then(|| api::TopologyInfo {
            nodes: numa.iter().map(|n| api::NumaNode { id: *n }).collect(),
        }),
    }
}

fn devices(grants: BTreeMap<String, Grant>) -> Vec<api::ContainerDevices> {
    let of_grant = |(resource, mut grant): (String, Grant)| {
        let numa = std::mem::take(&mut grant.numa);
        let one = move |id: String| {
            let near = numa.get(&id).cloned().unwrap_or_default();
            device(resource.clone(), id, &near)
        };
        grant.ids.into_iter().map(one).collect::<Vec<_>>()
    };
    grants.into_iter().flat_map(of_grant).collect()
}

fn claim(info: crate::claims::Info) -> api::DynamicResource {
    let of_driver = |(driver, devices): (String, Vec<_>)| {
        let one = move |d: crate::claims::Device| api::ClaimResource {
            cdi_devices: d.cdi.into_iter().map(|name| api::CdiDevice { name }).collect(),
            driver_name: driver.clone(),
            pool_name: d.pool,
            device_name: d.device,
            share_id: d.share,
        };
        devices.into_iter().map(one).collect::<Vec<_>>()
    };
    api::DynamicResource {
        claim_name: info.name,
        claim_namespace: info.namespace,
        claim_resources: info.drivers.into_iter().flat_map(of_driver).collect(),
    }
}
