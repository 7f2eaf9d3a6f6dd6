//! StatefulSets go in order; DaemonSets are everywhere.

use keelson_testkit::objects::{ApiObject, DaemonSet, Node, Pod, StatefulSet, image_of, is_ready, node_of};
use keelson_testkit::{Cluster, Record, secs};
use serde_json::json;

fn db(image: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  replicas: 3
  serviceName: db
  {more}
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata:
      labels: {{app: db}}
      annotations: {{simulate.keelson.dev/stop-seconds: "3"}}
    spec:
      containers:
      - {{name: c, image: "{image}", readinessProbe: {{exec: {{command: [probe]}}, initialDelaySeconds: 4, periodSeconds: 1}}}}
"#
    )
}

fn is_done(set: &StatefulSet) -> bool {
    let status = set.status.clone().unwrap_or_default();
    let all = set.spec.replicas.unwrap_or_default();
    status.observed_generation == set.metadata.generation
        && status.replicas == all
        && status.ready_replicas.unwrap_or_default() == all
        && status.updated_replicas.unwrap_or_default() == all
}

async fn running() -> Cluster {
    let cluster = Cluster::builder().nodes(2).start().await;
    let pods = cluster.history::<Pod>("default").await;
    cluster.apply(&db("one", "")).await;
    cluster.until("default", "db", secs(120), "is there", is_done).await;
    let pods = pods.record().await;
    let names: Vec<String> = pods.added().iter().map(|(_, p)| p.name().to_owned()).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    each_alone(&pods, |state_before, new| {
        assert!(
            state_before.iter().all(is_ready),
            "{new} came before the one below was ready"
        );
    });
    cluster
}

/// For each pod that came: which others there were, and its name.
fn each_alone(pods: &Record<Pod>, mut each: impl FnMut(&[Pod], &str)) {
    let mut before: Vec<Pod> = Vec::new();
    pods.replay(|_, state| {
        let now: Vec<Pod> = state.values().map(|p| (**p).clone()).collect();
        let is_new = |p: &&Pod| before.iter().all(|b| b.uid() != p.uid());
        if let Some(new) = now.iter().find(is_new) {
            each(&before, new.name());
        }
        before = now;
    });
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_goes_up_and_down_in_order() {
    let cluster = running().await;
    let pods = cluster.history::<Pod>("default").await;
    let _: StatefulSet = cluster.patch("default", "db", json!({"spec": {"replicas": 0}})).await;
    cluster
        .until_all("default", secs(120), "no pod is left", |p: &[Pod]| {
            p.is_empty().then_some(())
        })
        .await;
    let pods = pods.record().await;
    let names: Vec<String> = pods.deleted().iter().map(|(_, p)| p.name().to_owned()).collect();
    assert_eq!(names, ["db-2", "db-1", "db-0"]);
    pods.replay(|at, state| {
        let deleting = state.values().filter(|p| p.is_deleting()).count();
        assert!(deleting <= 1, "{deleting} on their way out at {at}");
    });
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_is_updated_from_the_top_down_to_the_partition() {
    let cluster = running().await;
    let history = cluster.history::<Pod>("default").await;
    let partition = "updateStrategy: {rollingUpdate: {partition: 1}}";
    cluster.apply(&db("two", partition)).await;
    let partly = |s: &StatefulSet| {
        let status = s.status.clone().unwrap_or_default();
        status.observed_generation == s.metadata.generation
            && (status.updated_replicas, status.ready_replicas) == (Some(2), Some(3))
    };
    cluster
        .until("default", "db", secs(120), "is updated partly", partly)
        .await;
    cluster.sleep(secs(60)).await;
    let images = |pods: &Record<Pod>| pods.now().values().map(|p| image_of(p).to_owned()).collect::<Vec<_>>();
    let pods = history.record().await;
    assert_eq!(images(&pods), ["one", "two", "two"]);
    let names: Vec<String> = pods.deleted().iter().map(|(_, p)| p.name().to_owned()).collect();
    assert_eq!(names, ["db-2", "db-1"]);
    pods.replay(|at, state| {
        let others = state.len() < 3;
        let unready = state.values().filter(|p| !is_ready(p)).count();
        assert!(
            pods.added()[2].0 > at || usize::from(others) + unready <= 1,
            "more than one away at {at}"
        );
    });
    cluster
        .apply(&db("two", "updateStrategy: {rollingUpdate: {partition: 0}}"))
        .await;
    cluster.until("default", "db", secs(120), "is updated", is_done).await;
    assert_eq!(images(&history.record().await), ["two", "two", "two"]);
}

#[tokio::test(start_paused = true)]
async fn there_are_never_two_of_one_identity() {
    let cluster = running().await;
    let lost: Pod = cluster.get("default", "db-1").await;
    cluster.node(node_of(&lost)).cut();
    let deleting = |p: &Pod| p.is_deleting();
    cluster
        .until("default", "db-1", secs(500), "is evicted", deleting)
        .await;
    cluster
        .stays("nobody takes its name", secs(400), async || {
            let now: Pod = cluster.get("default", "db-1").await;
            (now.uid() == lost.uid()).then_some(()).ok_or("there is another".into())
        })
        .await;
    // A person who knows that the machine is gone may say so.
    let mut options = keelson_client::delete_options(None, None, None);
    options.grace_period_seconds = Some(0);
    let forced = cluster.objects::<Pod>().delete("default", "db-1", &options).await;
    forced.expect("a forced deletion");
    let new = |p: &Pod| p.uid() != lost.uid() && is_ready(p);
    let new: Pod = cluster.until("default", "db-1", secs(60), "runs elsewhere", new).await;
    assert_ne!(node_of(&new), node_of(&lost));
}

const AGENT: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: c, image: i}]}}
"#;

