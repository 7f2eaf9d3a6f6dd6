//! Budgets: what the eviction API allows, and what it doesn't.

use keelson_client::{Kind, Result};
use keelson_testkit::objects::{ApiObject, Pod, PodDisruptionBudget, is_active, is_ready, node_of};
use keelson_testkit::{Cluster, secs};
use serde_json::json;

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: i, readinessProbe: {exec: {command: [probe]}, initialDelaySeconds: 10, periodSeconds: 1}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
"#;

async fn evict(cluster: &Cluster, pod: &str) -> Result<()> {
    let body =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"}});
    let evicted = cluster
        .rest
        .post_raw(&Pod::RESOURCE, "default", pod, "eviction", &body)
        .await;
    evicted.map(drop)
}

fn allowed(budget: &PodDisruptionBudget) -> i32 {
    budget
        .status
        .as_ref()
        .and_then(|s| s.disruptions_allowed)
        .unwrap_or_default()
}

async fn names(cluster: &Cluster) -> Vec<String> {
    let one = |b: &PodDisruptionBudget| allowed(b) == 1;
    cluster.until("default", "web", secs(60), "allows one", one).await;
    let pods: Vec<Pod> = cluster.list("default").await;
    let active = pods.iter().filter(|p| is_active(p));
    active.map(|p| p.name().to_owned()).collect()
}

fn refusal(result: Result<()>) -> (u16, String) {
    match result {
        Err(keelson_client::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn evictions_leave_as_many_pods_as_the_budget_says() {
    let cluster = Cluster::builder().nodes(2).start().await;
    let history = cluster.history::<Pod>("default").await;
    cluster.apply(WEB).await;
    let before = names(&cluster).await;
    evict(&cluster, &before[0]).await.expect("one may go");
    let (code, message) = refusal(evict(&cluster, &before[1]).await);
    assert_eq!(code, 429);
    assert_eq!(
        message,
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    let none = |b: &PodDisruptionBudget| allowed(b) == 0;
    cluster.until("default", "web", secs(5), "allows none", none).await;

    let begin = cluster.elapsed();
    let after = names(&cluster).await;
    let waited = (cluster.elapsed() - begin).as_secs();
    assert!(
        (9..=13).contains(&waited),
        "the next may go when the new pod is ready, not after {waited} s"
    );
    assert!(!after.contains(&before[0]));
    evict(&cluster, &before[1]).await.expect("one more may go");
    names(&cluster).await;
    let mut full = false;
    history.record().await.replay(|at, state| {
        let ready = state.values().filter(|p| is_active(p) && is_ready(p)).count();
        full |= ready == 3;
        assert!(!full || ready >= 2, "only {ready} at {at}");
    });
    assert!(full);
}

#[tokio::test(start_paused = true)]
async fn of_many_evictions_at_once_the_budget_lets_one_through() {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(WEB).await;
    let pods = names(&cluster).await;
    let all = pods.iter().map(|pod| evict(&cluster, pod));
    let results = futures::future::join_all(all).await;
    let refused: Vec<u16> = results
        .into_iter()
        .filter(|r| r.is_err())
        .map(|r| refusal(r).0)
        .collect();
    assert_eq!(refused, [429, 429]);
}

/// What `kubectl drain` does: cordon, and evict until nothing is left.
#[tokio::test(start_paused = true)]
async fn a_node_is_drained_within_the_budget() {
    let cluster = Cluster::builder().nodes(2).start().await;
    let history = cluster.history::<Pod>("default").await;
    cluster.apply(WEB).await;
    names(&cluster).await;
    let node = json!({"spec": {"unschedulable": true}});
    let _: keelson_testkit::objects::Node = cluster.patch("", "n0", node).await;
    let begin = history.record().await.moments.len();
    for _ in 0..60 {
        for pod in cluster.list::<Pod>("default").await {
            if node_of(&pod) == "n0" && !pod.is_deleting() {
                // Refused for now or not: it is asked again.
                let _ = evict(&cluster, pod.name()).await;
            }
        }
        cluster.sleep(secs(5)).await;
    }
    let pods: Vec<Pod> = cluster.list("default").await;
    assert!(pods.len() == 3 && pods.iter().all(|p| node_of(p) == "n1" && is_ready(p)));
    let mut moments = 0;
    history.record().await.replay(|at, state| {
        moments += 1;
        let ready = state.values().filter(|p| is_active(p) && is_ready(p)).count();
        assert!(moments <= begin || ready >= 2, "only {ready} at {at}");
    });
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_never_exceeded_however_many_come_at_once() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster
        .apply("{apiVersion: v1, kind: ResourceQuota, metadata: {name: few}, spec: {hard: {pods: '5'}}}")
        .await;
    cluster.sleep(secs(2)).await;
    let pod = |n: usize| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{n}}}, spec: {{containers: [{{name: c, image: i}}]}}}}"
        )
    };
    let pods: Vec<String> = (0..20).map(pod).collect();
    let results = futures::future::join_all(pods.iter().map(|p| cluster.try_apply(p))).await;
    let refused: Vec<String> = results
        .into_iter()
        .filter_map(|r| r.err().map(|e| e.to_string()))
        .collect();
    assert_eq!(refused.len(), 15, "{refused:?}");
    assert!(refused.iter().all(|r| r.contains("exceeded quota: few")), "{refused:?}");
    cluster
        .delete::<Pod>("default", cluster.list::<Pod>("default").await[0].name(), None)
        .await;
    cluster.sleep(secs(5)).await;
    cluster.try_apply(&pod(100)).await.expect("there is room for one");
    cluster.try_apply(&pod(101)).await.expect_err("and for no other");
}
