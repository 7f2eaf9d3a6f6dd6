//! Scheduling: what is told of a pod that fits nowhere, when it is tried again, and who has to make room.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use keelson_client::Kind;
use keelson_testkit::objects::{ApiObject, Pod, condition, is_active, is_ready, node_of};
use keelson_testkit::{Cluster, Size, secs};
use serde_json::json;
use std::collections::BTreeMap;

fn pod(name: &str, spec: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{{spec}}}}}")
}

fn asking(name: &str, cpus: u32, more: &str) -> String {
    let container = format!("{{name: c, image: i, resources: {{requests: {{cpu: '{cpus}'}}}}}}");
    pod(name, &format!("containers: [{container}]{more}"))
}

fn refused(pod: &Pod) -> bool {
    condition(pod, "PodScheduled").0 == "False"
}

async fn message(cluster: &Cluster, name: &str) -> String {
    let pod = cluster.until("default", name, secs(60), "is refused", refused).await;
    let (_, reason, message) = condition(&pod, "PodScheduled");
    assert_eq!(reason, "Unschedulable");
    message
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_to_the_first_node_that_has_room() {
    let mut cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(&asking("big", 10, "")).await;
    assert_eq!(
        message(&cluster, "big").await,
        "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: \
         2 Preemption is not helpful for scheduling."
    );
    let events = cluster.events("default").await;
    let told = events.iter().any(|e| e.reason.as_deref() == Some("FailedScheduling"));
    assert!(told, "an event tells it, too");
    cluster.sleep(secs(30)).await;
    let size = Size {
        cpus: 16,
        ..Size::default()
    };
    cluster.join("large", size, &[]);
    let runs = cluster.until("default", "big", secs(60), "runs", is_ready).await;
    assert_eq!(node_of(&runs), "large");
}

#[tokio::test(start_paused = true)]
async fn the_first_node_takes_what_waited_for_one() {
    let mut cluster = Cluster::builder().start().await;
    cluster.apply(&asking("early", 1, "")).await;
    assert_eq!(message(&cluster, "early").await, "no nodes available to schedule pods");
    cluster.sleep(secs(400)).await;
    cluster.join("first", Size::default(), &[]);
    cluster.until("default", "early", secs(20), "runs", is_ready).await;
}

#[tokio::test(start_paused = true)]
async fn each_nodes_reason_is_counted() {
    let mut cluster = Cluster::builder().nodes(2).start().await;
    cluster.join("n2", Size::default(), &[("disk", "fast")]);
    cluster.node_is_up("n2").await;
    let taint = json!({"spec": {"taints": [{"key": "own", "value": "x", "effect": "NoSchedule"}]}});
    let _: keelson_testkit::objects::Node = cluster.patch("", "n2", taint).await;
    let picky = "containers: [{name: c, image: i}], nodeSelector: {disk: fast}";
    cluster.apply(&pod("picky", picky)).await;
    assert_eq!(
        message(&cluster, "picky").await,
        "0/3 nodes are available: 1 node(s) had untolerated taint(s), \
         2 node(s) didn't match Pod's node affinity/selector. \
         preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
    let _: keelson_testkit::objects::Node = cluster.patch("", "n2", json!({"spec": {"taints": null}})).await;
    let runs = cluster.until("default", "picky", secs(60), "runs", is_ready).await;
    assert_eq!(node_of(&runs), "n2");
}

const CLASSES: &str = r#"
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: low}, value: 1}
---
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: middle}, value: 50}
---
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 100}
---
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: meek}, value: 100, preemptionPolicy: Never}
"#;

#[tokio::test(start_paused = true)]
async fn the_least_important_pods_make_room_for_a_more_important_one() {
    let cluster = Cluster::builder().nodes(2).start().await;
    cluster.apply(CLASSES).await;
    for (name, class) in [("a", "middle"), ("b", "middle"), ("c", "low"), ("d", "middle")] {
        cluster
            .apply(&asking(
                name,
                2,
                &format!(", priorityClassName: {class}, terminationGracePeriodSeconds: 5"),
            ))
            .await;
        cluster.until("default", name, secs(60), "runs", is_ready).await;
    }
    cluster.apply(&asking("patient", 2, ", priorityClassName: meek")).await;
    message(&cluster, "patient").await;
    cluster.sleep(secs(60)).await;
    assert_eq!(
        cluster
            .list::<Pod>("default")
            .await
            .iter()
            .filter(|p| is_active(p))
            .count(),
        5
    );

    let victim: Pod = cluster.get("default", "c").await;
    let pods = cluster.history::<Pod>("default").await;
    cluster.apply(&asking("urgent", 2, ", priorityClassName: high")).await;
    let runs = cluster.until("default", "urgent", secs(60), "runs", is_ready).await;
    assert_eq!(node_of(&runs), node_of(&victim));
    let pods = pods.record().await;
    let gone: Vec<String> = pods.deleted().iter().map(|(_, p)| p.name().to_owned()).collect();
    assert_eq!(gone, ["c"]);
    let last = pods.deleted().remove(0).1;
    assert_eq!(condition(&last, "DisruptionTarget").1, "PreemptionByScheduler");
    let nominated = |p: &Pod| p.status.as_ref().and_then(|s| s.nominated_node_name.clone());
    let told = pods.moments.iter().any(|m| {
        let pod = m.change.object();
        pod.name() == "urgent" && nominated(pod).as_deref() == Some(node_of(&victim))
    });
    assert!(told, "the pod's status names the node that is being cleared");
    let patient: Pod = cluster.get("default", "patient").await;
    assert_eq!(node_of(&patient), "", "it doesn't take what was cleared for another");
}

