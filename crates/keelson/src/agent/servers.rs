//! The API servers as an agent reaches them: a list, learned from the cluster itself, and a client that goes to whichever
//! answers.
//!
//! * Every server's certificate says [`NAME`], so that a server is verified the same wherever it is dialled.
//! * One HTTP/2 connection carries everything. It is dialled anew when it breaks, or when the server doesn't answer a ping
//!   for [`ANSWER`]: first to the server that last answered, then to the others in turn.
//! * The list is kept in a file: the server by which the machine joined may be gone for good at the next start.

use anyhow::{Context as _, bail};
use http::{HeaderMap, HeaderValue, Request, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keelson_apiserver::{LOCAL_STORAGE, UserInfo};
use keelson_client::ClientFactory;
use kube::client::Body;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A name that stands in the certificate of every API server.
pub const NAME: &str = "kubernetes.default.svc";
/// How long one server may take to be connected, TLS included, before the next is tried.
const CONNECT: Duration = Duration::from_secs(3);
/// A silent connection is asked after the first, and given up after the second.
const ASK: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(15);
/// Servers remembered at most; a cluster has three or five.
const MOST: usize = 64;

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
struct Known {
    /// `host:port` by which this machine joined: maybe of something that balances load. Tried last.
    joined: String,
    /// From the endpoints of the service `kubernetes`.
    learned: Vec<String>,
}

pub struct Servers {
    file: PathBuf,
    known: Mutex<Known>,
    /// Who answered last.
    last: Mutex<Option<String>>,
}

impl Servers {
    /// The list in `file`; `given` is the server by which the machine is to join now.
    pub fn open(file: &Path, given: Option<&str>) -> anyhow::Result<Arc<Servers>> {
        let text = keelson_pki::files::read(file)?;
        let mut known: Known = match text {
            Some(text) => serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?,
            None => Known::default(),
        };
        if let Some(given) = given {
            known.joined = endpoint(given)?;
        }
        if known.joined.is_empty() {
            bail!(
                "this machine has not joined a cluster yet: give --server and --token (keelson token create --print-join-command)"
            );
        }
        let servers = Servers {
            file: file.to_path_buf(),
            known: Mutex::new(known),
            last: Mutex::default(),
        };
        Ok(Arc::new(servers))
    }

    /// Takes the servers that the cluster has now. None is no news: a cluster without servers tells nothing.
    pub fn learn(&self, mut servers: Vec<String>) -> anyhow::Result<()> {
        servers.truncate(MOST);
        let mut known = self.known.lock();
        if servers.is_empty() || known.learned == servers {
            return Ok(());
        }
        tracing::info!(?servers, "the cluster's API servers");
        known.learned = servers;
        let text = serde_json::to_vec(&*known)?;
        keelson_pki::files::write_public(&self.file, &text)
    }

    /// In which order to try them.
    fn order(&self) -> Vec<String> {
        let known = self.known.lock();
        let mut order: Vec<String> = self.last.lock().iter().cloned().collect();
        for server in known.learned.iter().chain([&known.joined]) {
            if !order.contains(server) {
                order.push(server.clone());
            }
        }
        order
    }

    async fn dial(&self, tls: &TlsConnector, name: &ServerName<'static>) -> io::Result<TlsStream<TcpStream>> {
        let mut failures = Vec::new();
        for server in self.order() {
            let attempt = async {
                let stream = TcpStream::connect(&server).await?;
                stream.set_nodelay(true)?;
                tls.connect(name.clone(), stream).await
            };
            match tokio::time::timeout(CONNECT, attempt).await {
                Ok(Ok(stream)) => {
                    *self.last.lock() = Some(server);
                    return Ok(stream);
                }
                Ok(Err(error)) => failures.push(format!("{server}: {error}")),
                Err(_) => failures.push(format!("{server}: no answer within {CONNECT:?}")),
            }
        }
        *self.last.lock() = None;
        Err(io::Error::other(format!(
            "no API server can be reached ({})",
            failures.join("; ")
        )))
    }
}

/// `https://HOST:PORT`, the port being 6443 if none is said.
fn endpoint(url: &str) -> anyhow::Result<String> {
    let wrong = || format!("--server {url}: the form is https://HOST:6443");
    let uri: Uri = url.parse().with_context(wrong)?;
    let host = uri
        .host()
        .filter(|_| uri.scheme_str() == Some("https"))
        .with_context(wrong)?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        bail!("{}", wrong());
    }
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(6443)))
}

