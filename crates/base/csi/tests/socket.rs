//! A driver is reached by its socket, whatever happens to it meanwhile.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keelson_csi::v1::identity_server::{Identity, IdentityServer};
use keelson_csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    ProbeRequest, ProbeResponse,
};
use keelson_csi::{Driver, ended};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

struct Hanging;

#[tonic::async_trait]
impl Identity for Hanging {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: "hanging.example".into(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Err(Status::invalid_argument("no"))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        std::future::pending().await
    }
}

async fn serve(path: &Path) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let listener = keelson_grpc::bind(path).await.expect("a free path");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(IdentityServer::new(Hanging))
        .serve_with_incoming_shutdown(listener, async { drop(stopped.await) });
    let task = tokio::spawn(async { server.await.expect("it ends well") });
    (stop, task)
}

async fn name(driver: &Driver) -> Result<String, Status> {
    let answer = driver.identity().get_plugin_info(GetPluginInfoRequest {}).await?;
    Ok(answer.into_inner().name)
}

#[tokio::test]
async fn calls_end_and_connections_are_made_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let path: PathBuf = dir.path().join("deep/csi.sock");
    let driver = Driver::at(&path, Duration::from_millis(300));
    let nobody = name(&driver).await.expect_err("nobody is there");
    assert!(!ended(&nobody), "{nobody:?}");

    let (stop, task) = serve(&path).await;
    assert_eq!(name(&driver).await.as_deref().ok(), Some("hanging.example"));
    assert!(
        keelson_grpc::bind(&path).await.is_err(),
        "a live server keeps its socket"
    );

    let started = Instant::now();
    let late = driver.identity().probe(ProbeRequest {}).await.expect_err("it hangs");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(!ended(&late), "{late:?}");
    let refused = driver
        .identity()
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .expect_err("it refuses");
    assert!(ended(&refused), "{refused:?}");

    // Dies without a word, its socket left behind; another takes its place.
    task.abort();
    drop(stop);
    let _ = task.await;
    let (stop, task) = serve(&path).await;
    let mut answer = name(&driver).await;
    for _ in 0..50 {
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = name(&driver).await;
    }
    assert_eq!(answer.as_deref().ok(), Some("hanging.example"));
    drop(driver);
    let _ = stop.send(());
    task.await.expect("the server ends");
    keelson_grpc::unbind(&path).expect("removed");
    assert!(!path.exists());
}
