//! HTTP/2 to backends: one connection an endpoint, which takes all requests to it.

use super::body::Outgoing;
use super::clients::{CONNECT, Failed, text};
use super::secure::{self, Ours};
use crate::table::{Trust, TrustId};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A backend is asked for a sign of life after so long, and given up without an answer to that.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
/// From so many connections on those that have ended are looked for.
const MANY: usize = 64;

/// An endpoint, and what it had to show.
type Key = (SocketAddr, Option<TrustId>);

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Pool {
    open: Arc<Mutex<HashMap<Key, SendRequest<Outgoing>>>>,
}

impl Pool {
    /// Connections by which nothing is sent any more end with what is under way.
    pub fn keep(&self, trusts: &BTreeSet<TrustId>) {
        let mut open = self.open.lock();
        open.retain(|(_, trust), _| trust.is_none_or(|id| trusts.contains(&id)));
    }

    pub async fn request(
        &self,
        to: SocketAddr,
        trust: Option<&Trust>,
        ours: &Ours,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failed> {
        let key = (to, trust.map(|t| t.id));
        let mut connection = self.connection(key, trust, ours).await.map_err(Failed::Unreached)?;
        let answered = connection.try_send_request(request).await;
        answered.map_err(|mut error| match error.take_message() {
            // It comes back if nothing of it was sent.
            Some(request) => {
                drop(request);
                self.open.lock().remove(&key);
                Failed::Unreached(text(error.error()))
            }
            None => Failed::Broken(text(error.error())),
        })
    }

    async fn connection(&self, key: Key, trust: Option<&Trust>, ours: &Ours) -> Result<SendRequest<Outgoing>, String> {
        let known = self.open.lock().get(&key).cloned();
        if let Some(mut known) = known
            && known.ready().await.is_ok()
        {
            return Ok(known);
        }
        let made = timeout(CONNECT, connect(key.0, trust, ours))
            .await
            .map_err(|_| "connecting took too long".to_string())??;
        let mut open = self.open.lock();
        if open.len() >= MANY {
            open.retain(|_, connection| !connection.is_closed());
        }
        open.insert(key, made.clone());
        Ok(made)
    }
}

async fn connect(to: SocketAddr, trust: Option<&Trust>, ours: &Ours) -> Result<SendRequest<Outgoing>, String> {
    let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    match trust {
        None => speak(to, stream).await,
        Some(trust) => speak(to, secure::connect(stream, trust, ours, secure::HTTP2).await?).await,
    }
}

async fn speak<S>(to: SocketAddr, stream: S) -> Result<SendRequest<Outgoing>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%to, %error, "a connection to a backend ended");
        }
    });
    Ok(sender)
}
