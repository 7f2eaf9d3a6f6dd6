use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

#[test]
fn quantities_are_canonical() {
    for (cpu, text) in [
        (0.0, "0"),
        (2.0, "2"),
        (0.25, "250m"),
        (0.000_001_5, "1500n"),
        (0.123_456, "123456u"),
    ] {
        assert_eq!(cores(cpu), text);
    }
    for (bytes, text) in [
        (0, "0"),
        (1000, "1000"),
        (4096, "4Ki"),
        (3 << 20, "3Mi"),
        ((3 << 20) + 1024, "3073Ki"),
    ] {
        assert_eq!(bytes_of(bytes), text);
    }
    for (millis, text) in [(1000, "1s"), (10_062, "10.062s"), (60_000, "1m0s"), (61_500, "1m1.5s")] {
        assert_eq!(duration(Duration::from_millis(millis)), text);
    }
}

#[test]
fn paths() {
    for (path, wanted) in [
        (BASE.to_string(), Some(Asked::Resources)),
        (format!("{BASE}/nodes"), Some(Asked::Nodes(None))),
        (
            format!("{BASE}/namespaces/n/pods/p"),
            Some(Asked::Pods(Some("n"), Some("p"))),
        ),
        (format!("{BASE}/namespaces/n/pods/p/log"), None),
        (format!("{BASE}/things"), None),
        ("/apis/metrics.k8s.io/v1".to_string(), None),
    ] {
        assert_eq!(asked(&path), wanted, "{path}");
    }
}

/// An API with two nodes, of which one is silent, and a pod; each look finds another second of processor time.
fn api(asked: Arc<AtomicU64>) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let asked = asked.clone();
        async move {
            let node = |name: &str, ready: &str| {
                json!({"metadata": {"name": name, "labels": {"kept": "yes"}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
            };
            let pod = json!({"metadata": {"name": "p", "namespace": "n"}});
            let path = request
                .uri()
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default();
            let (code, body) = match path.as_str() {
                "/api/v1/nodes" => (
                    200,
                    json!({"items": [node("a", "True"), node("b", "Unknown")]}).to_string(),
                ),
                "/api/v1/nodes/b" => (200, node("b", "Unknown").to_string()),
                "/api/v1/pods" | "/api/v1/namespaces/n/pods?labelSelector=app%3Dweb" => (
                    200,
                    json!({"items": [pod, {"metadata": {"name": "unborn", "namespace": "n"}}]}).to_string(),
                ),
                "/api/v1/namespaces/n/pods/p" => (200, pod.to_string()),
                "/api/v1/nodes/a/proxy/metrics/resource" => {
                    let n = asked.fetch_add(1, SeqCst);
                    let labels = "container=\"c\",namespace=\"n\",pod=\"p\"";
                    let text = format!(
                        "node_cpu_usage_seconds_total {}\nnode_memory_working_set_bytes 1048576\n\
                         container_cpu_usage_seconds_total{{{labels}}} {n}\ncontainer_memory_working_set_bytes{{{labels}}} 4096\n",
                        2 * n
                    );
                    (200, text)
                }
                _ => (
                    403,
                    json!({"kind": "Status", "status": "Failure", "message": path, "reason": "Forbidden", "code": 403})
                        .to_string(),
                ),
            };
            let response = http::Response::builder()
                .status(code)
                .body(kube::client::Body::from(body.into_bytes()));
            Ok::<_, std::convert::Infallible>(response.expect("a response"))
        }
    });
    kube::Client::new(service, "default")
}

async fn get(server: &MetricsServer, path: &str, accept: &str) -> (u16, Value) {
    let uri: Uri = format!("{BASE}{path}").parse().expect("a path");
    let answer = server.answer(&Method::GET, &uri, accept).await;
    (
        answer.status().as_u16(),
        serde_json::from_slice(answer.body()).expect("JSON"),
    )
}

#[tokio::test(start_paused = true)]
async fn usage_comes_of_two_looks_and_many_who_ask_share_them() {
    let asked = Arc::new(AtomicU64::new(0));
    let server = MetricsServer::new(api(asked.clone()));
    let all = (0..20).map(|_| get(&server, "/nodes", "application/json"));
    let answers = futures::future::join_all(all).await;
    assert_eq!(asked.load(SeqCst), 2);
    for (code, list) in answers {
        assert_eq!((code, list["kind"].as_str()), (200, Some("NodeMetricsList")));
        // The silent node is left out.
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
        let node = &list["items"][0];
        assert_eq!(node["usage"], json!({"cpu": "2", "memory": "1Mi"}));
        assert_eq!(
            (&node["window"], &node["metadata"]["labels"]["kept"]),
            (&json!("1s"), &json!("yes"))
        );
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (_, list) = get(
        &server,
        "/namespaces/n/pods?labelSelector=app%3Dweb",
        "application/json",
    )
    .await;
    assert_eq!(asked.load(SeqCst), 3);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
    let pod = &list["items"][0];
    assert_eq!(pod["containers"][0]["usage"]["memory"], "4Ki");
    assert_eq!(
        (pod["window"].as_str(), pod["metadata"]["namespace"].as_str()),
        (Some("15s"), Some("n"))
    );
}

/// Two nodes, of which one says more than anyone has to say.
#[tokio::test(start_paused = true)]
async fn a_node_that_floods_is_left_out_and_left_alone() {
    let asked = Arc::new(AtomicU64::new(0));
    let (inner, floods) = (api(asked.clone()), Arc::new(AtomicU64::new(0)));
    let counted = floods.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (inner, counted) = (inner.clone(), counted.clone());
        async move {
            let body = match request.uri().path() {
                "/api/v1/nodes" => {
                    let node = |name: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
                    json!({"items": [node("a"), node("flood")]}).to_string()
                }
                "/api/v1/nodes/flood/proxy/metrics/resource" => {
                    counted.fetch_add(1, SeqCst);
                    "node_cpu_usage_seconds_total 1\n".repeat(scrape::MOST_BYTES / 20)
                }
                _ => return inner.send(request).await,
            };
            Ok(http::Response::new(kube::client::Body::from(body.into_bytes())))
        }
    });
    let server = MetricsServer::new(kube::Client::new(service, "default"));
    for _ in 0..3 {
        let (_, list) = get(&server, "/nodes", "application/json").await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(floods.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_not_found_and_refusals_are_the_apis() {
    let server = MetricsServer::new(api(Arc::default()));
    let (code, status) = get(&server, "/nodes/b", "application/json").await;
    assert_eq!(
        (code, status["message"].as_str()),
        (404, Some("nodes.metrics.k8s.io \"b\" not found"))
    );
    let (code, status) = get(&server, "/pods?fieldSelector=x%3Dy", "application/json").await;
    assert_eq!((code, status["reason"].as_str()), (403, Some("Forbidden")));
    assert_eq!(get(&server, "/pods?watch=true", "application/json").await.0, 405);
    assert_eq!(get(&server, "/others", "application/json").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn tables_and_single_objects() {
    let server = MetricsServer::new(api(Arc::default()));
    let (_, table) = get(
        &server,
        "/pods",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    )
    .await;
    assert_eq!(table["rows"][0]["cells"], json!(["p", "1", "4Ki", "1s"]));
    let (_, pod) = get(&server, "/namespaces/n/pods/p", "application/json").await;
    assert_eq!(
        (pod["kind"].as_str(), pod["apiVersion"].as_str()),
        (Some("PodMetrics"), Some(VERSION))
    );
}
