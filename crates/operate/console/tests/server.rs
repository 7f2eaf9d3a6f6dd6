//! The console's server over a real socket, before an API that writes down what it is asked.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_console::{Cluster, Console, Guard, run};
use keelson_listen::{BoxError, Limits, Server};
use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

type Body = UnsyncBoxBody<Bytes, BoxError>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|e| match e {}).boxed_unsync()
}

/// Remembers what it is asked, and answers by the path.
#[derive(Default)]
struct Api {
    asked: Mutex<Vec<(Method, String, HeaderMap, Bytes)>>,
    breaks: Arc<Notify>,
}

impl Server for Api {
    type Peer = ();
    type Body = Body;
    fn connected(&self, _: SocketAddr, _: Option<&[CertificateDer<'_>]>, _: &CancellationToken) {}
    async fn answer(&self, _: &Arc<()>, mut request: Request<Incoming>) -> Response<Body> {
        let (method, headers) = (request.method().clone(), request.headers().clone());
        let uri = request.uri().path_and_query().unwrap().to_string();
        if uri.contains("/exec") {
            self.asked.lock().unwrap().push((method, uri, headers, Bytes::new()));
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                let (mut read, mut write) = tokio::io::split(&mut io);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let key = request.headers()["sec-websocket-key"].as_bytes();
            let accept = tungstenite::handshake::derive_accept_key(key);
            let answer = Response::builder().status(101);
            let answer = answer.header("connection", "Upgrade").header("upgrade", "websocket");
            let answer = answer.header("sec-websocket-protocol", "v5.channel.k8s.io");
            return answer.header("sec-websocket-accept", accept).body(full("")).unwrap();
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        self.asked.lock().unwrap().push((method, uri.clone(), headers, body));
        let answer = Response::builder()
            .header("content-type", "application/json")
            .header("set-cookie", "stolen=1");
        if uri.contains("forbidden") {
            let status = r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"pods is forbidden: User \"ana\" cannot list"}"#;
            return answer.status(403).body(full(status)).unwrap();
        }
        if uri.contains("breaks") {
            let breaks = self.breaks.clone();
            let broken = async move {
                breaks.notified().await;
                Err(BoxError::from("broken"))
            };
            let events = futures::stream::iter([Ok(Frame::data(Bytes::from("{\"n\":1}\n")))])
                .chain(futures::stream::once(broken));
            return answer.body(StreamBody::new(events).boxed_unsync()).unwrap();
        }
        if uri.contains("watch=") {
            let events = futures::stream::iter(["{\"n\":1}\n", "{\"n\":2}\n"])
                .map(|text| Ok(Frame::data(Bytes::from(text))))
                .chain(futures::stream::pending());
            return answer.body(StreamBody::new(events).boxed_unsync()).unwrap();
        }
        if uri.contains("/pods/") {
            let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"default","uid":"u"},"spec":{"containers":[{"name":"c","image":"reg.example/a:1"}],"nodeName":"n"},
                "status":{"phase":"Pending","containerStatuses":[{"name":"c","image":"reg.example/a:1","ready":false,"restartCount":0,"imageID":"",
                "state":{"waiting":{"reason":"ImagePullBackOff","message":"manifest unknown"}}}]}}"#;
            return answer.body(full(pod)).unwrap();
        }
        answer.body(full("{\"items\":[]}")).unwrap()
    }
}

