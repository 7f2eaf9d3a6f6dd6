//! A copy, made of a few objects as a cluster would have them, and what becomes of it.

use super::cluster::Fork;
use super::read::{Planted, Read, picture};
use super::settle::settled;
use http::Method;
use keelson_apiserver::planted::Places;
use keelson_client::Rest;
use keelson_client::rest::JSON;
use keelson_fork::{Picture, Report, report};
use serde_json::{Value, json};
use std::time::Duration;

const LONGEST: Duration = Duration::from_secs(60);

fn read(objects: &[(&str, &str, Value)]) -> Read {
    let places = Places::default();
    let planted = objects.iter().map(|(group, resource, object)| Planted {
        kept: places.built_in(group, resource).expect("a kind of ours").clone(),
        object: object.clone(),
    });
    Read {
        objects: planted.collect(),
        service_ranges: vec!["10.43.0.0/16".into()],
        ..Read::default()
    }
}

fn node(name: &str, pods: u32) -> Value {
    let size = json!({"cpu": "4", "memory": "8Gi", "pods": pods.to_string()});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"allocatable": size, "capacity": size, "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn web(name: &str, node: &str, set: &str) -> Value {
    let ready = json!([{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": set, "controller": true, "blockOwnerDeletion": true}]},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "conditions": ready, "containerStatuses": [{"name": "c", "image": "i", "imageID": "x", "ready": true, "restartCount": 0}]}})
}

fn cluster() -> Read {
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": "i"}]}});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": "shop", "uid": "set"},
        "spec": {"replicas": 2, "serviceName": "web", "podManagementPolicy": "Parallel", "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web", "namespace": "shop", "uid": "budget"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}});
    let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "judge", "uid": "hook"},
        "webhooks": [{"name": "judge.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "clientConfig": {"url": "https://127.0.0.1:1/"}, "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["*"]}]}]});
    read(&[
        (
            "",
            "namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "ns"}, "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"}}),
        ),
        ("", "nodes", node("n1", 10)),
        ("", "nodes", node("n2", 1)),
        ("apps", "statefulsets", set),
        ("", "pods", web("web-0", "n1", "set")),
        ("", "pods", web("web-1", "n1", "set")),
        ("policy", "poddisruptionbudgets", budget),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations", hook),
    ])
}

async fn patch(rest: &Rest, path: &str, patch: Value) {
    let body = serde_json::to_vec(&patch).unwrap();
    let patched = rest
        .call(Method::PATCH, path, "application/merge-patch+json", body)
        .await;
    patched.unwrap_or_else(|e| panic!("{path}: {e}"));
}

async fn since(fork: &Fork, before: &Picture) -> Report {
    assert!(settled(fork.store(), LONGEST).await.unwrap(), "it comes to rest");
    report(before, &picture(&fork.rest).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_shows_what_would_happen_and_asks_nobody() {
    let _already = rustls::crypto::ring::default_provider().install_default();
    let fork = Fork::start(cluster(), "shop").await.unwrap();
    assert!(settled(fork.store(), LONGEST).await.unwrap(), "it comes to rest");
    let before = picture(&fork.rest).await.unwrap();
    assert_eq!(report(&before, &before), Report::default());
    let kubeconfig = std::fs::read_to_string(fork.kubeconfig()).unwrap();
    assert!(
        kubeconfig.contains("namespace: shop") && kubeconfig.contains("127.0.0.1"),
        "{kubeconfig}"
    );

    // A node is closed: its pods are held by their budget.
    patch(&fork.rest, "/api/v1/nodes/n1", json!({"spec": {"unschedulable": true}})).await;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web-0", "namespace": "shop"}});
    let evict = async || {
        let path = "/api/v1/namespaces/shop/pods/web-0/eviction";
        fork.rest
            .call(Method::POST, path, JSON, serde_json::to_vec(&eviction).unwrap())
            .await
    };
    let refused = evict().await.unwrap_err().to_string();
    assert!(refused.contains("disruption budget"), "{refused}");
    let told = since(&fork, &before).await;
    let stays: Vec<_> = told
        .stays
        .iter()
        .map(|stay| (stay.pod.as_str(), stay.budgets.len()))
        .collect();
    assert_eq!(stays, [("shop/web-0", 1), ("shop/web-1", 1)], "{told:?}");
    assert!(told.workloads.is_empty(), "{told:?}");

    // One may go: the other node takes it. Then the second one waits.
    let budget = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/web";
    patch(&fork.rest, budget, json!({"spec": {"minAvailable": 1}})).await;
    assert!(settled(fork.store(), LONGEST).await.unwrap());
    evict().await.unwrap();
    let deleted = fork
        .rest
        .call(Method::DELETE, "/api/v1/namespaces/shop/pods/web-1", JSON, Vec::new())
        .await;
    deleted.unwrap();
    let told = since(&fork, &before).await;
    let [workload] = &told.workloads[..] else {
        panic!("{told:?}")
    };
    assert_eq!(workload.owner, "statefulset shop/web");
    let nodes: Vec<_> = workload
        .pods
        .iter()
        .map(|pod| (pod.before.as_deref(), pod.after.as_deref()))
        .collect();
    assert!(
        nodes.contains(&(Some("n1"), Some("n2"))) && nodes.contains(&(Some("n1"), None)),
        "{told:?}"
    );
    assert!(workload.pods.iter().any(|pod| {
        pod.waits
            .as_ref()
            .is_some_and(|why| why.contains("nodes are available"))
    }));
    let fields: Vec<_> = told
        .changes
        .iter()
        .flat_map(|change| &change.fields)
        .map(String::as_str)
        .collect();
    assert!(
        fields.contains(&"spec.minAvailable: 2 -> 1") && fields.contains(&"spec.unschedulable: (none) -> true"),
        "{told:?}"
    );

    // No kubelet, pod or webhook is asked, whatever the objects say of where they are.
    for path in [
        "/api/v1/namespaces/shop/pods/web-0/log",
        "/api/v1/nodes/n2/proxy/healthz",
        "/api/v1/namespaces/shop/pods/web-0/proxy/",
    ] {
        let refused = fork.rest.get(path, JSON).await.unwrap_err().to_string();
        assert!(refused.contains("asks nobody else"), "{path}: {refused}");
    }
    let directory = fork.kubeconfig();
    fork.stop().await;
    assert!(!directory.exists(), "nothing is left of it");
}
