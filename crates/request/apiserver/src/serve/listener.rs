//! The HTTPS listener: HTTP/1.1 and HTTP/2 by ALPN, upgrades, client certificates, bounds, graceful end.
//!
//! Bounds: [`Limits`]. At the bound of connections new ones wait in the kernel's backlog; a connection that is slow to
//! shake hands or to send its headers is closed.

use super::Handle;
use super::tls::ServingCert;
use crate::authn::x509::{CertificateAuthenticator, PeerCertificate};
use crate::request::{Body, Request};
use anyhow::{Context, Result};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What a listener allows.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections: usize,
    pub streams_per_connection: u32,
    pub header_bytes: usize,
    pub handshake: Duration,
    pub headers: Duration,
    /// How long open requests may go on after the stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 8192,
            streams_per_connection: 250,
            header_bytes: 1024 * 1024,
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(90),
            drain: Duration::from_secs(5),
        }
    }
}

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
    pub certificates: Arc<CertificateAuthenticator>,
    pub limits: Limits,
}

impl Listener {
    /// Serves until `stop`, then lets open requests end.
    pub async fn run(self, target: Arc<dyn Handle>, stop: CancellationToken) -> Result<()> {
        let config = super::tls::server_config(self.cert.clone(), self.certificates.roots())?;
        let acceptor = TlsAcceptor::from(config);
        let room = Arc::new(Semaphore::new(self.limits.connections));
        let graceful = GracefulShutdown::new();
        loop {
            let permit = tokio::select! {
                permit = room.clone().acquire_owned() => permit.context("the listener's semaphore is closed")?,
                () = stop.cancelled() => break,
            };
            let (stream, remote) = tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Out of descriptors or memory: a pause lets connections end.
                        tracing::warn!("accepting a connection failed: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            let connection = Connection {
                target: target.clone(),
                certificates: self.certificates.clone(),
                limits: self.limits.clone(),
                stopping: Stopping(stop.clone()),
                remote,
            };
            let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
            tokio::spawn(async move {
                if let Err(e) = connection.serve(stream, acceptor, watcher).await {
                    tracing::debug!(%remote, "a connection ended: {e:#}");
                }
                drop(permit);
            });
        }
        drop(self.socket);
        if tokio::time::timeout(self.limits.drain, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::info!("some requests were still open at the end of the grace period");
        }
        Ok(())
    }
}

struct Connection {
    target: Arc<dyn Handle>,
    certificates: Arc<CertificateAuthenticator>,
    limits: Limits,
    stopping: Stopping,
    remote: SocketAddr,
}

impl Connection {
    async fn serve(
        self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        watcher: hyper_util::server::graceful::Watcher,
    ) -> Result<()> {
        stream.set_nodelay(true)?;
        let tls = tokio::time::timeout(self.limits.handshake, acceptor.accept(stream))
            .await
            .context("the TLS handshake took too long")?
            .context("the TLS handshake failed")?;
        let peer = tls
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| self.certificates.read(chain));
        let peer = peer.map(Arc::new);
        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let (target, remote, stopping) = (self.target, self.remote, self.stopping);
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let mut request = prepare(request, remote, peer.as_ref());
            request.extensions_mut().insert(stopping.clone());
            let target = target.clone();
            async move { Ok::<_, Infallible>(target.handle(request).await) }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_buf_size(self.limits.header_bytes)
            .half_close(false);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams_per_connection)
            .max_header_list_size(u32::try_from(self.limits.header_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(25 * 1024 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(15));
        let builder = if http2 {
            builder.http2_only()
        } else {
            builder.http1_only()
        };
        let io = TokioIo::new(tls);
        let connection = builder.serve_connection_with_upgrades(io, service).into_owned();
        watcher.watch(connection).await.map_err(|e| anyhow::anyhow!(e))
    }
}

/// Puts on what the chain reads of a connection, and takes off what only the process itself may set.
fn prepare(
    request: http::Request<hyper::body::Incoming>,
    remote: SocketAddr,
    peer: Option<&Arc<PeerCertificate>>,
) -> Request {
    let mut request = request.map(Body::new);
    let extensions = request.extensions_mut();
    extensions.remove::<super::InProcessIdentity>();
    extensions.insert(RemoteAddr(remote));
    if let Some(peer) = peer {
        extensions.insert(peer.clone());
    }
    request
}