#[tokio::test(start_paused = true)]
async fn pods_that_avoid_each_other_wait_for_another_node() {
    let mut cluster = Cluster::builder().nodes(2).start().await;
    cluster
        .apply(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: i}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
"#,
        )
        .await;
    let two = |pods: &[Pod]| {
        let ready = pods.iter().filter(|p| is_ready(p)).count();
        (ready == 2 && pods.iter().filter(|p| refused(p)).count() == 1).then_some(())
    };
    cluster
        .until_all("default", secs(60), "two run and one waits", two)
        .await;
    cluster.sleep(secs(300)).await;
    cluster.add_node("n2").await;
    let nodes = cluster
        .until_all("default", secs(30), "all run", |pods: &[Pod]| {
            let mut nodes: Vec<_> = pods
                .iter()
                .filter(|p| is_ready(p))
                .map(|p| node_of(p).to_owned())
                .collect();
            nodes.sort();
            (nodes.len() == 3).then_some(nodes)
        })
        .await;
    assert_eq!(nodes, ["n0", "n1", "n2"]);
}

#[tokio::test(start_paused = true)]
async fn a_gated_pod_waits_until_its_gates_are_gone() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster
        .apply(&pod(
            "gated",
            "containers: [{name: c, image: i}], schedulingGates: [{name: a.b/c}]",
        ))
        .await;
    let gated = |p: &Pod| condition(p, "PodScheduled").1 == "SchedulingGated";
    cluster
        .until("default", "gated", secs(10), "is told to be gated", gated)
        .await;
    cluster.sleep(secs(400)).await;
    assert_eq!(node_of(&cluster.get::<Pod>("default", "gated").await), "");
    let _: Pod = cluster
        .patch("default", "gated", json!({"spec": {"schedulingGates": null}}))
        .await;
    cluster.until("default", "gated", secs(10), "runs", is_ready).await;
}

#[tokio::test(start_paused = true)]
async fn pods_are_spread_evenly_over_many_nodes() {
    let cluster = Cluster::builder().nodes(30).start().await;
    cluster
        .apply(
            r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 60
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
"#,
        )
        .await;
    let pods = cluster
        .until_all("default", secs(60), "all run", |pods: &[Pod]| {
            (pods.iter().filter(|p| is_ready(p)).count() == 60).then(|| pods.to_vec())
        })
        .await;
    let mut on = BTreeMap::<&str, usize>::new();
    for pod in &pods {
        *on.entry(node_of(pod)).or_default() += 1;
    }
    assert!(on.len() == 30 && on.values().all(|n| *n == 2), "{on:?}");
}

const SLOW: &str = r#"
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: slow}, provisioner: a.b/c, volumeBindingMode: WaitForFirstConsumer}
"#;
const CLAIM: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: slow, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#;
const USES_CLAIM: &str =
    "containers: [{name: c, image: i}], volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]";

/// The scheduler has chosen a node for the pod, and waits for the claim's volume.
async fn awaits_its_volume(cluster: &Cluster) {
    let is_noted = |claim: &PersistentVolumeClaim| {
        let notes = claim.metadata.annotations.as_ref();
        notes.is_some_and(|a| a.contains_key("volume.kubernetes.io/selected-node"))
    };
    cluster
        .until("default", "data", secs(60), "a node is noted", is_noted)
        .await;
}

/// The node where the pod will be.
async fn expected_on(cluster: &Cluster) -> Option<String> {
    let pod: Pod = cluster.get("default", "p").await;
    pod.status?.nominated_node_name
}

