//! How many decisions a second, and how long one takes: pods of upstream's scheduler_perf workloads on nodes that are only
//! objects. Everything but the API is in it: queue, picture, plan, and taking the pod to be on its node. It prints a table:
//! `cargo run --example speed -p keelson-scheduler --config 'profile.dev.package.keelson-scheduler.opt-level=3'`
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::plan::{Plan, Turn, plan};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::Profile;
use keelson_scheduler::queue::{Backoffs, Queue};
use keelson_scheduler::world::Fixed;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn node(n: usize) -> Arc<Node> {
    let name = format!("node-{n}");
    let node = json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", n % 10)}},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, color: &str, cpu: &str, extra: &Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"name": name, "uid": name, "namespace": "perf", "labels": {"color": color}},
        "spec": {"containers": [{"name": "pause", "image": "pause", "ports": [{"containerPort": 80}],
            "resources": {"requests": {"cpu": cpu, "memory": "500Mi"}}}]},
    });
    for (key, value) in extra.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Arc::new(PodInfo::of(Arc::new(pod)))
}

fn affinity(kind: &str, key: &str, color: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": key, "labelSelector": {"matchLabels": {"color": color}}, "namespaces": ["perf"]}]}}})
}

fn spreading() -> Value {
    json!({"topologySpreadConstraints": [{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"color": "blue"}}}]})
}

struct Workload {
    name: &'static str,
    /// Pods that are there before, for each node.
    before: usize,
    first: Arc<dyn Fn(usize) -> Arc<PodInfo>>,
    measured: Arc<dyn Fn(usize) -> Arc<PodInfo>>,
}

fn workload(
    name: &'static str,
    before: usize,
    first: impl Fn(usize) -> Arc<PodInfo> + 'static,
    measured: impl Fn(usize) -> Arc<PodInfo> + 'static,
) -> Workload {
    Workload {
        name,
        before,
        first: Arc::new(first),
        measured: Arc::new(measured),
    }
}

fn workloads() -> Vec<Workload> {
    let name = |what: &str, n: usize| format!("{what}-{n}");
    let plain = move |n: usize| pod(&name("first", n), "red", "100m", &json!({}));
    let host = "kubernetes.io/hostname";
    let zone = "topology.kubernetes.io/zone";
    vec![
        workload("basic", 1, plain, move |n| {
            pod(&name("p", n), "red", "100m", &json!({}))
        }),
        workload("anti-affinity", 1, plain, move |n| {
            pod(
                &name("p", n),
                "green",
                "100m",
                &affinity("podAntiAffinity", host, "green"),
            )
        }),
        workload("required affinity", 1, plain, move |n| {
            pod(&name("p", n), "blue", "100m", &affinity("podAffinity", zone, "blue"))
        }),
        workload("spreading", 1, plain, move |n| {
            pod(&name("p", n), "blue", "100m", &spreading())
        }),
        workload(
            "preemption",
            4,
            move |n| pod(&name("low", n), "red", "900m", &json!({"priority": 0})),
            move |n| pod(&name("high", n), "red", "3000m", &json!({"priority": 10})),
        ),
    ]
}

/// Decides all of them; returns how long each took that got a node.
fn run(workload: &Workload, nodes: usize, pods: usize) -> Vec<Duration> {
    let mut cluster = Cluster::default();
    (0..nodes).for_each(|n| cluster.set_node(node(n)));
    for n in 0..nodes * workload.before {
        let pod = (workload.first)(n);
        cluster.assume(Arc::new(pod.on_node(&format!("node-{}", n % nodes))));
    }
    let world = Arc::new(Fixed::default());
    let mut snapshot = cluster.snapshot(world);
    let mut queue = Queue::new(Box::new(|_, _, _| true), Backoffs::default());
    let now = tokio::time::Instant::now();
    (0..pods).for_each(|n| queue.set((workload.measured)(n), now));
    let profile = Profile::default();
    let mut turn = Turn::new(StdRng::seed_from_u64(1));
    let mut took = Vec::new();
    let mut spent = Duration::ZERO;
    for _ in 0..pods * 2 {
        let begun = Instant::now();
        let Some(mut pod) = queue.pop(now) else { break };
        loop {
            cluster.update(&mut snapshot);
            match plan(&profile, &pod, &snapshot, &mut turn) {
                Plan::Bind { node, .. } => {
                    queue.remove(pod.uid());
                    cluster.assume(Arc::new(pod.on_node(&node)));
                    break;
                }
                Plan::Wait(why) => {
                    let message = why.message();
                    let Some((node, victims)) = why.preemption.and_then(|p| p.target) else {
                        panic!("{} of {}: {message}", pod.key, workload.name);
                    };
                    cluster.nominate(pod.clone(), &node);
                    victims.iter().for_each(|victim| drop(cluster.remove_pod(victim.uid())));
                    let mut noted = (*pod.pod).clone();
                    noted.status.get_or_insert_default().nominated_node_name = Some(node);
                    pod = Arc::new(PodInfo::of(Arc::new(noted)));
                }
            }
        }
        spent += begun.elapsed();
        took.push(begun.elapsed());
        if spent > Duration::from_secs(20) {
            break;
        }
    }
    took
}

fn main() {
    println!("| workload | nodes | pods | decisions/s | median | p99 |\n|---|---:|---:|---:|---:|---:|");
    for nodes in [500, 5000] {
        for workload in workloads() {
            // Each node takes one of those that are to be apart.
            let pods = if workload.name == "preemption" {
                nodes / 5
            } else {
                nodes * 4 / 5
            };
            let mut took = run(&workload, nodes, pods);
            let total: Duration = took.iter().sum();
            took.sort();
            let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
            println!(
                "| {} | {nodes} | {} | {:.0} | {:.3} ms | {:.3} ms |",
                workload.name,
                took.len(),
                took.len() as f64 / total.as_secs_f64(),
                at(0.5),
                at(0.99)
            );
        }
    }
}
