//! Connections that are passed on as bytes: by the name in their TLS hello, or all alike.
//!
//! Who names no host that a route has, or one whose backend isn't there, is closed before anything is said: a client can't take it for an answer.

use super::clients::CONNECT;
use super::forward::{Reached, TRIES, choose};
use super::{Serving, certificates, tunnel};
use crate::matching::{self, Head};
use crate::table::{Action, Speaks, Trust};
use anyhow::{Context as _, bail};
use http::HeaderMap;
use keelson_listen::{Limits, Peers};
use rand::Rng;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Takes in connections until `stop`, and lets those that are open go on for a while.
pub async fn run(
    socket: TcpListener,
    at: u16,
    tls: bool,
    serving: Arc<Serving>,
    limits: Limits,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config = match tls {
        true => Some(certificates::config(serving.clone(), at, &[])?),
        false => None,
    };
    let (peers, tasks) = (Peers::new(limits.connections), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (client, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: a pause lets connections end.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = peers.admit(remote.ip().to_canonical()) else {
            tracing::debug!(%remote, "no place for a connection");
            continue;
        };
        let (serving, config, hello) = (serving.clone(), config.clone(), limits.handshake);
        tasks.spawn(async move {
            let passed = async {
                match config {
                    Some(config) => by_name(client, &serving, at, config, hello).await,
                    None => all(client, &serving, at).await,
                }
            };
            let ended = place.conn().ended();
            let done = tokio::select! {
                done = passed => done,
                () = ended.cancelled() => Ok(()),
            };
            if let Err(error) = done {
                tracing::debug!(%remote, error = format!("{error:#}"), "a connection wasn't passed on");
            }
        });
    }
    drop(socket);
    tasks.close();
    if timeout(limits.drain, tasks.wait()).await.is_err() {
        peers.end_all();
        tasks.wait().await;
    }
    Ok(())
}

async fn all(client: TcpStream, serving: &Serving, at: u16) -> anyhow::Result<()> {
    let (action, _) = find(serving, at, Speaks::Tcp, "").context("no route is for this port")?;
    let (backend, _) = connect(serving, &action).await?;
    client.set_nodelay(true)?;
    tunnel::run(client, backend, tunnel::IDLE).await;
    Ok(())
}

async fn by_name(
    client: TcpStream,
    serving: &Serving,
    at: u16,
    config: Arc<ServerConfig>,
    within: Duration,
) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    let client = Remembering {
        client,
        read: Some(Vec::new()),
    };
    let hello = timeout(within, LazyConfigAcceptor::new(Acceptor::default(), client));
    let mut hello = hello.await.context("the hello took too long")??;
    let name = hello
        .client_hello()
        .server_name()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let read = hello.io.read.take().unwrap_or_default();
    let found = find(serving, at, Speaks::Tls, &name);
    let (action, ends_here) = found.with_context(|| format!("no route is for {name:?}"))?;
    let (mut backend, trust) = connect(serving, &action).await?;
    if ends_here {
        let handshakes = timeout(within, async {
            let backend = match trust {
                Some(trust) => {
                    let made = serving.forward.clients.secured(backend, &trust, &[]).await;
                    Either::Left(made.map_err(anyhow::Error::msg).context("the backend's TLS")?)
                }
                None => Either::Right(backend),
            };
            anyhow::Ok((hello.into_stream(config).await?, backend))
        });
        let (client, backend) = handshakes.await.context("the handshake took too long")??;
        tunnel::run(client, backend, tunnel::IDLE).await;
    } else {
        timeout(within, backend.write_all(&read)).await??;
        tunnel::run(hello.io.client, backend, tunnel::IDLE).await;
    }
    Ok(())
}

/// What is done with what comes for a name, and whether its TLS ends here.
pub fn find(serving: &Serving, at: u16, speaks: Speaks, name: &str) -> Option<(Arc<Action>, bool)> {
    let port = serving.port(at).filter(|port| port.speaks == speaks)?;
    let head = Head {
        method: "",
        host: name,
        path: "/",
        query: "",
        headers: &HeaderMap::new(),
    };
    let ends_here = !matching::listener(&port, name)?.certificates.is_empty();
    Some((matching::find(&port, &head)?.then.clone(), ends_here))
}

async fn connect(serving: &Serving, action: &Action) -> anyhow::Result<(TcpStream, Option<Arc<Trust>>)> {
    let backend = choose(&action.backends).context("the route has no backend")?;
    let found = serving.forward.addresses(&backend.to).await;
    let Ok(Reached { addresses, trust, .. }) = found else {
        bail!("the backend isn't there")
    };
    let first = rand::rng().random_range(0..addresses.len());
    let mut why = None;
    for address in addresses.iter().cycle().skip(first).take(TRIES) {
        match reach(*address).await {
            Ok(stream) => return Ok((stream, trust)),
            Err(error) => why = Some(error.context(format!("{address} can't be reached"))),
        }
    }
    Err(why.unwrap_or_else(|| anyhow::anyhow!("no address")))
}

async fn reach(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = timeout(CONNECT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A client whose first bytes are kept, to be said again to a backend. How many there are the hello's reader bounds.
struct Remembering {
    client: TcpStream,
    read: Option<Vec<u8>>,
}

impl AsyncRead for Remembering {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.client).poll_read(cx, buf))?;
        if let Some(read) = &mut this.read {
            read.extend_from_slice(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Remembering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.client).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.client).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}
