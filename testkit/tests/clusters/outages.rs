//! The API server dies and comes back: nothing acknowledged is lost, and what runs is not disturbed.

use crate::crashes::{SUM, rolled_out, web};
use keelson_client::{Objects, is_conflict};
use keelson_testkit::objects::{
    ApiObject, ConfigMap, Job, Node, Pod, StatefulSet, is_active, is_ready, job_condition, node_ready, taints,
};
use keelson_testkit::{Cluster, Server, secs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Kills the server so many times, after up to two seconds each, and lets it be dead for up to one.
fn deaths(server: &Server, seed: u64, times: usize) -> JoinHandle<()> {
    let (server, mut rng) = (server.clone(), StdRng::seed_from_u64(seed));
    tokio::spawn(async move {
        for _ in 0..times {
            tokio::time::sleep(Duration::from_micros(rng.random_range(1..2_000_000))).await;
            server.kill();
            tokio::time::sleep(Duration::from_micros(rng.random_range(1..1_000_000))).await;
            server.resume().await;
        }
    })
}

fn number(map: &ConfigMap) -> u64 {
    let n = map.data.as_ref().and_then(|d| d.get("n"));
    n.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// Counts up in an object of its own until `end`; tells the last number that was acknowledged, and how often an answer was
/// lost. No read may show less than what was acknowledged before.
async fn count(maps: Objects<ConfigMap>, name: String, mut rng: StdRng, end: tokio::time::Instant) -> (u64, usize) {
    let (mut acknowledged, mut lost) = (0, 0);
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..20_000))).await;
        let Ok(mut map) = maps.get("default", &name).await else {
            lost += 1;
            continue;
        };
        let n = number(&map);
        assert!(
            n == acknowledged || n == acknowledged + 1,
            "{name}: {acknowledged} was acknowledged, {n} is there"
        );
        map.data.get_or_insert_default().insert("n".into(), (n + 1).to_string());
        match maps.update(&map).await {
            Ok(_) => acknowledged = n + 1,
            Err(error) => {
                assert!(!is_conflict(&error), "{name} has one writer: {error}");
                lost += 1;
                // Written or not: the next read tells.
                acknowledged = n;
            }
        }
    }
    (acknowledged, lost)
}

#[tokio::test(start_paused = true)]
async fn no_acknowledged_write_is_lost_and_watchers_never_see_an_older_state() {
    const WRITERS: u64 = 4;
    let cluster = Cluster::builder().controllers(&[]).without_scheduler().start().await;
    let names: Vec<String> = (0..WRITERS).map(|n| format!("counter-{n}")).collect();
    for name in &names {
        let map = format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{n: '0'}}}}");
        cluster.apply(&map).await;
    }
    let history = cluster.history::<ConfigMap>("default").await;
    let deaths = deaths(&cluster.server, cluster.seed(), 8);
    let end = tokio::time::Instant::now() + secs(10);
    let mut writers = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let rng = StdRng::seed_from_u64(cluster.seed() ^ n as u64);
        writers.push(tokio::spawn(count(cluster.objects(), name.clone(), rng, end)));
    }
    let mut acknowledged = BTreeMap::new();
    let mut lost = 0;
    for (name, writer) in names.iter().zip(writers) {
        let (n, broken) = writer.await.expect("a writer");
        acknowledged.insert(name.clone(), n);
        lost += broken;
    }
    deaths.await.expect("the server is there");
    assert!(lost > 0, "the deaths were noticed");
    // What follows the server comes back after a while. It may have to begin with a list, and then skips some states.
    cluster.sleep(secs(60)).await;
    let record = history.record().await;
    for map in cluster.list::<ConfigMap>("default").await {
        let Some(n) = acknowledged.get(map.name()) else {
            continue;
        };
        let found = number(&map);
        assert!(found == *n || found == n + 1, "{}: {found} instead of {n}", map.name());
        let seen: Vec<u64> = record
            .moments
            .iter()
            .filter(|m| m.change.object().name() == map.name())
            .map(|m| number(m.change.object()))
            .collect();
        assert!(seen.is_sorted_by(|a, b| a < b), "{}: {seen:?}", map.name());
        assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&found)), "{}", map.name());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_keeps_enough_pods() {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(&web("one")).await;
    cluster.until("default", "web", secs(60), "is there", rolled_out).await;
    let witness = cluster.server.twin().await;
    let history = cluster.history_at::<Pod>(&witness, "default").await;
    let begin = history.record().await.moments.len();
    cluster.apply(&web("two")).await;
    let deaths = deaths(&cluster.server, cluster.seed(), 8);
    cluster
        .until("default", "web", secs(300), "is rolled out", rolled_out)
        .await;
    deaths.await.expect("the server is there");
    let mut moments = 0;
    history.record().await.replay(|at, state| {
        moments += 1;
        if moments < begin {
            return;
        }
        // Too many there may be for a moment: whether a pod was made whose answer was lost, nobody can know at once.
        let ready = state.values().filter(|p| is_active(p) && is_ready(p)).count();
        assert!(ready >= 4, "only {ready} ready at {at}");
    });
}

