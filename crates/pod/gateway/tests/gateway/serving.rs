//! What a node does with connections.

use crate::backends::{Fake, Gate, certificate, pieces, read, table, to, whole};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_client::ObjectKey;
use keelson_gateway::table::{
    Action, Filters, Headers, Mirror, PathChange, Protocol, Redirect, Rewrite, Speaks, Upstream,
};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Tells the request's line and headers, as it got them.
pub async fn told(request: Request<Incoming>) -> Response<crate::backends::Body> {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    let mut names: Vec<_> = request
        .headers()
        .iter()
        .map(|(k, v)| format!("{k}: {}\n", v.to_str().unwrap()))
        .collect();
    names.sort();
    text.extend(names);
    let mut answer = Response::new(whole(text));
    answer.headers_mut().insert("x-secret", "1".parse().unwrap());
    answer.headers_mut().insert("keep-alive", "timeout=5".parse().unwrap());
    answer
}

#[tokio::test]
async fn backends_are_told_who_asks_and_nothing_of_the_connection() {
    let backend = Fake::start(told).await;
    let gate = Gate::to(to(&[backend.at], Protocol::Http1)).await;
    let request = Request::get("/a?b=c")
        .header("host", "x.org:8080")
        .header("connection", "close, x-hop")
        .header("x-hop", "1")
        .header("te", "gzip")
        .header("proxy-authorization", "secret")
        .header("x-forwarded-for", "192.0.2.66")
        .header("forwarded", "for=192.0.2.66")
        .header("x-own", "2")
        .body(whole(""))
        .unwrap();
    let answer = gate.http1().await.send_request(request).await.unwrap();
    assert!(answer.headers().get("keep-alive").is_none());
    let expected = "GET /a?b=c\ncdn-loop: keelson\nhost: x.org:8080\nx-forwarded-for: 127.0.0.1\n\
        x-forwarded-host: x.org:8080\nx-forwarded-port: 80\nx-forwarded-proto: http\nx-own: 2\nx-real-ip: 127.0.0.1\n";
    assert_eq!(read(answer).await, (200, expected.into()));
}

#[tokio::test]
async fn filters_change_what_they_are_to() {
    let (backend, seen) = (Fake::start(told).await, Arc::new(AtomicUsize::new(0)));
    let count = seen.clone();
    let mirrored = Fake::start(move |request: Request<Incoming>| {
        let count = count.clone();
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            count.fetch_add(body.len(), Ordering::SeqCst);
            Response::new(whole(""))
        }
    })
    .await;
    let pair = |k: &'static str, v: &str| (k.parse().unwrap(), v.parse().unwrap());
    let mut action = to(&[backend.at], Protocol::Http1);
    action.filters = Filters {
        request: Headers {
            set: vec![pair("x-set", "1")],
            add: vec![pair("x-own", "2")],
            remove: vec!["x-gone".parse().unwrap()],
        },
        response: Headers {
            set: vec![pair("x-told", "3")],
            add: Vec::new(),
            remove: vec!["x-secret".parse().unwrap()],
        },
        rewrite: Some(Rewrite {
            host: Some("y.org".into()),
            path: Some(PathChange::Prefix("/new".into())),
        }),
        redirect: None,
        cors: None,
        mirrors: vec![Mirror {
            to: Arc::new(Upstream::Endpoints {
                service: ObjectKey::new("n", "s"),
                addresses: vec![mirrored.at],
                protocol: Protocol::Http1,
                trust: None,
            }),
            share: (1, 1),
        }],
    };
    let gate = Gate::to(action).await;
    let request = Request::post("/old")
        .header("host", "x.org")
        .header("x-gone", "1")
        .header("x-own", "1")
        .body(whole("12345"))
        .unwrap();
    let answer = gate.http1().await.send_request(request).await.unwrap();
    assert!(answer.headers().get("x-secret").is_none() && answer.headers()["x-told"] == "3");
    let (_, text) = read(answer).await;
    assert!(
        text.starts_with("POST /new/old\n") && text.contains("\nhost: y.org\n"),
        "{text}"
    );
    assert!(
        text.contains("x-own: 1\nx-own: 2\n") && text.contains("x-set: 1\n") && !text.contains("x-gone"),
        "{text}"
    );
    for _ in 0..100 {
        if seen.load(Ordering::SeqCst) == 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(seen.load(Ordering::SeqCst), 5, "the mirror has the body, too");
    let redirect = Redirect {
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: None,
        status: 301,
    };
    gate.set(Action {
        filters: Filters {
            redirect: Some(redirect),
            ..Filters::default()
        },
        ..Action::default()
    });
    let request = Request::get("/a?b").header("host", "x.org").body(whole("")).unwrap();
    let answer = gate.http1().await.send_request(request).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (301, &"https://x.org/a?b".parse().unwrap())
    );
}

