//! What is told of requests and pods: by a server whose spans are kept instead of sent.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::value;
use keelson_apiserver::UserInfo;
use keelson_apiserver::request::Body;
use keelson_store::Memory;
use keelson_trace::Tracer;
use keelson_trace::sampling::Rate;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use std::sync::Arc;
use tower::ServiceExt;

const PODS: &str = "/api/v1/namespaces/default/pods";
const SAID: &str = "00-11111111111111111111111111111111-2222222222222222-01";

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

impl Kept {
    fn all(&self, name: &str) -> Vec<SpanData> {
        let spans = self.0.lock();
        spans.iter().filter(|span| span.name == name).cloned().collect()
    }
}

async fn serving(rate: u32) -> (Api, Kept, Tracer) {
    let kept = Kept::default();
    let tracer = Tracer::with(kept.clone(), Rate::per_million(rate), "apiserver", "s1");
    let given = tracer.clone();
    let api = Api::starting_with(Memory::new(), move |config| config.tracer = given);
    api.server.ready().await;
    let account = value!({"metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
    (api, kept, tracer)
}

/// Asks as somebody, as part of another's trace.
async fn asked(api: &Api, user: &UserInfo, method: &str, path: &str, body: String) -> http::Response<Body> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("traceparent", SAID);
    let request = request
        .header("content-type", "application/json")
        .body(Body::from(body.into_bytes()));
    api.server
        .service(user.clone())
        .oneshot(request.unwrap())
        .await
        .unwrap()
}

fn pod(name: &str) -> String {
    let pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    serde_json::to_string(&pod).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_told_in_its_parts_and_a_pod_by_its_uid() {
    let (api, kept, tracer) = serving(0).await;
    let admin = UserInfo::new("admin", &["system:masters"]);
    let body = pod("web");
    assert_eq!(
        asked(&api, &admin, "POST", &format!("{PODS}?dryRun=All"), body.clone())
            .await
            .status(),
        201
    );
    assert_eq!(asked(&api, &admin, "POST", PODS, body.clone()).await.status(), 201);
    assert_eq!(asked(&api, &admin, "POST", PODS, body).await.status(), 409);
    // Whose word doesn't count has nothing taken.
    let stranger = UserInfo::new("eve", &["system:authenticated"]);
    assert_eq!(asked(&api, &stranger, "GET", PODS, String::new()).await.status(), 403);
    tracer.end().await;

    const CREATE: &str = "POST /api/v1/namespaces/{:namespace}/pods";
    let requests = kept.all(CREATE);
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!(request.span_context.trace_id().to_string(), "1".repeat(32));
        assert_eq!(request.parent_span_id.to_string(), "2".repeat(16));
        for part in ["authorization", "Create"] {
            let parts = kept.all(part);
            let of = parts
                .iter()
                .filter(|p| p.parent_span_id == request.span_context.span_id());
            assert_eq!(of.count(), 1, "{part}");
        }
    }
    let statuses: Vec<String> = requests.iter().map(|r| format!("{:?}", r.attributes)).collect();
    assert!(
        ["201", "201", "409"]
            .iter()
            .zip(&statuses)
            .all(|(code, told)| told.contains(code)),
        "{statuses:?}"
    );
    // The store is asked within the handler, not by what is only tried.
    let handlers = kept.all("Create");
    let stored = kept.all("Store");
    let within = |i: usize| {
        stored
            .iter()
            .filter(|s| s.parent_span_id == handlers[i].span_context.span_id())
            .filter(|s| format!("{:?}", s.attributes).contains("create"))
            .count()
    };
    assert_eq!((within(0), within(1)), (0, 1), "{stored:?}");
    assert!(kept.all("GET /api/v1/namespaces/{:namespace}/pods").is_empty());
    // At this rate no pod's trace is taken, but the handler says which it would be: of one that came to be.
    assert!(kept.all("pod default/web").is_empty());
    let links: Vec<usize> = handlers.iter().map(|h| h.links.links.len()).collect();
    assert_eq!(links, [0, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_full_rate_everybodys_requests_are_told_and_pods_have_their_own_trace() {
    let (api, kept, tracer) = serving(1_000_000).await;
    let user = UserInfo::new("ana", &["system:masters"]);
    let made = api.server.service(user).oneshot(
        http::Request::post(PODS)
            .header("content-type", "application/json")
            .body(Body::from(pod("web").into_bytes()))
            .unwrap(),
    );
    assert_eq!(made.await.unwrap().status(), 201);
    let uid = api.get(&format!("{PODS}/web")).await.str(&["metadata", "uid"]);
    tracer.end().await;
    let pods = kept.all("pod default/web");
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].span_context.trace_id().to_string(), uid.replace('-', ""));
    let request = &kept.all("POST /api/v1/namespaces/{:namespace}/pods")[0];
    assert_eq!(
        pods[0].links.links[0].span_context.trace_id(),
        request.span_context.trace_id()
    );
    assert!(pods[0].start_time <= pods[0].end_time);
    assert_eq!(kept.all("GET /api/v1/namespaces/{:namespace}/pods/{:name}").len(), 1);
}
