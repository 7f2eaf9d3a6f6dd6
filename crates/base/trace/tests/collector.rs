//! What a collector is told, by a collector that listens on loopback.

#![allow(clippy::unwrap_used)]

use http::{HeaderMap, Request, Response};
use keelson_trace::{Kind, Origin, Settings, Span, Tracer, carried, child, headers, rpc, step, within};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tower::Service;

const UID: &str = "0af76519-16cd-43dd-8448-eb211c80319c";
const SAID: &str = "00-11111111111111111111111111111111-2222222222222222-01";

/// A span as it came: service, name, trace, id, parent, traces it points to, attributes, whether it failed.
#[derive(Clone, Debug)]
struct Told {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    links: Vec<String>,
    attributes: Vec<String>,
    failed: Option<String>,
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Told>>>);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for of in request.into_inner().resource_spans {
            let attributes = of.resource.unwrap_or_default().attributes;
            let service = attributes.iter().find(|a| a.key == "service.name");
            let service = format!("{:?}", service.and_then(|s| s.value.clone()));
            for span in of.scope_spans.into_iter().flat_map(|s| s.spans) {
                self.0.lock().unwrap().push(Told {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    links: span.links.iter().map(|l| hex(&l.trace_id)).collect(),
                    attributes: span.attributes.iter().map(|a| a.key.clone()).collect(),
                    failed: span.status.filter(|s| s.code == 2).map(|s| s.message),
                });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Collector, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let collector = Collector::default();
        let served = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(served);
        (collector, at)
    }

    fn spans(&self) -> BTreeMap<String, Told> {
        let all = self.0.lock().unwrap().clone();
        let count = all.len();
        let spans: BTreeMap<_, _> = all.into_iter().map(|told| (told.name.clone(), told)).collect();
        assert_eq!(count, spans.len(), "each once");
        spans
    }
}

fn tracer(at: &str, rate: i32, service: &'static str) -> Tracer {
    Tracer::new(&Settings::of(Some(at), Some(rate)).unwrap(), service, "n1").unwrap()
}

