//! What the scheduler keeps of a pod that is on its node, beside the object that its informer has.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Pod;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::world::Fixed;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PODS: usize = 20_000;
const NODES: usize = 1_000;

fn pod(n: usize) -> Arc<Pod> {
    // As the API has it: a name of a Deployment's pod, a uid, what admission adds.
    let pod = json!({
        "metadata": {"name": format!("deployment-7c5ddbdf54-{n:05}"), "namespace": "production",
            "uid": format!("0b9e6a52-6a3b-4c5d-9e7f-{n:012}"), "labels": {"app": "a", "pod-template-hash": "7c5ddbdf54"}},
        "spec": {"nodeName": format!("node-{}", n % NODES), "schedulerName": "default-scheduler", "priority": 0,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]},
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

#[test]
fn a_pod_costs_little_beside_its_object() {
    let mut cluster = Cluster::default();
    for n in 0..NODES {
        let node = json!({"metadata": {"name": format!("node-{n}")}, "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "110"}}});
        cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
    }
    let mut snapshot = cluster.snapshot(Arc::new(Fixed::default()));
    let pods: Vec<_> = (0..PODS).map(pod).collect();
    let region = Region::new(ALLOCATOR);
    for pod in pods {
        cluster.set_pod(Arc::new(PodInfo::of(pod)));
    }
    cluster.update(&mut snapshot);
    let change = region.change();
    let bytes = (change.bytes_allocated - change.bytes_deallocated) / PODS;
    println!("{bytes} bytes a pod");
    assert!(bytes <= 300, "{bytes} bytes a pod");
}