#[tokio::test]
async fn what_leads_back_ends() {
    let gate = Gate::open(Speaks::Http).await;
    for protocol in [Protocol::Http1, Protocol::H2c] {
        gate.set(to(&[gate.at], protocol));
        assert_eq!(gate.get("/").await.0, 508, "{protocol:?}");
    }
    // A way through others, and through several of ours, is none that goes round.
    let backend = Fake::start(told).await;
    gate.set(to(&[backend.at], Protocol::Http1));
    for (times, expected) in [(7, 200), (8, 508)] {
        let request = Request::get("/")
            .header("host", "x.org")
            .header("cdn-loop", "other; loops=9")
            .header("cdn-loop", vec!["keelson"; times].join(", "))
            .body(whole(""))
            .unwrap();
        let answer = gate.http1().await.send_request(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "{times}");
    }
}

#[tokio::test]
async fn what_leads_nowhere_says_so() {
    let gate = Gate::open(Speaks::Http).await;
    assert_eq!(gate.get("/").await.0, 404);
    gate.set(to(&[], Protocol::Http1));
    assert_eq!(gate.get("/").await.0, 503);
    gate.set(Action::default());
    assert_eq!(gate.get("/").await.0, 500);
    let external = |host: &str| {
        let mut action = to(&[], Protocol::Http1);
        action.backends[0].to = Arc::new(Upstream::External {
            host: host.into(),
            port: 80,
            protocol: Protocol::Http1,
            trust: None,
        });
        action
    };
    // A name may not lead to programs of the machine itself.
    gate.set(external("localhost"));
    assert_eq!(gate.get("/").await.0, 503);
    assert_eq!(
        gate.get("/a/%2e%2e/b").await.0,
        400,
        "it would be another path to the backend"
    );
    // A host twice, or what is none, is no request; a name is looked for label by label, so it has an end.
    let long = "a.".repeat(200);
    for host in ["a\r\nhost: b", "user@a", "a b", &long] {
        let mut stream = TcpStream::connect(gate.at).await.unwrap();
        stream
            .write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 400", "{host}");
    }
}

/// An address on which nobody listens.
async fn nobody() -> SocketAddr {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    socket.local_addr().unwrap()
}

#[tokio::test]
async fn an_endpoint_that_is_away_costs_nobody_a_request() {
    let length = |request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(whole(body.len().to_string()))
    };
    let backend = Fake::start(length).await;
    let gate = Gate::to(to(&[backend.at, nobody().await], Protocol::Http1)).await;
    let mut client = gate.http1().await;
    for _ in 0..20 {
        let request = Request::post("/").header("host", "x").body(whole("body")).unwrap();
        assert_eq!(
            read(client.send_request(request).await.unwrap()).await,
            (200, "4".into())
        );
    }
    gate.set(to(&[nobody().await], Protocol::Http1));
    assert_eq!(gate.get("/").await.0, 502);
}

#[tokio::test]
async fn connections_are_kept_and_one_that_died_is_made_again() {
    let hello = |_| async { Response::new(whole("hello")) };
    let backend = Fake::start(hello).await;
    let (at, connections) = (backend.at, backend.connections.clone());
    let gate = Gate::to(to(&[at], Protocol::Http1)).await;
    for _ in 0..5 {
        assert_eq!(gate.get("/").await.0, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    drop(backend);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _again = Fake::at(at, hello).await;
    assert_eq!(gate.get("/").await, (200, "hello".into()));
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel() {
    let backend = Fake::start(|mut request: Request<Incoming>| async move {
        assert_eq!(request.headers()["upgrade"], "echo");
        let on = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(on.await.unwrap());
            let mut bytes = [0; 5];
            io.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
        });
        let answer = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "echo");
        answer.body(whole("")).unwrap()
    })
    .await;
    let gate = Gate::to(to(&[backend.at], Protocol::Http1)).await;
    let request = Request::get("/")
        .header("host", "x")
        .header("connection", "Upgrade")
        .header("upgrade", "echo");
    let mut answer = gate
        .http1()
        .await
        .send_request(request.body(whole("")).unwrap())
        .await
        .unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["upgrade"]),
        (101, &"echo".parse().unwrap())
    );
    let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut text = String::new();
    timeout(Duration::from_secs(10), io.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(text, "olleh");
}

