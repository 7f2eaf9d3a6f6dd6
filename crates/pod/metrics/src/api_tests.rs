use super::*;
use futures::FutureExt;
use futures::future::BoxFuture;
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

/// Kubelets by host: what they say to whoever asks for the nth time.
struct Fake<F>(F, Arc<AtomicU64>);

impl<F: Fn(&str, u64) -> String + Send + Sync> Kubelets for Fake<F> {
    fn get(&self, kubelet: Address, path: &'static str) -> BoxFuture<'_, Result<Bytes, String>> {
        assert_eq!((kubelet.port, path), (10250, scrape::PATH));
        let text = (self.0)(&kubelet.host, self.1.fetch_add(1, SeqCst));
        async move { Ok(Bytes::from(text)) }.boxed()
    }
}

/// Each look finds another second of processor time.
fn busy(pods: &[&str], n: u64) -> String {
    let mut text = format!(
        "node_cpu_usage_seconds_total {}\nnode_memory_working_set_bytes 1048576\n",
        2 * n
    );
    for pod in pods {
        let labels = format!("container=\"c\",namespace=\"n\",pod=\"{pod}\"");
        text += &format!(
            "container_cpu_usage_seconds_total{{{labels}}} {n}\ncontainer_memory_working_set_bytes{{{labels}}} 4096\n"
        );
    }
    text
}

fn server(asked: &Arc<AtomicU64>) -> MetricsServer {
    MetricsServer::new(api(), Arc::new(Fake(|_: &str, n| busy(&["p"], n), asked.clone())))
}

fn node(name: &str, ready: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kept": "yes"}},
        "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": [{"type": "InternalIP", "address": name}]}})
}

/// A table of pods, as the API server makes it of those that are bound to nodes.
fn table(pods: &[(&str, &str)]) -> String {
    let rows = pods.iter().map(|(pod, node)| {
        json!({"cells": [pod, "1/1", node],
            "object": {"kind": "PartialObjectMetadata", "metadata": {"name": pod, "namespace": "n"}}})
    });
    json!({"kind": "Table", "columnDefinitions": [{"name": "Name"}, {"name": "Ready"}, {"name": "Node"}],
        "rows": rows.collect::<Vec<_>>()})
    .to_string()
}

/// An API of what `answer` has for a path.
fn api_of(answer: impl Fn(&str) -> Option<String> + Clone + Send + 'static) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let answer = answer.clone();
        async move {
            let path = request.uri().path_and_query().map(ToString::to_string);
            let path = path.unwrap_or_default();
            let (code, body) = match answer(&path) {
                Some(body) => (200, body),
                None => {
                    let status = json!({"kind": "Status", "status": "Failure", "message": path, "reason": "Forbidden", "code": 403});
                    (403, status.to_string())
                }
            };
            let response = http::Response::builder()
                .status(code)
                .body(kube::client::Body::from(body.into_bytes()));
            Ok::<_, std::convert::Infallible>(response.expect("a response"))
        }
    });
    kube::Client::new(service, "default")
}

/// An API with two nodes, of which one is silent, and a pod.
fn api() -> kube::Client {
    api_of(|path| {
        Some(match path {
            "/api/v1/nodes" => json!({"items": [node("a", "True"), node("b", "Unknown")]}).to_string(),
            "/api/v1/nodes/b" => node("b", "Unknown").to_string(),
            "/api/v1/pods" | "/api/v1/namespaces/n/pods?labelSelector=app%3Dweb" => {
                table(&[("p", "a"), ("unborn", "<none>")])
            }
            "/api/v1/namespaces/n/pods/p" => table(&[("p", "a")]),
            _ => return None,
        })
    })
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
    let server = server(&asked);
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

/// Two nodes, of which one says what isn't its to say.
#[tokio::test(start_paused = true)]
async fn of_pods_on_other_nodes_a_node_is_not_believed() {
    let client = api_of(|path| {
        Some(match path {
            "/api/v1/nodes" => json!({"items": [node("honest", "True"), node("liar", "True")]}).to_string(),
            "/api/v1/pods" => table(&[("p", "honest"), ("q", "liar"), ("r", "gone")]),
            "/api/v1/namespaces/n/pods/r" => table(&[("r", "gone")]),
            _ => return None,
        })
    });
    let says = |host: &str, n: u64| match host {
        "honest" => busy(&["p"], n / 2),
        _ => busy(&["p", "q", "r"], n * 1000),
    };
    let server = MetricsServer::new(client, Arc::new(Fake(says, Arc::default())));
    let (_, list) = get(&server, "/pods", "application/json").await;
    let cpu = |i: usize| {
        (
            &list["items"][i]["metadata"]["name"],
            &list["items"][i]["containers"][0]["usage"]["cpu"],
        )
    };
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2), "{list}");
    assert_eq!(cpu(0), (&json!("p"), &json!("1")));
    assert_eq!(cpu(1).0, &json!("q"));
    assert_eq!(get(&server, "/namespaces/n/pods/r", "application/json").await.0, 404);
}

/// Of two nodes one answers with an error.
#[tokio::test(start_paused = true)]
async fn a_node_that_fails_is_left_out_and_left_alone() {
    struct Half(AtomicU64);
    impl Kubelets for Half {
        fn get(&self, kubelet: Address, _: &'static str) -> BoxFuture<'_, Result<Bytes, String>> {
            let n = self.0.fetch_add(1, SeqCst);
            let answer = match kubelet.host.as_str() {
                "a" => Ok(Bytes::from(busy(&[], n))),
                _ => Err(self.0.fetch_add(1000, SeqCst).to_string()),
            };
            async move { answer }.boxed()
        }
    }
    let client = api_of(|path| {
        (path == "/api/v1/nodes").then(|| json!({"items": [node("a", "True"), node("flood", "True")]}).to_string())
    });
    let kubelets = Arc::new(Half(AtomicU64::new(0)));
    let server = MetricsServer::new(client, kubelets.clone());
    for _ in 0..3 {
        let (_, list) = get(&server, "/nodes", "application/json").await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(kubelets.0.load(SeqCst) / 1000, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_not_found_and_refusals_are_the_apis() {
    let server = server(&Arc::default());
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
    let server = server(&Arc::default());
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
