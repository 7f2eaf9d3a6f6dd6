//! Garbage collection: who goes with whom, and in which order.

use keelson_client::{ObjectKey, Objects};
use keelson_testkit::objects::{ApiObject, Deployment, Pod, ReplicaSet, is_ready};
use keelson_testkit::{Cluster, seconds, secs};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {simulate.keelson.dev/stop-seconds: "5"}
    spec: {containers: [{name: c, image: i}]}
"#;

async fn running() -> Cluster {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(WEB).await;
    three_ready(&cluster).await;
    cluster
}

async fn three_ready(cluster: &Cluster) -> Vec<String> {
    cluster
        .until_all("default", secs(60), "three pods are ready", |pods: &[Pod]| {
            let all = pods.len() == 3 && pods.iter().all(is_ready);
            all.then(|| pods.iter().map(|p| p.uid().to_owned()).collect())
        })
        .await
}

async fn none_left<K: keelson_testkit::objects::Kind>(cluster: &Cluster) {
    let nothing = |found: &[K]| found.is_empty().then_some(());
    cluster.until_all("default", secs(120), "none is left", nothing).await;
}

#[tokio::test(start_paused = true)]
async fn in_the_background_the_owner_goes_at_once_and_the_rest_follows() {
    let cluster = running().await;
    cluster.delete::<Deployment>("default", "web", Some("Background")).await;
    let found = cluster.objects::<Deployment>().find("default", "web").await;
    assert!(found.expect("an answer").is_none(), "the owner goes at once");
    none_left::<ReplicaSet>(&cluster).await;
    none_left::<Pod>(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_the_owner_goes_last() {
    let cluster = running().await;
    let pods = cluster.history::<Pod>("default").await;
    let sets = cluster.history::<ReplicaSet>("default").await;
    let deployments = cluster.history::<Deployment>("default").await;
    cluster.delete::<Deployment>("default", "web", Some("Foreground")).await;
    let waiting: Deployment = cluster.get("default", "web").await;
    assert!(waiting.is_deleting());
    assert_eq!(
        waiting.metadata.finalizers.as_deref(),
        Some(&["foregroundDeletion".to_string()][..])
    );
    cluster.gone::<Deployment>("default", "web", secs(120)).await;
    let (pods, sets) = (pods.record().await, sets.record().await);
    let deployments = deployments.record().await;
    let gone = pods.deleted();
    assert_eq!(gone.len(), 3);
    let at = |name: &str| pods.deleted_at(name).expect("a pod that was deleted");
    let pod = gone.iter().map(|(_, p)| at(p.name())).max();
    let [(_, set)] = &sets.deleted()[..] else {
        panic!("one replica set is deleted: {:?}", sets.deleted());
    };
    let set = sets.deleted_at(set.name());
    let deployment = deployments.deleted_at("web");
    assert!(pod < set && set < deployment, "{pod:?}, {set:?}, {deployment:?}");
    let stopped = seconds(pods.moments[0].at, gone[2].0);
    assert!(stopped >= 5, "the pods had their time to stop, not only {stopped} s");
}

#[tokio::test(start_paused = true)]
async fn orphans_stay_and_are_adopted() {
    let cluster = running().await;
    let before = three_ready(&cluster).await;
    let sets: Vec<ReplicaSet> = cluster.list("default").await;
    cluster.delete::<Deployment>("default", "web", Some("Orphan")).await;
    cluster.gone::<Deployment>("default", "web", secs(60)).await;
    cluster
        .delete::<ReplicaSet>("default", sets[0].name(), Some("Orphan"))
        .await;
    cluster.gone::<ReplicaSet>("default", sets[0].name(), secs(60)).await;
    let free = |pods: &[Pod]| {
        let free = pods
            .iter()
            .filter(|p| p.metadata.owner_references.iter().flatten().count() == 0);
        (free.count() == 3).then_some(())
    };
    cluster
        .until_all("default", secs(60), "nobody owns the pods", free)
        .await;
    cluster.sleep(secs(60)).await;
    assert_eq!(three_ready(&cluster).await, before, "the pods go on");
    cluster
        .apply(
            r#"
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: heir}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: other}]}}
"#,
        )
        .await;
    let heirs = |pods: &[Pod]| {
        let owned = |p: &&Pod| p.metadata.owner_references.iter().flatten().any(|o| o.name == "heir");
        (pods.iter().filter(owned).count() == 3).then_some(())
    };
    cluster
        .until_all("default", secs(60), "the heir owns the pods", heirs)
        .await;
    assert_eq!(three_ready(&cluster).await, before, "the same pods");
}

#[tokio::test(start_paused = true)]
async fn what_names_an_owner_that_never_was_goes() {
    let cluster = Cluster::builder().start().await;
    cluster
        .apply(
            r#"
apiVersion: v1
kind: ConfigMap
metadata:
  name: lost
  ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: nobody, uid: 00000000-0000-0000-0000-000000000000}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: free}
"#,
        )
        .await;
    cluster
        .gone::<keelson_testkit::objects::ConfigMap>("default", "lost", secs(60))
        .await;
    let maps: Objects<keelson_testkit::objects::ConfigMap> = cluster.objects();
    let left = maps.list("default", "", "").await.expect("a list");
    let keys: Vec<ObjectKey> = left.iter().map(|m| m.key()).collect();
    assert!(keys.iter().any(|k| k.name == "free"), "{keys:?}");
}
