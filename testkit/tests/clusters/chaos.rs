//! Everything that can be away for a while is, while users change their minds. Afterwards all is as it was last wanted.

use keelson_testkit::objects::{
    ApiObject, DaemonSet, Deployment, EndpointSlice, Job, Pod, ReplicaSet, StatefulSet, image_of, is_active, is_ready,
    job_condition, pod_line,
};
use keelson_testkit::{Cluster, secs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

const NODES: usize = 3;

const START: &str = r#"
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
      - {name: c, image: v0, readinessProbe: {exec: {command: [probe]}, initialDelaySeconds: 1, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - {name: c, image: v0, readinessProbe: {exec: {command: [probe]}, initialDelaySeconds: 1, periodSeconds: 1}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: c, image: v0}]}}
"#;

/// What users want by now.
struct Wanted {
    web: (usize, String),
    db: (usize, String),
    jobs: usize,
}

async fn change_minds(cluster: &Cluster, rng: &mut StdRng, wanted: &mut Wanted) {
    let image = format!("v{}", rng.random_range(0..4));
    let template = |replicas: usize, image: &str| {
        let container = json!({"name": "c", "image": image});
        json!({"spec": {"replicas": replicas, "template": {"spec": {"containers": [container]}}}})
    };
    match rng.random_range(0..4) {
        0 => {
            wanted.web = (rng.random_range(0..7), image);
            let _: Deployment = cluster
                .patch("default", "web", template(wanted.web.0, &wanted.web.1))
                .await;
        }
        1 => {
            wanted.db = (rng.random_range(0..4), image);
            let _: StatefulSet = cluster
                .patch("default", "db", template(wanted.db.0, &wanted.db.1))
                .await;
        }
        2 => {
            let name = format!("sum{}", wanted.jobs);
            wanted.jobs += 1;
            cluster
                .apply(&format!(
                    "{{apiVersion: batch/v1, kind: Job, metadata: {{name: {name}}}, spec: {{completions: 3, parallelism: 2, \
                     template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: i, command: [sleep, '2']}}]}}}}}}}}"
                ))
                .await;
        }
        _ => {
            let pods: Vec<Pod> = cluster.list("default").await;
            // Pods of Jobs are left alone: one that is taken away counts as failed.
            let ours: Vec<&Pod> = pods
                .iter()
                .filter(|p| is_active(p) && !p.name().starts_with("sum"))
                .collect();
            if !ours.is_empty() {
                let pod = ours[rng.random_range(0..ours.len())];
                let options = keelson_client::delete_options(None, Some(pod.uid()), None);
                // It may have gone in the meantime.
                let _ = cluster.objects::<Pod>().delete("default", pod.name(), &options).await;
            }
        }
    }
}

