//! What has been revoked, tried by who has it: on connections that are open, by watches, streams and tokens, and at the first
//! moment of a server's start.

use super::{Front, kubelet, send};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_api::{Value, value};
use keelson_apiserver::authn::x509::CertificateAuthenticator;
use keelson_apiserver::connect::{ClientTls, Target, Trust};
use keelson_apiserver::{ApiServer, Body, Config};
use keelson_pki::revocation::{NAME, Record, Subject};
use keelson_pki::{CertSpec, Issued, Pki};
use keelson_store::Memory;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const WATCH: &str = "/api/v1/namespaces?watch=true&timeoutSeconds=600";
/// What is promised.
const AT_ONCE: Duration = Duration::from_secs(1);

fn ana() -> CertSpec {
    CertSpec::client("ana", Some("system:masters"))
}

fn list(records: &[Record]) -> Value {
    let mut map =
        value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "kube-system"}});
    for record in records {
        map.set_at(&["data", &record.key()], record.to_json().unwrap().as_str());
    }
    map
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

impl Front {
    fn as_issued(&self, issued: &Issued) -> Target {
        let identity = Some((issued.cert_pem.as_str(), issued.key_pem.as_str()));
        let config = ClientTls::config(Trust::Bundle(self.pki.ca.cert_pem()), identity).unwrap();
        Target {
            tls: Some(ClientTls::to(config, "127.0.0.1").unwrap()),
            ..self.target(None)
        }
    }

    /// A connection that stays, by HTTP/2.
    async fn staying(&self, issued: &Issued) -> SendRequest<Body> {
        let target = self.as_issued(issued);
        let mut tls = target.tls.unwrap();
        Arc::make_mut(&mut tls.config).alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect(&target.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(tls.config);
        let stream = connector.connect(tls.server_name, socket).await.unwrap();
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn revoke(&self, records: &[Record]) {
        let (code, _) = send(&self.admin(), "GET", &format!("{MAPS}/{NAME}"), &[], vec![]).await;
        match code {
            404 => self.make("POST", MAPS, &list(records)).await,
            _ => self.make("PUT", &format!("{MAPS}/{NAME}"), &list(records)).await,
        }
    }

    /// A token of a service account that may look around.
    async fn token(&self) -> (String, Record) {
        let account = value!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
        self.make("POST", "/api/v1/namespaces/default/serviceaccounts", &account)
            .await;
        let binding = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "robot"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}]});
        self.make(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            &binding,
        )
        .await;
        let ask = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"});
        let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
        let (code, text) = send(&self.admin(), "POST", path, &[], serde_json::to_vec(&ask).unwrap()).await;
        assert_eq!(code, 201, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        let token = answer.at(&["status", "token"]).unwrap().as_str().unwrap().to_string();
        let record = Record::of_token(&token, now()).unwrap();
        assert!(matches!(record.revoked, Subject::Token(_)));
        (format!("Bearer {token}"), record)
    }
}

fn get(path: &str) -> http::Request<Body> {
    http::Request::get(path).body(Body::empty()).unwrap()
}

