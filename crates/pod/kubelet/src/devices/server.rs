//! The kubelet's own socket, at which device plug-ins register. They watch it: one that is made anew tells them that the
//! kubelet was, and to register again.

use super::Devices;
use super::plugin::check;
use crate::host::FileKind;
use keelson_devices::VERSION;
use keelson_devices::plugin::registration_server::{Registration, RegistrationServer};
use keelson_devices::plugin::{Empty, RegisterRequest};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// How long an answer may take, and how many one connection may wait for.
const ANSWER: Duration = Duration::from_secs(30);
const AT_ONCE: usize = 16;

/// The directory of the sockets of plug-ins, and of the kubelet's.
fn dir(devices: &Devices) -> PathBuf {
    devices.layout.root.join("device-plugins")
}

/// Serves until the kubelet stops.
pub fn start(devices: &Arc<Devices>) {
    let listener = match listen(devices) {
        Ok(listener) => listener,
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return,
        Err(e) => {
            tracing::error!("device plug-ins can't register: {e}");
            return;
        }
    };
    let (service, stop) = (Service(devices.clone()), devices.stop.clone());
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .timeout(ANSWER)
            .concurrency_limit_per_connection(AT_ONCE)
            .add_service(RegistrationServer::new(service))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned());
        if let Err(e) = served.await {
            tracing::error!("device plug-ins can't register any more: {e}");
        }
    });
}

fn listen(devices: &Devices) -> io::Result<tokio::net::UnixListener> {
    let (dir, host) = (dir(devices), &devices.host);
    host.make_dir(&dir, 0o750)?;
    // What is left of plug-ins and of a kubelet before this one.
    for name in host.list_dir(&dir)? {
        let path = dir.join(name);
        if matches!(host.kind(&path), Ok(Some(FileKind::Socket))) {
            host.remove_file(&path)?;
        }
    }
    let listener = host.listen(&dir.join("kubelet.sock"))?;
    tokio::net::UnixListener::from_std(listener)
}

struct Service(Arc<Devices>);

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        self.take(&request)
            .await
            .map(|()| Response::new(Empty {}))
            .map_err(|e| {
                tracing::warn!(resource = request.resource_name, "a device plug-in can't register: {e}");
                Status::unknown(e)
            })
    }
}

impl Service {
    async fn take(&self, request: &RegisterRequest) -> Result<(), String> {
        if request.version != VERSION {
            return Err(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                request.version
            ));
        }
        check(&request.resource_name)?;
        let socket = socket(&dir(&self.0), &request.endpoint)?;
        self.0.connect(&request.resource_name, &socket).await
    }
}

/// Where a plug-in listens: in the directory of the kubelet's own socket.
fn socket(dir: &Path, endpoint: &str) -> Result<PathBuf, String> {
    let inside = |c: Component| matches!(c, Component::Normal(_) | Component::CurDir | Component::RootDir);
    let path = Path::new(endpoint);
    if endpoint.is_empty() || !path.components().all(inside) {
        return Err(format!(
            "the endpoint {endpoint:?} isn't the name of a socket beside the kubelet's"
        ));
    }
    Ok(dir.join(path.strip_prefix("/").unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_beside_the_kubelets() {
        let of = |endpoint| socket(Path::new("/d"), endpoint).ok();
        assert_eq!(of("a.sock"), Some("/d/a.sock".into()));
        assert_eq!(of("/a.sock"), Some("/d/a.sock".into()));
        assert_eq!(of("../a.sock"), None);
        assert_eq!(of(""), None);
    }
}
