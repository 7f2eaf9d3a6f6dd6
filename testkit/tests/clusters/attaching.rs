//! Claims and volumes by the controllers alone: nodes are objects that nobody runs, drivers are played by the test.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use keelson_client::Patch;
use keelson_testkit::objects::{ApiObject, Event, Node, Pod};
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};
use std::time::Duration;

const UNIQUE: &str = "kubernetes.io/csi/disk.example.com^h";

async fn cluster() -> Cluster {
    let names = [
        "serviceaccount",
        "persistentvolumeclaim-protection",
        "persistentvolume-binder",
        "persistentvolume-attach-detach",
        "persistentvolume-expander",
    ];
    let cluster = Cluster::builder()
        .nodes(0)
        .controllers(&names)
        .without_scheduler()
        .start()
        .await;
    cluster
        .until_all(
            "default",
            secs(10),
            "there is an account",
            |all: &[keelson_testkit::objects::ServiceAccount]| all.first().map(drop),
        )
        .await;
    cluster
}

async fn node(cluster: &Cluster, name: &str) {
    cluster
        .apply(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, annotations: {{volumes.kubernetes.io/controller-managed-attach-detach: 'true'}}}}}}"
        ))
        .await;
    ready(cluster, name, "True").await;
}

async fn ready(cluster: &Cluster, name: &str, is: &str) {
    status(cluster, name, json!({"conditions": [{"type": "Ready", "status": is}]})).await;
}

async fn status(cluster: &Cluster, name: &str, status: Value) {
    let body = json!({ "status": status });
    let patched = cluster
        .objects::<Node>()
        .patch_status("", name, Patch::Merge(&body))
        .await;
    patched.expect("a node takes a status");
}

async fn pod(cluster: &Cluster, name: &str, on: &str) {
    cluster
        .apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: '{on}', containers: [{{name: c, image: i}}], volumes: [{{name: v, persistentVolumeClaim: {{claimName: c}}}}]}}}}"
        ))
        .await;
}

async fn end(cluster: &Cluster, name: &str) {
    let now = DeleteOptions {
        grace_period_seconds: Some(0),
        ..Default::default()
    };
    cluster
        .objects::<Pod>()
        .delete("default", name, &now)
        .await
        .expect("it goes");
}

/// A claim that has a volume of a driver with an attacher.
async fn bound(cluster: &Cluster) {
    cluster
        .apply(
            r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: v}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], csi: {driver: disk.example.com, volumeHandle: h}, claimRef: {namespace: default, name: c}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: c}
spec: {volumeName: v, storageClassName: '', accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#,
        )
        .await;
    cluster
        .until("default", "c", secs(10), "is bound", |c| phase(c) == "Bound")
        .await;
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default()
}

/// The attachment to a node, once there is one.
async fn attachment(cluster: &Cluster, node: &str) -> VolumeAttachment {
    let what = format!("the volume is to be attached to {node}");
    let of = |all: &[VolumeAttachment]| all.iter().find(|a| a.spec.node_name == node).cloned();
    cluster.until_all("", secs(10), &what, of).await
}

/// The attacher has done it.
async fn attach(cluster: &Cluster, node: &str) -> VolumeAttachment {
    let found = attachment(cluster, node).await;
    let body = json!({"status": {"attached": true}});
    let patched = cluster
        .objects::<VolumeAttachment>()
        .patch_status("", found.name(), Patch::Merge(&body))
        .await;
    patched.expect("an attacher tells");
    cluster
        .until("", node, secs(10), "knows what is attached", |n| {
            reported(n) == [UNIQUE]
        })
        .await;
    found
}

fn reported(node: &Node) -> Vec<String> {
    let all = node.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
    all.map(|v| v.name.clone()).collect()
}

async fn told(cluster: &Cluster, about: &str, reason: &str, text: &str) {
    let what = format!("{about} is told: {reason} {text}");
    cluster
        .until_all("default", secs(10), &what, |all: &[Event]| {
            let it =
                |e: &&Event| e.involved_object.name.as_deref() == Some(about) && e.reason.as_deref() == Some(reason);
            all.iter()
                .filter(it)
                .find(|e| e.message.as_deref() == Some(text))
                .map(drop)
        })
        .await;
}