/// Clients over one connection.
#[derive(Clone)]
pub struct Link {
    http: Client<Dialer, Body>,
    broken: Arc<Mutex<CancellationToken>>,
    /// Whose connection this is: acts as itself, and as others by impersonation.
    own: String,
}

impl Link {
    /// `own` is who the server takes this connection's user for.
    pub fn new(servers: Arc<Servers>, mut tls: ClientConfig, own: &str) -> anyhow::Result<Link> {
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let broken = Arc::new(Mutex::new(CancellationToken::new()));
        let dialer = Dialer {
            servers,
            tls: TlsConnector::from(Arc::new(tls)),
            name: ServerName::try_from(NAME).context("a name of the API server")?,
            broken: broken.clone(),
        };
        let http = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(ASK)
            .http2_keep_alive_timeout(ANSWER)
            .build(dialer);
        Ok(Link {
            http,
            broken,
            own: own.to_string(),
        })
    }

    /// Ends the connection, so that the next proves itself anew: a certificate has been renewed.
    pub fn renew(&self) {
        std::mem::take(&mut *self.broken.lock()).cancel();
    }

    /// A client that sends these headers along.
    pub fn with(&self, headers: HeaderMap) -> kube::Client {
        let service = tower::util::MapRequest::new(self.http.clone(), move |mut request: Request<Body>| {
            let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
            match Uri::builder()
                .scheme("https")
                .authority(NAME)
                .path_and_query(path)
                .build()
            {
                Ok(uri) => *request.uri_mut() = uri,
                Err(error) => tracing::error!(%error, "a request without a path"),
            }
            request.headers_mut().extend(headers.clone());
            request
        });
        kube::Client::new(service, "default")
    }
}

impl ClientFactory for Link {
    fn client(&self, identity: &str) -> kube::Client {
        let mut headers = HeaderMap::new();
        if identity != self.own {
            match identity.parse() {
                Ok(value) => _ = headers.insert("impersonate-user", value),
                // Without the header it would act as the node, which may do less: nothing is gained by going on.
                Err(_) => tracing::error!(identity, "no name that a header can carry"),
            }
            // A service account has its groups by its name; others are given theirs.
            if UserInfo::from_identity(identity).local_storage_node().is_some() {
                headers.insert("impersonate-group", HeaderValue::from_static(LOCAL_STORAGE));
            }
        }
        self.with(headers)
    }
}

#[derive(Clone)]
struct Dialer {
    servers: Arc<Servers>,
    tls: TlsConnector,
    name: ServerName<'static>,
    broken: Arc<Mutex<CancellationToken>>,
}

impl tower::Service<Uri> for Dialer {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            // The token before the connection: what is renewed meanwhile ends it.
            let broken = this.broken.lock().clone();
            let io = this.servers.dial(&this.tls, &this.name).await?;
            Ok(Stream {
                io: TokioIo::new(io),
                broken: Box::pin(broken.cancelled_owned()),
            })
        })
    }
}

/// A connection that ends when it is not to be used any more.
struct Stream {
    io: TokioIo<TlsStream<TcpStream>>,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.broken.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answered_is_tried_first_and_who_was_joined_last() {
        let dir = std::env::temp_dir().join(format!("keelson-servers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("servers.json");
        assert!(Servers::open(&file, None).is_err());
        let servers = Servers::open(&file, Some("https://lb.example")).unwrap();
        assert_eq!(servers.order(), ["lb.example:6443"]);
        servers
            .learn(vec!["10.0.0.1:6443".into(), "10.0.0.2:6443".into()])
            .unwrap();
        servers.learn(Vec::new()).unwrap();
        *servers.last.lock() = Some("10.0.0.2:6443".into());
        assert_eq!(servers.order(), ["10.0.0.2:6443", "10.0.0.1:6443", "lb.example:6443"]);
        // Another process knows them too, without being told by whom to join.
        let again = Servers::open(&file, None).unwrap();
        assert_eq!(again.order(), ["10.0.0.1:6443", "10.0.0.2:6443", "lb.example:6443"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_server_is_named_by_its_url() {
        assert_eq!(endpoint("https://10.0.0.1:7443").unwrap(), "10.0.0.1:7443");
        assert_eq!(endpoint("https://[fd00::1]/").unwrap(), "[fd00::1]:6443");
        for wrong in ["10.0.0.1:6443", "http://10.0.0.1", "https://h/path", "nonsense"] {
            assert!(endpoint(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
