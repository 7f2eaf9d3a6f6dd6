//! A backend that is asked again and again, as a webhook is for each write: its connections are kept for the next request, by HTTP/2
//! where it speaks that. A handshake costs both sides more than what is asked.

use super::dial::{ClientTls, Stream, Target};
use crate::request::Body;
use anyhow::Result;
use bytes::Bytes;
use http::{Extensions, HeaderMap, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::error::Error;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// As Go's: connections that nobody uses end, and of HTTP/1.1's not more are kept.
const IDLE: Duration = Duration::from_secs(90);
const MOST_IDLE: usize = 25;
/// As Kubernetes' clients do: who hasn't said anything for so long by HTTP/2 is asked, and given up if no answer comes. Otherwise all requests
/// go on to a machine that is gone, until the kernel gives it up.
const SILENT: Duration = Duration::from_secs(30);
const GIVE_UP: Duration = Duration::from_secs(15);
const FORGET: Duration = Duration::from_secs(300);
/// With more of them all begin anew.
const MOST_BACKENDS: usize = 1000;

#[derive(Clone)]
pub struct Kept {
    client: Client<Way, Body>,
    /// Scheme and host, as requests name them.
    origin: String,
}

impl Kept {
    pub fn to(mut target: Target) -> Kept {
        if let Some(ClientTls { config, .. }) = &mut target.tls {
            let mut both = rustls::ClientConfig::clone(config);
            both.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            *config = Arc::new(both);
        }
        let scheme = if target.tls.is_some() { "https" } else { "http" };
        let origin = format!("{scheme}://{}", target.host);
        let client = Client::builder(ForAll)
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(SILENT)
            .http2_keep_alive_timeout(GIVE_UP)
            .http2_keep_alive_while_idle(true)
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MOST_IDLE)
            .build(Way(target));
        Kept { client, origin }
    }

    /// Posts a text that may be posted twice: a connection that was kept may have ended a moment ago.
    pub async fn post(&self, path: &str, headers: HeaderMap, text: Bytes) -> Result<Response<Incoming>> {
        let uri: Uri = format!("{}{path}", self.origin).parse()?;
        let request = || {
            let mut request = Request::post(uri.clone()).body(Body::from(text.clone()))?;
            *request.headers_mut() = headers.clone();
            request.headers_mut().insert(header::CONTENT_LENGTH, text.len().into());
            keelson_trace::headers::inject(request.headers_mut());
            anyhow::Ok(request)
        };
        let answer = match self.client.request(request()?).await {
            Err(e) if was_ended(&e) => self.client.request(request()?).await,
            answer => answer,
        };
        let answer = answer.map_err(Unsent)?;
        if let Some(connection) = answer.extensions().get::<Answered>() {
            connection.0.store(true, Relaxed);
        }
        Ok(answer)
    }
}

/// Several backends, by what leads to each. One that hasn't been asked for a while is forgotten, with whom it was trusted by.
#[derive(Default)]
pub struct Several<K>(Mutex<HashMap<K, (Kept, Instant)>>);

impl<K: Eq + Hash> Several<K> {
    /// `target` is asked for the first time.
    pub fn to<E>(&self, key: K, target: impl FnOnce() -> Result<Target, E>) -> Result<Kept, E> {
        let now = Instant::now();
        let mut known = self.0.lock();
        if let Some((kept, used)) = known.get_mut(&key) {
            *used = now;
            return Ok(kept.clone());
        }
        known.retain(|_, (_, used)| *used + FORGET > now);
        if known.len() == MOST_BACKENDS {
            known.clear();
        }
        let kept = Kept::to(target()?);
        known.insert(key, (kept.clone(), now));
        Ok(kept)
    }
}

/// What is known of a connection: whether something was answered on it.
#[derive(Clone, Default)]
struct Answered(Arc<AtomicBool>);

/// Before an answer had come, by the other side: before it was asked, or where it had answered before. Who ends a new connection has read what
/// it was asked, and isn't asked again.
fn was_ended(error: &legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<hyper::Error>() {
            return e.is_canceled() || e.is_closed() || e.is_incomplete_message() && has_answered(error);
        }
        cause = e.source();
    }
    false
}

fn has_answered(error: &legacy::Error) -> bool {
    let mut known = Extensions::new();
    if let Some(connection) = error.connect_info() {
        connection.get_extras(&mut known);
    }
    known.get::<Answered>().is_some_and(|answered| answered.0.load(Relaxed))
}

/// What went wrong, without what the library says before it.
#[derive(Debug)]
struct Unsent(legacy::Error);

impl std::fmt::Display for Unsent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.source() {
            Some(cause) => write!(f, "{cause}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Error for Unsent {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()?.source()
    }
}

/// Every connection leads to the one target, whatever a request's URL names.
#[derive(Clone)]
struct Way(Target);

impl tower::Service<Uri> for Way {
    type Response = TokioIo<Stream>;
    type Error = anyhow::Error;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        let opened = keelson_listen::for_all().spawn(async move { target.open().await });
        Box::pin(async move { Ok(TokioIo::new(opened.await??)) })
    }
}

/// A connection that is kept belongs to no request, and doesn't come behind with the one that began it.
#[derive(Clone)]
struct ForAll;

impl<F> hyper::rt::Executor<F> for ForAll
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        drop(keelson_listen::for_all().spawn(task));
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let h2 = match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        };
        let connected = Connected::new().extra(Answered::default());
        match h2 {
            true => connected.negotiated_h2(),
            false => connected,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, into),
            Stream::Tls(s) => Pin::new(s).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, from),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, from),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Of each connection so many requests are answered, and the next is read before it ends.
    #[tokio::test]
    async fn only_what_a_kept_connection_lost_is_posted_again() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        tokio::spawn(async move {
            for answers in [0, 1, 1] {
                let (mut stream, _) = socket.accept().await.unwrap();
                for n in 0..=answers {
                    let mut seen = Vec::new();
                    while !seen.ends_with(b"whole") {
                        if stream.read_buf(&mut seen).await.unwrap() == 0 {
                            return;
                        }
                    }
                    counter.fetch_add(1, Relaxed);
                    if n < answers {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                    }
                }
            }
        });
        let kept = Kept::to(Target {
            address: address.clone(),
            host: address,
            tls: None,
        });
        let post = async || {
            let answer = kept.post("/", HeaderMap::new(), Bytes::from_static(b"whole")).await;
            answer.is_ok()
        };
        assert!(!post().await);
        assert_eq!(asked.load(Relaxed), 1);
        assert!(post().await);
        // The connection is put away by a task of its own.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(post().await);
        assert_eq!(asked.load(Relaxed), 4);
    }
}
