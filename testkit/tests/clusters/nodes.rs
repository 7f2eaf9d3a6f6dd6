//! Nodes that fall silent, and what becomes of their pods.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use keelson_client::{Objects, Patch};
use keelson_testkit::objects::{ApiObject, Node, Pod, Taint, is_active, is_ready, node_of, node_ready, taints};
use keelson_testkit::{Cluster, seconds, secs};

/// `node-monitor-grace-period`.
const GRACE: i64 = 50;
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
"#;

async fn running(nodes: usize) -> (Cluster, Pod) {
    let cluster = Cluster::builder().nodes(nodes).start().await;
    cluster.apply(WEB).await;
    let pod = cluster
        .until_all("default", secs(60), "the pod is ready", |pods: &[Pod]| {
            pods.iter().find(|p| is_ready(p)).cloned()
        })
        .await;
    // Somewhere within the lease's period.
    cluster.sleep(secs(23)).await;
    (cluster, pod)
}

fn is_lost(node: &Node) -> bool {
    node_ready(node) == "Unknown" && taints(node).contains(&format!("{UNREACHABLE}:NoExecute"))
}

fn taint(node: &Node, effect: &str) -> Taint {
    let mut all = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    all.find(|t| t.key == UNREACHABLE && t.effect == effect)
        .expect("the taint")
        .clone()
}