#[tokio::test]
async fn bodies_stream_both_ways_and_wait_for_who_is_slow() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    // Answers each piece as it comes.
    let backend = Fake::start(move |request: Request<Incoming>| {
        let count = count.clone();
        async move {
            if request.uri().path() == "/flood" {
                let endless = futures::stream::repeat_with(move || {
                    count.fetch_add(64 << 10, Ordering::SeqCst);
                    Frame::data(Bytes::from(vec![0; 64 << 10]))
                });
                return Response::new(pieces(endless));
            }
            let body = request.into_body().into_data_stream();
            Response::new(pieces(body.map(|piece| Frame::data(piece.unwrap()))))
        }
    })
    .await;
    let gate = Gate::to(to(&[backend.at], Protocol::Http1)).await;
    let (feed, fed) = mpsc::channel::<Bytes>(1);
    let body = futures::stream::unfold(fed, |mut fed| async { Some((Frame::data(fed.recv().await?), fed)) });
    let request = Request::post("/").header("host", "x").body(pieces(body)).unwrap();
    let mut client = gate.http1().await;
    let answer = client.send_request(request);
    feed.send("one".into()).await.unwrap();
    let mut answer = answer.await.unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    feed.send("two".into()).await.unwrap();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
    let large = Bytes::from(vec![7; 1 << 20]);
    let feeding = tokio::spawn(async move {
        for _ in 0..16 {
            feed.send(large.clone()).await.unwrap();
        }
    });
    let rest = answer.collect().await.unwrap().to_bytes();
    feeding.await.unwrap();
    assert_eq!(rest.len(), 16 << 20);
    // Nobody reads: what is on its way has an end.
    let request = Request::get("/flood").header("host", "x").body(whole("")).unwrap();
    let _unread = gate.http1().await.send_request(request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = sent.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sent.load(Ordering::SeqCst), before);
    assert!(before < 32 << 20, "{before}");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let backend = Fake::start(|_| std::future::pending()).await;
    let mut action = to(&[backend.at], Protocol::Http1);
    action.backend = Some(Duration::from_millis(100));
    let gate = Gate::to(action.clone()).await;
    assert_eq!(gate.get("/").await.0, 504);
    action.backend = None;
    action.request = Some(Duration::from_millis(100));
    gate.set(action);
    assert_eq!(gate.get("/").await.0, 504);
}

#[tokio::test]
async fn grpc_goes_by_http2_with_its_trailers() {
    let backend = Fake::start(|request: Request<Incoming>| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(request.headers()["cookie"], "a=1; b=2");
        assert_eq!(
            (
                request.headers()["te"].to_str().unwrap(),
                request.uri().authority().unwrap().as_str()
            ),
            ("trailers", "x.org")
        );
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())]
            .into_iter()
            .collect();
        Response::new(pieces(futures::stream::iter([
            Frame::data(body),
            Frame::trailers(trailers),
        ])))
    })
    .await;
    let gate = Gate::to(to(&[backend.at], Protocol::H2c)).await;
    let stream = TcpStream::connect(gate.at).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::post("http://x.org/s.S/M")
            .header("te", "trailers")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("content-type", "application/grpc");
        let answer = client
            .send_request(request.body(whole("message")).unwrap())
            .await
            .unwrap();
        let body = answer.into_body().collect().await.unwrap();
        let status = body.trailers().and_then(|t| t.get("grpc-status")).cloned();
        assert_eq!(
            (body.to_bytes(), status.unwrap()),
            (Bytes::from("message"), "0".parse().unwrap())
        );
    };
    for _ in 0..3 {
        ask().await;
    }
    assert_eq!(backend.connections.load(Ordering::SeqCst), 1);
}

pub type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// Shakes hands for a name, trusting one certificate.
pub async fn shake(at: SocketAddr, name: &str, trusted: &rcgen::Certificate, alpn: &str) -> std::io::Result<Tls> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector
        .connect(
            ServerName::try_from(name.to_string()).unwrap(),
            TcpStream::connect(at).await?,
        )
        .await
}

#[tokio::test]
async fn certificates_are_by_name_and_a_new_one_ends_no_connection() {
    let backend = Fake::start(told).await;
    let gate = Gate::open(Speaks::Https).await;
    let (first, made) = certificate("x.org");
    let action = || to(&[backend.at], Protocol::Http1);
    gate.serving.set(table(gate.at.port(), action(), &["x.org"]), first);
    assert!(
        shake(gate.at, "y.org", &made.cert, "h2").await.is_err(),
        "there is none for this name"
    );
    let stream = shake(gate.at, "x.org", &made.cert, "h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("https://x.org/").body(whole("")).unwrap();
        read(client.send_request(request).await.unwrap()).await
    };
    let (status, text) = ask().await;
    assert!(status == 200 && text.contains("x-forwarded-proto: https"), "{text}");
    let (second, renewed) = certificate("x.org");
    gate.serving.set(table(gate.at.port(), action(), &["x.org"]), second);
    assert_eq!(ask().await.0, 200);
    assert!(
        shake(gate.at, "x.org", &made.cert, "http/1.1").await.is_err(),
        "the old one isn't shown any more"
    );
    assert!(shake(gate.at, "x.org", &renewed.cert, "http/1.1").await.is_ok());
}

#[tokio::test]
async fn a_stop_lets_requests_end() {
    let backend = Fake::start(|_| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Response::new(whole("done"))
    })
    .await;
    let gate = Gate::to(to(&[backend.at], Protocol::Http1)).await;
    let mut client = gate.http1().await;
    let request = Request::get("/").header("host", "x").body(whole("")).unwrap();
    let asked = tokio::spawn(async move { read(client.send_request(request).await.unwrap()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.stop.cancel();
    assert_eq!(asked.await.unwrap(), (200, "done".into()));
    timeout(Duration::from_secs(5), gate.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(gate.at).await.is_err());
}
