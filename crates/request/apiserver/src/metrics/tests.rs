use super::*;
use crate::flow::{Class, TooMany};
use crate::request::{RequestContext, RequestInfo, Response, UserInfo};
use http::StatusCode;
use keelson_measure::golden;
use keelson_registry::engine::Observer;
use keelson_registry::{Operation, ResourceDef};
use std::time::Duration;

fn context(method: http::Method, path: &str) -> RequestContext {
    let info = RequestInfo::parse(&method, &path.parse().unwrap()).unwrap();
    RequestContext::new(info, UserInfo::anonymous())
}

fn get(path: &str) -> RequestContext {
    context(http::Method::GET, path)
}

fn pods() -> ResourceDef {
    let rows = keelson_registry::resources::rows();
    rows.into_iter().find(|d| d.is("", "pods")).unwrap()
}

fn answer(code: StatusCode) -> Response {
    crate::request::response::text(code, "0123456789")
}

fn served(metrics: &Metrics, context: &RequestContext, def: Option<&ResourceDef>, code: StatusCode, millis: u64) {
    let took = Duration::from_millis(millis);
    drop(metrics.requests.served(context, def, answer(code), took));
}

fn class() -> Class {
    Class {
        schema: "nodes".into(),
        level: "system".into(),
        ..Class::default()
    }
}