async fn shake(cluster: &mut Cluster, rng: &mut StdRng) {
    let node = format!("n{}", rng.random_range(0..NODES));
    let away = Duration::from_millis(rng.random_range(0..4000));
    match rng.random_range(0..6) {
        0 => {
            cluster.kill_controllers();
            cluster.sleep(away).await;
            cluster.start_controllers();
        }
        1 => {
            cluster.kill_scheduler();
            cluster.sleep(away).await;
            cluster.start_scheduler();
        }
        2 => {
            let link = cluster
                .controllers
                .as_ref()
                .map(|p| p.link.clone())
                .expect("controllers");
            link.cut();
            cluster.sleep(away).await;
            link.mend();
        }
        3 => {
            let link = cluster.scheduler.as_ref().map(|p| p.link.clone()).expect("a scheduler");
            link.cut();
            cluster.sleep(away).await;
            link.mend();
        }
        4 => {
            cluster.node(&node).cut();
            cluster.sleep(away * 4).await;
            cluster.node(&node).mend();
        }
        _ => {
            cluster.halt(&node).await;
            cluster.sleep(away * 4).await;
            cluster.resume(&node);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_every_storm_all_is_as_wanted() {
    let mut cluster = Cluster::builder().nodes(NODES).start().await;
    let mut rng = StdRng::seed_from_u64(cluster.seed());
    cluster.apply(START).await;
    let mut wanted = Wanted {
        web: (3, "v0".into()),
        db: (2, "v0".into()),
        jobs: 0,
    };
    for _ in 0..12 {
        for _ in 0..rng.random_range(1..4) {
            change_minds(&cluster, &mut rng, &mut wanted).await;
            cluster.sleep(Duration::from_millis(rng.random_range(0..1500))).await;
        }
        shake(&mut cluster, &mut rng).await;
    }
    cluster
        .eventually("all is as wanted", secs(400), async || settled(&cluster, &wanted).await)
        .await;
    // And it stays so: nobody goes on writing.
    let pods = cluster.history::<Pod>("default").await;
    let begin = pods.record().await.moments.len();
    cluster.sleep(secs(100)).await;
    let later = &pods.record().await.moments[begin..];
    assert!(later.is_empty(), "{} changes of pods for no reason", later.len());
}

async fn settled(cluster: &Cluster, wanted: &Wanted) -> Result<(), String> {
    let pods: Vec<Pod> = cluster.list("default").await;
    let of = |app: &str| -> Vec<&Pod> {
        let ours = |p: &&Pod| p.metadata.labels.iter().flatten().any(|(k, v)| k == "app" && v == app);
        pods.iter().filter(ours).collect()
    };
    for (app, count, image) in [
        ("web", wanted.web.0, wanted.web.1.as_str()),
        ("db", wanted.db.0, wanted.db.1.as_str()),
        ("agent", NODES, "v0"),
    ] {
        let ours = of(app);
        let good = ours
            .iter()
            .filter(|p| is_active(p) && is_ready(p) && image_of(p) == image)
            .count();
        if good != count || ours.len() != count {
            let lines: Vec<String> = ours.iter().map(|p| pod_line(p)).collect();
            return Err(format!("{app}: {count} of {image} are wanted: {lines:#?}"));
        }
    }
    let d: Deployment = cluster.get("default", "web").await;
    let status = d.status.clone().unwrap_or_default();
    if status.observed_generation != d.metadata.generation
        || status.ready_replicas.unwrap_or_default() as usize != wanted.web.0
        || status.updated_replicas.unwrap_or_default() as usize != wanted.web.0
    {
        return Err(format!("the Deployment tells {status:?}"));
    }
    let sets: Vec<ReplicaSet> = cluster.list("default").await;
    if sets.iter().filter(|s| s.spec.replicas != Some(0)).count() > 1 {
        return Err(format!("more than one of {} ReplicaSets is in use", sets.len()));
    }
    let agent: DaemonSet = cluster.get("default", "agent").await;
    if agent.status.as_ref().map(|s| s.number_ready) != Some(NODES as i32) {
        return Err(format!("the DaemonSet tells {:?}", agent.status));
    }
    let slices: Vec<EndpointSlice> = cluster.list("default").await;
    let ours = slices.iter().filter(|s| s.name().starts_with("web-"));
    let told: BTreeSet<String> = ours
        .flat_map(|s| s.endpoints.iter().flatten())
        .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
        .map(|e| e.addresses[0].clone())
        .collect();
    let ips: BTreeSet<String> = of("web")
        .iter()
        .filter_map(|p| p.status.as_ref()?.pod_ip.clone())
        .collect();
    if told != ips {
        return Err(format!("endpoints {told:?}, pods {ips:?}"));
    }
    let jobs: Vec<Job> = cluster.list("default").await;
    for job in &jobs {
        let status = job.status.clone().unwrap_or_default();
        if job_condition(job, "Complete").is_none() || status.succeeded != Some(3) {
            return Err(format!("{}: {status:?}", job.name()));
        }
    }
    if jobs.len() != wanted.jobs {
        return Err(format!("{} Jobs of {}", jobs.len(), wanted.jobs));
    }
    Ok(())
}
