//! Simulated nodes under one plan, as `keelson simulate` runs them, beneath the whole control plane.

use keelson_client::rest::JSON;
use keelson_simulate::{DOWN, LABEL, Manner, NOT_READY, Plan, Size};
use keelson_testkit::objects::{ApiObject, Job, Node, Pod, is_active, is_ready, node_of, node_ready, phase, taints};
use keelson_testkit::{Cluster, secs};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn plan(nodes: usize) -> Plan {
    Plan {
        nodes,
        prefix: "hollow-".into(),
        size: Size::default(),
        labels: BTreeMap::from([("zone".into(), "z".into())]),
        taints: Vec::new(),
        manner: Manner {
            start: secs(1),
            start_most: secs(3),
            job: Some(secs(5)),
            takes_ranges: true,
        },
        lease: secs(40),
        requests: 16,
        starts: 10,
        delete: true,
        stages: None,
    }
}

struct Fleet {
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

async fn started(cluster: &Cluster, nodes: usize) -> Fleet {
    let stop = CancellationToken::new();
    let run = keelson_simulate::run(cluster.kube(), plan(nodes), |_| {}, stop.clone());
    let running = tokio::spawn(run);
    for n in 0..nodes {
        cluster.node_is_up(&format!("hollow-{n}")).await;
    }
    Fleet { stop, running }
}

fn web(replicas: usize, more: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}, annotations: {{{more}}}}}
    spec:
      containers:
      - {{name: c, image: i, readinessProbe: {{httpGet: {{port: 80}}, periodSeconds: 1}}}}
"#
    )
}

async fn ready(cluster: &Cluster, count: usize, within: u64) -> Vec<Pod> {
    cluster
        .until_all("default", secs(within), "the pods are ready", |pods: &[Pod]| {
            let ready: Vec<Pod> = pods.iter().filter(|p| is_active(p) && is_ready(p)).cloned().collect();
            (ready.len() == count).then_some(ready)
        })
        .await
}

