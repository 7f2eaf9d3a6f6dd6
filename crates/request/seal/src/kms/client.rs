//! Calls to a plug-in: gRPC over a unix socket, each within the time that the configuration allows.

use super::v2::key_management_service_client::KeyManagementServiceClient;
use super::v2::{DecryptRequest, EncryptRequest, EncryptResponse, EncryptedObject, StatusRequest, StatusResponse};
use crate::metrics::Metrics;
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use std::fmt;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Uri};
use tonic::{Code, Response, Status};

/// Where a plug-in listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Path(PathBuf),
    /// A socket without a file: `unix:///@name`.
    Abstract(String),
}

impl Endpoint {
    /// Of `unix:///path`, whose scheme has been checked.
    pub fn of(url: &str) -> Endpoint {
        let rest = url.strip_prefix("unix:").unwrap_or(url);
        let path = match rest.strip_prefix("//") {
            Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
            None => rest,
        };
        match path.strip_prefix("/@") {
            Some(name) => Endpoint::Abstract(name.into()),
            None => Endpoint::Path(path.into()),
        }
    }

    async fn connect(&self) -> std::io::Result<UnixStream> {
        match self {
            Endpoint::Path(path) => UnixStream::connect(path).await,
            Endpoint::Abstract(name) => {
                let stream = StdStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            }
        }
    }
}

/// What a call came to, as Go writes it.
pub struct Failed(Status);

impl Failed {
    /// It says nothing of what was asked: nobody answered, or not for that reason.
    pub fn later(&self) -> bool {
        let code = self.0.code();
        matches!(
            code,
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Internal
                | Code::Unknown
        )
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc error: code = {:?} desc = {}", self.0.code(), self.0.message())
    }
}

pub struct Client {
    name: String,
    channel: Channel,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl Client {
    /// Connects with the first call, and again whenever the connection is lost.
    pub fn new(name: &str, endpoint: Endpoint, timeout: Duration, metrics: Arc<Metrics>) -> Client {
        let connector = tower::service_fn(move |_: Uri| {
            let endpoint = endpoint.clone();
            async move { endpoint.connect().await.map(TokioIo::new) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://localhost")
            .connect_timeout(timeout)
            .connect_with_connector_lazy(connector);
        Client {
            name: name.into(),
            channel,
            timeout,
            metrics,
        }
    }

    async fn within<T>(
        &self,
        method: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failed> {
        let began = Instant::now();
        let answer = tokio::time::timeout(self.timeout, call).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let method = format!("/v2.KeyManagementService/{method}");
        self.metrics
            .asked(&self.name, &method, &format!("{code:?}"), began.elapsed());
        answer.map(Response::into_inner).map_err(Failed)
    }

    fn stub(&self) -> KeyManagementServiceClient<Channel> {
        KeyManagementServiceClient::new(self.channel.clone())
    }

    pub async fn status(&self) -> Result<StatusResponse, Failed> {
        self.within("Status", self.stub().status(StatusRequest {})).await
    }

    pub async fn encrypt(&self, plaintext: Bytes) -> Result<EncryptResponse, Failed> {
        let uid = uuid::Uuid::new_v4().to_string();
        let request = EncryptRequest { plaintext, uid };
        self.within("Encrypt", self.stub().encrypt(request)).await
    }

    /// The source of the data key of a stored object.
    pub async fn decrypt(&self, object: &EncryptedObject) -> Result<Bytes, Failed> {
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer = self.within("Decrypt", self.stub().decrypt(request)).await?;
        Ok(answer.plaintext)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_upstream_reads_them() {
        let path = |p: &str| Endpoint::Path(p.into());
        assert_eq!(Endpoint::of("unix:///run/kms.sock"), path("/run/kms.sock"));
        assert_eq!(Endpoint::of("unix:/run/kms.sock"), path("/run/kms.sock"));
        assert_eq!(Endpoint::of("unix:///@kms"), Endpoint::Abstract("kms".into()));
    }
}
