//! The HTTPS listener: what [`keelson_listen`] hears is a request of the chain, with what its connection tells of the
//! client put on.
//!
//! Bounds: [`Limits`].

use super::Handle;
use super::tls::{Offer, ServingCert};
use crate::authn::revoked::{Held, Revocations};
use crate::authn::vouched::{Connected, Vouched};
use crate::authn::x509::PeerCertificate;
use crate::request::{Body, Request, Response};
use anyhow::Result;
use hyper::body::Incoming;
use keelson_measure::IntCounter;
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use keelson_listen::Limits;

/// The address a request came from.
#[derive(Clone, Copy, Debug)]
pub struct RemoteAddr(pub SocketAddr);

/// Cancelled when the listener stops: watches end then, so that clients turn to another server at once.
#[derive(Clone, Debug)]
pub struct Stopping(pub CancellationToken);

/// A listener ready to run.
pub struct Listener {
    pub socket: TcpListener,
    pub cert: Arc<ServingCert>,
    pub vouched: Arc<Vouched>,
    pub revocations: Arc<Revocations>,
    pub limits: Limits,
    pub offer: Offer,
    /// Connections that came to no TLS session.
    pub failed: IntCounter,
}

impl Listener {
    /// Serves until `stop`, then lets open requests end.
    pub async fn run(self, target: Arc<dyn Handle>, stop: CancellationToken) -> Result<()> {
        let config = self.offer.config(self.cert, &self.vouched.authorities().roots())?;
        let front = Front {
            target,
            vouched: self.vouched,
            revocations: self.revocations,
            failed: self.failed,
            stopping: Stopping(stop.clone()),
        };
        keelson_listen::run(self.socket, config, Arc::new(front), self.limits, stop).await
    }
}

struct Front {
    target: Arc<dyn Handle>,
    vouched: Arc<Vouched>,
    revocations: Arc<Revocations>,
    failed: IntCounter,
    stopping: Stopping,
}

/// What a connection tells of its client.
struct Peer {
    remote: SocketAddr,
    certificate: Option<Arc<PeerCertificate>>,
    /// The connection ends when its certificate is taken back.
    _held: Option<Held>,
    /// And when nobody vouches for it any more.
    _connected: Option<Connected>,
}

/// Requests at once of a node, watches among them: more than the pods of a large one mount.
const STREAMS_OF_A_NODE: u32 = 4096;

impl keelson_listen::Server for Front {
    type Peer = Peer;
    type Body = Body;
    const AT_ONCE: bool = true;

    fn connected(
        &self,
        remote: SocketAddr,
        certificates: Option<&[CertificateDer<'_>]>,
        ended: &CancellationToken,
    ) -> Peer {
        let certificate = certificates.map(|chain| Arc::new(self.vouched.authorities().read(chain)));
        let connected = certificate.as_ref().zip(certificates);
        let connected = connected.and_then(|(peer, chain)| self.vouched.connected(peer, chain, ended));
        let vouched = certificate.clone().filter(|c| c.is_vouched_for());
        Peer {
            remote,
            certificate,
            _held: vouched.and_then(|c| self.revocations.attach(c, ended.clone())),
            _connected: connected,
        }
    }
    fn no_handshake(&self) {
        self.failed.inc();
    }
    /// A node has a watch for each ConfigMap and Secret of its pods, and all on one connection.
    fn streams(&self, peer: &Peer) -> Option<u32> {
        let user = peer.certificate.as_ref()?.client.as_ref().ok()?;
        user.in_group("system:nodes").then_some(STREAMS_OF_A_NODE)
    }
    async fn answer(&self, peer: &Arc<Peer>, request: http::Request<Incoming>) -> Response {
        let mut request = prepare(request, peer);
        request.extensions_mut().insert(self.stopping.clone());
        self.target.clone().handle(request).await
    }
}

/// Puts on what the chain reads of a connection, and takes off what only the process itself may set.
fn prepare(request: http::Request<Incoming>, peer: &Peer) -> Request {
    let mut request = request.map(Body::new);
    let extensions = request.extensions_mut();
    extensions.remove::<super::InProcessIdentity>();
    extensions.insert(RemoteAddr(peer.remote));
    if let Some(certificate) = &peer.certificate {
        extensions.insert(certificate.clone());
    }
    request
}
