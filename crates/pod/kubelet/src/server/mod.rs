//! The kubelet's HTTPS API: logs, exec, attach, port-forward, statistics and what the node runs. Every request is
//! authenticated (client certificate or token) and authorised by the API server; nothing is served without.

mod auth;
pub mod log_stream;
pub mod logs;
mod metrics;
mod routes;
pub(crate) mod stats;
mod stream;

use crate::kubelet::Kubelet;
use anyhow::Context;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub(crate) type Reply = Response<Body>;

/// Connections at the same time; more wait in the kernel.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);

pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body.into().into())
}

pub(crate) fn json(value: &serde_json::Value) -> Reply {
    reply(StatusCode::OK, "application/json", value.to_string().into())
}

pub(crate) fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Reply {
    let mut response = Response::new(Full::new(body).map_err(|e| match e {}).boxed_unsync());
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
    let config = tls_config(&tls)?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("the kubelet cannot listen on {address}: another program has the port (ss -ltnp); stop it, or give another --kubelet-port"))?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let auth = Arc::new(auth::Auth::new(
        kl.rest.clone(),
        kl.cfg.node_name.clone(),
        kl.cfg.anonymous,
    ));
    tokio::spawn(accept(kl.clone(), listener, acceptor, auth));
    Ok(())
}

fn tls_config(tls: &crate::config::ServingTls) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?;
    let mut roots = rustls::RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(&tls.client_ca) {
        roots.add(ca.context("reading the authority of client certificates")?)?;
    }
    let builder = if roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .context("building the verifier of client certificates")?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder.with_cert_resolver(tls.identity.clone());
    // Upgrades (exec, attach, port-forward) are of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn accept(kl: Arc<Kubelet>, listener: TcpListener, acceptor: tokio_rustls::TlsAcceptor, auth: Arc<auth::Auth>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let socket = tokio::select! {
            () = kl.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(e) => {
                    tracing::warn!("a connection to the kubelet's server could not be taken: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (kl, acceptor, auth) = (kl.clone(), acceptor.clone(), auth.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let stop = kl.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve(kl, socket, acceptor, auth) => {}
            }
        });
    }
}

async fn serve(
    kl: Arc<Kubelet>,
    socket: tokio::net::TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    auth: Arc<auth::Auth>,
) {
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(e)) => {
            tracing::debug!("a TLS handshake with the kubelet's server failed: {e}");
            return;
        }
        Err(_) => return,
    };
    let peer = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first())
        .and_then(|c| auth::user_of(c));
    let service = service_fn(move |request| {
        let (kl, auth, peer) = (kl.clone(), auth.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(routes::handle(&kl, &auth, peer, request).await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(e) = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).await {
        tracing::debug!("a connection to the kubelet's server ended: {e}");
    }
}
