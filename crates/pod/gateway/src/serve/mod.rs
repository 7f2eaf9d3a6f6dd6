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
mod told;
mod tunnel;
mod vetting;

pub use certificates::{authorities, certified};
pub use datagram::run as datagrams;

use crate::matching::{self, Head};
use crate::table::{Port, Speaks, Table};
use body::{Outgoing, plain};
use forward::Forward;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use keelson_client::ObjectKey;
use keelson_listen::{ByHello, LastOne, Limits, Server};
use keelson_measure::Measures;
use parking_lot::RwLock;
use rustls::server::ServerConnection;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use told::{Counted, Noted, Of, Told};
use vetting::{Client, Misdirected, Vetting};

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
    told: Arc<Told>,
}

#[derive(Clone, Default)]
struct Now {
    table: Arc<Table>,
    certificates: Arc<Certificates>,
}

impl Default for Serving {
    fn default() -> Self {
        Serving::new(&Measures::default())
    }
}

impl Serving {
    pub fn new(measures: &Measures) -> Serving {
        Serving {
            now: RwLock::default(),
            forward: Forward::new(),
            ours: datagram::Ours::default(),
            told: Arc::new(Told::new(measures)),
        }
    }

    /// From now on requests go by these.
    pub fn set(&self, table: Table, certificates: Certificates) {
        self.forward.clients.keep(&table.trusts());
        self.told.keep(&table);
        let certificates = Arc::new(certificates);
        self.forward.clients.show(certificates.clone());
        let now = Now {
            table: Arc::new(table),
            certificates,
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
    let door = |vetting| {
        let serving = serving.clone();
        Arc::new(Door { at, vetting, serving })
    };
    match speaks {
        Speaks::Http => keelson_listen::run_plain(socket, door(None), limits(), stop).await,
        Speaks::Https => {
            let vetting = Arc::new(Vetting::new(serving.clone(), at)?);
            let own = vetting.clone();
            let by_hello: ByHello = Arc::new(move |hello| own.config(hello));
            keelson_listen::run_by_hello(socket, by_hello, door(Some(vetting)), limits(), stop).await
        }
        Speaks::Udp => anyhow::bail!("datagrams come by no connection"),
        Speaks::Tls | Speaks::Tcp => stream::run(socket, at, speaks == Speaks::Tls, serving, limits(), stop).await,
    }
}

struct Door {
    at: u16,
    /// Of connections by TLS.
    vetting: Option<Arc<Vetting>>,
    serving: Arc<Serving>,
}

/// What is known of a request besides itself.
pub struct From {
    /// What the client has shown and was found good.
    pub certificate: Option<HeaderValue>,
    pub remote: SocketAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The port as clients see it.
    pub port: u16,
    /// Host and port as the client said them.
    pub authority: String,
}

impl Server for Door {
    type Peer = Client;
    type Body = Counted;

    fn connected(&self, remote: SocketAddr, _: Option<&[CertificateDer<'_>]>, _: &CancellationToken) -> Client {
        Client::plain(remote)
    }

    fn secured(&self, remote: SocketAddr, session: &ServerConnection, _: &CancellationToken) -> Client {
        Client::secured(remote, session)
    }

    async fn answer(&self, peer: &Arc<Client>, request: Request<Incoming>) -> Response<Counted> {
        let mut noted = Noted::new(&self.serving.told, peer.remote, &request);
        let answer = self.find(peer, request, &mut noted.of).await;
        noted.answered(answer)
    }
}

impl Door {
    async fn find(&self, peer: &Client, request: Request<Incoming>, of: &mut Of) -> Response<Outgoing> {
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
        let host = matching::host(&authority);
        let port = self.serving.port(self.at);
        if let Some(listener) = port.as_ref().and_then(|port| matching::listener(port, &host)) {
            of.listener = listener.name.clone();
        }
        let vetting = self.vetting.as_ref().zip(port.as_ref());
        let certificate = match vetting.map(|(vetting, port)| vetting.admit(peer, port, &host)) {
            Some(Err(wrong)) => return elsewhere(&wrong),
            found => found.and_then(Result::ok).flatten(),
        };
        let found = port.and_then(|port| {
            let head = Head {
                method: request.method().as_str(),
                host: &host,
                path: request.uri().path(),
                query: request.uri().query().unwrap_or_default(),
                headers: request.headers(),
            };
            let rule = matching::find(&port, &head)?;
            of.route = rule.route.clone();
            Some((rule.then.clone(), rule.when.path.clone(), port.number))
        });
        let Some((action, path, port)) = found else {
            return plain(StatusCode::NOT_FOUND, "no rule for this host and path\n");
        };
        let from = From {
            certificate,
            remote: peer.remote,
            scheme: if self.vetting.is_some() { "https" } else { "http" },
            port,
            authority,
        };
        self.serving.forward.answer(&action, &path, &from, request).await
    }
}

/// The client is to come by another connection.
fn elsewhere(wrong: &Misdirected) -> Response<Outgoing> {
    let mut answer = plain(
        StatusCode::MISDIRECTED_REQUEST,
        "this connection isn't for requests to this host\n",
    );
    if *wrong == Misdirected::Since {
        answer.extensions_mut().insert(LastOne);
    }
    answer
}
