//! A backend that is asked again and again, as a webhook is for each write: its connections are kept for the next request, by HTTP/2
//! where it speaks that. A handshake costs both sides more than what is asked.

use super::dial::{ClientTls, Stream, Target};
use crate::request::Body;
use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
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
    /// With the port, where the library would leave it out: Go tells the one that it was given.
    host: Option<HeaderValue>,
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
        let usual = if target.tls.is_some() { ":443" } else { ":80" };
        let named = target.host.ends_with(usual).then(|| target.host.parse().ok());
        let client = Client::builder(ForAll)
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(SILENT)
            .http2_keep_alive_timeout(GIVE_UP)
            .http2_keep_alive_while_idle(true)
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MOST_IDLE)
            .build(Way(target));
        Kept {
            client,
            origin,
            host: named.flatten(),
        }
    }

    /// Posts a text. It is posted anew only if nothing of it was sent: a connection that was kept may have ended a moment ago. Who has read it may
    /// have acted on it, and isn't asked again, as Go's client doesn't.
    pub async fn post(&self, path: &str, headers: HeaderMap, text: Bytes) -> Result<Response<Incoming>> {
        let uri: Uri = format!("{}{path}", self.origin).parse()?;
        let request = || {
            let mut request = Request::post(uri.clone()).body(Body::from(text.clone()))?;
            *request.headers_mut() = headers.clone();
            if let Some(host) = &self.host {
                request.headers_mut().insert(header::HOST, host.clone());
            }
            request.headers_mut().insert(header::CONTENT_LENGTH, text.len().into());
            keelson_trace::headers::inject(request.headers_mut());
            anyhow::Ok(request)
        };
        let answer = match self.client.request(request()?).await {
            Err(e) if was_unsent(&e) => self.client.request(request()?).await,
            answer => answer,
        };
        Ok(answer.map_err(Unsent)?)
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

/// Whether the connection had ended before anything of the request was written to it.
fn was_unsent(error: &legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<hyper::Error>() {
            return e.is_canceled() || e.is_closed();
        }
        cause = e.source();
    }
    false
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
        match h2 {
            true => Connected::new().negotiated_h2(),
            false => Connected::new(),
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    /// What was read, up to the end of a body; `None`: the other side ended.
    async fn read(stream: &mut tokio::net::TcpStream) -> Option<String> {
        let mut seen = Vec::new();
        while !seen.ends_with(b"whole") {
            if stream.read_buf(&mut seen).await.unwrap() == 0 {
                return None;
            }
        }
        Some(String::from_utf8(seen).unwrap())
    }

    /// Each connection answers so many requests; with `reads` it takes one more before it ends. Tells of all that was read.
    fn backend(socket: TcpListener, connections: &'static [(usize, bool)]) -> mpsc::UnboundedReceiver<String> {
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for (answers, reads) in connections {
                let (mut stream, _) = socket.accept().await.unwrap();
                for _ in 0..*answers {
                    let Some(request) = read(&mut stream).await else { return };
                    tell.send(request).unwrap();
                    stream.write_all(ANSWER).await.unwrap();
                }
                if *reads && let Some(request) = read(&mut stream).await {
                    tell.send(request).unwrap();
                }
            }
        });
        told
    }

    async fn post(kept: &Kept) -> bool {
        let answer = kept.post("/", HeaderMap::new(), Bytes::from_static(b"whole")).await;
        // The connection is put away, or found ended, by a task of its own.
        tokio::time::sleep(Duration::from_millis(200)).await;
        answer.is_ok()
    }

    fn to(address: &str, host: &str) -> Kept {
        Kept::to(Target {
            address: address.into(),
            host: host.into(),
            tls: None,
        })
    }

    #[tokio::test]
    async fn what_was_read_is_not_posted_again() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let mut told = backend(socket, &[(0, true), (1, true), (1, false), (1, false)]);
        let kept = to(&address, &address);
        assert!(!post(&kept).await, "a new connection that ended");
        assert!(post(&kept).await);
        assert!(!post(&kept).await, "one that was kept, and had read it");
        assert!(post(&kept).await);
        assert!(post(&kept).await, "one that had ended before");
        let mut asked = 0;
        while told.try_recv().is_ok() {
            asked += 1;
        }
        assert_eq!(asked, 5);
    }

    #[tokio::test]
    async fn hosts_are_named_with_their_port() {
        for (host, named) in [
            ("a.b.svc:80", "a.b.svc:80"),
            ("a.b.svc:8080", "a.b.svc:8080"),
            ("a.b.svc", "a.b.svc"),
        ] {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap().to_string();
            let mut told = backend(socket, &[(1, false)]);
            assert!(post(&to(&address, host)).await);
            let request = told.recv().await.unwrap().to_lowercase();
            assert!(request.contains(&format!("host: {named}\r\n")), "{request}");
        }
    }
}
