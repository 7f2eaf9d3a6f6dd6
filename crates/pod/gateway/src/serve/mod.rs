//! What a node does with connections: a door a port, all of which look into the table of the moment.
//!
//! The table is exchanged as a whole. A request goes on by the one that it began with; connections and TLS sessions know none, so new rules and
//! certificates end nothing.

mod body;
mod certificates;
mod clients;
mod cors;
mod datagram;
mod filters;
mod forward;
mod h2;
mod headers;
mod mirror;
mod secure;
mod stream;
mod tunnel;

pub use certificates::{authorities, certified};
pub use datagram::run as datagrams;

use crate::matching::{self, Head};
use crate::table::{Port, Speaks, Table};
use body::{Outgoing, plain};
use forward::Forward;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use keelson_client::ObjectKey;
use keelson_listen::{Limits, Server};
use parking_lot::RwLock;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What a port's connections may cost.
fn limits() -> Limits {
    Limits {
        connections: 4096,
        streams: 250,
        head_bytes: 64 << 10,
        unread: Some(Duration::from_secs(300)),
        drain: Duration::from_secs(20),
        ..Limits::default()
    }
}

pub type Certificates = BTreeMap<ObjectKey, Arc<CertifiedKey>>;

/// What all doors of a node share.
pub struct Serving {
    now: RwLock<Now>,
    forward: Forward,
    ours: datagram::Ours,
}

#[derive(Clone, Default)]
struct Now {
    table: Arc<Table>,
    certificates: Arc<Certificates>,
}

impl Default for Serving {
    fn default() -> Self {
        Serving {
            now: RwLock::default(),
            forward: Forward::new(),
            ours: datagram::Ours::default(),
        }
    }
}

impl Serving {
    /// From now on requests go by these.
    pub fn set(&self, table: Table, certificates: Certificates) {
        self.forward.clients.keep(&table.trusts());
        let now = Now {
            table: Arc::new(table),
            certificates: Arc::new(certificates),
        };
        *self.now.write() = now;
    }

    fn port(&self, at: u16) -> Option<Arc<Port>> {
        self.now.read().table.ports.get(&at).cloned()
    }
}

/// Takes in what comes to a socket until `stop`, then lets open requests end. `at` is the port under which the table has it.
pub async fn door(
    socket: TcpListener,
    at: u16,
    speaks: Speaks,
    serving: Arc<Serving>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let door = |tls| {
        let serving = serving.clone();
        Arc::new(Door { at, tls, serving })
    };
    match speaks {
        Speaks::Http => keelson_listen::run_plain(socket, door(false), limits(), stop).await,
        Speaks::Https => {
            let config = certificates::config(serving.clone(), at, &[b"h2", b"http/1.1"])?;
            keelson_listen::run(socket, config, door(true), limits(), stop).await
        }
        Speaks::Udp => anyhow::bail!("datagrams come by no connection"),
        Speaks::Tls | Speaks::Tcp => stream::run(socket, at, speaks == Speaks::Tls, serving, limits(), stop).await,
    }
}

struct Door {
    at: u16,
    tls: bool,
    serving: Arc<Serving>,
}

/// What is known of a request besides itself.
pub struct From {
    pub remote: SocketAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The port as clients see it.
    pub port: u16,
    /// Host and port as the client said them.
    pub authority: String,
}

impl Server for Door {
    type Peer = SocketAddr;
    type Body = Outgoing;

    fn connected(&self, remote: SocketAddr, _: Option<&[CertificateDer<'_>]>, _: &CancellationToken) -> SocketAddr {
        remote
    }

    async fn answer(&self, peer: &Arc<SocketAddr>, request: Request<Incoming>) -> Response<Outgoing> {
        // Its own name in a request twice, or none, is nobody's to guess.
        let Some(authority) = headers::authority(&request) else {
            return plain(StatusCode::BAD_REQUEST, "a request has to name one host\n");
        };
        if request.method() == http::Method::CONNECT {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "this is no proxy\n");
        }
        if matching::climbs(request.uri().path()) {
            return plain(StatusCode::BAD_REQUEST, "a path can't have ..\n");
        }
        if headers::goes_round(request.headers()) {
            return plain(StatusCode::LOOP_DETECTED, "the request goes round\n");
        }
        let found = self.serving.port(self.at).and_then(|port| {
            let host = matching::host(&authority);
            let head = Head {
                method: request.method().as_str(),
                host: &host,
                path: request.uri().path(),
                query: request.uri().query().unwrap_or_default(),
                headers: request.headers(),
            };
            let rule = matching::find(&port, &head)?;
            Some((rule.then.clone(), rule.when.path.clone(), port.number))
        });
        let Some((action, path, port)) = found else {
            return plain(StatusCode::NOT_FOUND, "no rule for this host and path\n");
        };
        let from = From {
            remote: **peer,
            scheme: if self.tls { "https" } else { "http" },
            port,
            authority,
        };
        self.serving.forward.answer(&action, &path, &from, request).await
    }
}
