//! A CSI driver behind real sockets: it remembers what it was asked, mounts on the fake machine, and fails or hangs as it
//! is told.

use keelson_csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use keelson_csi::v1::node_server::{Node, NodeServer};
use keelson_csi::v1::node_service_capability::rpc::Type as Capability;
use keelson_csi::v1::{self as csi, node_service_capability as service};
use keelson_kubelet::Host;
use keelson_kubelet::host::fake::FakeHost;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

/// A call: its name, the volume and the path it is about.
pub type Call = (&'static str, String, String);

#[derive(Default)]
pub struct State {
    pub calls: Vec<Call>,
    pub staged: Vec<csi::NodeStageVolumeRequest>,
    pub published: Vec<csi::NodePublishVolumeRequest>,
    pub expanded: Vec<csi::NodeExpandVolumeRequest>,
    pub can: BTreeSet<i32>,
    /// Answers to calls by name; each is given once.
    pub fails: BTreeMap<&'static str, Vec<Status>>,
    /// Calls that are never answered.
    pub hangs: BTreeSet<&'static str>,
    /// How many volumes the node can have.
    pub limit: i64,
    /// What the kubelet said of registrations.
    pub told: Vec<(bool, String)>,
}

#[derive(Clone)]
pub struct Driver {
    pub name: String,
    pub state: Arc<Mutex<State>>,
    host: Arc<FakeHost>,
    socket: PathBuf,
    registration: PathBuf,
}

pub struct Running(Vec<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Driver {
    /// A driver of the node whose kubelet's directory is `root`; it isn't running yet.
    pub fn new(host: &Arc<FakeHost>, root: &Path, name: &str) -> Self {
        let can = [
            Capability::StageUnstageVolume,
            Capability::ExpandVolume,
            Capability::GetVolumeStats,
        ];
        let state = State {
            limit: 8,
            can: can.iter().map(|c| *c as i32).collect(),
            ..State::default()
        };
        Driver {
            name: name.to_owned(),
            state: Arc::new(Mutex::new(state)),
            host: host.clone(),
            socket: root.join(format!("plugins/{name}.sock")),
            registration: root.join(format!("plugins_registry/{name}-reg.sock")),
        }
    }

    /// Registers in a directory of another name than that by which it calls its own socket.
    pub fn registering_in(mut self, root: &Path) -> Self {
        self.registration = root.join(format!("plugins_registry/{}-reg.sock", self.name));
        self
    }

    /// Serves, and leaves its registration socket for the kubelet.
    pub async fn run(&self) -> Running {
        let tasks = vec![
            self.serve(&self.socket, false).await,
            self.serve(&self.registration, true).await,
        ];
        self.host.write(&self.registration, b"", 0o600).unwrap();
        Running(tasks)
    }

    async fn serve(&self, socket: &Path, registers: bool) -> JoinHandle<()> {
        let incoming = keelson_grpc::bind(socket).await.unwrap();
        let (mut server, driver) = (tonic::transport::Server::builder(), self.clone());
        tokio::spawn(async move {
            let result = if registers {
                server
                    .add_service(RegistrationServer::new(driver))
                    .serve_with_incoming(incoming)
                    .await
            } else {
                server
                    .add_service(NodeServer::new(driver))
                    .serve_with_incoming(incoming)
                    .await
            };
            result.unwrap();
        })
    }

    /// Takes the registration socket away.
    pub fn leave(&self) {
        std::fs::remove_file(&self.registration).unwrap();
        self.host.remove_file(&self.registration).unwrap();
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// Names of the calls so far that do something.
    pub fn deeds(&self) -> Vec<&'static str> {
        self.calls().into_iter().map(|c| c.0).collect()
    }

    async fn called(&self, name: &'static str, volume: &str, path: &str) -> Result<(), Status> {
        let (hangs, fails) = {
            let mut state = self.state.lock();
            state.calls.push((name, volume.to_owned(), path.to_owned()));
            let fails = state
                .fails
                .get_mut(name)
                .and_then(|f| (!f.is_empty()).then(|| f.remove(0)));
            (state.hangs.contains(name), fails)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        fails.map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: keelson_csi::CSI_PLUGIN.into(),
            name: self.name.clone(),
            endpoint: self.socket.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.state.lock().told.push((status.plugin_registered, status.error));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let r = request.into_inner();
        self.called("stage", &r.volume_id, &r.staging_target_path).await?;
        self.host.mount(r.staging_target_path.as_ref());
        self.state.lock().staged.push(r);
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let r = request.into_inner();
        self.called("unstage", &r.volume_id, &r.staging_target_path).await?;
        self.host.unmount(r.staging_target_path.as_ref())?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let r = request.into_inner();
        self.called("publish", &r.volume_id, &r.target_path).await?;
        self.host.mount(r.target_path.as_ref());
        self.state.lock().published.push(r);
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let r = request.into_inner();
        self.called("unpublish", &r.volume_id, &r.target_path).await?;
        self.host.unmounted(r.target_path.as_ref());
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let usage = csi::VolumeUsage {
            available: 60,
            total: 100,
            used: 40,
            unit: csi::volume_usage::Unit::Bytes as i32,
        };
        Ok(Response::new(csi::NodeGetVolumeStatsResponse { usage: vec![usage] }))
    }

    async fn node_get_volume_health(
        &self,
        _: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("no"))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("no"))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let r = request.into_inner();
        self.called("expand", &r.volume_id, &r.volume_path).await?;
        self.state.lock().expanded.push(r);
        Ok(Response::new(csi::NodeExpandVolumeResponse::default()))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let can = self.state.lock().can.clone();
        let one = |r#type: i32| csi::NodeServiceCapability {
            r#type: Some(service::Type::Rpc(service::Rpc { r#type })),
        };
        Ok(Response::new(csi::NodeGetCapabilitiesResponse {
            capabilities: can.into_iter().map(one).collect(),
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: format!("id-of-{}", self.name),
            max_volumes_per_node: self.state.lock().limit,
            accessible_topology: Some(csi::Topology {
                segments: HashMap::from([(format!("topology.{}/zone", self.name), "z1".into())]),
            }),
        }))
    }
}
