//! Admission webhooks through the whole chain: a server on this machine is asked over TLS.

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
use hyper_util::rt::TokioIo;
use keelson_api::{Value, value};
use keelson_apiserver::serve::tls::{ServingCert, roots, server_config};
use keelson_pki::{Authority, CertSpec, San};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Serves reviews over TLS; gives back its port.
async fn hook(ca: &Authority) -> u16 {
    let issued = ca
        .issue(&CertSpec::server("hook", vec![San::parse("127.0.0.1")]))
        .unwrap();
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

/// Answers as its path says.
async fn answer(request: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_string();
    assert_eq!(
        request.uri().query(),
        Some("timeout=1s").filter(|_| path == "/slow").or(Some("timeout=5s"))
    );
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&bytes).unwrap();
    let request = review.get("request").cloned().unwrap_or_default();
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
    let answer = http::Response::builder().header("content-type", "application/json");
    Ok(answer.body(Full::from(serde_json::to_vec(&body).unwrap())).unwrap())
}

struct Hooks {
    api: Api,
    ca: Authority,
    port: u16,
}

impl Hooks {
    async fn new() -> Hooks {
        let ca = Authority::generate("hooks").unwrap();
        Hooks {
            api: Api::new().await,
            port: hook(&ca).await,
            ca,
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
        for _ in 0..300 {
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