async fn stays_attached(cluster: &Cluster, name: &str, during: Duration) {
    cluster
        .stays("it stays attached", during, async || {
            let found = cluster.objects::<VolumeAttachment>().find("", name).await;
            match found.map_err(|e| e.to_string())? {
                Some(a) if !a.is_deleting() => Ok(()),
                _ => Err("it is detached".into()),
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_attached_for_its_pods_and_detached_when_the_node_has_let_go() {
    let cluster = cluster().await;
    node(&cluster, "a").await;
    bound(&cluster).await;
    pod(&cluster, "p", "a").await;
    let found = attach(&cluster, "a").await;
    assert_eq!(found.spec.attacher, "disk.example.com");
    assert_eq!(found.spec.source.persistent_volume_name.as_deref(), Some("v"));
    told(
        &cluster,
        "p",
        "SuccessfulAttachVolume",
        "AttachVolume.Attach succeeded for volume \"v\" ",
    )
    .await;

    status(&cluster, "a", json!({"volumesInUse": [UNIQUE]})).await;
    end(&cluster, "p").await;
    // A healthy node is waited for as long as it takes.
    stays_attached(&cluster, found.name(), secs(3600)).await;
    assert_eq!(reported(&cluster.get::<Node>("", "a").await), [UNIQUE]);
    status(&cluster, "a", json!({"volumesInUse": []})).await;
    cluster.gone::<VolumeAttachment>("", found.name(), secs(10)).await;
    cluster
        .until("", "a", secs(10), "knows that nothing is attached", |n| {
            reported(n).is_empty()
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn one_node_at_a_time_has_a_volume_that_is_not_shared() {
    let cluster = cluster().await;
    node(&cluster, "a").await;
    node(&cluster, "b").await;
    bound(&cluster).await;
    pod(&cluster, "first", "a").await;
    let found = attach(&cluster, "a").await;
    pod(&cluster, "second", "b").await;
    let text = "Waiting for detach for volume \"v\" Volume is already used by pod(s) first";
    told(&cluster, "second", "FailedAttachVolume", text).await;
    assert_eq!(cluster.list::<VolumeAttachment>("").await.len(), 1);
    end(&cluster, "first").await;
    cluster.gone::<VolumeAttachment>("", found.name(), secs(10)).await;
    attach(&cluster, "b").await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_given_up_loses_its_volumes() {
    let cluster = cluster().await;
    node(&cluster, "a").await;
    bound(&cluster).await;
    pod(&cluster, "p", "a").await;
    let found = attach(&cluster, "a").await;
    status(&cluster, "a", json!({"volumesInUse": [UNIQUE]})).await;
    ready(&cluster, "a", "Unknown").await;
    cluster.sleep(secs(5)).await;
    end(&cluster, "p").await;
    stays_attached(&cluster, found.name(), secs(355)).await;
    cluster.gone::<VolumeAttachment>("", found.name(), secs(10)).await;

    // A person who knows that the machine is off needs not wait.
    pod(&cluster, "q", "a").await;
    let found = attach(&cluster, "a").await;
    end(&cluster, "q").await;
    stays_attached(&cluster, found.name(), secs(60)).await;
    let taint = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}});
    cluster.patch::<Node>("", "a", taint).await;
    cluster.gone::<VolumeAttachment>("", found.name(), secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_attacher_says_or_that_it_says_nothing_is_told() {
    let cluster = cluster().await;
    node(&cluster, "a").await;
    bound(&cluster).await;
    pod(&cluster, "p", "a").await;
    let found = attachment(&cluster, "a").await;
    cluster.sleep(secs(115)).await;
    let silent = "AttachVolume.Attach failed for volume \"v\" : timed out waiting for external-attacher of disk.example.com CSI driver to attach volume h";
    assert!(
        !cluster
            .events("default")
            .await
            .iter()
            .any(|e| e.message.as_deref() == Some(silent))
    );
    told(&cluster, "p", "FailedAttachVolume", silent).await;
    let body = json!({"status": {"attached": false, "attachError": {"message": "no such disk"}}});
    let patched = cluster
        .objects::<VolumeAttachment>()
        .patch_status("", found.name(), Patch::Merge(&body))
        .await;
    patched.expect("an attacher tells");
    told(
        &cluster,
        "p",
        "FailedAttachVolume",
        "AttachVolume.Attach failed for volume \"v\" : no such disk",
    )
    .await;
}

const CLASS: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}
provisioner: disk.example.com
volumeBindingMode: WaitForFirstConsumer
"#;

#[tokio::test(start_paused = true)]
async fn a_claim_takes_the_default_class_and_its_volume_is_asked_for_when_a_pod_has_a_node() {
    let cluster = cluster().await;
    let claim = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}";
    cluster.apply(claim).await;
    told(
        &cluster,
        "c",
        "FailedBinding",
        "no persistent volumes available for this claim and no storage class is set",
    )
    .await;
    // A volume that would fit, on whatever node, is not taken before the scheduler had its say.
    cluster.apply(
        "{apiVersion: v1, kind: PersistentVolume, metadata: {name: w}, spec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce], storageClassName: fast, hostPath: {path: /x}}}",
    )
    .await;
    cluster.apply(CLASS).await;
    cluster
        .until(
            "default",
            "c",
            secs(10),
            "has the class",
            |c: &PersistentVolumeClaim| c.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()) == Some("fast"),
        )
        .await;
    let waits = "waiting for first consumer to be created before binding";
    told(&cluster, "c", "WaitForFirstConsumer", waits).await;
    pod(&cluster, "p", "").await;
    told(
        &cluster,
        "c",
        "WaitForPodScheduled",
        "waiting for pod p to be scheduled",
    )
    .await;
    let chosen = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}});
    cluster.patch::<PersistentVolumeClaim>("default", "c", chosen).await;
    let text = "Waiting for a volume to be created either by the external provisioner 'disk.example.com' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.";
    told(&cluster, "c", "ExternalProvisioning", text).await;
    let asked: PersistentVolumeClaim = cluster.get("default", "c").await;
    assert_eq!(phase(&asked), "Pending");
    let annotations = asked.metadata.annotations.clone().unwrap_or_default();
    for name in [
        "volume.kubernetes.io/storage-provisioner",
        "volume.beta.kubernetes.io/storage-provisioner",
    ] {
        assert_eq!(annotations.get(name).map(String::as_str), Some("disk.example.com"));
    }

    // The provisioner has made it.
    let uid = asked.uid();
    cluster
        .apply(&format!(
            "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: v, annotations: {{pv.kubernetes.io/provisioned-by: disk.example.com}}}}, spec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], storageClassName: fast, persistentVolumeReclaimPolicy: Delete, csi: {{driver: disk.example.com, volumeHandle: h}}, claimRef: {{apiVersion: v1, kind: PersistentVolumeClaim, namespace: default, name: c, uid: {uid}}}}}}}"
        ))
        .await;
    let bound = cluster
        .until("default", "c", secs(10), "is bound", |c| phase(c) == "Bound")
        .await;
    assert_eq!(bound.spec.and_then(|s| s.volume_name).as_deref(), Some("v"));

    end(&cluster, "p").await;
    cluster.delete::<PersistentVolumeClaim>("default", "c", None).await;
    let is = |phase: &'static str| {
        move |v: &PersistentVolume| v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)
    };
    cluster.until("", "v", secs(10), "is released", is("Released")).await;
    cluster.sleep(secs(60)).await;
    assert!(
        is("Released")(&cluster.get("", "v").await),
        "a provisioner deletes it, nobody else"
    );
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_grows_is_left_to_its_driver() {
    let cluster = cluster().await;
    cluster
        .apply(&CLASS.replace("volumeBindingMode: WaitForFirstConsumer", "allowVolumeExpansion: true"))
        .await;
    cluster
        .apply("{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], storageClassName: fast, csi: {driver: disk.example.com, volumeHandle: h}}}")
        .await;
    cluster
        .apply("{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}")
        .await;
    cluster
        .until("default", "c", secs(10), "is bound", |c| phase(c) == "Bound")
        .await;
    let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    cluster.patch::<PersistentVolumeClaim>("default", "c", more).await;
    told(
        &cluster,
        "c",
        "ExternalExpanding",
        "waiting for an external controller to expand this PVC",
    )
    .await;
}

