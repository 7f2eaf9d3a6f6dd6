//! Webhooks of admission and conversion through the whole chain: a server on this machine is asked over TLS.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use harness::{Answer, Api};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keelson_api::{Value, value};
use keelson_apiserver::serve::tls::{ServingCert, roots, server_config};
use keelson_pki::{Authority, CertSpec, San};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Serves reviews over TLS; gives back its port, and how many have connected.
async fn hook(ca: &Authority) -> (u16, Arc<AtomicUsize>) {
    let issued = ca
        .issue(&CertSpec::server("hook", vec![San::parse("127.0.0.1")]))
        .unwrap();
    let cert = ServingCert::new(&issued.cert_pem, &issued.key_pem).unwrap();
    let config = server_config(cert, &roots(ca.cert_pem()).unwrap()).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let connected = Arc::new(AtomicUsize::new(0));
    let counter = connected.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let Ok(tls) = acceptor.accept(stream).await else {
                continue;
            };
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                // A client may go away.
                let _ = builder.serve_connection(TokioIo::new(tls), service_fn(answer)).await;
            });
        }
    });
    (port, connected)
}

/// Answers as its path says.
async fn answer(request: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_string();
    // As servers do that know a place by another path, by what they are called.
    let host = request.uri().authority().map(|authority| authority.as_str());
    let leads_on = match path.as_str() {
        "/moved" => Some("/deny?timeout=5s".to_string()),
        "/whole" => host.map(|host| format!("https://{host}/deny?timeout=5s")),
        "/away" => Some("https://example.com/deny".to_string()),
        "/far" => Some(format!("https://example.com/{}", "a".repeat(9000))),
        "/round" => Some("/round?timeout=5s".to_string()),
        _ => None,
    };
    if let Some(to) = leads_on {
        let answer = http::Response::builder().status(307).header("location", to);
        return Ok(answer.body(Full::default()).unwrap());
    }
    let timeout = match path.as_str() {
        "/slow" => "timeout=1s",
        "/convert" => "timeout=30s",
        _ => "timeout=5s",
    };
    assert_eq!(request.uri().query(), Some(timeout));
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&bytes).unwrap();
    let request = review.get("request").cloned().unwrap_or_default();
    if path == "/convert" {
        return Ok(json(converted(&request)));
    }
    let mut response = value!({"uid": request.get("uid").cloned().unwrap_or_default(), "allowed": true});
    let patch = |operations: Value| STANDARD.encode(serde_json::to_vec(&operations).unwrap());
    match path.as_str() {
        "/deny" => {
            response.set_at(&["allowed"], false);
            response.set_at(
                &["status"],
                value!({"message": "not here", "code": 403, "reason": "Forbidden"}),
            );
            response.set_at(&["warnings"], value!(["mind the hook"]));
        }
        "/mark" => {
            let seen = request
                .at(&["object", "data"])
                .and_then(Value::as_object)
                .map_or(0, |m| m.len());
            let operations = value!([{"op": "add", "path": "/data/mark", "value": seen.to_string()}]);
            response.set_at(&["patch"], patch(operations));
            response.set_at(&["patchType"], "JSONPatch");
        }
        "/grow" => {
            response.set_at(
                &["patch"],
                patch(value!([{"op": "add", "path": "/data/grown", "value": "yes"}])),
            );
            response.set_at(&["patchType"], "JSONPatch");
        }
        "/slow" => tokio::time::sleep(Duration::from_secs(20)).await,
        "/wrong" => response.set_at(&["uid"], "other"),
        _ => {}
    }
    let body = value!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(json(body))
}

fn json(body: Value) -> http::Response<Full<Bytes>> {
    let answer = http::Response::builder().header("content-type", "application/json");
    answer.body(Full::from(serde_json::to_vec(&body).unwrap())).unwrap()
}

/// `hostPort` is the first version's, `host` and `port` are the second's.
fn converted(request: &Value) -> Value {
    let to = request.get("desiredAPIVersion").and_then(Value::as_str).unwrap();
    let convert = |o: &Value| {
        let mut o = o.as_object().unwrap().clone();
        o.insert("apiVersion", to);
        let text = |v: Option<Value>| v.and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
        if to.ends_with("/v1") {
            let whole = [text(o.remove("host")), text(o.remove("port"))].join(":");
            o.insert("hostPort", whole);
        } else if let Some((host, port)) = text(o.remove("hostPort")).split_once(':') {
            o.insert("host", host);
            o.insert("port", port);
        }
        Value::Object(o)
    };
    let objects = request.get("objects").and_then(Value::as_array).unwrap();
    let objects: Vec<Value> = objects.iter().map(convert).collect();
    value!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
        "uid": request.get("uid").cloned().unwrap(), "result": {"status": "Success"}, "convertedObjects": objects}})
}

