//! A device plug-in behind a real socket: it remembers what it was asked, and answers as it is told.

use super::{Running, serve};
use keelson_devices::plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use keelson_devices::plugin::registration_client::RegistrationClient;
use keelson_devices::plugin::{self as api, Empty};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

#[derive(Default)]
pub struct State {
    /// Devices by call.
    pub calls: Vec<(&'static str, Vec<String>)>,
    /// What it prefers; `None`: it isn't asked.
    pub prefers: Option<Vec<String>>,
    pub wants_start: bool,
    /// Why it gives nothing.
    pub refuses: Option<String>,
}

#[derive(Clone)]
pub struct Plugin {
    pub resource: String,
    pub state: Arc<Mutex<State>>,
    devices: watch::Sender<Vec<api::Device>>,
    dir: PathBuf,
    endpoint: String,
}

impl Plugin {
    /// Of the node whose kubelet's directory is `root`, with these healthy devices; it isn't running yet.
    pub fn new(root: &Path, resource: &str, devices: &[&str]) -> Self {
        let plugin = Plugin {
            resource: resource.to_owned(),
            state: Arc::default(),
            devices: watch::Sender::default(),
            dir: root.join("device-plugins"),
            endpoint: format!("{}.sock", resource.replace('/', "-")),
        };
        plugin.tell(devices, &[]);
        plugin
    }

    /// Which devices there are from now on.
    pub fn tell(&self, healthy: &[&str], unhealthy: &[&str]) {
        let device = |id: &&str, health: &str| api::Device {
            id: (*id).to_owned(),
            health: health.into(),
            topology: Some(api::TopologyInfo {
                nodes: vec![api::NumaNode { id: 1 }],
            }),
        };
        let good = healthy.iter().map(|id| device(id, "Healthy"));
        let bad = unhealthy.iter().map(|id| device(id, "Unhealthy"));
        self.devices.send_replace(good.chain(bad).collect());
    }

    pub fn calls(&self, name: &str) -> Vec<Vec<String>> {
        let state = self.state.lock();
        let of_name = state.calls.iter().filter(|(n, _)| *n == name);
        of_name.map(|(_, ids)| ids.clone()).collect()
    }

    /// Serves and registers.
    pub async fn run(&self) -> Running {
        let socket = self.dir.join(&self.endpoint);
        let service = DevicePluginServer::new(self.clone());
        let running = serve(&socket, tonic::transport::Server::builder().add_service(service)).await;
        for _ in 0..200 {
            match self
                .register(api::RegisterRequest {
                    version: "v1beta1".into(),
                    endpoint: self.endpoint.clone(),
                    resource_name: self.resource.clone(),
                    options: None,
                })
                .await
            {
                Ok(()) => return running,
                Err(e) if e.code() == tonic::Code::Unknown => panic!("refused: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("the kubelet can't be reached");
    }

    pub async fn register(&self, request: api::RegisterRequest) -> Result<(), Status> {
        let channel = keelson_grpc::channel(&self.dir.join("kubelet.sock"));
        RegistrationClient::new(channel).register(request).await.map(drop)
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<api::DevicePluginOptions>, Status> {
        let state = self.state.lock();
        Ok(Response::new(api::DevicePluginOptions {
            pre_start_required: state.wants_start,
            get_preferred_allocation_available: state.prefers.is_some(),
        }))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let told = WatchStream::new(self.devices.subscribe());
        Ok(Response::new(Box::pin(
            told.map(|devices| Ok(api::ListAndWatchResponse { devices })),
        )))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        let asked = request.into_inner().container_requests.remove(0);
        let prefers = {
            let mut state = self.state.lock();
            state.calls.push(("prefer", asked.available_device_i_ds));
            state.prefers.clone().unwrap_or_default()
        };
        // Others are asked for meanwhile.
        tokio::task::yield_now().await;
        let answer = api::ContainerPreferredAllocationResponse { device_i_ds: prefers };
        Ok(Response::new(api::PreferredAllocationResponse {
            container_responses: vec![answer],
        }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let mut ids = request.into_inner().container_requests.remove(0).devices_ids;
        ids.sort();
        let mut state = self.state.lock();
        state.calls.push(("allocate", ids.clone()));
        if let Some(why) = &state.refuses {
            return Err(Status::unknown(why.clone()));
        }
        let device = |id: &String| api::DeviceSpec {
            container_path: format!("/dev/gift-{id}"),
            host_path: format!("/dev/host-{id}"),
            permissions: "rw".into(),
        };
        Ok(Response::new(api::AllocateResponse {
            container_responses: vec![api::ContainerAllocateResponse {
                envs: HashMap::from([("GIFTS".into(), ids.join(","))]),
                mounts: vec![api::Mount {
                    container_path: "/usr/lib/gift".into(),
                    host_path: "/opt/gift".into(),
                    read_only: true,
                }],
                devices: ids.iter().map(device).collect(),
                annotations: HashMap::from([("gift".into(), "given".into())]),
                cdi_devices: vec![api::CdiDevice {
                    name: format!("vendor.test/gift={}", ids[0]),
                }],
            }],
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        self.state
            .lock()
            .calls
            .push(("start", request.into_inner().devices_ids));
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}
