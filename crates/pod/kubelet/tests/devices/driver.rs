//! A driver of claims behind real sockets: it remembers what it was asked, and answers as it is told.

use super::{Running, serve};
use keelson_csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use keelson_devices::dra as api;
use keelson_devices::dra::dra_plugin_server::{DraPlugin, DraPluginServer};
use keelson_devices::health::dra_resource_health_server::{DraResourceHealth, DraResourceHealthServer};
use keelson_devices::health::{self as told, HealthStatus};
use keelson_kubelet::Host;
use keelson_kubelet::host::fake::FakeHost;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

#[derive(Default)]
pub struct State {
    /// Claims by call.
    pub calls: Vec<(&'static str, String)>,
    /// Why nothing can be made ready, or given back.
    pub refuses: Option<String>,
    /// It is started anew, once, when the kubelet is about to tell it that it is taken.
    pub begins_anew: bool,
    /// What the kubelet said of registrations.
    pub told: Vec<(bool, String)>,
}

#[derive(Clone)]
pub struct Driver {
    pub name: String,
    pub versions: Vec<&'static str>,
    pub state: Arc<Mutex<State>>,
    health: watch::Sender<HealthStatus>,
    host: Arc<FakeHost>,
    socket: PathBuf,
    registration: PathBuf,
}

impl Driver {
    /// Of the node whose kubelet's directory is `root`; it isn't running yet.
    pub fn new(host: &Arc<FakeHost>, root: &Path, name: &str) -> Self {
        Driver {
            name: name.to_owned(),
            versions: vec!["v1.DRAPlugin", "v1.DRAResourceHealth"],
            state: Arc::default(),
            health: watch::Sender::new(HealthStatus::Healthy),
            host: host.clone(),
            socket: root.join(format!("plugins/{name}/dra.sock")),
            registration: root.join(format!("plugins_registry/{name}-reg.sock")),
        }
    }

    /// How all its devices are from now on.
    pub fn tell(&self, health: HealthStatus) {
        self.health.send_replace(health);
    }

    pub fn calls(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let of_name = state.calls.iter().filter(|(n, _)| *n == name);
        of_name.map(|(_, claim)| claim.clone()).collect()
    }

    /// Serves, and leaves its registration socket for the kubelet.
    pub async fn run(&self) -> [Running; 2] {
        let running = [self.serve().await, self.serve_registration().await];
        self.host.write(&self.registration, b"", 0o600).unwrap();
        running
    }

    /// Takes the registration socket away.
    pub fn leave(&self) {
        std::fs::remove_file(&self.registration).unwrap();
        self.host.remove_file(&self.registration).unwrap();
    }

    pub async fn serve(&self) -> Running {
        let server = tonic::transport::Server::builder()
            .add_service(DraPluginServer::new(self.clone()))
            .add_service(DraResourceHealthServer::new(self.clone()));
        serve(&self.socket, server).await
    }

    async fn serve_registration(&self) -> Running {
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(self.clone()));
        serve(&self.registration, server).await
    }

    /// Why not, once.
    fn called(&self, name: &'static str, claims: &[api::Claim]) -> Option<String> {
        let mut state = self.state.lock();
        state.calls.extend(claims.iter().map(|c| (name, c.name.clone())));
        state.refuses.take()
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: self.name.clone(),
            endpoint: self.socket.to_string_lossy().into_owned(),
            supported_versions: self.versions.iter().map(|v| (*v).to_owned()).collect(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let said = request.into_inner();
        let anew = std::mem::take(&mut self.state.lock().begins_anew);
        if anew {
            self.host.write(&self.registration, b"", 0o600).unwrap();
            std::future::pending::<()>().await;
        }
        self.state.lock().told.push((said.plugin_registered, said.error));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<api::NodePrepareResourcesRequest>,
    ) -> Result<Response<api::NodePrepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims;
        let error = self.called("prepare", &claims).unwrap_or_default();
        let device = |of: &str, request: &str| api::Device {
            request_names: vec![request.into()],
            pool_name: "n1".into(),
            device_name: format!("{of}-{request}"),
            cdi_device_ids: vec![format!("d.test/claim={of}-{request}")],
            share_id: None,
        };
        let made = |c: api::Claim| {
            let devices = vec![device(&c.name, "big"), device(&c.name, "small")];
            let error = error.clone();
            (c.uid, api::NodePrepareResourceResponse { devices, error })
        };
        Ok(Response::new(api::NodePrepareResourcesResponse {
            claims: claims.into_iter().map(made).collect::<HashMap<_, _>>(),
        }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<api::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<api::NodeUnprepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims;
        let error = self.called("unprepare", &claims).unwrap_or_default();
        let done = |c: api::Claim| (c.uid, api::NodeUnprepareResourceResponse { error: error.clone() });
        Ok(Response::new(api::NodeUnprepareResourcesResponse {
            claims: claims.into_iter().map(done).collect::<HashMap<_, _>>(),
        }))
    }
}

#[tonic::async_trait]
impl DraResourceHealth for Driver {
    type NodeWatchResourcesStream =
        Pin<Box<dyn Stream<Item = Result<told::NodeWatchResourcesResponse, Status>> + Send>>;

    async fn node_watch_resources(
        &self,
        _: Request<told::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let list = |health: HealthStatus| told::NodeWatchResourcesResponse {
            devices: vec![told::DeviceHealth {
                device: Some(told::DeviceIdentifier {
                    pool_name: "n1".into(),
                    device_name: "c-big".into(),
                }),
                health: health as i32,
                health_check_timeout_seconds: 100_000,
                ..Default::default()
            }],
        };
        let stream = WatchStream::new(self.health.subscribe());
        Ok(Response::new(Box::pin(stream.map(move |h| Ok(list(h))))))
    }
}