async fn delete<K: Kind>(cluster: &Cluster, name: &str) {
    let options = DeleteOptions {
        grace_period_seconds: Some(0),
        ..DeleteOptions::default()
    };
    let deleted = cluster.objects::<K>().delete("default", name, &options).await;
    deleted.expect("it goes");
}

async fn failures(cluster: &Cluster) -> usize {
    let events = cluster.events("default").await;
    let failed = events
        .iter()
        .filter(|e| e.reason.as_deref() == Some("FailedScheduling"));
    failed
        .map(|e| e.series.as_ref().map_or(1, |s| s.count.unwrap_or(1)) as usize)
        .sum()
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_goes_while_its_pod_is_bound_costs_the_pod_a_try_only() {
    let cluster = Cluster::builder()
        .nodes(1)
        .controllers(&["serviceaccount", "nodelifecycle"])
        .start()
        .await;
    cluster.apply(SLOW).await;
    cluster.apply(CLAIM).await;
    cluster.apply(&pod("p", USES_CLAIM)).await;
    awaits_its_volume(&cluster).await;
    assert_eq!(expected_on(&cluster).await.as_deref(), Some("n0"), "others know it");
    delete::<PersistentVolumeClaim>(&cluster, "data").await;
    // Nothing protects it here.
    let unprotected = json!({"metadata": {"finalizers": null}});
    let _: PersistentVolumeClaim = cluster.patch("default", "data", unprotected).await;
    cluster.sleep(secs(30)).await;
    assert_eq!(expected_on(&cluster).await, None, "it is expected nowhere");
    cluster.apply(CLAIM).await;
    awaits_its_volume(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_for_which_no_volume_can_be_made_is_given_up_at_once() {
    let cluster = Cluster::builder()
        .nodes(1)
        .controllers(&["serviceaccount", "nodelifecycle"])
        .start()
        .await;
    cluster.apply(SLOW).await;
    cluster.apply(CLAIM).await;
    cluster.apply(&pod("p", USES_CLAIM)).await;
    awaits_its_volume(&cluster).await;
    // As a provisioner says it.
    let refused = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": null}}});
    let _: PersistentVolumeClaim = cluster.patch("default", "data", refused).await;
    // It is tried again after a second or two, not when the time for binding is over.
    awaits_its_volume(&cluster).await;
    assert!(failures(&cluster).await > 0);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_the_node_doesnt_reach_binds_no_pod() {
    let cluster = Cluster::builder()
        .nodes(1)
        .controllers(&["serviceaccount", "nodelifecycle"])
        .start()
        .await;
    cluster.apply(SLOW).await;
    cluster.apply(CLAIM).await;
    cluster.apply(&pod("p", USES_CLAIM)).await;
    awaits_its_volume(&cluster).await;
    cluster
        .apply(
            r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: elsewhere}
spec:
  storageClassName: slow
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  csi: {driver: a.b, volumeHandle: h}
  claimRef: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: default, name: data}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [elsewhere]}]}]}}
"#,
        )
        .await;
    // As whoever binds claims does it.
    let bound = json!({"spec": {"volumeName": "elsewhere"}, "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}});
    let _: PersistentVolumeClaim = cluster.patch("default", "data", bound).await;
    let mut claim: PersistentVolumeClaim = cluster.get("default", "data").await;
    claim.status.get_or_insert_default().phase = Some("Bound".into());
    let written = cluster.objects::<PersistentVolumeClaim>().update_status(&claim).await;
    written.expect("its status is written");
    cluster.sleep(secs(60)).await;
    let pod: Pod = cluster.get("default", "p").await;
    assert_eq!(
        pod.spec.and_then(|spec| spec.node_name),
        None,
        "its volume is elsewhere"
    );
    assert!(failures(&cluster).await > 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_while_it_is_bound_isnt_tried_again() {
    let cluster = Cluster::builder()
        .nodes(1)
        .controllers(&["serviceaccount", "nodelifecycle"])
        .start()
        .await;
    cluster.apply(SLOW).await;
    cluster.apply(CLAIM).await;
    cluster.apply(&pod("p", USES_CLAIM)).await;
    awaits_its_volume(&cluster).await;
    delete::<Pod>(&cluster, "p").await;
    cluster.sleep(secs(1)).await;
    // Another program has another node in mind: the binding that waits fails.
    let other = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": null}}});
    let _: PersistentVolumeClaim = cluster.patch("default", "data", other).await;
    cluster.sleep(secs(400)).await;
    assert_eq!(failures(&cluster).await, 0, "nobody asks for it any more");
    let claim: PersistentVolumeClaim = cluster.get("default", "data").await;
    let notes = claim.metadata.annotations.unwrap_or_default();
    assert!(!notes.contains_key("volume.kubernetes.io/selected-node"), "{notes:?}");
}
