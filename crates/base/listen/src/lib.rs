//! How servers of this program listen: TLS, HTTP/1.1 and HTTP/2, upgrades, and what a connection may cost.
//!
//! A connection is bounded from its first byte to its last: in the time it takes to shake hands, to send a head and to be
//! idle ([`conn`]), in the time a client takes to read an answer ([`answer`]), and in its number ([`peers`]). It knows
//! nothing of what is served, nor who asks: that is a [`Server`]'s.
//!
//! What happens at each bound: [`Limits`].

mod answer;
mod conn;
mod ended;
mod io;
mod lanes;
mod peers;
mod share;
mod socket;

pub use answer::{LastOne, WriteBy};
pub use ended::Ended;
pub use lanes::{Counted, for_all, own_task};
pub use peers::Peers;
pub use share::Asker;

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::body::Incoming;
use lanes::{Lanes, Spawner};
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, ServerConnection};
use rustls_pki_types::CertificateDer;
use share::Shares;
use socket::Socket;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What answers requests.
pub trait Server: Send + Sync + 'static {
    /// What is known of a connection.
    type Peer: Send + Sync + 'static;
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;

    /// Requests by HTTP/2 are begun by the connection's task, and only what isn't answered at once gets one of its own; what takes long asks for it
    /// ([`own_task`]).
    const AT_ONCE: bool = false;

    /// A connection has been made; `certificates` are those that the client showed, not verified here. Whoever cancels `ended`
    /// ends it, with all that is under way on it, upgraded or not.
    fn connected(
        &self,
        remote: SocketAddr,
        certificates: Option<&[CertificateDer<'_>]>,
        ended: &CancellationToken,
    ) -> Self::Peer;
    /// The same with all that is known of a TLS session.
    fn secured(&self, remote: SocketAddr, session: &ServerConnection, ended: &CancellationToken) -> Self::Peer {
        self.connected(remote, session.peer_certificates(), ended)
    }
    /// Requests at once on this peer's HTTP/2 connection, where that is another number than [`Limits::streams`].
    fn streams(&self, _peer: &Self::Peer) -> Option<u32> {
        None
    }
    /// A connection came to no TLS session.
    fn no_handshake(&self) {}
    fn answer(
        &self,
        peer: &Arc<Self::Peer>,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = http::Response<Self::Body>> + Send;
}

/// What a listener allows, and what happens beyond.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once. One more takes the place of an idle one of the peer that has most, or is closed at once: see
    /// [`peers`].
    pub connections: usize,
    /// Requests at once on an HTTP/2 connection; more wait at the client (upstream: 100).
    pub streams: u32,
    /// The longest head; a longer one is 431.
    pub head_bytes: usize,
    /// A TLS handshake that takes longer is closed.
    pub handshake: Duration,
    /// A head that takes longer from its first byte on is closed, and so is a new connection without a request
    /// (upstream: 32 s).
    pub head: Duration,
    /// A connection without requests for so long is closed (upstream: 90 s).
    pub idle: Duration,
    /// HTTP/2 clients are asked for a sign of life after so long without one, and closed without an answer to that.
    pub ping: (Duration, Duration),
    /// By when an answer has to be read unless it says otherwise ([`WriteBy`]); `None`: whenever. What is late loses its
    /// body at once, with all that hangs on it, and its connection after `late`.
    pub answer: Option<Duration>,
    /// For how long a client may take nothing of an answer of which there is more; then it is late. `None`: for ever.
    pub unread: Option<Duration>,
    pub late: Duration,
    /// How much time of the processor a client may have had within a second; who had more comes after the others, by threads of a lower
    /// priority ([`share`], [`lanes`]). `None`: all are served as they come.
    pub share: Option<Duration>,
    /// How long open requests may go on after the stop.
    pub drain: Duration,
}

/// By what a TLS session is made, for what its client says first.
pub type ByHello = Arc<dyn Fn(&ClientHello<'_>) -> Arc<ServerConfig> + Send + Sync>;

#[derive(Clone)]
enum Tls {
    One(TlsAcceptor),
    ByHello(ByHello),
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 8192,
            streams: 100,
            head_bytes: 1024 * 1024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(32),
            idle: Duration::from_secs(90),
            ping: (Duration::from_secs(30), Duration::from_secs(15)),
            answer: None,
            unread: None,
            late: Duration::from_secs(10),
            share: None,
            drain: Duration::from_secs(5),
        }
    }
}

/// Upstream's; finds peers that have vanished without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(180);

/// From the stop of listening until connections are told that they end.
const LAST_COME: Duration = Duration::from_millis(200);

/// Serves `socket` until `stop`, then lets open requests end.
pub async fn run<S: Server>(
    socket: TcpListener,
    tls: Arc<ServerConfig>,
    server: Arc<S>,
    limits: Limits,
    stop: CancellationToken,
) -> Result<()> {
    accept(socket, Some(Tls::One(TlsAcceptor::from(tls))), server, limits, stop).await
}