fn unknown_since(node: &Node) -> Timestamp {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|c| c.type_ == "Ready");
    ready
        .next()
        .and_then(|c| c.last_transition_time.clone())
        .expect("a time")
        .0
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_loses_its_pods_after_their_tolerations() {
    let (cluster, pod) = running(2).await;
    let (name, pods) = (node_of(&pod).to_owned(), cluster.history::<Pod>("default").await);
    let lease: Lease = cluster.get("kube-node-lease", &name).await;
    let heard = lease.spec.and_then(|s| s.renew_time).expect("a renewal").0;
    cluster.node(&name).cut();
    let lost = cluster.until("", &name, secs(70), "is lost", is_lost).await;
    let silent = seconds(heard, unknown_since(&lost));
    assert!((GRACE..=GRACE + 1).contains(&silent), "unknown after {silent} s");
    assert!(taints(&lost).contains(&format!("{UNREACHABLE}:NoSchedule")));
    let tainted = taint(&lost, "NoExecute").time_added.expect("a time").0;
    cluster
        .until("default", pod.name(), secs(5), "isn't ready", |p| {
            !is_ready(p) && !p.is_deleting()
        })
        .await;

    let doomed: Pod = cluster
        .until("default", pod.name(), secs(400), "is evicted", |p: &Pod| {
            p.is_deleting()
        })
        .await;
    let evicted = pods
        .record()
        .await
        .moments
        .into_iter()
        .find(|m| m.change.object().is_deleting())
        .expect("an eviction")
        .at;
    let tolerated = seconds(tainted, evicted);
    assert!((300..=301).contains(&tolerated), "evicted after {tolerated} s");
    let why = keelson_testkit::objects::condition(&doomed, "DisruptionTarget");
    assert_eq!((why.0.as_str(), why.1.as_str()), ("True", "DeletionByTaintManager"));

    let replaced = |all: &[Pod]| all.iter().find(|p| is_active(p) && is_ready(p)).cloned();
    let new = cluster
        .until_all("default", secs(30), "another pod takes over", replaced)
        .await;
    assert_ne!((new.uid(), node_of(&new)), (pod.uid(), name.as_str()));
    cluster.sleep(secs(200)).await;
    let still: Pod = cluster.get("default", pod.name()).await;
    assert_eq!(still.uid(), pod.uid(), "nobody says that it has ended");

    cluster.node(&name).mend();
    cluster.gone::<Pod>("default", pod.name(), secs(120)).await;
    cluster.node_is_up(&name).await;
    assert_eq!(cluster.node(&name).runtime.running(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_in_time_keeps_its_pods() {
    let (cluster, pod) = running(2).await;
    let name = node_of(&pod).to_owned();
    cluster.node(&name).cut();
    cluster.until("", &name, secs(70), "is lost", is_lost).await;
    cluster.sleep(secs(200)).await;
    cluster.node(&name).mend();
    cluster.node_is_up(&name).await;
    cluster
        .until("default", pod.name(), secs(60), "is ready again", is_ready)
        .await;
    cluster
        .stays("the pod stays", secs(400), async || {
            let now: Pod = cluster.get("default", pod.name()).await;
            let same = now.uid() == pod.uid() && !now.is_deleting() && restarts(&now) == 0;
            same.then_some(()).ok_or(keelson_testkit::objects::pod_line(&now))
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn when_no_node_is_heard_of_nothing_is_evicted() {
    let (cluster, pod) = running(2).await;
    cluster.node("n0").cut();
    cluster.node("n1").cut();
    for name in ["n0", "n1"] {
        let unknown = |n: &Node| node_ready(n) == "Unknown";
        cluster.until("", name, secs(70), "is unknown", unknown).await;
    }
    cluster.sleep(secs(700)).await;
    let still: Pod = cluster.get("default", pod.name()).await;
    assert!(!still.is_deleting(), "the fault is more likely on this side");
    let name = node_of(&pod).to_owned();
    let other = if name == "n0" { "n1" } else { "n0" };
    cluster.node(other).mend();
    cluster.node_is_up(other).await;
    cluster.until("", &name, secs(30), "is lost", is_lost).await;
    let begin = cluster.elapsed();
    cluster
        .until("default", pod.name(), secs(400), "is evicted", |p: &Pod| {
            p.is_deleting()
        })
        .await;
    let after = (cluster.elapsed() - begin).as_secs();
    assert!(
        (299..=301).contains(&after),
        "evicted {after} s after the first node was heard of"
    );
}

#[tokio::test(start_paused = true)]
async fn of_nodes_that_say_that_they_are_not_ready_the_same_is_true() {
    let (cluster, pod) = running(2).await;
    let name = node_of(&pod).to_owned();
    let other = if name == "n0" { "n1" } else { "n0" };
    for node in [&name, other] {
        cluster.node(node).runtime.set_down(true);
        cluster
            .until("", node, secs(60), "isn't ready", |n: &Node| node_ready(n) == "False")
            .await;
    }
    cluster.sleep(secs(700)).await;
    let node: Node = cluster.get("", &name).await;
    assert_eq!(taints(&node), ["node.kubernetes.io/not-ready:NoSchedule"]);
    let still: Pod = cluster.get("default", pod.name()).await;
    assert!(!still.is_deleting(), "there is nowhere to go");
    cluster.node(other).runtime.set_down(false);
    cluster.node_is_up(other).await;
    let replaced = |all: &[Pod]| all.iter().any(|p| is_ready(p) && node_of(p) == other).then_some(());
    cluster
        .until_all("default", secs(400), "another pod takes over", replaced)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_is_started_anew_disturbs_no_pod() {
    let (mut cluster, pod) = running(1).await;
    cluster.halt("n0").await;
    cluster.sleep(secs(20)).await;
    assert_eq!(cluster.node("n0").runtime.running(), ["c"]);
    cluster.resume("n0");
    let history = cluster.history::<Pod>("default").await;
    cluster.sleep(secs(120)).await;
    let now: Pod = cluster.get("default", pod.name()).await;
    assert_eq!((now.uid(), restarts(&now), is_ready(&now)), (pod.uid(), 0, true));
    history
        .record()
        .await
        .replay(|at, state| assert!(state.values().all(|p| is_ready(p)), "not ready at {at}"));
    cluster.node("n0").runtime.crash("c", 3);
    cluster
        .until("default", pod.name(), secs(60), "was started again", |p| {
            restarts(p) == 1
        })
        .await;
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|s| s.restart_count).sum()
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_that_is_no_more_are_cleared_away() {
    let (cluster, pod) = running(2).await;
    let name = node_of(&pod).to_owned();
    cluster.node(&name).cut();
    cluster.delete::<Node>("", &name, None).await;
    let begin = cluster.elapsed();
    cluster.gone::<Pod>("default", pod.name(), secs(120)).await;
    let after = (cluster.elapsed() - begin).as_secs();
    assert!(
        (40..=61).contains(&after),
        "a node may be away for a moment; gone after {after} s"
    );
    let elsewhere = |all: &[Pod]| all.iter().any(|p| is_ready(p) && node_of(p) != name).then_some(());
    cluster
        .until_all("default", secs(30), "another pod takes over", elsewhere)
        .await;
}

#[tokio::test(start_paused = true)]
async fn tolerations_say_how_long_a_pod_stays() {
    let cluster = Cluster::builder().nodes(2).start().await;
    let pod = |name: &str, tolerations: &str| {
        let spec = format!("nodeName: n0, containers: [{{name: c, image: i}}], tolerations: [{tolerations}]");
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
    };
    let own = "key: own, operator: Exists, effect: NoExecute";
    for (name, tolerations) in [
        ("none", String::new()),
        ("brief", format!("{{{own}, tolerationSeconds: 30}}")),
        ("saved", format!("{{{own}, tolerationSeconds: 90}}")),
        ("ever", format!("{{{own}}}")),
    ] {
        cluster.apply(&pod(name, &tolerations)).await;
        cluster.until("default", name, secs(60), "is ready", is_ready).await;
    }
    let pods = cluster.history::<Pod>("default").await;
    let taint = async |taints: serde_json::Value| {
        let _: Node = cluster
            .patch("", "n0", serde_json::json!({"spec": {"taints": taints}}))
            .await;
    };
    let begin = pods.record().await.moments[0].at;
    taint(serde_json::json!([{"key": "own", "effect": "NoExecute"}])).await;
    cluster.sleep(secs(60)).await;
    taint(serde_json::Value::Null).await;
    cluster.sleep(secs(120)).await;
    let mut doomed: Vec<(String, i64)> = Vec::new();
    for moment in pods.record().await.moments {
        let pod = moment.change.object();
        if pod.is_deleting() && doomed.iter().all(|d| d.0 != pod.name()) {
            doomed.push((pod.name().to_owned(), seconds(begin, moment.at)));
        }
    }
    assert_eq!(doomed, [("none".to_owned(), 0), ("brief".to_owned(), 30)]);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_greeted_told_how_long_to_remember_and_seen_off() {
    let cluster = Cluster::builder().nodes(1).start().await;
    let ttl = |n: &Node| {
        n.metadata
            .annotations
            .as_ref()?
            .get("node.alpha.kubernetes.io/ttl")
            .cloned()
    };
    cluster
        .until("", "n0", secs(10), "has its time", |n: &Node| {
            ttl(n).as_deref() == Some("0")
        })
        .await;
    let told = async |reason: &str| {
        let events = cluster.events("default").await;
        let found = events.into_iter().find(|e| e.reason.as_deref() == Some(reason));
        found.and_then(|e| e.message)
    };
    let text = "Node n0 event: Registered Node n0 in Controller";
    assert_eq!(told("RegisteredNode").await.as_deref(), Some(text));
    cluster.node("n0").cut();
    cluster.delete::<Node>("", "n0", None).await;
    cluster.sleep(secs(5)).await;
    let text = "Node n0 event: Removing Node n0 from Controller";
    assert_eq!(told("RemovingNode").await.as_deref(), Some(text));
}

#[tokio::test(start_paused = true)]
async fn a_small_zone_that_mostly_fell_silent_is_not_given_up() {
    let cluster = Cluster::builder().nodes(5).start().await;
    let zone = |name: &str| serde_json::json!({"metadata": {"labels": {"topology.kubernetes.io/zone": name}}});
    for name in ["n0", "n1", "n2", "n3"] {
        cluster.patch::<Node>("", name, zone("a")).await;
    }
    cluster.patch::<Node>("", "n4", zone("b")).await;
    for name in ["n1", "n2", "n3"] {
        cluster.node(name).cut();
    }
    cluster.sleep(secs(300)).await;
    let given_up = async || {
        let nodes: Vec<Node> = cluster.list("").await;
        nodes.iter().filter(|n| is_lost(n)).count()
    };
    let silent: Vec<Node> = cluster.list("").await;
    assert_eq!(silent.iter().filter(|n| node_ready(n) == "Unknown").count(), 3);
    // While only one was silent, that one was like any; with the third the zone counts as disrupted, and nobody follows.
    assert!(given_up().await <= 1, "a disrupted zone is not given up");
    // With two of three back it was the nodes' fault after all: the third is given up.
    cluster.node("n1").mend();
    cluster.node("n2").mend();
    cluster.until("", "n3", secs(60), "is lost", is_lost).await;
    // Whichever had been given up alone is taken back.
    for name in ["n1", "n2"] {
        cluster
            .until("", name, secs(60), "is taken back", |n: &Node| !is_lost(n))
            .await;
    }
    assert_eq!(given_up().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_found_on_a_node_that_isnt_ready_isnt_ready_either() {
    let cluster = Cluster::builder().controllers(&[]).start().await;
    cluster
        .apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}")
        .await;
    for (node, pod) in [("sick", "there"), ("well", "here")] {
        cluster
            .apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}"))
            .await;
        cluster
            .apply(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}}}, spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}}}"
            ))
            .await;
        let says = |ready: bool| {
            let status = if ready { "True" } else { "False" };
            serde_json::json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}})
        };
        let mut told = says(node == "well");
        told["status"].as_object_mut().expect("fields").remove("phase");
        let nodes: Objects<Node> = Objects::new(&cluster.rest);
        nodes
            .patch_status("", node, Patch::Merge(&told))
            .await
            .expect("a status");
        let pods: Objects<Pod> = Objects::new(&cluster.rest);
        let told = says(true);
        pods.patch_status("default", pod, Patch::Merge(&told))
            .await
            .expect("a status");
    }
    // To controllers that begin, every pod has just come to its node.
    let _others = cluster.candidate("another");
    let is_marked = |pod: &Pod| !is_ready(pod);
    cluster
        .until("default", "there", secs(10), "isn't ready", is_marked)
        .await;
    let well: Pod = cluster.get("default", "here").await;
    assert!(is_ready(&well), "its node is ready");
    let told = cluster.events("default").await;
    assert!(told.iter().any(|e| e.reason.as_deref() == Some("NodeNotReady")));
}