struct Lab {
    api: Arc<Api>,
    at: SocketAddr,
    cookie: String,
    stop: CancellationToken,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn lab() -> Lab {
    let api = Arc::new(Api::default());
    let stop = CancellationToken::new();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", socket.local_addr().unwrap());
    tokio::spawn(keelson_listen::run_plain(
        socket,
        api.clone(),
        Limits::default(),
        stop.clone(),
    ));
    console(&server, api, stop).await
}

/// A console before the API at an address.
async fn console(server: &str, api: Arc<Api>, stop: CancellationToken) -> Lab {
    let client = kube::Client::try_from(kube::Config::new(server.parse().unwrap())).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let guard = Guard::new(&["127.0.0.1".into()], at.port(), false);
    let login = guard.address().replace(&format!("http://{at}"), "");
    let cluster = Cluster {
        client,
        server: server.into(),
        context: "lab".into(),
    };
    tokio::spawn(run(socket, None, Console::new(cluster, guard, None), stop.clone()));
    let mut lab = Lab {
        api,
        at,
        cookie: String::new(),
        stop,
    };
    let got = lab.send(Method::GET, &login, &[], "").await;
    let cookie = got.headers()["set-cookie"].to_str().unwrap();
    lab.cookie = cookie.split(';').next().unwrap().to_string();
    lab
}

impl Lab {
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.at));
        if !headers.iter().any(|(n, _)| *n == "cookie") {
            request = request.header("cookie", &self.cookie);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        let got = client.request(request.body(full(body)).unwrap()).await.unwrap();
        let (parts, body) = got.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }
    fn origin(&self) -> String {
        format!("http://{}", self.at)
    }
    fn asked(&self) -> Vec<(Method, String, HeaderMap, Bytes)> {
        std::mem::take(&mut self.api.asked.lock().unwrap())
    }
    async fn socket(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<tokio_tungstenite::WebSocketStream<TcpStream>, StatusCode> {
        let mut request = format!("ws://{}{path}", self.at).into_client_request().unwrap();
        for (name, value) in [("cookie", self.cookie.as_str()), ("origin", &self.origin())]
            .iter()
            .chain(headers)
        {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.at).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(answer)) => Err(answer.status()),
            Err(error) => panic!("{error}"),
        }
    }
}

async fn next(socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>) -> Message {
    let next = tokio::time::timeout(Duration::from_secs(10), socket.next())
        .await
        .unwrap();
    next.unwrap().unwrap()
}

