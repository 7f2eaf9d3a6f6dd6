//! An extension API server: made known by an APIService, found available, in discovery, and passed requests with the
//! user that sent them.

#![allow(clippy::unwrap_used)]

mod harness;

use bytes::Bytes;
use futures::future::BoxFuture;
use harness::Api;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_api::{Value, value};
use keelson_apiserver::request::{Body, Request, Response};
use keelson_apiserver::serve::Handle;
use keelson_apiserver::serve::tls::{ServingCert, roots, server_config};
use keelson_pki::{Authority, CertSpec, San};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Serves `wardle.example.com/v1`; answers other paths with the user it is told.
async fn extension(ca: &Authority) -> u16 {
    let spec = CertSpec::server("wardle", vec![San::parse("api.default.svc")]);
    let issued = ca.issue(&spec).unwrap();
    let cert = ServingCert::new(&issued.cert_pem, &issued.key_pem).unwrap();
    let config = server_config(cert, &roots(ca.cert_pem()).unwrap()).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let Ok(tls) = acceptor.accept(stream).await else {
                continue;
            };
            let service = service_fn(answer);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service));
        }
    });
    port
}

async fn answer(request: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let answer = http::Response::builder().header("content-type", "application/json");
    Ok(answer.body(Full::from(body(&request))).unwrap())
}

/// The same server within the process.
struct Here;

impl Handle for Here {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        let answer = http::Response::builder().header("content-type", "application/json");
        let answer = answer.body(Body::from(body(&request))).unwrap();
        Box::pin(async { answer })
    }
}

fn body<B>(request: &http::Request<B>) -> Vec<u8> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_string()
    };
    let body = match request.uri().path() {
        "/apis/wardle.example.com/v1" => value!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1",
            "resources": [
                {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
                {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            ],
        }),
        path => {
            value!({"kind": "Flunder", "path": path, "user": header("x-remote-user"), "group": header("x-remote-group")})
        }
    };
    serde_json::to_vec(&body).unwrap()
}

async fn available(api: &Api) -> (String, String) {
    let service = api
        .get("/apis/apiregistration.k8s.io/v1/apiservices/v1.wardle.example.com")
        .await
        .json();
    let conditions = service
        .at(&["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let text = |key: &str| {
        conditions
            .first()
            .and_then(|c| c.get(key)?.as_str())
            .unwrap_or_default()
            .to_string()
    };
    (text("status"), text("reason"))
}

async fn until(api: &Api, status: &str) {
    let wait = async {
        while available(api).await.0 != status {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(),
        "{:?}",
        available(api).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_server_is_found_shown_and_asked() {
    let api = Api::new().await;
    let ca = Authority::generate("wardle-ca").unwrap();
    let port = extension(&ca).await;
    use base64::Engine;
    let bundle = base64::engine::general_purpose::STANDARD.encode(ca.cert_pem());
    let service = value!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.wardle.example.com"},
        "spec": {"group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "caBundle": bundle, "service": {"namespace": "default", "name": "api", "port": port}}});
    api.post("/apis/apiregistration.k8s.io/v1/apiservices", service)
        .await
        .expect(201);
    until(&api, "False").await;
    assert_eq!(available(&api).await.1, "ServiceNotFound");
    const FLUNDER: &str = "/apis/wardle.example.com/v1/namespaces/default/flunders/x";
    api.until(FLUNDER, |a| a.code == 503).await;
    let backend = value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "default"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    api.post("/api/v1/namespaces/default/services", backend)
        .await
        .expect(201);
    until(&api, "True").await;
    let flunder = api.until(FLUNDER, |a| a.code == 200).await.json();
    let text = |key: &str| flunder.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    assert_eq!(
        (text("user"), text("group")),
        ("tester".into(), "system:masters".into())
    );
    assert_eq!(text("path"), FLUNDER);
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let groups = api.call("GET", "/apis", "", v2, vec![]).await.expect(200).json();
    let items = groups.get("items").and_then(Value::as_array).unwrap();
    let found = items
        .iter()
        .find(|g| g.at(&["metadata", "name"]).and_then(Value::as_str) == Some("wardle.example.com"));
    let version = &found.unwrap().get("versions").and_then(Value::as_array).unwrap()[0];
    let resource = &version.get("resources").and_then(Value::as_array).unwrap()[0];
    assert_eq!(resource.get("resource").and_then(Value::as_str), Some("flunders"));
    assert_eq!(
        resource.get("subresources").and_then(Value::as_array).map(Vec::len),
        Some(1)
    );
    api.get("/apis/wardle.example.com").await.expect(200);
    api.delete("/apis/apiregistration.k8s.io/v1/apiservices/v1.wardle.example.com")
        .await
        .expect(200);
    api.until("/apis/wardle.example.com/v1", |a| a.code == 404).await;
    // Built-in group versions have APIServices of their own.
    let apps = api
        .get("/apis/apiregistration.k8s.io/v1/apiservices/v1.apps")
        .await
        .expect(200)
        .json();
    assert_eq!(
        apps.at(&["metadata", "labels", "kube-aggregator.kubernetes.io/automanaged"])
            .and_then(Value::as_str),
        Some("onstart")
    );
}

/// No Service, no certificate, no socket; who replaces it leads the APIService elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn an_extension_server_may_run_within_the_process() {
    const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
    const FLUNDER: &str = "/apis/wardle.example.com/v1/namespaces/default/flunders/x";
    let api = Api::new().await;
    api.server.run_here("kube-system", "wardle", Arc::new(Here));
    let service = value!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.wardle.example.com"},
        "spec": {"group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "insecureSkipTLSVerify": true, "service": {"namespace": "kube-system", "name": "wardle"}}});
    api.post(SERVICES, service).await.expect(201);
    until(&api, "True").await;
    let flunder = api.until(FLUNDER, |a| a.code == 200).await;
    assert_eq!(
        (flunder.str(&["user"]), flunder.str(&["path"])),
        ("tester".into(), FLUNDER.into())
    );
    let resources = api.get("/apis/wardle.example.com/v1").await.expect(200);
    assert_eq!(resources.str(&["kind"]), "APIResourceList");
    let elsewhere = value!({"spec": {"service": {"name": "other"}}});
    let path = format!("{SERVICES}/v1.wardle.example.com");
    api.patch(&path, "merge-patch+json", elsewhere).await.expect(200);
    until(&api, "False").await;
    api.until(FLUNDER, |a| a.code == 503).await;
}
