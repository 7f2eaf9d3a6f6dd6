//! The way in from the network: TLS, client certificates, tokens, upgrades and proxies, with a kubelet that is a test.

#![allow(clippy::unwrap_used)]

#[path = "front/files.rs"]
mod files;
mod harness;
#[path = "front/revoked.rs"]
mod revoked;
#[path = "front/sockets.rs"]
mod sockets;

use anyhow::Result;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_api::{Value, value};
use keelson_apiserver::audit::{Policy, Settings};
use keelson_apiserver::connect::{ClientTls, Target, Trust};
use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{ApiServer, Body, Config};
use keelson_pki::{CertSpec, Issued, Pki, San};
use keelson_store::Memory;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Front {
    api: Arc<ApiServer>,
    pki: Pki,
    port: u16,
    dir: PathBuf,
    stop: CancellationToken,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Front {
    async fn start(name: &str) -> Front {
        let dir = std::env::temp_dir().join(format!("keelson-front-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let pki = Pki::open(&dir).unwrap();
        let serving = pki
            .apiserver([10, 96, 0, 1].into(), "cluster.local", &[San::parse("127.0.0.1")])
            .unwrap();
        let cert = ServingCert::new(&serving.cert_pem, &serving.key_pem).unwrap();
        let ca = pki.ca.cert_pem().to_string();
        let config = Config {
            kubelet_ca_pem: Some(ca),
            audit: Some((Policy::standard().unwrap(), Settings::at(dir.join("audit.log")))),
            ..Config::from_pki(Pki::open(&dir).unwrap()).unwrap()
        };
        let api = Arc::new(ApiServer::new(config, Memory::new()).unwrap());
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let (serve, until) = (api.clone(), stop.clone());
        tokio::spawn(async move { serve.serve(socket, cert, until).await.unwrap() });
        api.ready().await;
        let health = api.handle();
        for _ in 0..1000 {
            let ask = http::Request::get("/readyz").body(Body::empty()).unwrap();
            if health.clone().handle(ask).await.status() == 200 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Front {
            api,
            pki,
            port,
            dir,
            stop,
        }
    }

    fn target(&self, identity: Option<&CertSpec>) -> Target {
        self.target_of(identity.map(|spec| self.pki.ca.issue(spec).unwrap()))
    }
    fn target_of(&self, issued: Option<Issued>) -> Target {
        let identity = issued.as_ref().map(|i| (i.cert_pem.as_str(), i.key_pem.as_str()));
        let config = ClientTls::config(Trust::Bundle(self.pki.ca.cert_pem()), identity).unwrap();
        let address = format!("127.0.0.1:{}", self.port);
        Target {
            host: address.clone(),
            address,
            tls: Some(ClientTls::to(config, "127.0.0.1").unwrap()),
        }
    }
    /// The audit log, once it has the text: it is written a moment after the answer.
    async fn audited(&self, wanted: &str) -> String {
        let mut text = String::new();
        for _ in 0..3000 {
            text = std::fs::read_to_string(self.dir.join("audit.log")).unwrap();
            if text.contains(wanted) {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{wanted} is not in the audit log: {text}");
    }
    fn admin(&self) -> Target {
        self.target(Some(&CertSpec::client("admin", Some("system:masters"))))
    }

    /// Makes an object as the administrator.
    async fn make(&self, method: &str, path: &str, object: &Value) {
        let (code, text) = send(&self.admin(), method, path, &[], serde_json::to_vec(object).unwrap()).await;
        assert!((200..300).contains(&code), "{code} {text}");
    }

    /// A node whose kubelet is at the port, and a pod on it.
    async fn node_and_pod(&self, port: u16) {
        self.make(
            "POST",
            "/api/v1/nodes",
            &value!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
        )
        .await;
        let (_, node) = send(&self.admin(), "GET", "/api/v1/nodes/n1", &[], vec![]).await;
        let mut node: Value = serde_json::from_str(&node).unwrap();
        node.set_at(
            &["status"],
            value!({
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            }),
        );
        self.make("PUT", "/api/v1/nodes/n1/status", &node).await;
        let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        self.make("POST", "/api/v1/namespaces/default/serviceaccounts", &account)
            .await;
        let pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
        }});
        self.make("POST", "/api/v1/namespaces/default/pods", &pod).await;
    }
}

async fn send(target: &Target, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json");
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    let answer = target.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8_lossy(&bytes).into_owned())
}

/// A kubelet that says what it was asked, and echoes upgraded connections. Only the API server's certificate is let in.
async fn kubelet(pki: &Pki) -> u16 {
    let issued = pki.kubelet_server("n1", &[[127, 0, 0, 1].into()]).unwrap();
    let cert = ServingCert::new(&issued.cert_pem, &issued.key_pem).unwrap();
    let roots = keelson_apiserver::serve::tls::roots(pki.ca.cert_pem()).unwrap();
    let config = keelson_apiserver::serve::tls::server_config(cert, &roots).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let tls = acceptor.accept(stream).await.unwrap();
                assert!(tls.get_ref().1.peer_certificates().is_some());
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), service_fn(answer))
                    .with_upgrades();
                let _ = served.await;
            });
        }
    });
    port
}