#[tokio::test]
async fn nothing_is_passed_on_without_the_cookie() {
    let lab = lab().await;
    let wrong = format!("{}g", &lab.cookie[..lab.cookie.len() - 1]);
    for cookie in ["", "a=b", &wrong] {
        for path in [
            "/",
            "/app.js",
            "/api/v1/secrets",
            "/console/about",
            "/console/why/pod/default/a",
        ] {
            let got = lab.send(Method::GET, path, &[("cookie", cookie)], "").await;
            assert_eq!(got.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    assert_eq!(
        lab.socket("/console/stream/api/v1/pods?watch=1", &[("cookie", "a=b")])
            .await
            .err(),
        Some(StatusCode::UNAUTHORIZED)
    );
    assert!(lab.asked().is_empty());
}

#[tokio::test]
async fn a_request_goes_to_the_api_without_what_is_the_browsers() {
    let lab = lab().await;
    let origin = lab.origin();
    let own = [
        ("origin", origin.as_str()),
        ("content-type", "application/yaml"),
        ("accept", "application/yaml"),
        ("authorization", "Bearer x"),
        ("impersonate-user", "root"),
        ("x-remote-user", "root"),
    ];
    let got = lab
        .send(
            Method::PUT,
            "/api/v1/namespaces/a/configmaps/b?dryRun=All",
            &own,
            "kind: ConfigMap",
        )
        .await;
    assert_eq!(got.status(), StatusCode::OK);
    assert!(
        got.headers().get("set-cookie").is_none(),
        "the API sets no cookie of this origin"
    );
    let (method, uri, headers, body) = lab.asked().remove(0);
    assert_eq!(
        (method, uri.as_str()),
        (Method::PUT, "/api/v1/namespaces/a/configmaps/b?dryRun=All")
    );
    assert_eq!(body, "kind: ConfigMap");
    assert_eq!(headers["content-type"], "application/yaml");
    assert_eq!(headers["accept"], "application/yaml");
    assert_eq!(headers["user-agent"], "keelson-console");
    for name in ["cookie", "authorization", "impersonate-user", "x-remote-user", "origin"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn what_is_the_apis_is_no_page() {
    let lab = lab().await;
    for path in [
        "/api/v1/pods",
        "/console/about",
        "/api/v1/namespaces/a/pods/b/proxy/",
        "/api/forbidden",
    ] {
        let got = lab.send(Method::GET, path, &[], "").await;
        let policy = got.headers()["content-security-policy"].to_str().unwrap();
        assert!(
            policy.contains("sandbox") && policy.contains("default-src 'none'"),
            "{path}: {policy}"
        );
        assert_eq!(got.headers()["x-content-type-options"], "nosniff");
    }
    let got = lab.send(Method::GET, "/", &[], "").await;
    assert_eq!(got.status(), StatusCode::OK);
    let policy = got.headers()["content-security-policy"].to_str().unwrap();
    assert!(
        policy.contains("script-src 'self'") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert!(
        policy.contains("require-trusted-types-for 'script'; trusted-types 'none'"),
        "{policy}"
    );
    assert_eq!(got.headers()["x-frame-options"], "DENY");
    let asked: Vec<String> = lab.asked().into_iter().map(|(_, uri, ..)| uri).collect();
    assert_eq!(
        asked,
        ["/api/v1/pods", "/api/forbidden"],
        "pages of pods are not asked for"
    );
}

#[tokio::test]
async fn other_pages_and_other_names_get_nothing() {
    let lab = lab().await;
    let refused = |headers: &'static [(&'static str, &'static str)], method: Method| {
        let lab = &lab;
        async move { lab.send(method, "/api/v1/pods", headers, "").await.status() }
    };
    assert_eq!(
        refused(&[("host", "evil.example")], Method::GET).await,
        StatusCode::MISDIRECTED_REQUEST
    );
    assert_eq!(
        refused(&[("origin", "http://evil.example")], Method::POST).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(refused(&[], Method::DELETE).await, StatusCode::FORBIDDEN);
    assert_eq!(
        refused(&[("sec-fetch-site", "same-site")], Method::GET).await,
        StatusCode::FORBIDDEN
    );
    for path in [
        "/console/stream/api/v1/pods?watch=1",
        "/api/v1/namespaces/a/pods/b/exec?command=sh",
    ] {
        let got = lab.socket(path, &[("origin", "http://evil.example")]).await;
        assert_eq!(got.err(), Some(StatusCode::FORBIDDEN), "{path}");
    }
    assert!(lab.asked().is_empty());
}

#[tokio::test]
async fn a_body_has_a_bound() {
    let lab = lab().await;
    let origin = lab.origin();
    let own = [("origin", origin.as_str())];
    let got = lab
        .send(Method::POST, "/api/v1/pods", &own, vec![b'x'; (4 << 20) + 1])
        .await;
    assert_eq!(got.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(lab.asked().is_empty());
    let got = lab.send(Method::POST, "/api/v1/pods", &own, vec![b'x'; 4 << 20]).await;
    assert_eq!(got.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_watch_comes_as_messages() {
    let lab = lab().await;
    let mut socket = lab
        .socket("/console/table/api/v1/pods?watch=1&x=a%20b", &[])
        .await
        .unwrap();
    assert_eq!(next(&mut socket).await, Message::text("{\"code\":200}"));
    assert_eq!(next(&mut socket).await, Message::binary("{\"n\":1}\n"));
    assert_eq!(next(&mut socket).await, Message::binary("{\"n\":2}\n"));
    let (_, uri, headers, _) = lab.asked().remove(0);
    assert_eq!(uri, "/api/v1/pods?watch=1&x=a%20b");
    assert!(
        headers["accept"]
            .to_str()
            .unwrap()
            .starts_with("application/json;as=Table")
    );
    socket.close(None).await.unwrap();

    let mut socket = lab
        .socket("/console/stream/api/v1/forbidden?watch=1", &[])
        .await
        .unwrap();
    let said = next(&mut socket).await.into_text().unwrap();
    assert!(said.contains("\"code\":403") && said.contains("cannot list"), "{said}");
    assert!(next(&mut socket).await.is_close());
    for path in [
        "/console/stream/metrics",
        "/console/stream/api/v1/nodes/a/proxy/logs",
        "/console/streamer/api",
    ] {
        assert!(lab.socket(path, &[]).await.is_err(), "{path}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_one_that_ends() {
    let lab = lab().await;
    let mut socket = lab.socket("/console/stream/api/v1/breaks", &[]).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::text("{\"code\":200}"));
    assert_eq!(next(&mut socket).await, Message::binary("{\"n\":1}\n"));
    lab.api.breaks.notify_one();
    let said = next(&mut socket).await.into_text().unwrap();
    assert!(said.contains("BrokeOff") && said.contains("broke off"), "{said}");
    assert!(next(&mut socket).await.is_close());
}

#[tokio::test]
async fn a_command_has_a_connection_of_its_own() {
    let lab = lab().await;
    let path = "/api/v1/namespaces/a/pods/b/exec?command=sh&stdin=true";
    let mut socket = lab
        .socket(path, &[("sec-websocket-protocol", "v5.channel.k8s.io")])
        .await
        .unwrap();
    let (_, uri, headers, _) = lab.asked().remove(0);
    assert_eq!(uri, path);
    assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
    assert!(!headers.contains_key("cookie") && !headers.contains_key("origin"));
    // The far end gives the bytes back as they came: a client's frames are masked, which a client refuses.
    socket.send(Message::binary(vec![0u8, b'l', b's'])).await.unwrap();
    let back = tokio::time::timeout(Duration::from_secs(10), socket.next())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(back, Err(tungstenite::Error::Protocol(_))), "{back:?}");
    let other = "/api/v1/namespaces/a/pods/b/portforward?ports=80";
    assert_eq!(lab.socket(other, &[]).await.err(), Some(StatusCode::FORBIDDEN));
}

#[tokio::test]
async fn why_is_answered_by_the_same_rights() {
    let lab = lab().await;
    let got = lab.send(Method::GET, "/console/why/pods/default/a", &[], "").await;
    assert_eq!(got.status(), StatusCode::OK, "{:?}", got.body());
    let report: serde_json::Value = serde_json::from_slice(got.body()).unwrap();
    let causes = report["findings"].as_array().unwrap();
    assert!(causes.iter().any(|f| f["cause"] == "image-not-found"), "{report}");
    let got = lab
        .send(Method::GET, "/console/why/widgets.example.com/default/a", &[], "")
        .await;
    assert_eq!(got.status(), StatusCode::NOT_FOUND);
    let got = lab
        .send(Method::GET, "/console/why/pods/default/forbidden", &[], "")
        .await;
    assert_eq!(got.status(), StatusCode::FORBIDDEN, "{:?}", got.body());
    assert!(
        lab.asked()
            .iter()
            .all(|(_, _, h, _)| h["user-agent"] == "keelson-console")
    );
}

#[tokio::test]
async fn an_api_that_is_gone_is_said_to_be() {
    // A port at which nobody listens any more.
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", socket.local_addr().unwrap());
    drop(socket);
    let lab = console(&server, Arc::default(), CancellationToken::new()).await;
    let got = lab.send(Method::GET, "/api/v1/pods", &[], "").await;
    assert_eq!(got.status(), StatusCode::BAD_GATEWAY);
    let said: serde_json::Value = serde_json::from_slice(got.body()).unwrap();
    assert_eq!(said["reason"], "Unreachable");
    assert!(said["message"].as_str().unwrap().contains("can't be reached"), "{said}");
    let mut socket = lab.socket("/console/stream/api/v1/pods?watch=1", &[]).await.unwrap();
    assert!(next(&mut socket).await.into_text().unwrap().contains("Unreachable"));
    assert_eq!(
        lab.send(Method::GET, "/", &[], "").await.status(),
        StatusCode::OK,
        "the pages are there still"
    );
}
