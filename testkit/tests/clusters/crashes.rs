//! Components that die at any moment: what was promised holds nevertheless.

use k8s_openapi::api::coordination::v1::Lease;
use keelson_testkit::objects::{
    ApiObject, Deployment, Job, Pod, ReplicaSet, StatefulSet, is_active, is_finished, is_ready, job_condition, phase,
};
use keelson_testkit::{Cluster, secs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// Kills controllers or the scheduler now and then, for so long, and lets them be in the end.
async fn havoc(cluster: &mut Cluster, during: Duration) -> usize {
    let mut rng = StdRng::seed_from_u64(cluster.seed());
    let mut deaths = 0;
    let end = cluster.elapsed() + during;
    while cluster.elapsed() < end {
        cluster
            .sleep(Duration::from_micros(rng.random_range(1..2_000_000)))
            .await;
        let dead = Duration::from_millis(rng.random_range(0..800));
        if rng.random_range(0..3) > 0 {
            cluster.kill_controllers();
            cluster.sleep(dead).await;
            cluster.start_controllers();
        } else {
            cluster.kill_scheduler();
            cluster.sleep(dead).await;
            cluster.start_scheduler();
        }
        deaths += 1;
    }
    deaths
}

/// Five pods that become ready after two seconds; one may be too many, one may be missing.
pub(crate) fn web(image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 5
  strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 1}}}}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - {{name: c, image: "{image}", readinessProbe: {{exec: {{command: [probe]}}, initialDelaySeconds: 2, periodSeconds: 1}}}}
"#
    )
}

pub(crate) fn rolled_out(d: &Deployment) -> bool {
    let status = d.status.clone().unwrap_or_default();
    let all = Some(5);
    status.observed_generation == d.metadata.generation
        && [status.updated_replicas, status.replicas, status.available_replicas] == [all; 3]
}

#[tokio::test(start_paused = true)]
async fn a_rollout_keeps_its_bounds_while_controllers_die() {
    let mut cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(&web("one")).await;
    cluster.until("default", "web", secs(60), "is there", rolled_out).await;
    let pods = cluster.history::<Pod>("default").await;
    let begin = pods.record().await.moments.len();
    cluster.apply(&web("two")).await;
    let deaths = havoc(&mut cluster, secs(12)).await;
    cluster
        .until("default", "web", secs(120), "is rolled out", rolled_out)
        .await;
    assert!(deaths > 3);
    let mut moments = 0;
    let pods = pods.record().await;
    pods.replay(|at, state| {
        moments += 1;
        if moments < begin {
            return;
        }
        let active = state.values().filter(|p| is_active(p));
        let (all, ready) = (active.clone().count(), active.filter(|p| is_ready(p)).count());
        assert!(all <= 6, "{all} pods at {at} after {deaths} deaths");
        assert!(ready >= 4, "only {ready} ready at {at} after {deaths} deaths");
    });
    assert_eq!(
        cluster.list::<ReplicaSet>("default").await.len(),
        2,
        "no set is made twice"
    );
}

/// Twelve pods, three at a time.
pub(crate) const SUM: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 12
  parallelism: 3
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: i, command: [sleep, "2"]}]}}
"#;

#[tokio::test(start_paused = true)]
async fn a_job_counts_each_pod_once_while_controllers_die() {
    let mut cluster = Cluster::builder().nodes(2).start().await;
    let pods = cluster.history::<Pod>("default").await;
    cluster.apply(SUM).await;
    havoc(&mut cluster, secs(12)).await;
    let complete = |j: &Job| job_condition(j, "Complete").is_some();
    let job = cluster
        .until("default", "sum", secs(120), "is complete", complete)
        .await;
    let status = job.status.expect("a status");
    assert_eq!((status.succeeded, status.failed), (Some(12), None));
    let left = status.uncounted_terminated_pods.unwrap_or_default();
    assert_eq!((left.succeeded, left.failed), (None, None));
    let pods = pods.record().await;
    pods.replay(|at, state| {
        let running = state.values().filter(|p| !is_finished(p)).count();
        assert!(running <= 3, "{running} at {at}");
    });
    let made = pods.added();
    assert_eq!(made.len(), 12, "no pod is made for nothing");
    let all: Vec<Pod> = cluster.list("default").await;
    assert!(all.iter().all(|p| phase(p) == "Succeeded"));
    assert!(all.iter().all(|p| p.metadata.finalizers.is_none()), "each is let go");
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_goes_in_order_while_controllers_die() {
    let mut cluster = Cluster::builder().nodes(2).start().await;
    let pods = cluster.history::<Pod>("default").await;
    cluster
        .apply(
            r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 4
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - {name: c, image: i, readinessProbe: {exec: {command: [probe]}, initialDelaySeconds: 2, periodSeconds: 1}}
"#,
        )
        .await;
    havoc(&mut cluster, secs(10)).await;
    let full = |s: &StatefulSet| s.status.as_ref().and_then(|s| s.ready_replicas) == Some(4);
    cluster.until("default", "db", secs(120), "is complete", full).await;
    let pods = pods.record().await;
    pods.replay(|at, state| {
        let unready = state.values().filter(|p| !is_ready(p)).count();
        assert!(unready <= 1, "{unready} not ready at {at}");
    });
    let names: Vec<String> = pods.added().iter().map(|(_, p)| p.name().to_owned()).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2", "db-3"]);
}

#[tokio::test(start_paused = true)]
async fn who_leads_is_alone_and_is_replaced_when_it_is_cut_off() {
    let cluster = Cluster::builder().controllers(&[]).start().await;
    let leader = async || {
        let lease: Lease = cluster.get("kube-system", "kube-controller-manager").await;
        let spec = lease.spec.unwrap_or_default();
        spec.holder_identity.unwrap_or_default()
    };
    let mut first = cluster.candidate("first");
    let led = |l: &Lease| {
        l.spec
            .as_ref()
            .is_some_and(|s| s.holder_identity.as_deref() == Some("first"))
    };
    cluster
        .until("kube-system", "kube-controller-manager", secs(5), "is held", led)
        .await;
    let second = cluster.candidate("second");
    cluster.sleep(secs(60)).await;
    assert_eq!(leader().await, "first", "it holds on");
    first.link.cut();
    let begin = cluster.elapsed();
    let ended = tokio::time::timeout(secs(15), first.ended())
        .await
        .expect("it gives up in time");
    let error = ended.expect_err("losing the leadership is an error").to_string();
    assert!(error.contains("leadership was lost"), "{error}");
    let gave_up = cluster.elapsed() - begin;
    let taken = |l: &Lease| {
        l.spec
            .as_ref()
            .is_some_and(|s| s.holder_identity.as_deref() == Some("second"))
    };
    cluster
        .until(
            "kube-system",
            "kube-controller-manager",
            secs(20),
            "is taken over",
            taken,
        )
        .await;
    let took_over = cluster.elapsed() - begin;
    assert!(gave_up < took_over, "never two at once: {gave_up:?}, {took_over:?}");
    cluster
        .apply("{apiVersion: v1, kind: Namespace, metadata: {name: a}}")
        .await;
    let there = |_: &keelson_testkit::objects::ServiceAccount| true;
    cluster
        .until("a", "default", secs(10), "is made by the new leader", there)
        .await;
    drop(second);
}