async fn answer(mut request: http::Request<Incoming>) -> Result<http::Response<Full<bytes::Bytes>>> {
    let asked = format!("{} {}", request.method(), request.uri());
    let Some(protocol) = request.headers().get("upgrade").cloned() else {
        return Ok(http::Response::new(Full::from(asked)));
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgraded.await.unwrap());
        let (mut buffer, mut greeting) = ([0; 64], asked.into_bytes());
        greeting.push(b'\n');
        stream.write_all(&greeting).await.unwrap();
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..n]).await.unwrap();
        }
    });
    let answer = http::Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", protocol);
    Ok(answer.body(Full::default())?)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_known_by_certificate_token_or_not_at_all() {
    let front = Front::start("who").await;
    let (code, _) = send(&front.admin(), "GET", "/api/v1/namespaces", &[], vec![]).await;
    assert_eq!(code, 200);
    let bob = front.target(Some(&CertSpec::client("bob", None)));
    let (code, text) = send(&bob, "GET", "/api/v1/namespaces/default/secrets", &[], vec![]).await;
    assert_eq!(code, 403);
    assert!(text.contains(r#"secrets is forbidden: User \"bob\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""#), "{text}");
    let nobody = front.target(None);
    assert_eq!(send(&nobody, "GET", "/readyz", &[], vec![]).await, (200, "ok".into()));
    assert_eq!(send(&nobody, "GET", "/api/v1/pods", &[], vec![]).await.0, 403);
    assert_eq!(
        send(
            &nobody,
            "GET",
            "/api/v1/pods",
            &[("authorization", "Bearer wrong")],
            vec![]
        )
        .await
        .0,
        401
    );
    let audited = front.audited("Authentication failed, attempted: bearer").await;
    assert!(!audited.contains("wrong"), "the token itself is a secret");
    // Headers of a front proxy count only with its certificate.
    let posing = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
    assert_eq!(send(&nobody, "GET", "/api/v1/pods", &posing, vec![]).await.0, 403);
    let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    front
        .make("POST", "/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    let ask = serde_json::to_vec(&value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"})).unwrap();
    let (code, text) = send(
        &front.admin(),
        "POST",
        "/api/v1/namespaces/default/serviceaccounts/robot/token",
        &[],
        ask,
    )
    .await;
    assert_eq!(code, 201, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let bearer = format!("Bearer {}", answer.at(&["status", "token"]).unwrap().as_str().unwrap());
    let (code, text) = send(
        &nobody,
        "GET",
        "/api/v1/namespaces",
        &[("authorization", &bearer)],
        vec![],
    )
    .await;
    assert_eq!(code, 403);
    assert!(text.contains("system:serviceaccount:default:robot"), "{text}");
    // Who may not impersonate doesn't; who may acts as the other.
    let acting = [("impersonate-user", "bob")];
    assert_eq!(
        send(&bob, "GET", "/api/v1/pods", &[("impersonate-user", "admin")], vec![])
            .await
            .0,
        403
    );
    let (code, text) = send(&front.admin(), "GET", "/api/v1/pods", &acting, vec![]).await;
    assert!(code == 403 && text.contains(r#"User \"bob\""#), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_proxies_reach_the_kubelet() {
    let front = Front::start("streams").await;
    let port = kubelet(&front.pki).await;
    front.node_and_pod(port).await;
    let admin = front.admin();
    let (code, text) = send(
        &admin,
        "GET",
        "/api/v1/namespaces/default/pods/p/log?tailLines=3&follow=true",
        &[],
        vec![],
    )
    .await;
    assert_eq!(
        (code, text.as_str()),
        (200, "GET /containerLogs/default/p/c?follow=true&tailLines=3&stream=All")
    );
    let (code, text) = send(
        &admin,
        "GET",
        "/api/v1/namespaces/default/pods/p/log?container=x",
        &[],
        vec![],
    )
    .await;
    assert!(
        code == 400 && text.contains("container x is not valid for pod p"),
        "{text}"
    );
    let request = http::Request::get("/api/v1/namespaces/default/pods/p/log")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", "binary.k8s.io")
        .body(Body::empty())
        .unwrap();
    let mut answer = admin.send(request).await.unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            answer.headers()["sec-websocket-accept"].as_bytes()
        ),
        (101, &b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..])
    );
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    let text = b"GET /containerLogs/default/p/c?stream=All";
    let mut frame = vec![0; text.len() + 4];
    stream.read_exact(&mut frame).await.unwrap();
    // An empty message, then a whole binary one of that length.
    assert_eq!(
        (&frame[..3], frame[3] as usize, &frame[4..]),
        (&[0x82, 0, 0x82][..], text.len(), &text[..])
    );
    // Upgraded by the network's client, and by one within the process.
    for inside in [false, true] {
        let request = http::Request::post("/api/v1/namespaces/default/pods/p/exec?command=cat&stdin=true&stderr=false")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .body(Body::empty())
            .unwrap();
        let mut answer = if inside {
            use tower::ServiceExt;
            let service = front.api.service(keelson_apiserver::UserInfo::api_server());
            service.oneshot(request).await.unwrap()
        } else {
            admin.send(request).await.unwrap().map(Body::new)
        };
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["upgrade"].as_bytes()),
            (101, &b"SPDY/3.1"[..])
        );
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        stream.write_all(b"hello").await.unwrap();
        let expected = b"POST /exec/default/p/c?input=1&output=1&command=cat\nhello";
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
    }
    // A reader must not run commands by way of a GET.
    let bob = front.target(Some(&CertSpec::client("bob", None)));
    let role = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}]});
    front
        .make(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
            &role,
        )
        .await;
    let binding = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}]});
    front
        .make(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            &binding,
        )
        .await;
    let (code, text) = send(
        &bob,
        "GET",
        "/api/v1/namespaces/default/pods/p/exec?command=id",
        &[],
        vec![],
    )
    .await;
    assert!(
        code == 403 && text.contains(r#"cannot create resource \"pods/exec\""#),
        "{code} {text}"
    );
    // Proxies don't reach what listens on loopback.
    let (code, text) = send(&admin, "GET", &format!("/api/v1/nodes/n1:{port}/proxy/"), &[], vec![]).await;
    assert!(code == 400 && text.contains("address not allowed"), "{code} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_listener_ends_watches() {
    let front = Front::start("stop").await;
    let admin = front.admin();
    let request = http::Request::get("/api/v1/namespaces?watch=true&timeoutSeconds=600")
        .body(Body::empty())
        .unwrap();
    let watch = admin.send(request).await.unwrap();
    assert_eq!(watch.status(), 200);
    front.stop.cancel();
    let body = watch.into_body().collect().await.unwrap().to_bytes();
    assert!(!body.is_empty());
    let refused = admin
        .send(http::Request::get("/healthz").body(Body::empty()).unwrap())
        .await;
    assert!(refused.is_err());
}
