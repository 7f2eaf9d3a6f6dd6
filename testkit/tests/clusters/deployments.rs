//! Deployments: the bounds of a rollout hold at every moment, a rollback goes back, scaling takes the right pods.

use jiff::{SignedDuration, Timestamp};
use keelson_testkit::objects::{Deployment, Pod, ReplicaSet, image_of, is_active, is_finished, is_ready};
use keelson_testkit::{Builder, Cluster, Record, Size, secs};
use serde_json::json;

const REPLICAS: usize = 6;
const MOST: usize = 8;
const FEWEST: usize = 5;
const MIN_READY: i64 = 2;

/// Six pods that become ready after three seconds and count after two more; two may be too many, one may be missing.
fn web(image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {REPLICAS}
  minReadySeconds: {MIN_READY}
  progressDeadlineSeconds: 120
  strategy: {{rollingUpdate: {{maxSurge: 2, maxUnavailable: 1}}}}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: c
        image: "{image}"
        readinessProbe: {{exec: {{command: [probe]}}, initialDelaySeconds: 3, periodSeconds: 1}}
"#
    )
}

/// Whether the controller has seen the last change, and all pods are of it.
fn rolled_out(d: &Deployment) -> bool {
    let status = d.status.clone().unwrap_or_default();
    let all = d.spec.replicas;
    status.observed_generation == d.metadata.generation
        && status.updated_replicas == all
        && status.replicas == all
        && status.available_replicas == all
}

fn progress(d: &Deployment) -> String {
    let conditions = d.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let found = conditions
        .into_iter()
        .find(|c| c.type_.as_deref() == Some("Progressing"));
    found.and_then(|c| c.reason.clone()).unwrap_or_default()
}

async fn running(builder: Builder) -> Cluster {
    let cluster = builder.start().await;
    cluster.apply(&web("one")).await;
    cluster.until("default", "web", secs(120), "is there", rolled_out).await;
    cluster
}

/// Ready for as long as the Deployment asks.
fn is_available(pod: &Pod, at: Timestamp) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|c| c.type_ == "Ready" && c.status == "True");
    let since = ready.find_map(|c| c.last_transition_time.as_ref().map(|t| t.0));
    since.is_some_and(|since| at >= since + SignedDuration::from_secs(MIN_READY))
}

/// Neither too many nor too few pods at any moment; returns how many moments there were, and the extremes.
fn check_bounds(pods: &Record<Pod>, sets: &Record<ReplicaSet>) -> (usize, usize, usize) {
    let (mut moments, mut most, mut fewest) = (0, 0, usize::MAX);
    let begin = pods.added().first().map(|(at, _)| *at);
    pods.replay(|at, state| {
        let active: Vec<_> = state.values().filter(|p| is_active(p)).collect();
        let available = active.iter().filter(|p| is_available(p, at)).count();
        // The history begins with the pods there are, one after the other.
        if moments == 0 && (available < REPLICAS || begin.is_none()) {
            return;
        }
        moments += 1;
        (most, fewest) = (most.max(active.len()), fewest.min(available));
        assert!(active.len() <= MOST, "{} pods at {at}", active.len());
        assert!(available >= FEWEST, "only {available} available at {at}");
    });
    sets.replay(|at, state| {
        let wanted: i32 = state.values().filter_map(|s| s.spec.replicas).sum();
        assert!(wanted as usize <= MOST, "{wanted} pods wanted at {at}");
    });
    (moments, most, fewest)
}