#[tokio::test(start_paused = true)]
async fn a_job_is_done_and_a_stateful_set_never_has_two_of_one_identity() {
    let cluster = Cluster::builder().nodes(2).start().await;
    let witness = cluster.server.twin().await;
    let history = cluster.history_at::<Pod>(&witness, "default").await;
    let deaths = deaths(&cluster.server, cluster.seed(), 10);
    let set = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 4
  serviceName: db
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: i}]}}
"#;
    // Applying is what a person does again when it failed.
    while cluster.try_apply(&format!("{SUM}---{set}")).await.is_err() {
        cluster.sleep(Duration::from_millis(100)).await;
    }
    let complete = |j: &Job| job_condition(j, "Complete").is_some();
    let job = cluster
        .until("default", "sum", secs(300), "is complete", complete)
        .await;
    let full = |s: &StatefulSet| s.status.as_ref().and_then(|s| s.ready_replicas) == Some(4);
    cluster.until("default", "db", secs(300), "is complete", full).await;
    deaths.await.expect("the server is there");
    assert_eq!(job.status.expect("a status").succeeded, Some(12));
    // A pod whose making wasn't heard of ends by itself.
    cluster.sleep(secs(30)).await;
    let record = history.record().await;
    let now = record.now();
    assert!(now.values().all(|p| !p.name().starts_with("sum-") || !is_active(p)));
    let added = record.added();
    let members: Vec<&str> = added
        .iter()
        .map(|(_, p)| p.name())
        .filter(|n| n.starts_with("db-"))
        .collect();
    assert_eq!(members, ["db-0", "db-1", "db-2", "db-3"]);
}

/// Nobody hears of the nodes for longer than it takes to give them up. When the server is back they are well, and no pod
/// was touched.
#[tokio::test(start_paused = true)]
async fn a_long_outage_evicts_nobody() {
    let cluster = Cluster::builder().nodes(3).start().await;
    let pods = |n: usize| {
        format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web}}, spec: {{replicas: {n}, selector: {{matchLabels: \
             {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}}, spec: {{containers: [{{name: c, image: i}}]}}}}}}}}"
        )
    };
    cluster.apply(&pods(6)).await;
    let ready = |pods: &[Pod]| {
        let ready = pods.iter().filter(|p| is_ready(p)).map(|p| p.uid().to_owned());
        let ready: BTreeSet<String> = ready.collect();
        (ready.len() == pods.len() && ready.len() >= 6).then_some(ready)
    };
    let before = cluster
        .until_all("default", secs(60), "six pods are ready", ready)
        .await;
    cluster.server.kill();
    cluster.sleep(secs(900)).await;
    cluster.server.resume().await;
    // Longer than a taint of an unreachable node is tolerated.
    cluster
        .stays("no node is given up, no pod evicted", secs(600), async || {
            let nodes: Vec<Node> = cluster.list("").await;
            let lost: Vec<_> = nodes
                .iter()
                .filter(|n| node_ready(n) != "True" || !taints(n).is_empty())
                .collect();
            let pods: Vec<Pod> = cluster.list("default").await;
            let now: BTreeSet<String> = pods.iter().map(|p| p.uid().to_owned()).collect();
            match lost.is_empty() && now == before {
                true => Ok(()),
                false => Err(format!("{lost:?}\n{now:?} instead of {before:?}")),
            }
        })
        .await;
    for pod in cluster.list::<Pod>("default").await {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let restarts: i32 = statuses.map(|c| c.restart_count).sum();
        assert_eq!(restarts, 0, "{}", pod.name());
    }
    // And all goes on.
    cluster.apply(&pods(8)).await;
    let eight = |pods: &[Pod]| ready(pods).filter(|r| r.len() == 8 && r.is_superset(&before)).map(drop);
    cluster
        .until_all("default", secs(60), "eight pods are ready", eight)
        .await;
}