/// Reads a stream to its end; whether it broke off.
async fn broke_off(answer: http::Response<Incoming>) -> bool {
    let mut body = answer.into_body();
    let read = async {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(10 * AT_ONCE, read).await.expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_locked_out_wherever_it_is_connected_and_comes_in_again_with_what_is_newer() {
    let front = Front::start("revoked-name").await;
    let port = kubelet(&front.pki).await;
    front.node_and_pod(port).await;
    let certificate = front.pki.ca.issue(&ana()).unwrap();
    let bob = front
        .pki
        .ca
        .issue(&CertSpec::client("bob", Some("system:masters")))
        .unwrap();

    let mut open = front.staying(&certificate).await;
    let uri = |path: &str| format!("https://127.0.0.1{path}");
    let request = |path: &str| http::Request::get(uri(path)).body(Body::empty()).unwrap();
    let watch = open.send_request(request(WATCH)).await.unwrap();
    assert_eq!(watch.status(), 200);
    let idle = front.staying(&certificate).await;
    let mut other = front.staying(&bob).await;
    let others = other.send_request(request(WATCH)).await.unwrap();
    let by_itself = front.as_issued(&certificate).send(get(WATCH)).await.unwrap();
    let exec = http::Request::post("/api/v1/namespaces/default/pods/p/exec?command=cat&stdin=true&stderr=false")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(Body::empty())
        .unwrap();
    let mut answer = front.as_issued(&certificate).send(exec).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).await.unwrap();

    front.revoke(&[Record::of_name("ana", now())]).await;
    let began = Instant::now();
    assert!(broke_off(watch).await && broke_off(by_itself).await);
    let mut rest = Vec::new();
    let end = tokio::time::timeout(10 * AT_ONCE, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the stream goes on");
    while !(open.is_closed() && idle.is_closed()) {
        assert!(began.elapsed() < 10 * AT_ONCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert!(open.send_request(request("/api")).await.is_err());

    // A new connection: refused, and why stands in the audit log alone. Nothing else that is shown helps.
    let (code, text) = send(&front.as_issued(&certificate), "GET", "/api/v1/namespaces", &[], vec![]).await;
    assert_eq!(code, 401);
    assert!(!text.contains("revoked"), "{text}");
    front.audited("what was issued to \\\"ana\\\" until").await;
    let (bearer, _) = front.token().await;
    let both = [("authorization", bearer.as_str())];
    assert_eq!(
        send(&front.as_issued(&certificate), "GET", "/readyz", &both, vec![])
            .await
            .0,
        401
    );

    // Others go on, and who may act as somebody else still may.
    assert!(!other.is_closed());
    drop(others);
    let acting = [("impersonate-user", "ana")];
    let (code, text) = send(&front.admin(), "GET", "/api/v1/pods", &acting, vec![]).await;
    assert!(code == 403 && text.contains(r#"User \"ana\""#), "{text}");
    // Certificates tell seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let newer = front.pki.ca.issue(&ana()).unwrap();
    assert_eq!(
        send(&front.as_issued(&newer), "GET", "/api/v1/namespaces", &[], vec![])
            .await
            .0,
        200
    );
    assert_eq!(
        send(&front.as_issued(&certificate), "GET", "/api/v1/namespaces", &[], vec![])
            .await
            .0,
        401
    );
    let serial = Record::of_certificate(&newer.cert_pem, now()).unwrap();
    front.revoke(&[serial]).await;
    front.out(&front.as_issued(&newer), &[]).await;
    // The other record has gone.
    assert_eq!(
        send(&front.as_issued(&certificate), "GET", "/api/v1/namespaces", &[], vec![])
            .await
            .0,
        200
    );
}

impl Front {
    /// Waits until somebody is refused. A connection that is open at that moment is cut, also in the middle of a request.
    async fn out(&self, target: &Target, headers: &[(&str, &str)]) {
        let began = Instant::now();
        loop {
            let mut request = get("/api/v1/namespaces");
            for (name, value) in headers {
                let name: http::HeaderName = name.parse().unwrap();
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            if target.send(request).await.is_ok_and(|answer| answer.status() == 401) {
                return;
            }
            assert!(began.elapsed() < AT_ONCE, "it should be refused by now");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_taken_back_also_where_it_is_remembered_and_in_what_others_ask() {
    let front = Front::start("revoked-token").await;
    let (bearer, record) = front.token().await;
    let nobody = front.target(None);
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(
        send(&nobody, "GET", "/api/v1/namespaces", &headers, vec![]).await.0,
        200
    );
    let mut request = get(WATCH);
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    let watch = nobody.send(request).await.unwrap();
    assert_eq!(watch.status(), 200);
    let review = value!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": bearer.trim_start_matches("Bearer ")}});
    let review = serde_json::to_vec(&review).unwrap();
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (_, text) = send(&front.admin(), "POST", path, &[], review.clone()).await;
    assert!(text.contains(r#""authenticated":true"#), "{text}");

    front.revoke(std::slice::from_ref(&record)).await;
    assert!(broke_off(watch).await);
    front.out(&nobody, &headers).await;
    let (_, text) = send(&front.admin(), "POST", path, &[], review).await;
    assert!(
        text.contains("has been revoked") && !text.contains(r#""authenticated":true"#),
        "{text}"
    );
    front.audited("the token with id").await;

    // By its text, however its signature is written; and all that was issued to the account.
    let hash = keelson_pki::revocation::bearer(bearer.trim_start_matches("Bearer "));
    let by_text = Record {
        revoked: Subject::Bearer(hex::encode(hash)),
        ..record.clone()
    };
    let of_account = Record::of_name("system:serviceaccount:default:robot", now());
    for records in [[by_text], [of_account]] {
        front.revoke(&[]).await;
        let began = Instant::now();
        while send(&nobody, "GET", "/api/v1/namespaces", &headers, vec![]).await.0 != 200 {
            assert!(began.elapsed() < 10 * AT_ONCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        front.revoke(&records).await;
        front.out(&nobody, &headers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_write_config_maps_may_not_let_himself_in_again() {
    let front = Front::start("revoked-rights").await;
    front.revoke(&[Record::of_name("mallory", now())]).await;
    let binding = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "eve"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "maps"},
        "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}]});
    let role = value!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "maps"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system";
    front.make("POST", &format!("{path}/roles"), &role).await;
    front.make("POST", &format!("{path}/rolebindings"), &binding).await;
    let eve = front.target(Some(&CertSpec::client("eve", None)));
    let body = |value: &Value| serde_json::to_vec(value).unwrap();
    let own = format!("{MAPS}/{NAME}");
    let other = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}});
    for _ in 0..1000 {
        if send(&eve, "GET", MAPS, &[], vec![]).await.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(send(&eve, "POST", MAPS, &[], body(&other)).await.0, 201);
    let merge = [("content-type", "application/merge-patch+json")];
    for (method, path, headers, sent) in [
        ("PUT", own.as_str(), &[][..], body(&list(&[]))),
        ("DELETE", own.as_str(), &[][..], vec![]),
        ("DELETE", MAPS, &[][..], vec![]),
        ("PATCH", own.as_str(), &merge[..], body(&value!({"data": null}))),
    ] {
        let (code, text) = patched(&eve, method, path, headers, sent).await;
        assert!(
            code == 403 && text.contains("not permitted to revoke"),
            "{method} {code} {text}"
        );
    }
    // Nothing is kept that a server couldn't read, nor a moment that is still to come.
    let tomorrow = Record {
        at: Some(now() + jiff::SignedDuration::from_hours(24)),
        ..Record::of_name("ana", now())
    };
    let mut unreadable = list(&[]);
    unreadable.set_at(&["data", "user.ana"], "{");
    for wrong in [list(&[tomorrow]), unreadable] {
        let (code, text) = send(&front.admin(), "PUT", &own, &[], body(&wrong)).await;
        assert_eq!(code, 422, "{text}");
    }
    let (_, text) = send(&front.admin(), "GET", &own, &[], vec![]).await;
    assert!(
        text.contains("mallory") && text.contains(r#"\"at\":"#),
        "the server says when: {text}"
    );
}

async fn patched(target: &Target, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
    let mut request = http::Request::builder().method(method).uri(path);
    let json = [("content-type", "application/json")];
    for (key, value) in if headers.is_empty() { &json[..] } else { headers } {
        request = request.header(*key, *value);
    }
    let answer = target.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8_lossy(&bytes).into_owned())
}

/// A server that has just started doesn't know yet; nobody slips in meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_before_it_is_known_what_has_been_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path()).unwrap();
    let store = Memory::new();
    let start = || {
        let config = Config {
            publish_kubernetes_service: false,
            ..Config::from_pki(Pki::open(dir.path()).unwrap()).unwrap()
        };
        ApiServer::new(config, store.clone()).unwrap()
    };
    let (ana, bob) = (
        pki.ca.issue(&ana()).unwrap(),
        pki.ca.issue(&CertSpec::client("bob", Some("system:masters"))).unwrap(),
    );
    let authorities = CertificateAuthenticator::new(pki.ca.cert_pem(), None).unwrap();
    let by = |issued: &Issued| {
        let chain = keelson_apiserver::serve::tls::certificates(&issued.cert_pem).unwrap();
        Arc::new(authorities.read(&chain))
    };
    let asked = |method: &str, path: &str, by: &Peer, body: Vec<u8>| {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap();
        request.extensions_mut().insert(by.clone());
        request
    };
    let (ana, bob) = (by(&ana), by(&bob));
    let first = start();
    first.ready().await;
    let body = serde_json::to_vec(&list(&[Record::of_name("ana", now())])).unwrap();
    let made = first.handle().handle(asked("POST", MAPS, &bob, body)).await;
    assert_eq!(made.status(), 201);
    drop(first);
    for _ in 0..20 {
        let server = start();
        let (refused, let_in) = tokio::join!(
            server.handle().handle(asked("GET", "/api/v1/namespaces", &ana, vec![])),
            server.handle().handle(asked("GET", "/version", &bob, vec![]))
        );
        assert_eq!(refused.status(), 401);
        assert!(!matches!(let_in.status().as_u16(), 401 | 503), "{}", let_in.status());
    }
}

type Peer = Arc<keelson_apiserver::authn::x509::PeerCertificate>;
