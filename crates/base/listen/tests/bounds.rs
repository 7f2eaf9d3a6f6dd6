//! Slow, greedy and silent clients, each against a listener whose times are short.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_listen::{Limits, Server, WriteBy, run};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const SHORT: Duration = Duration::from_millis(300);

/// Counts what is held for answers.
#[derive(Default)]
struct Held(AtomicUsize);

struct Guard(Arc<Held>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Echo {
    held: Arc<Held>,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

impl Server for Echo {
    type Peer = SocketAddr;
    type Body = Body;
    fn connected(&self, remote: SocketAddr, _: Option<&[CertificateDer<'_>]>, _: &CancellationToken) -> SocketAddr {
        remote
    }
    async fn answer(&self, peer: &Arc<SocketAddr>, mut request: http::Request<Incoming>) -> http::Response<Body> {
        if request.headers().contains_key("upgrade") {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                let (mut read, mut write) = tokio::io::split(&mut io);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let answer = http::Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "echo");
            return answer
                .body(Full::default().map_err(|e| match e {}).boxed_unsync())
                .unwrap();
        }
        if request.uri().path() == "/whoami" {
            let who = peer.ip().to_string();
            return http::Response::new(Full::from(who).map_err(|e| match e {}).boxed_unsync());
        }
        if request.uri().path() == "/small" {
            return http::Response::new(Full::from("small").map_err(|e| match e {}).boxed_unsync());
        }
        // More than any window or buffer takes, by when it says.
        self.held.0.fetch_add(1, Ordering::SeqCst);
        let guard = Guard(self.held.clone());
        if request.uri().path() == "/quiet" {
            let nothing = futures::stream::unfold(guard, |guard| async move {
                std::future::pending::<()>().await;
                Some((Ok(Frame::data(Bytes::new())), guard))
            });
            return http::Response::new(StreamBody::new(nothing).boxed_unsync());
        }
        let chunks = futures_chunks(guard);
        let mut answer = http::Response::new(StreamBody::new(chunks).boxed_unsync());
        if request.uri().path() == "/timed" {
            answer.extensions_mut().insert(WriteBy(Instant::now() + SHORT));
        }
        answer
    }
}

/// Chunks without end.
fn futures_chunks(guard: Guard) -> impl futures::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send {
    futures::stream::unfold(guard, |guard| async move {
        Some((Ok(Frame::data(Bytes::from_static(&[b'x'; 64 * 1024]))), guard))
    })
}

struct Started {
    address: SocketAddr,
    held: Arc<Held>,
    roots: Arc<rustls::RootCertStore>,
    _stop: tokio_util::sync::DropGuard,
}

async fn start(limits: Limits) -> Started {
    start_at("127.0.0.1:0", limits).await
}

async fn start_at(address: &str, limits: Limits) -> Started {
    start_with(address, limits, &["h2", "http/1.1"]).await
}

async fn start_with(address: &str, limits: Limits, protocols: &[&str]) -> Started {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let cert = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let socket = TcpListener::bind(address).await.unwrap();
    let (address, stop, held) = (
        socket.local_addr().unwrap(),
        CancellationToken::new(),
        Arc::<Held>::default(),
    );
    let server = Arc::new(Echo { held: held.clone() });
    tokio::spawn(run(socket, Arc::new(config), server, limits, stop.clone()));
    Started {
        address,
        held,
        roots: Arc::new(roots),
        _stop: stop.drop_guard(),
    }
}

impl Started {
    async fn connect(&self, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// How long until the server ended the connection.
async fn ended(stream: &mut (impl AsyncReadExt + Unpin)) -> Duration {
    let began = Instant::now();
    let mut buffer = [0; 4096];
    let read = async { while let Ok(1..) = stream.read(&mut buffer).await {} };
    timeout(Duration::from_secs(30), read)
        .await
        .expect("the server ends the connection");
    began.elapsed()
}

fn short() -> Limits {
    Limits {
        head: SHORT,
        idle: SHORT * 3,
        late: SHORT,
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_or_says_it_slowly_is_closed() {
    // No handshake.
    let limits = Limits {
        handshake: SHORT,
        ..short()
    };
    let server = start(limits).await;
    let mut bare = TcpStream::connect(server.address).await.unwrap();
    ended(&mut bare).await;
    let server = start(short()).await;
    for protocol in ["http/1.1", "h2"] {
        // No request: not even what tells the version of HTTP.
        let mut silent = server.connect(protocol).await.unwrap();
        ended(&mut silent).await;
    }
    // A head, byte by byte: each comes in time, all of them don't.
    let mut slow = server.connect("http/1.1").await.unwrap();
    let (mut read, mut write) = tokio::io::split(&mut slow);
    let writing = async {
        for byte in b"GET /small HTTP/1.1\r\nhost: localhost\r\nx-more: and more\r\n"
            .iter()
            .cycle()
        {
            if write.write_all(&[*byte]).await.is_err() || write.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    tokio::select! {
        _ = ended(&mut read) => {}
        () = writing => {}
    }
}

/// A socket for both families has IPv4 clients in a form of IPv6.
#[tokio::test]
async fn a_client_has_its_own_address_whatever_the_socket() {
    if let Err(error) = std::net::TcpListener::bind("[::1]:0") {
        println!("this machine has no IPv6, and no such socket: {error}");
        return;
    }
    let mut server = start_at("[::]:0", short()).await;
    for (through, seen) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        server.address.set_ip(through.parse().unwrap());
        let mut stream = server.connect("http/1.1").await.unwrap();
        let request = b"GET /whoami HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.ends_with(&format!("\r\n{seen}")), "{answer}");
    }
}

#[tokio::test]
async fn where_http2_is_not_offered_nobody_speaks_it_all_the_same() {
    let server = start_with("127.0.0.1:0", Limits::default(), &["http/1.1"]).await;
    assert!(server.connect("h2").await.is_err());
    // It was agreed on HTTP/1.1, and the other one begins, in one piece or byte by byte.
    for piece in [24, 1] {
        let mut other = server.connect("http/1.1").await.unwrap();
        for part in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".chunks(piece) {
            other.write_all(part).await.unwrap();
            other.flush().await.unwrap();
        }
        // A server that spoke it would send its settings.
        let mut answer = [0; 64];
        let read = timeout(Duration::from_secs(30), other.read(&mut answer)).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?} {answer:?}");
    }
    let mut one = server.connect("http/1.1").await.unwrap();
    one.write_all(b"GET /small HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    one.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("small"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_or_upgraded_one_is_not() {
    let server = start(short()).await;
    let mut idle = server.connect("http/1.1").await.unwrap();
    idle.write_all(b"GET /small HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    ended(&mut idle).await;

    let mut upgraded = server.connect("http/1.1").await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    upgraded.write_all(request).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(upgraded.read_u8().await.unwrap());
    }
    tokio::time::sleep(SHORT * 5).await;
    upgraded.write_all(b"still here").await.unwrap();
    let mut echoed = [0; 10];
    timeout(Duration::from_secs(30), upgraded.read_exact(&mut echoed))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&echoed, b"still here");
}

#[tokio::test]
async fn an_answer_that_is_not_read_loses_its_body_and_then_its_connection() {
    let server = start(short()).await;
    // HTTP/2: the client never opens a window for the answer.
    let stream = server.connect("h2").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1024)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .unwrap();
    let ending = tokio::spawn(connection);
    let request = http::Request::get("https://localhost/timed")
        .body(Full::default())
        .unwrap();
    let unread = sender.send_request(request).await.unwrap();
    assert_eq!(server.held.0.load(Ordering::SeqCst), 1);
    let began = Instant::now();
    while server.held.0.load(Ordering::SeqCst) > 0 {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "what is held for the answer is given back"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(
        timeout(Duration::from_secs(30), ending)
            .await
            .expect("the connection ends"),
    );
    drop(unread);
    // HTTP/1.1: it never reads.
    let mut deaf = server.connect("http/1.1").await.unwrap();
    deaf.write_all(b"GET /timed HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let began = Instant::now();
    while server.held.0.load(Ordering::SeqCst) == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "the request arrives");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while server.held.0.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ended(&mut deaf).await;
    // Without a time it goes on: reading it is the client's business.
    let mut reading = server.connect("http/1.1").await.unwrap();
    reading
        .write_all(b"GET /untimed HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(SHORT * 5).await;
    assert_eq!(server.held.0.load(Ordering::SeqCst), 1);
    drop(reading);
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_an_answer_loses_it_and_one_that_waits_for_more_does_not() {
    let limits = Limits {
        unread: Some(SHORT),
        ..short()
    };
    let server = start(limits).await;
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    // There is nothing to take.
    let mut waiting = server.connect("http/1.1").await.unwrap();
    waiting.write_all(ask("/quiet").as_bytes()).await.unwrap();
    // One that takes as much as it can.
    let mut reading = server.connect("http/1.1").await.unwrap();
    reading.write_all(ask("/untimed").as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let read = async { while let Ok(1..) = reading.read(&mut buffer).await {} };
    assert!(timeout(SHORT * 5, read).await.is_err(), "it is still answered");
    drop(reading);
    wait_for(&server.held, 1).await;
    let mut byte = [0; 4096];
    assert!(waiting.read(&mut byte).await.unwrap() > 0, "the head has come");
    assert!(timeout(SHORT, waiting.read(&mut byte)).await.is_err(), "it isn't ended");
    // HTTP/1.1: it never reads.
    let mut deaf = server.connect("http/1.1").await.unwrap();
    deaf.write_all(ask("/untimed").as_bytes()).await.unwrap();
    wait_for(&server.held, 2).await;
    wait_for(&server.held, 1).await;
    ended(&mut deaf).await;
    // HTTP/2: it never opens a window.
    let stream = server.connect("h2").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1024)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .unwrap();
    let ending = tokio::spawn(connection);
    let request = http::Request::get("https://localhost/untimed")
        .body(Full::default())
        .unwrap();
    let unread = sender.send_request(request).await.unwrap();
    wait_for(&server.held, 1).await;
    drop(
        timeout(Duration::from_secs(30), ending)
            .await
            .expect("the connection ends"),
    );
    drop(unread);
}

/// Until so much is held.
async fn wait_for(held: &Held, wanted: usize) {
    let began = Instant::now();
    while held.0.load(Ordering::SeqCst) != wanted {
        assert!(began.elapsed() < Duration::from_secs(30), "{wanted} are held");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_full_listener_has_a_place_for_who_comes_from_elsewhere() {
    let limits = Limits {
        connections: 4,
        ..Limits::default()
    };
    let server = start(limits).await;
    let request = b"GET /untimed HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut greedy = Vec::new();
    for _ in 0..4 {
        let mut stream = server.connect("http/1.1").await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        greedy.push(stream);
    }
    // All places are taken by one peer, with requests on all: it gets no fifth.
    assert!(server.connect("http/1.1").await.is_err());
    // Another one (another address of this machine) gets one of its.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(server.address).await.unwrap();
    let refused = timeout(SHORT, other.read_u8()).await;
    assert!(refused.is_err(), "the server waits for its handshake");
}
