//! What asks backends, by what they speak and have to show. Connections are kept for the next request.

use super::body::Outgoing;
use super::secure::Ours;
use super::{Certificates, h2, secure};
use crate::table::{Protocol, Trust, TrustId};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How long a connection to a backend may take to be made.
pub const CONNECT: Duration = Duration::from_secs(5);
/// A connection that is kept for the next request, and how many of an endpoint.
const IDLE: Duration = Duration::from_secs(30);
const KEPT: usize = 64;

/// Why an attempt came to nothing.
pub enum Failed {
    /// Nothing of the request was sent.
    Unreached(String),
    Broken(String),
    Late,
}

/// Where a request goes, and how.
#[derive(Clone)]
pub struct To {
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub trust: Option<Arc<Trust>>,
}

type Secure = Client<HttpsConnector<HttpConnector>, Outgoing>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    http1: Client<HttpConnector, Outgoing>,
    /// One for all that has to show the same.
    secure: Arc<Mutex<BTreeMap<TrustId, Secure>>>,
    http2: h2::Pool,
    ours: Ours,
}

impl Clients {
    pub fn new() -> Clients {
        Clients {
            http1: client(connector()),
            secure: Arc::default(),
            http2: h2::Pool::default(),
            ours: Ours::default(),
        }
    }

    /// From now on these are shown to who asks for one.
    pub fn show(&self, all: Arc<Certificates>) {
        self.ours.set(all);
    }

    /// Makes TLS of a connection; `alpn`: see [`secure::connect`].
    pub async fn secured(&self, stream: TcpStream, trust: &Trust, alpn: &[u8]) -> Result<TlsStream<TcpStream>, String> {
        secure::connect(stream, trust, &self.ours, alpn).await
    }

    /// What nothing has to show any more is forgotten, with its connections.
    pub fn keep(&self, trusts: &BTreeSet<TrustId>) {
        self.secure.lock().retain(|id, _| trusts.contains(id));
        self.http2.keep(trusts);
    }

    pub async fn request(&self, to: &To, request: Request<Outgoing>) -> Result<Response<Incoming>, Failed> {
        let failed = |error: Error| match error.is_connect() {
            true => Failed::Unreached(text(&error)),
            false => Failed::Broken(text(&error)),
        };
        match (to.protocol, &to.trust) {
            (Protocol::Http1, None) => self.http1.request(request).await.map_err(failed),
            (Protocol::Http1, Some(trust)) => {
                let client = self.secure(trust).map_err(Failed::Unreached)?;
                client.request(request).await.map_err(failed)
            }
            (Protocol::H2c, trust) => {
                self.http2
                    .request(to.address, trust.as_deref(), &self.ours, request)
                    .await
            }
        }
    }

    fn secure(&self, trust: &Trust) -> Result<Secure, String> {
        let mut all = self.secure.lock();
        if let Some(known) = all.get(&trust.id) {
            return Ok(known.clone());
        }
        let mut reach = connector();
        reach.enforce_http(false);
        let made = client(secure::connector(trust, &self.ours, reach)?);
        all.insert(trust.id, made.clone());
        Ok(made)
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(Duration::from_secs(180)));
    connector
}

fn client<C: Connect + Clone + Send + Sync + 'static>(connector: C) -> Client<C, Outgoing> {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(KEPT)
        .build(connector)
}

/// An error with its causes.
pub fn text(error: &dyn std::error::Error) -> String {
    let mut all = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        all = format!("{all}: {error}");
        cause = error.source();
    }
    all
}