#[test]
fn requests_are_counted_under_upstreams_names() {
    let metrics = Metrics::new(Measures::default());
    let (context, pods) = (get("/api/v1/namespaces/a/pods"), pods());
    {
        let _open = metrics.requests.begin(&context, Some(&pods));
        assert!(
            metrics
                .page()
                .contains(r#"apiserver_current_inflight_requests{request_kind="readOnly"} 1"#)
        );
    }
    served(&metrics, &context, Some(&pods), StatusCode::OK, 3);
    let page = metrics.page();
    assert!(page.contains("# TYPE apiserver_request_total counter\n"), "{page}");
    assert!(page.contains(r#"apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="namespace",subresource="",verb="LIST",version="v1"} 1"#), "{page}");
    assert!(page.contains(r#"apiserver_current_inflight_requests{request_kind="readOnly"} 0"#));
}

#[test]
fn what_is_not_served_makes_no_series() {
    let metrics = Metrics::new(Measures::default());
    let pods = pods();
    for i in 0..3 {
        let unknown = get(&format!("/apis/g{i}/v{i}/things{i}?dryRun={i}"));
        served(&metrics, &unknown, None, StatusCode::NOT_FOUND, 0);
        let below = get(&format!("/api/v1/namespaces/a/pods/p/sub{i}?dryRun={i}"));
        served(&metrics, &below, Some(&pods), StatusCode::NOT_FOUND, 0);
        metrics.access.authenticated(Some(&format!("user-{i}")), Duration::ZERO);
    }
    let page = metrics.page();
    let series = |name: &str| page.lines().filter(|l| l.starts_with(name)).count();
    assert_eq!(series("apiserver_request_total{"), 2, "{page}");
    assert_eq!(series("authenticated_user_requests{"), 1, "{page}");
}

/// Something of everything, as little of it as there can be.
fn whole() -> Metrics {
    let metrics = Metrics::new(Measures::default());
    let pods = pods();
    let request = get("/api/v1/namespaces/a/pods/p");
    request.seat.has_waited(Duration::from_secs(3));
    served(&metrics, &request, Some(&pods), StatusCode::OK, 4000);
    let mut request = context(http::Method::PATCH, "/api/v1/namespaces/a/pods/p");
    request.applies = true;
    served(&metrics, &request, Some(&pods), StatusCode::OK, 3);
    let mut late = answer(StatusCode::GATEWAY_TIMEOUT);
    late.extensions_mut().insert(Terminated);
    drop(metrics.requests.served(&request, Some(&pods), late, Duration::ZERO));
    drop(metrics.requests.begin(&request, Some(&pods)));
    drop(metrics.requests.begin(&get("/api/v1/pods?watch=1"), Some(&pods)));
    metrics.requests.watch(&pods).sent(1500);
    metrics.access.authenticated(Some("ann@example.org"), Duration::ZERO);
    metrics.access.authenticated(None, Duration::ZERO);
    metrics.access.by_certificate(3000);
    let denied = crate::authz::Decision::Deny(String::new()).into();
    metrics.access.authorized(&denied, Duration::ZERO);
    for mode in [Some("legacy"), None] {
        metrics.impersonations.attempted(mode, Duration::ZERO);
    }
    metrics.impersonations.authorized("user-info", false, Duration::ZERO);
    let class = class();
    drop(metrics.flow.waits(&class));
    drop(
        metrics
            .flow
            .waited(&class, Duration::ZERO, None, false)
            .map(InFlight::of),
    );
    metrics
        .flow
        .waited(&class, Duration::from_secs(15), Some(&TooMany("time-out")), false);
    // What had seats before isn't dispatched twice.
    drop(
        metrics
            .flow
            .waited(&class, Duration::ZERO, None, true)
            .map(InFlight::of),
    );
    metrics
        .admission
        .step(Phase::Mutating, Operation::Create, Duration::ZERO, true);
    let cells = Cells::default();
    for good in [true, true, false] {
        let (name, phase) = ("LimitRanger", Phase::Mutating);
        metrics
            .admission
            .plugin(&cells, name, phase, Operation::Create, Duration::ZERO, good);
    }
    for called in [
        Called::Allowed,
        Called::Denied(403),
        Called::Broken,
        Called::Failed { code: 500, open: true },
        Called::Failed { code: 500, open: false },
    ] {
        let phase = Phase::Validating;
        let took = Duration::from_secs(3);
        metrics
            .admission
            .webhook("a.b.c", phase, Operation::Update, took, called);
    }
    let of = keelson_api::GroupResource {
        group: "apps".into(),
        resource: "deployments".into(),
    };
    for good in [true, false] {
        metrics.store.asked(&of, "create", Duration::ZERO, good);
    }
    metrics.store.compared(&of, "success");
    metrics.store.size(Some(4096));
    metrics.failed_handshakes.inc();
    metrics.unavailable("v1.g", "MissingEndpoints");
    metrics.unavailable.with_label_values(&["v1.g"]).set(1);
    metrics.flow.levels(&[LevelUsage {
        executing: 0,
        level: "system".into(),
        nominal: 3,
        limit: 4,
    }]);
    metrics.store.objects(&[("".into(), "pods".into(), 5)]);
    metrics
}

#[test]
fn families_kinds_labels_and_bounds_are_upstreams_and_each_is_told_once() {
    let page = whole().page();
    let wrong = golden::differences(&page, include_str!("upstream.txt"), &[]);
    assert!(wrong.is_empty(), "{}\n{page}", wrong.join("\n"));
}

#[test]
fn figures_are_what_happened() {
    let page = whole().page();
    let webhook = |kind: &str| format!("apiserver_admission_webhook_{kind}{{");
    let labels = r#"name="a.b.c",operation="UPDATE","#;
    for line in [
        r#"apiserver_watch_events_sizes_bucket{group="",resource="pods",version="v1",le="2048"} 1"#.to_owned(),
        r#"apiserver_response_sizes_sum{component="apiserver",group="",resource="pods",scope="resource",subresource="",verb="GET",version="v1"} 10"#.into(),
        r#"authenticated_user_requests{username="email_id"} 1"#.into(),
        r#"authorization_attempts_total{result="denied"} 1"#.into(),
        r#"apiserver_client_certificate_expiration_seconds_bucket{le="3600"} 1"#.into(),
        r#"apiserver_flowcontrol_rejected_requests_total{flow_schema="nodes",priority_level="system",reason="time-out"} 1"#.into(),
        r#"apiserver_flowcontrol_current_executing_requests{flow_schema="nodes",priority_level="system"} 0"#.into(),
        r#"apiserver_admission_controller_admission_duration_seconds_count{name="LimitRanger",operation="CREATE",rejected="false",type="admit"} 2"#.into(),
        r#"etcd_requests_total{group="apps",operation="create",resource="deployments"} 2"#.into(),
        r#"etcd_request_errors_total{group="apps",operation="create",resource="deployments"} 1"#.into(),
        format!(r#"{}code="403",{labels}rejected="true",type="validating"}} 1"#, webhook("request_total")),
        format!(r#"{}code="500",{labels}rejected="false",type="validating"}} 1"#, webhook("request_total")),
        format!(r#"{}error_type="calling_webhook_error",{labels}rejection_code="500",type="validating"}} 1"#, webhook("rejection_count")),
        format!(r#"{}error_type="no_error",{labels}rejection_code="403",type="validating"}} 1"#, webhook("rejection_count")),
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
    assert!(page.contains("verb=\"APPLY\""), "an apply is told from other patches");
    let of_get =
        |l: &&str| l.starts_with("apiserver_request_sli_duration_seconds_bucket") && l.contains("verb=\"GET\"");
    let at_one = page.lines().filter(of_get).find(|l| l.contains("le=\"1\""));
    let at_one = at_one.and_then(|l| l.rsplit_once(' ')).map(|(_, count)| count);
    assert_eq!(at_one, Some("1"), "waiting for a seat doesn't count");
}

#[tokio::test]
async fn bytes_of_a_stream_are_counted_when_they_have_gone() {
    let metrics = Metrics::new(Measures::default());
    let (context, pods) = (get("/api/v1/pods"), pods());
    let pieces = ["abc", "defg"].map(|p| Ok::<_, keelson_api::ApiError>(bytes::Bytes::from_static(p.as_bytes())));
    let body = crate::request::Body::from_stream(futures::stream::iter(pieces));
    let answer = metrics
        .requests
        .served(&context, Some(&pods), Response::new(body), Duration::ZERO);
    let told = |end: &str| {
        let is_it = |l: &str| l.starts_with("apiserver_response_sizes_sum{") && l.ends_with(end);
        metrics.page().lines().any(is_it)
    };
    assert!(told(" 0"));
    answer.into_body().collect(100).await.unwrap();
    assert!(told(" 7"));
}