struct Hooks {
    api: Api,
    ca: Authority,
    port: u16,
    connected: Arc<AtomicUsize>,
}

impl Hooks {
    async fn new() -> Hooks {
        let ca = Authority::generate("hooks").unwrap();
        let (port, connected) = hook(&ca).await;
        Hooks {
            api: Api::new().await,
            ca,
            port,
            connected,
        }
    }
    /// A webhook for config maps that is at `path`, with more fields.
    fn webhook(&self, path: &str, more: Value) -> Value {
        let mut w = value!({
            "name": format!("{path}.hooks.example.com"),
            "clientConfig": {
                "url": format!("https://127.0.0.1:{}/{path}", self.port),
                "caBundle": STANDARD.encode(self.ca.cert_pem())
            },
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5, "failurePolicy": "Fail"
        });
        for (k, v) in more.as_object().unwrap() {
            w.set_at(&[k], v.clone());
        }
        w
    }
    async fn configure(&self, kind: &str, webhooks: Vec<Value>) -> Answer {
        let plural = kind.to_ascii_lowercase();
        let object = value!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": "hooks"}, "webhooks": webhooks});
        self.api.post(&format!("{GROUP}/{plural}s"), object).await
    }
    /// Tries until an answer satisfies; tries are dry runs.
    async fn until(&self, body: Value, ok: impl Fn(&Answer) -> bool) -> Answer {
        let path = format!("{MAPS}?dryRun=All");
        for _ in 0..3000 {
            let answer = self.api.post(&path, body.clone()).await;
            if ok(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let last = self.api.post(&path, body).await;
        panic!(
            "never came to it: {} {}",
            last.code,
            String::from_utf8_lossy(&last.bytes)
        );
    }
}

fn map(name: &str) -> Value {
    value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test]
async fn validating_webhooks_deny_by_condition() {
    let hooks = Hooks::new().await;
    let conditions =
        value!({"matchConditions": [{"name": "not-fine", "expression": "object.metadata.name != 'fine'"}]});
    hooks
        .configure(
            "ValidatingWebhookConfiguration",
            vec![hooks.webhook("deny", conditions)],
        )
        .await
        .expect(201);
    let denied = hooks.until(map("a"), |a| a.code != 201).await.expect(403);
    assert_eq!(
        denied.str(&["message"]),
        "admission webhook \"deny.hooks.example.com\" denied the request: not here"
    );
    assert_eq!(denied.str(&["reason"]), "Forbidden");
    assert_eq!(denied.headers["warning"].to_str().unwrap(), "299 - \"mind the hook\"");
    hooks.api.post(MAPS, map("fine")).await.expect(201);
    hooks
        .api
        .post("/api/v1/namespaces", value!({"metadata": {"name": "other"}}))
        .await
        .expect(201);
}

#[tokio::test]
async fn broken_conditions_are_refused() {
    let hooks = Hooks::new().await;
    let conditions = value!({"matchConditions": [{"name": "bad", "expression": "... [}"}]});
    let refused = hooks
        .configure(
            "ValidatingWebhookConfiguration",
            vec![hooks.webhook("deny", conditions)],
        )
        .await
        .expect(422);
    assert!(refused.str(&["message"]).contains("compilation failed"));
}

#[tokio::test]
async fn mutating_webhooks_see_each_others_changes() {
    let hooks = Hooks::new().await;
    let webhooks = vec![
        hooks.webhook("mark", value!({"reinvocationPolicy": "IfNeeded"})),
        hooks.webhook("grow", value!({})),
    ];
    hooks
        .configure("MutatingWebhookConfiguration", webhooks)
        .await
        .expect(201);
    let made = hooks
        .until(map("a"), |a| a.json().at(&["data", "grown"]).is_some())
        .await;
    // The first webhook saw one entry, and in the second round three.
    assert_eq!(
        made.json().at(&["data"]),
        Some(&value!({"a": "1", "grown": "yes", "mark": "3"}))
    );
    let made = hooks.api.post(MAPS, map("b")).await.expect(201);
    assert_eq!(made.str(&["data", "grown"]), "yes");
    // Both webhooks are of one server, which goes on being asked by the connection that there is.
    let connected = hooks.connected.load(Ordering::Relaxed);
    for n in 0..10 {
        hooks.api.post(MAPS, map(&format!("more-{n}"))).await.expect(201);
    }
    assert_eq!(hooks.connected.load(Ordering::Relaxed), connected);
    let managers = made
        .json()
        .at(&["metadata", "managedFields"])
        .and_then(Value::as_array)
        .map_or(0, |m| m.len());
    assert_eq!(managers, 1);
}

#[tokio::test]
async fn failures_follow_the_policy() {
    let hooks = Hooks::new().await;
    let webhooks = vec![
        hooks.webhook("wrong", value!({"failurePolicy": "Ignore"})),
        hooks.webhook("slow", value!({"timeoutSeconds": 1})),
    ];
    hooks
        .configure("ValidatingWebhookConfiguration", webhooks)
        .await
        .expect(201);
    let failed = hooks.until(map("a"), |a| a.code != 201).await.expect(500);
    let url = format!("https://127.0.0.1:{}/slow?timeout=1s", hooks.port);
    assert_eq!(
        failed.str(&["message"]),
        format!(
            "Internal error occurred: failed calling webhook \"slow.hooks.example.com\": failed to call webhook: Post \"{url}\": context deadline exceeded"
        )
    );
    assert_eq!(failed.str(&["reason"]), "InternalError");
    let page = String::from_utf8(hooks.api.get("/metrics").await.expect(200).bytes.to_vec()).unwrap();
    for (family, labels) in [
        (
            "webhook_rejection_count",
            r#"error_type="calling_webhook_error",name="slow."#,
        ),
        ("webhook_fail_open_count", r#"name="wrong."#),
        ("webhook_request_total", r#"code="503",name="wrong."#),
        ("webhook_admission_duration_seconds_sum", r#"name="slow."#),
    ] {
        let start = format!("apiserver_admission_{family}{{{labels}");
        assert!(page.lines().any(|l| l.starts_with(&start)), "no {start} in\n{page}");
    }
}

#[tokio::test]
async fn paths_are_cleaned_and_a_server_leads_on_within_itself_only() {
    for (path, said) in [
        ("//deny/", "denied the request: not here"),
        ("/moved", "denied the request: not here"),
        ("/away", "which is no path of its own server and isn't followed"),
        ("/round", "stopped after 10 redirects"),
        ("/whole", "denied the request: not here"),
        ("/far", "leads on to \"https://example.com/aaaa"),
    ] {
        let hooks = Hooks::new().await;
        let mut webhook = hooks.webhook("any", value!({}));
        let url = format!("https://127.0.0.1:{}{path}", hooks.port);
        webhook.set_at(&["clientConfig", "url"], url);
        let configured = hooks.configure("ValidatingWebhookConfiguration", vec![webhook]).await;
        configured.expect(201);
        let answer = hooks.until(map("a"), |a| a.code != 201).await;
        let told = answer.str(&["message"]);
        assert!(told.contains(said) && told.len() < 1500, "{path}: {told}");
    }
}

/// Whom to trust is said by the bundle, or by the machine; why not is said as upstream says it.
#[tokio::test]
async fn certificates_are_judged_in_upstreams_words() {
    let hooks = Hooks::new().await;
    let other = Authority::generate("other").unwrap();
    let bundle = |ca: &Authority| STANDARD.encode(ca.cert_pem());
    let unknown = "x509: certificate signed by unknown authority";
    for (host, ca, why) in [
        ("127.0.0.1", Some(bundle(&other)), unknown),
        ("127.0.0.1", None, unknown),
        (
            "localhost",
            Some(bundle(&hooks.ca)),
            "x509: certificate is not valid for any names, but wanted to match localhost",
        ),
    ] {
        let url = format!("https://{host}:{}/any", hooks.port);
        let mut config = value!({"url": (url.clone())});
        if let Some(ca) = ca {
            config.set_at(&["caBundle"], Value::from(ca));
        }
        let webhook = hooks.webhook("any", value!({"clientConfig": config}));
        let configured = hooks.configure("ValidatingWebhookConfiguration", vec![webhook]).await;
        configured.expect(201);
        let refused = hooks.until(map("a"), |a| a.code == 500).await;
        assert_eq!(
            refused.str(&["message"]),
            format!(
                "Internal error occurred: failed calling webhook \"any.hooks.example.com\": failed to call webhook: Post \"{url}?timeout=5s\": tls: failed to verify certificate: {why}"
            )
        );
        let path = format!("{GROUP}/validatingwebhookconfigurations/hooks");
        hooks.api.delete(&path).await.expect(200);
        hooks.until(map("a"), |a| a.code == 201).await;
    }
}

#[tokio::test]
async fn side_effects_bar_dry_runs() {
    let hooks = Hooks::new().await;
    let webhook = hooks.webhook("fine", value!({"sideEffects": "Some"}));
    // The field's other values have gone from the API; stored objects may still have them.
    let refused = hooks
        .configure("ValidatingWebhookConfiguration", vec![webhook])
        .await
        .expect(422);
    assert!(refused.str(&["message"]).contains("sideEffects"));
}

fn text(name: &str, fields: &[&str]) -> Value {
    let mut v = value!({"name": name, "served": true, "storage": name == "v1"});
    let path = |f: &&str| value!({"jsonPath": format!(".{f}")});
    v.set_at(&["selectableFields"], fields.iter().map(path).collect::<Vec<_>>());
    v.set_at(&["schema", "openAPIV3Schema", "type"], "object");
    for f in fields {
        let schema = ["schema", "openAPIV3Schema", "properties", f];
        v.set_at(&schema, value!({"type": "string"}));
    }
    v
}

#[tokio::test]
async fn versions_are_selected_by_their_own_fields() {
    let hooks = Hooks::new().await;
    let api = &hooks.api;
    let mut conversion = value!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"]}});
    conversion.set_at(
        &["webhook", "clientConfig"],
        hooks
            .webhook("convert", value!({}))
            .get("clientConfig")
            .cloned()
            .unwrap(),
    );
    let definition = value!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "spots.x.example.com"}, "spec": {"group": "x.example.com", "scope": "Namespaced",
            "names": {"plural": "spots", "singular": "spot", "kind": "Spot", "listKind": "SpotList"},
            "conversion": conversion,
            "versions": [text("v1", &["hostPort"]), text("v2", &["host", "port"])]}});
    api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        .await
        .expect(201);
    let at = |version: &str, query: &str| format!("/apis/x.example.com/{version}/namespaces/default/spots?{query}");
    let spot = |name: &str, host: &str, port: &str| value!({"apiVersion": "x.example.com/v2", "kind": "Spot", "metadata": {"name": name}, "host": host, "port": port});
    api.until(&at("v2", ""), |a| a.code == 200).await;
    let watch = format!("{}&watch=true", at("v2", "fieldSelector=host%3Dh1"));
    let mut watched = api
        .raw("GET", &watch, "", "application/json", Vec::new())
        .await
        .into_body();
    for (name, host, port) in [("a", "h1", "80"), ("b", "h1", "8080"), ("c", "h2", "80")] {
        api.post(&at("v2", ""), spot(name, host, port)).await.expect(201);
    }
    let names = async |version: &str, query: &str| {
        let list = api.get(&at(version, query)).await.expect(200).json();
        let items = list.get("items").and_then(Value::as_array).unwrap();
        let name = |o: &Value| o.at(&["metadata", "name"]).and_then(Value::as_str).map(String::from);
        items.iter().filter_map(name).collect::<Vec<_>>().join(",")
    };
    assert_eq!(names("v2", "fieldSelector=host%3Dh1").await, "a,b");
    assert_eq!(names("v2", "fieldSelector=host%3Dh1,port%3D80").await, "a");
    assert_eq!(names("v1", "fieldSelector=hostPort%3Dh1:8080").await, "b");
    let refused = api.get(&at("v2", "fieldSelector=hostPort%3Dh1:80")).await.expect(400);
    assert_eq!(refused.str(&["message"]), "field label not supported: hostPort");

    // An object that ceases to be selected is gone for who watches.
    let path = at("v2", "").replace("spots?", "spots/b");
    let moved = value!({"host": "h2"});
    api.patch(&path, "merge-patch+json", moved).await.expect(200);
    let mut seen = String::new();
    while seen.matches('\n').count() < 3 {
        let frame = tokio::time::timeout(Duration::from_secs(10), watched.frame())
            .await
            .unwrap();
        let data = frame.unwrap().unwrap().into_data().unwrap();
        seen.push_str(std::str::from_utf8(&data).unwrap());
    }
    let event = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        let text = |path: &[&str]| v.at(path).and_then(Value::as_str).unwrap().to_string();
        format!("{} {}", text(&["type"]), text(&["object", "metadata", "name"]))
    };
    let events: Vec<String> = seen.lines().map(event).collect();
    assert_eq!(events, ["ADDED a", "ADDED b", "DELETED b"]);
}