#[tokio::test(start_paused = true)]
async fn a_rollout_keeps_its_bounds_at_every_moment() {
    let cluster = running(Cluster::builder().nodes(3)).await;
    let (pods, sets) = (cluster.history("default").await, cluster.history("default").await);
    cluster.apply(&web("two")).await;
    cluster
        .until("default", "web", secs(300), "is rolled out", rolled_out)
        .await;
    let (pods, sets) = (pods.record().await, sets.record().await);
    let (moments, most, fewest) = check_bounds(&pods, &sets);
    assert!(moments > 30, "only {moments} moments");
    assert_eq!((most, fewest), (MOST, FEWEST), "the bounds are made use of");
    let images: Vec<_> = pods
        .now()
        .values()
        .filter(|p| is_active(p))
        .map(|p| image_of(p).to_owned())
        .collect();
    assert_eq!(images, vec!["two"; REPLICAS]);
    let d: Deployment = cluster.get("default", "web").await;
    assert_eq!(progress(&d), "NewReplicaSetAvailable");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_fails_keeps_the_old_pods_and_is_rolled_back() {
    let cluster = running(Cluster::builder().nodes(3)).await;
    let before: Vec<ReplicaSet> = cluster.list("default").await;
    let (pods, sets) = (cluster.history("default").await, cluster.history("default").await);
    let begin = cluster.elapsed();
    cluster.apply(&web("missing/two")).await;
    cluster
        .until("default", "web", secs(300), "is told to be late", |d: &Deployment| {
            progress(d) == "ProgressDeadlineExceeded"
        })
        .await;
    let late = (cluster.elapsed() - begin).as_secs();
    assert!((120..=123).contains(&late), "told after {late} s");
    cluster.apply(&web("one")).await;
    cluster
        .until("default", "web", secs(300), "is rolled back", rolled_out)
        .await;
    check_bounds(&pods.record().await, &sets.record().await);
    let after: Vec<ReplicaSet> = cluster.list("default").await;
    let old = &before[0];
    assert_eq!((before.len(), after.len()), (1, 2));
    let again = after.iter().find(|s| s.metadata.uid == old.metadata.uid);
    let again = again.expect("the old ReplicaSet is used again");
    assert_eq!(again.spec.replicas, Some(REPLICAS as i32));
    let revision = &again.metadata.annotations.as_ref().expect("annotations")["deployment.kubernetes.io/revision"];
    assert_eq!(revision, "3", "a rollback is a revision of its own");
}

#[tokio::test(start_paused = true)]
async fn scaling_down_takes_first_the_pods_that_do_not_run() {
    let small = Size {
        pods: 3,
        ..Size::default()
    };
    let cluster = running(Cluster::builder().nodes(2).size(small)).await;
    let scale = async |n: i32| {
        let body = json!({"spec": {"replicas": n}});
        let _: Deployment = cluster.patch("default", "web", body).await;
    };
    let running: Vec<String> = names(&cluster.list("default").await);
    scale(9).await;
    let without_node = |pods: &[Pod]| {
        pods.iter()
            .filter(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_none()))
            .count()
    };
    let grown = |pods: &[Pod]| (pods.len() == 9 && without_node(pods) == 3).then_some(());
    cluster
        .until_all("default", secs(60), "nine pods, three of them without a node", grown)
        .await;
    let history = cluster.history::<Pod>("default").await;
    scale(6).await;
    cluster
        .until("default", "web", secs(120), "has six pods", rolled_out)
        .await;
    assert_eq!(names(&cluster.list("default").await), running, "those that ran go on");
    assert!(history.record().await.deleted().iter().all(|(_, p)| !is_ready(p)));
    scale(0).await;
    cluster
        .until_all("default", secs(120), "no pod is left", |pods: &[Pod]| {
            pods.is_empty().then_some(())
        })
        .await;
}

fn names(pods: &[Pod]) -> Vec<String> {
    let mut names: Vec<_> = pods.iter().filter_map(|p| p.metadata.name.clone()).collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn recreated_pods_never_meet_the_old_ones() {
    let cluster = running(Cluster::builder().nodes(2)).await;
    let recreate = |image: &str| {
        let strategy = "strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 1}}";
        web(image).replace(strategy, "strategy: {type: Recreate}")
    };
    // A merge patch: what was applied before can't be taken back by applying less.
    let strategy = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
    let _: Deployment = cluster.patch("default", "web", strategy).await;
    let pods = cluster.history::<Pod>("default").await;
    cluster.apply(&recreate("two")).await;
    cluster
        .until("default", "web", secs(300), "is rolled out", rolled_out)
        .await;
    let mut both = false;
    pods.record().await.replay(|at, state| {
        // Whose containers have ended may still be there: a deployment waits for no more than that.
        let living = state.values().filter(|p| !is_finished(p));
        let images: Vec<_> = living.map(|p| image_of(p)).collect();
        both |= images.contains(&"two");
        let mixed = images.contains(&"one") && images.contains(&"two");
        assert!(!mixed, "old and new at {at}: {images:?}");
    });
    assert!(both);
}

#[tokio::test(start_paused = true)]
async fn a_paused_rollout_waits() {
    let cluster = running(Cluster::builder().nodes(2)).await;
    let pause = async |paused: bool| {
        let body = json!({"spec": {"paused": paused}});
        let _: Deployment = cluster.patch("default", "web", body).await;
    };
    pause(true).await;
    cluster.apply(&web("two")).await;
    cluster.sleep(secs(200)).await;
    let pods: Vec<Pod> = cluster.list("default").await;
    assert!(pods.iter().all(|p| image_of(p) == "one" && is_ready(p)));
    assert_eq!(cluster.list::<ReplicaSet>("default").await.len(), 1);
    // Scaling goes on, and time spent waiting isn't lateness.
    let _: Deployment = cluster.patch("default", "web", json!({"spec": {"replicas": 3}})).await;
    let three = |pods: &[Pod]| (pods.len() == 3).then_some(());
    cluster.until_all("default", secs(60), "three pods", three).await;
    pause(false).await;
    let done = cluster
        .until("default", "web", secs(200), "is rolled out", rolled_out)
        .await;
    assert_eq!(progress(&done), "NewReplicaSetAvailable");
}