fn said() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), SAID.parse().unwrap())])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_parts_are_one_trace_and_a_pod_is_its_own() {
    let (collector, at) = Collector::start().await;
    let api = tracer(&at, 1_000_000, "apiserver");
    let request = api.begin(Kind::Server, "POST /api/v1/pods", Origin::Stranger(&said()));
    request.tell("http.response.status_code", || 201);
    let mut onwards = HeaderMap::new();
    within(&request, async {
        let part = child("Create");
        within(&part, async {
            tokio::task::yield_now().await;
            let hook = child("Call webhook");
            within(&hook, async { headers::inject(&mut onwards) }).await;
            let gone: Result<(), _> = hook.told(Err("it is gone"));
            gone.unwrap_err();
        })
        .await;
        api.pod_created(UID, || "pod default/web".into(), SystemTime::now());
    })
    .await;
    drop(request);
    let kubelet = tracer(&at, 1_000_000, "kubelet");
    drop(kubelet.begin(Kind::Internal, "syncPod", Origin::Pod(UID)));
    api.end().await;
    kubelet.end().await;

    let spans = collector.spans();
    let [request, part, hook, created, sync] = [
        "POST /api/v1/pods",
        "Create",
        "Call webhook",
        "pod default/web",
        "syncPod",
    ]
    .map(|name| spans[name].clone());
    assert_eq!(spans.len(), 5);
    assert!(request.service.contains("apiserver") && sync.service.contains("kubelet"));
    assert_eq!(request.attributes, ["http.response.status_code"]);
    // A stranger's word begins nothing, and isn't forgotten.
    assert_ne!(request.trace, "1".repeat(32));
    assert!(request.links.contains(&"1".repeat(32)));
    assert_eq!((&part.trace, &part.parent), (&request.trace, &request.id));
    assert_eq!((&hook.trace, &hook.parent), (&request.trace, &part.id));
    assert_eq!(hook.failed.as_deref(), Some("it is gone"));
    let onwards = onwards["traceparent"].to_str().unwrap();
    assert_eq!(onwards, format!("00-{}-{}-01", hook.trace, hook.id));
    // The pod's trace is its UID; request and pod point to each other.
    assert_eq!(created.trace, UID.replace('-', ""));
    assert_eq!(
        (created.parent.as_str(), &created.links),
        ("", &vec![request.trace.clone()])
    );
    assert!(request.links.contains(&created.trace));
    assert_eq!((&sync.trace, &sync.parent), (&created.trace, &created.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_isnt_taken_is_passed_on_as_such_and_told_nobody() {
    let (collector, at) = Collector::start().await;
    let tracer = tracer(&at, 0, "apiserver");
    let span = tracer.begin(Kind::Server, "GET", Origin::Stranger(&HeaderMap::new()));
    let mut onwards = HeaderMap::new();
    within(&span, async {
        assert!(child("List").trace().is_none());
        headers::inject(&mut onwards);
        tracer.pod_created(UID, || "pod".into(), SystemTime::now());
    })
    .await;
    drop(span);
    assert!(onwards["traceparent"].to_str().unwrap().ends_with("-00"));
    // Who is believed decides.
    drop(tracer.begin(Kind::Server, "believed", Origin::Caller(&said())));
    tracer.end().await;
    let spans = collector.spans();
    assert_eq!(spans.keys().collect::<Vec<_>>(), ["believed"]);
    assert_eq!(spans["believed"].parent, "2".repeat(16));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_told_on_both_sides() {
    let (collector, at) = Collector::start().await;
    let (kubelet, runtime) = (tracer(&at, 1_000_000, "kubelet"), tracer(&at, 0, "runtime"));
    let server = tower::service_fn(|_: Request<()>| async {
        // What is begun is finished by another task.
        let begun = carried(async { step("network", async { Err::<(), _>("no room") }).await });
        tokio::spawn(begun).await.unwrap().unwrap_err();
        let answer = Response::builder()
            .header("grpc-status", "13")
            .header("grpc-message", "no room");
        Ok::<_, std::convert::Infallible>(answer.body(()).unwrap())
    });
    let mut server = rpc::Served::new(server, runtime.clone());
    let sync = kubelet.begin(Kind::Internal, "syncPod", Origin::Pod(UID));
    within(&sync, async {
        let mut request = Request::builder()
            .uri("/runtime.v1.RuntimeService/RunPodSandbox")
            .body(())
            .unwrap();
        let call = rpc::call(&mut request);
        let answer = server.call(request).await.unwrap();
        rpc::answered(&call, answer.headers());
    })
    .await;
    drop(sync);
    // A call that is a part of nothing is told nobody.
    let mut request = Request::builder()
        .uri("/runtime.v1.RuntimeService/Version")
        .body(())
        .unwrap();
    assert!(rpc::call(&mut request).trace().is_none());
    server.call(request).await.unwrap();
    kubelet.end().await;
    runtime.end().await;
    let all = collector.0.lock().unwrap().clone();
    let names: Vec<(&str, bool)> = all
        .iter()
        .map(|t| (t.name.as_str(), t.service.contains("runtime")))
        .collect();
    const CALL: &str = "runtime.v1.RuntimeService/RunPodSandbox";
    assert_eq!(names.len(), 4, "{names:?}");
    for expected in [(CALL, false), (CALL, true), ("network", true), ("syncPod", false)] {
        assert!(names.contains(&expected), "{expected:?} {names:?}");
    }
    assert!(all.iter().all(|t| t.trace == UID.replace('-', "")));
    let failed = all.iter().filter(|t| t.failed.as_deref() == Some("no room"));
    assert_eq!(failed.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_collector_that_isnt_there() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tracer = tracer(&nobody.local_addr().unwrap().to_string(), 1_000_000, "apiserver");
    let began = std::time::Instant::now();
    for _ in 0..10_000 {
        drop(tracer.begin(Kind::Server, "GET", Origin::Stranger(&HeaderMap::new())));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    tracer.end().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let off = Tracer::none();
    assert!(!off.is_on());
    let nothing: Span = off.begin(Kind::Server, "GET", Origin::Pod(UID));
    assert!(nothing.trace().is_none());
}
