//! The kubelet's HTTPS API: logs, exec, attach, port-forward, statistics and what the node runs. Every request is
//! authenticated (client certificate or token) and authorised by the API server; nothing is served without.

mod archives;
mod auth;
pub mod checkpoint;
pub mod follow;
pub mod identity;
mod journal;
pub mod log_stream;
pub mod logs;
pub mod metrics;
pub(crate) mod pod_resources;
pub(crate) mod pods_api;
pub(crate) mod routes;
pub(crate) mod stats;
mod stream;
mod way;

use crate::kubelet::Kubelet;
use anyhow::Context;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use keelson_pki::verify::tls::{AnyClient, Heeded};
use keelson_pki::verify::{self, Live, Roots};
use keelson_sys::handed;
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub(crate) type Reply = Response<Body>;

pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body.into().into())
}

pub(crate) fn json(value: &serde_json::Value) -> Reply {
    reply(StatusCode::OK, "application/json", value.to_string().into())
}

pub(crate) fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|e| match e {}).boxed_unsync()
}

pub(crate) fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Reply {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// Starts the server, if the settings ask for one.
pub async fn start(kl: &Arc<Kubelet>) -> anyhow::Result<()> {
    let Some(address) = kl.cfg.listen else { return Ok(()) };
    let tls = kl
        .cfg
        .tls
        .clone()
        .context("the kubelet's server needs a certificate and a key")?;
    let clients = tls.client_ca.clone();
    // Names of authorities that are followed would be yesterday's, and clients choose by them what they show.
    let hints = match tls.following {
        Some(_) => Arc::default(),
        None => clients.now(),
    };
    let config = tls_config(&tls, &hints)?;
    let listener = listen(address).await?;
    let server = Server {
        // However many come: nothing that the kubelet tells waits for them.
        auth: auth::Auth::new(kl.unpaced.clone(), &kl.cfg),
        kl: kl.clone(),
        clients,
    };
    if let Some(following) = tls.following {
        tokio::spawn(following.follow(kl.stop.clone()));
    }
    let stop = kl.stop.clone();
    tokio::spawn(async move {
        if let Err(e) = keelson_listen::run(listener, Arc::new(config), Arc::new(server), limits(), stop).await {
            tracing::error!("the kubelet's server ended: {e:#}");
        }
    });
    Ok(())
}

/// Who comes while one process follows another waits, if somebody keeps the socket.
async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    const SOCKET: &str = "kubelet";
    if let Some(kept) = handed::listener(SOCKET, address) {
        return TcpListener::from_std(kept).context("the kubelet's socket");
    }
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("the kubelet cannot listen on {address}: another program has the port (ss -ltnp); stop it, or give another --kubelet-port"))?;
    if let Err(error) = handed::keep(SOCKET, listener.as_fd()) {
        tracing::warn!(%error, "the kubelet's socket isn't kept over a restart");
    }
    Ok(listener)
}

/// Fewer connections than the API server has, and upstream's time for an answer: logs and streams last.
fn limits() -> keelson_listen::Limits {
    keelson_listen::Limits {
        connections: 1024,
        answer: Some(Duration::from_secs(4 * 60 * 60)),
        drain: Duration::ZERO,
        ..keelson_listen::Limits::default()
    }
}

/// Who is connected, by what certificate.
struct Client {
    shown: auth::Shown,
    /// The connection ends when nobody vouches for the certificate any more.
    _heeded: Option<Heeded>,
}

struct Server {
    kl: Arc<Kubelet>,
    auth: auth::Auth,
    /// The authorities of clients' certificates.
    clients: Live,
}

impl keelson_listen::Server for Server {
    /// The client's certificate, if it shows one.
    type Peer = Option<Client>;
    type Body = Body;

    fn connected(
        &self,
        _: SocketAddr,
        certificates: Option<&[CertificateDer<'_>]>,
        ended: &CancellationToken,
    ) -> Self::Peer {
        let chain = certificates?;
        let judged = verify::tls::client(chain, &self.clients.now()).ok();
        // Who isn't known by it may go on by a token.
        let heeded = judged.is_some().then(|| {
            let ended = ended.clone();
            verify::tls::heed(chain, &self.clients, move || ended.cancel())
        });
        Some(Client {
            shown: auth::Shown::new(judged, self.kl.cfg.revocations.as_ref(), ended),
            _heeded: heeded,
        })
    }
    async fn answer(&self, peer: &Arc<Self::Peer>, mut request: http::Request<Incoming>) -> Reply {
        // Who takes the connection over is still the one who came.
        request.extensions_mut().insert(stream::Peer(peer.clone()));
        let shown = peer.as_ref().as_ref().map(|client| &client.shown);
        routes::handle(&self.kl, &self.auth, shown, request).await
    }
}

fn tls_config(tls: &crate::config::ServingTls, clients: &Roots) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?;
    let builder = builder.with_client_cert_verifier(AnyClient::hinting(clients));
    let mut config = builder.with_cert_resolver(tls.identity.clone());
    // Upgrades (exec, attach, port-forward) are of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
