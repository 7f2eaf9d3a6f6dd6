//! A CRI server on a unix socket, for kubelets of other processes and for crictl.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

use crate::MAX_MESSAGE_BYTES;
use crate::clients::socket_path;
use crate::v1::image_service_server::{ImageService, ImageServiceServer};
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};

/// Serves both services on `endpoint` (`unix:///…`) until `stop` resolves, then lets running calls finish.
///
/// The socket is private to root. One that another live server holds is refused; a stale one is replaced.
pub async fn serve<R: RuntimeService, I: ImageService>(
    endpoint: &str,
    runtime: R,
    image: I,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let path = socket_path(endpoint)?;
    let listener = bind(&path).await?;
    let served = tonic::transport::Server::builder()
        .add_service(limited_runtime(RuntimeServiceServer::new(runtime)))
        .add_service(limited_image(ImageServiceServer::new(image)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    served.with_context(|| format!("CRI server on {}", path.display()))
}

async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    match UnixStream::connect(path).await {
        Ok(_) => anyhow::bail!("another server is already listening on {}", path.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove stale {}", path.display()))?;
        }
        Err(e) => return Err(e).with_context(|| format!("cannot use {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

pub(crate) fn limited_runtime<R: RuntimeService>(server: RuntimeServiceServer<R>) -> RuntimeServiceServer<R> {
    server
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub(crate) fn limited_image<I: ImageService>(server: ImageServiceServer<I>) -> ImageServiceServer<I> {
    server
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}