/// The same where sessions differ.
pub async fn run_by_hello<S: Server>(
    socket: TcpListener,
    tls: ByHello,
    server: Arc<S>,
    limits: Limits,
    stop: CancellationToken,
) -> Result<()> {
    accept(socket, Some(Tls::ByHello(tls)), server, limits, stop).await
}

/// The same without TLS: HTTP/1.1, and HTTP/2 from who begins with it.
pub async fn run_plain<S: Server>(
    socket: TcpListener,
    server: Arc<S>,
    limits: Limits,
    stop: CancellationToken,
) -> Result<()> {
    accept(socket, None, server, limits, stop).await
}

async fn accept<S: Server>(
    socket: TcpListener,
    acceptor: Option<Tls>,
    server: Arc<S>,
    limits: Limits,
    stop: CancellationToken,
) -> Result<()> {
    let peers = Peers::new(limits.connections);
    let lanes = limits.share.map(|most| (Lanes::new(), Shares::new(most)));
    let limits = Arc::new(limits);
    let tasks = TaskTracker::new();
    let leaving = CancellationToken::new();
    let without_http2 = acceptor.as_ref().is_some_and(Tls::without_http2);
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, remote) = match accepted {
            // A socket for both families tells of IPv4 addresses in the form that IPv6 has for them.
            Ok((stream, remote)) => (stream, SocketAddr::new(remote.ip().to_canonical(), remote.port())),
            Err(e) => {
                // Out of descriptors or memory: a pause lets connections end.
                tracing::warn!("accepting a connection failed: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = peers.admit(remote.ip()) else {
            tracing::debug!(%remote, "no place for a connection");
            continue;
        };
        let spawner = lanes
            .as_ref()
            .map(|(lanes, shares)| Spawner::of(lanes, shares, remote.ip()));
        let spawner = spawner.unwrap_or_default();
        let connection = conn::Connection {
            server: server.clone(),
            spawner: spawner.clone(),
            limits: limits.clone(),
            stop: leaving.clone(),
            remote,
            place,
            without_http2,
        };
        let acceptor = acceptor.clone();
        let tracked = tasks.token();
        spawner.spawn(Box::pin(async move {
            let _tracked = tracked;
            if let Err(e) = serve(connection, stream, acceptor).await {
                tracing::debug!(%remote, "a connection ended: {e:#}");
            }
        }));
    }
    drop(socket);
    // Who has just come is answered first: to a client a new connection that ends without an answer is a failure.
    tokio::time::sleep(LAST_COME.min(limits.drain)).await;
    leaving.cancel();
    tasks.close();
    if tokio::time::timeout(limits.drain, tasks.wait()).await.is_err() {
        tracing::info!("some requests were still open at the end of the grace period");
        peers.end_all();
    }
    Ok(())
}

impl Tls {
    fn without_http2(&self) -> bool {
        match self {
            Tls::One(acceptor) => {
                let all = &acceptor.config().alpn_protocols;
                !all.is_empty() && !all.iter().any(|p| p == b"h2")
            }
            Tls::ByHello(_) => false,
        }
    }

    async fn shake(&self, stream: Socket) -> std::io::Result<TlsStream<Socket>> {
        match self {
            Tls::One(acceptor) => acceptor.accept(stream).await,
            Tls::ByHello(choose) => {
                let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
                let config = choose(&hello.client_hello());
                hello.into_stream(config).await
            }
        }
    }
}

async fn serve<S: Server>(connection: conn::Connection<S>, stream: TcpStream, acceptor: Option<Tls>) -> Result<()> {
    stream.set_nodelay(true)?;
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(KEEP_ALIVE)
        .with_interval(KEEP_ALIVE);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive)?;
    let stream = Socket::new(stream);
    let Some(acceptor) = acceptor else {
        let ended = connection.place.conn().ended();
        let peer = connection.server.connected(connection.remote, None, ended);
        return connection.serve(stream, peer, false).await;
    };
    let ended = connection.place.conn().ended();
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(connection.limits.handshake, acceptor.shake(stream)) => shaken,
        () = ended.cancelled() => anyhow::bail!("its place was needed"),
        () = connection.stop.cancelled() => return Ok(()),
    };
    let shaken = shaken.context("the TLS handshake took too long");
    let shaken = shaken.and_then(|shaken| shaken.context("the TLS handshake failed"));
    let tls = shaken.inspect_err(|_| connection.server.no_handshake())?;
    let session = tls.get_ref().1;
    let peer = connection.server.secured(connection.remote, session, ended);
    let http2 = session.alpn_protocol() == Some(b"h2");
    connection.serve(tls, peer, http2).await
}