async fn on_nodes(cluster: &Cluster, wanted: &[&str]) -> Vec<Pod> {
    cluster
        .until_all(
            "default",
            secs(60),
            &format!("one pod on each of {wanted:?}"),
            |pods: &[Pod]| {
                let mut nodes: Vec<&str> = pods.iter().filter(|p| is_ready(p)).map(node_of).collect();
                nodes.sort_unstable();
                (nodes == wanted && pods.len() == wanted.len()).then(|| pods.to_vec())
            },
        )
        .await
}

#[tokio::test(start_paused = true)]
async fn a_daemon_set_is_on_every_node() {
    let mut cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(AGENT).await;
    on_nodes(&cluster, &["n0", "n1"]).await;
    let _: Node = cluster.patch("", "n0", json!({"spec": {"unschedulable": true}})).await;
    cluster.add_node("n2").await;
    let pods = on_nodes(&cluster, &["n0", "n1", "n2"]).await;
    let set: DaemonSet = cluster.get("default", "agent").await;
    assert_eq!(
        set.status.map(|s| (s.desired_number_scheduled, s.number_misscheduled)),
        Some((3, 0))
    );

    // It stays where nobody answers, and comes back where it was deleted.
    cluster.node("n1").cut();
    let gone = pods.iter().find(|p| node_of(p) == "n2").expect("a pod");
    cluster.delete::<Pod>("default", gone.name(), None).await;
    cluster.sleep(secs(450)).await;
    let now: Vec<Pod> = cluster.list("default").await;
    assert!(now.iter().all(|p| !p.is_deleting()) && now.len() == 3);
    assert!(now.iter().all(|p| p.uid() != gone.uid()), "another came");
    cluster.node("n1").mend();
    on_nodes(&cluster, &["n0", "n1", "n2"]).await;

    let _: Node = cluster
        .patch("", "n0", json!({"metadata": {"labels": {"kind": "odd"}}}))
        .await;
    let selector = json!({"spec": {"template": {"spec": {"nodeSelector": {"kind": "odd"}}}}});
    let _: DaemonSet = cluster.patch("default", "agent", selector).await;
    on_nodes(&cluster, &["n0"]).await;
}

const TIGHT: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: {name: tight}
spec: {hard: {pods: "2"}}
---
apiVersion: v1
kind: Pod
metadata: {name: first}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: second}
spec: {containers: [{name: c, image: i}]}
"#;

#[tokio::test(start_paused = true)]
async fn who_was_refused_by_a_quota_is_served_when_there_is_room() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster.apply(TIGHT).await;
    cluster.sleep(secs(60)).await;
    cluster
        .apply(
            r#"
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: late}
spec:
  replicas: 1
  selector: {matchLabels: {app: late}}
  template: {metadata: {labels: {app: late}}, spec: {containers: [{name: c, image: i}]}}
"#,
        )
        .await;
    // Refused again and again, ever less often: the next try would be minutes away.
    cluster.sleep(secs(900)).await;
    cluster.delete::<Pod>("default", "first", None).await;
    cluster.gone::<Pod>("default", "first", secs(60)).await;
    cluster
        .until_all("default", secs(15), "the late one is there", |pods: &[Pod]| {
            pods.iter().any(|p| p.name().starts_with("late-")).then_some(())
        })
        .await;
}
