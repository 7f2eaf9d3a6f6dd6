//! One process follows another at a socket that stays: nobody who comes in between is refused, and none who came before loses his answer.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use keelson_listen::{Limits, Server, run};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// How long an answer takes, and nobody listens between two.
const SLOW: Duration = Duration::from_millis(30);
const NOBODY: Duration = Duration::from_millis(400);

struct Which(u32);

impl Server for Which {
    type Peer = ();
    type Body = Full<Bytes>;
    fn connected(&self, _: SocketAddr, _: Option<&[CertificateDer<'_>]>, _: &CancellationToken) {}
    async fn answer(&self, _: &Arc<()>, _: http::Request<Incoming>) -> http::Response<Full<Bytes>> {
        tokio::time::sleep(SLOW).await;
        http::Response::new(Full::from(format!("from {}", self.0)))
    }
}

/// One request on a connection of its own.
async fn ask(address: SocketAddr, tls: &TlsConnector) -> std::io::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let mut stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    match String::from_utf8_lossy(&answer).rsplit_once("from ") {
        Some((_, which)) => Ok(which.to_owned()),
        None => Err(read.err().unwrap_or_else(|| std::io::Error::other("no answer"))),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_one_follows_another_is_answered() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let cert = made.cert.der().clone();
    let server = |which: u32, socket: &TcpListener, stop: &CancellationToken| {
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.clone()], key)
            .unwrap();
        let socket = tokio::net::TcpListener::from_std(socket.try_clone().unwrap()).unwrap();
        tokio::spawn(run(
            socket,
            Arc::new(config),
            Arc::new(Which(which)),
            Limits::default(),
            stop.clone(),
        ))
    };
    // As somebody keeps it who outlives both.
    let kept = TcpListener::bind("127.0.0.1:0").unwrap();
    kept.set_nonblocking(true).unwrap();
    let address = kept.local_addr().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(client));

    let ended = CancellationToken::new();
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (ended, tls) = (ended.clone(), tls.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !ended.is_cancelled() {
                    answers.push(ask(address, &tls).await);
                }
                answers
            })
        })
        .collect();
    for which in 1..=3 {
        let stop = CancellationToken::new();
        let running = server(which, &kept, &stop);
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.cancel();
        running.await.unwrap().unwrap();
        tokio::time::sleep(NOBODY).await;
    }
    ended.cancel();
    let stop = CancellationToken::new();
    let last = server(4, &kept, &stop);
    let mut by = [0; 5];
    for asker in askers {
        for answer in asker.await.unwrap() {
            by[answer.unwrap().parse::<usize>().unwrap()] += 1;
        }
    }
    assert!(by[1..].iter().all(|answered| *answered > 0), "{by:?}");
    stop.cancel();
    last.await.unwrap().unwrap();
}
