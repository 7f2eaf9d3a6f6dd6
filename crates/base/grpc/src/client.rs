//! Channels to a socket, and calls that end.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tower::Service;

/// How long a socket may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes of a path that a socket's address has room for, without the one that ends it.
const LONGEST: usize = 107;

/// A channel that connects at the first call, and again after a loss. To be made inside of a tokio runtime.
pub fn channel(path: &Path) -> Channel {
    endpoint().connect_with_connector_lazy(connector(path.to_path_buf()))
}

/// A channel to whoever answers at `path` now; a later loss of the connection is repaired at the next call.
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    endpoint().connect_with_connector(connector(path.to_path_buf())).await
}

pub(crate) fn endpoint() -> Endpoint {
    // Nobody resolves this name: the connector goes to its own path. Servers see it as `:authority`.
    Endpoint::from_static("http://localhost").connect_timeout(CONNECT)
}

fn connector(
    path: PathBuf,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = std::io::Error, Future: Send> + Clone + Send + Sync + 'static
{
    tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { reach(&path).await.map(TokioIo::new) }
    })
}

/// Connects to a socket. One whose path is longer than the kernel takes, as under a data directory of a long name, is reached from its own
/// directory.
pub(crate) async fn reach(path: &Path) -> io::Result<UnixStream> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if path.as_os_str().len() > LONGEST => {
            let dir = std::fs::File::open(dir)?;
            let near = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
            UnixStream::connect(near.join(name)).await
        }
        _ => UnixStream::connect(path).await,
    }
}

/// The path in `unix:///path`, `unix:/path` or a bare absolute path; anything else is an error that names `what`.
pub fn socket_path(what: &str, endpoint: &str) -> anyhow::Result<PathBuf> {
    let path = endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"))
        .unwrap_or(endpoint);
    if !path.starts_with('/') {
        bail!("{what} endpoint {endpoint:?} is not of the form unix:///absolute/path");
    }
    Ok(PathBuf::from(path))
}

/// The answer to a call, or why there is none, whatever the server does: a [`Deadline`] ends where an answer begins.
pub async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}

/// Gives every call the same time: the server is told, and the client doesn't wait longer for an answer to begin.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Duration);

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.set_timeout(self.0);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_socket_of_a_long_path_is_reached() {
        let root = std::env::temp_dir().join(format!("keelson-grpc-{}", std::process::id()));
        let dir = root.join("d".repeat(LONGEST));
        std::fs::create_dir_all(&dir).unwrap();
        let short = root.join("reg.sock");
        let listener = UnixListener::bind(&short).unwrap();
        let long = dir.join("reg.sock");
        std::fs::rename(&short, &long).unwrap();
        let (reached, accepted) = tokio::join!(reach(&long), listener.accept());
        std::fs::remove_dir_all(&root).unwrap();
        assert!(reached.is_ok() && accepted.is_ok(), "{reached:?}");
        assert_eq!(reach(&long).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_ends_is_not_waited_for() {
        let began = tokio::time::Instant::now();
        let call = std::future::pending::<Result<Response<()>, Status>>();
        let error = in_time(Duration::from_secs(3), call).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
    }
}
