//! The driver's two sockets: its own, and the one by which a kubelet comes to know it.

use crate::driver::{LocalDriver, NAME};
use crate::pool::Pool;
use anyhow::Context;
use keelson_csi::registration::registration_server::{Registration, RegistrationServer};
use keelson_csi::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use keelson_csi::v1::controller_server::ControllerServer;
use keelson_csi::v1::identity_server::IdentityServer;
use keelson_csi::v1::node_server::NodeServer;
use keelson_csi::{CSI_PLUGIN, CSI_VERSION};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Where the driver listens, below a kubelet's directory.
pub fn socket(kubelet: &Path) -> PathBuf {
    kubelet.join("plugins").join(NAME).join("csi.sock")
}

/// Serves the pool until `stop`; calls that run are finished.
pub async fn driver(pool: Arc<Pool>, node: &str, socket: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let driver = LocalDriver::new(pool, node);
    let listener = keelson_grpc::bind(socket).await?;
    let served = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver))
        .serve_with_incoming_shutdown(listener, stop.cancelled_owned())
        .await;
    keelson_grpc::unbind(socket)?;
    served.context("the storage driver's server")
}

/// Tells the kubelet of a driver, until `stop`.
pub async fn registration(kubelet: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let path = kubelet.join("plugins_registry").join(format!("{NAME}-reg.sock"));
    let listener = keelson_grpc::bind(&path).await?;
    let registrar = Registrar {
        endpoint: socket(kubelet).display().to_string(),
    };
    let served = Server::builder()
        .add_service(RegistrationServer::new(registrar))
        .serve_with_incoming_shutdown(listener, stop.cancelled_owned())
        .await;
    keelson_grpc::unbind(&path)?;
    served.context("the storage driver's registration")
}

struct Registrar {
    endpoint: String,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.into(),
            name: NAME.into(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![CSI_VERSION.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if !status.plugin_registered {
            tracing::warn!(error = status.error, "the kubelet refuses the storage driver");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