fn address(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    status.and_then(|s| s.pod_ip.clone()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn pods_run_jobs_end_and_nodes_go_with_the_command() {
    let cluster = Cluster::builder().start().await;
    let fleet = started(&cluster, 5).await;
    let node: Node = cluster.get("", "hollow-3").await;
    let labels = node.metadata.labels.clone().expect("labels");
    assert!(labels.contains_key(LABEL) && labels["zone"] == "z");

    cluster.apply(&web(20, "")).await;
    let pods = ready(&cluster, 20, 60).await;
    let addresses: BTreeSet<String> = pods.iter().map(address).collect();
    assert!(addresses.len() == 20 && !addresses.contains(""), "{addresses:?}");
    let used: BTreeSet<&str> = pods.iter().map(node_of).collect();
    assert_eq!(used.len(), 5);

    cluster
        .apply(
            r#"
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 6
  parallelism: 3
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}
"#,
        )
        .await;
    cluster
        .until("default", "sum", secs(120), "is complete", |j: &Job| {
            j.status.as_ref().is_some_and(|s| s.succeeded == Some(6))
        })
        .await;

    // A node is drained: what was on it runs elsewhere.
    cluster
        .patch::<Node>("", "hollow-0", json!({"spec": {"unschedulable": true}}))
        .await;
    for pod in pods.iter().filter(|p| node_of(p) == "hollow-0") {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod.name(), "namespace": "default"}});
        let resource = <Pod as keelson_testkit::objects::Kind>::RESOURCE;
        cluster
            .rest
            .post_raw(&resource, "default", pod.name(), "eviction", &body)
            .await
            .expect("an eviction");
    }
    cluster
        .until_all("default", secs(90), "nothing is left on the node", |pods: &[Pod]| {
            let of_web = || {
                pods.iter().filter(|p| {
                    p.metadata
                        .generate_name
                        .as_deref()
                        .is_some_and(|n| n.starts_with("web"))
                })
            };
            let there = of_web().filter(|p| node_of(p) == "hollow-0").count();
            (there == 0 && of_web().filter(|p| is_ready(p)).count() == 20).then_some(())
        })
        .await;

    fleet.stop.cancel();
    fleet.running.await.expect("no panic").expect("a good end");
    assert!(cluster.list::<Node>("").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_is_down_or_not_ready_while_its_object_says_so() {
    let cluster = Cluster::builder().start().await;
    let _fleet = started(&cluster, 2).await;
    cluster.apply(&web(1, "")).await;
    let pod = ready(&cluster, 1, 60).await.remove(0);
    let name = node_of(&pod).to_owned();
    let annotate = async |annotation: &str, value: Option<&str>| {
        let body = json!({"metadata": {"annotations": {annotation: value}}});
        cluster.patch::<Node>("", &name, body).await;
    };

    annotate(NOT_READY, Some("true")).await;
    let is_not_ready = |n: &Node| node_ready(n) == "False";
    cluster.until("", &name, secs(20), "isn't ready", is_not_ready).await;
    annotate(NOT_READY, None).await;
    cluster.node_is_up(&name).await;

    annotate(DOWN, Some("true")).await;
    let is_lost = |n: &Node| node_ready(n) == "Unknown" && !taints(n).is_empty();
    cluster.until("", &name, secs(120), "is lost", is_lost).await;
    cluster
        .until_all(
            "default",
            secs(400),
            "the pod runs on the other node",
            |pods: &[Pod]| pods.iter().find(|p| is_ready(p) && node_of(p) != name).map(|_| ()),
        )
        .await;
    let left: Pod = cluster.get("default", pod.name()).await;
    assert!(left.is_deleting(), "nobody ends it there");

    annotate(DOWN, None).await;
    cluster.node_is_up(&name).await;
    cluster.gone::<Pod>("default", pod.name(), secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn containers_do_what_annotations_say() {
    let cluster = Cluster::builder().start().await;
    let _fleet = started(&cluster, 1).await;
    let begin = cluster.elapsed();
    cluster
        .apply(&web(
            1,
            r#"simulate.keelson.dev/start-seconds: "20", simulate.keelson.dev/ready-seconds: "30""#,
        ))
        .await;
    ready(&cluster, 1, 90).await;
    let took = cluster.elapsed() - begin;
    assert!((secs(50)..secs(53)).contains(&took), "{took:?}");

    let pod = |name: &str, policy: &str, annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, annotations: {{simulate.keelson.dev/{annotation}}}}}\nspec: {{restartPolicy: {policy}, containers: [{{name: c, image: i}}]}}"
        )
    };
    cluster.apply(&pod("fails", "Never", r#"exit-code: "3""#)).await;
    cluster
        .until("default", "fails", secs(20), "has failed", |p: &Pod| {
            phase(p) == "Failed"
        })
        .await;
    cluster.apply(&pod("crashes", "Always", r#"exit-code: "1""#)).await;
    let restarts = |p: &Pod| {
        let statuses = p.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        statuses.map(|c| c.restart_count).sum::<i32>()
    };
    cluster
        .until("default", "crashes", secs(60), "crashes again and again", |p: &Pod| {
            restarts(p) >= 2
        })
        .await;
    cluster
        .apply(&pod("unpulled", "Always", r#"pull-error: "no such thing""#))
        .await;
    let waits = |p: &Pod| {
        let statuses = p.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let mut waiting = statuses.filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
        waiting.any(|r| r == "ErrImagePull" || r == "ImagePullBackOff")
    };
    cluster
        .until("default", "unpulled", secs(30), "has no image", waits)
        .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_elses_nodes_are_taken_over() {
    let mut cluster = Cluster::builder().start().await;
    cluster.add_node("hollow-1").await;
    let stop = CancellationToken::new();
    let run = keelson_simulate::run(cluster.kube(), plan(3), |_| {}, stop);
    let refused = tokio::time::timeout(Duration::from_secs(30), run)
        .await
        .expect("an answer");
    let why = refused.expect_err("a refusal").to_string();
    assert!(why.contains("hollow-1"), "{why}");
    let all = cluster.rest.get("/api/v1/nodes", JSON).await.expect("a list");
    assert!(!String::from_utf8_lossy(&all).contains(LABEL));
}