/// Claims that come at once are bound side by side, each to a volume of its own, and none to two.
#[tokio::test(start_paused = true)]
async fn claims_that_come_at_once_get_different_volumes() {
    let cluster = cluster().await;
    const MANY: usize = 25;
    let mut all = String::new();
    for n in 0..MANY {
        all += &format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: c{n}}}\nspec: {{storageClassName: '', accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}\n---\n"
        );
    }
    for n in 0..MANY + 5 {
        all += &format!(
            "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: v{n}}}\nspec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], csi: {{driver: disk.example.com, volumeHandle: h{n}}}}}\n---\n"
        );
    }
    cluster.apply(all.trim_end_matches("---\n")).await;
    let every = |all: &[PersistentVolumeClaim]| all.iter().all(|c| phase(c) == "Bound").then(|| all.to_vec());
    let claims = cluster
        .until_all("default", secs(60), "all claims are bound", every)
        .await;
    let volumes = cluster
        .until_all(
            "",
            secs(60),
            "volumes tell what they are",
            |all: &[PersistentVolume]| {
                let known = |v: &PersistentVolume| v.status.as_ref().and_then(|s| s.phase.clone()).is_some();
                all.iter().all(known).then(|| all.to_vec())
            },
        )
        .await;
    assert_eq!((claims.len(), volumes.len()), (MANY, MANY + 5));
    for claim in &claims {
        let chosen = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap();
        let of = |v: &&PersistentVolume| {
            let reference = v.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            reference.and_then(|r| r.uid.as_deref()) == Some(claim.uid())
        };
        let held: Vec<&str> = volumes.iter().filter(of).map(|v| v.name()).collect();
        assert_eq!(held, [chosen]);
    }
    let in_phase = |wanted: &str| {
        let phase = |v: &&PersistentVolume| v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(wanted);
        volumes.iter().filter(phase).count()
    };
    assert_eq!((in_phase("Bound"), in_phase("Available")), (MANY, 5));
}
