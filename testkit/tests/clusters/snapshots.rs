//! Snapshots of volumes by the common controller: the driver and its sidecar are played by the test.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use keelson_client::Patch;
use keelson_client::snapshots::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use keelson_testkit::objects::{ApiObject, Event};
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};

const HELD: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
const PROTECTED: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";

/// What the program gives the controller, and no more.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: snapshots}
rules:
- {apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshots, volumesnapshots/status], verbs: [patch]}
- {apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshotcontents], verbs: [create, patch, delete]}
- {apiGroups: [''], resources: [persistentvolumeclaims], verbs: [patch]}
- {apiGroups: ['', events.k8s.io], resources: [events], verbs: [create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: snapshots}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: snapshots}
subjects: [{kind: ServiceAccount, namespace: kube-system, name: keelson-snapshot-controller}]
"#;

/// A cluster with snapshots, a default class, and the bound claim `c`.
async fn cluster() -> Cluster {
    let names = [
        "persistentvolume-binder",
        "persistentvolumeclaim-protection",
        "volumesnapshot",
    ];
    let cluster = Cluster::builder()
        .nodes(0)
        .controllers(&names)
        .without_scheduler()
        .start()
        .await;
    for definition in keelson_controllers::snapshot_definitions::all() {
        cluster.apply(&definition.to_string()).await;
    }
    cluster.apply(RIGHTS).await;
    cluster
        .eventually("snapshots are served", secs(30), async || {
            let served = cluster.objects::<VolumeSnapshotClass>().list("", "", "").await;
            served.map(drop).map_err(|e| e.to_string())
        })
        .await;
    cluster
        .apply(
            r#"
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: s, annotations: {snapshot.storage.kubernetes.io/is-default-class: 'true'}}
driver: disk.example.com
deletionPolicy: Delete
---
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
        .until("default", "c", secs(10), "is bound", |c: &PersistentVolumeClaim| {
            c.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
        })
        .await;
    cluster
}

async fn snapshot(cluster: &Cluster, name: &str, source: &str) {
    cluster
        .apply(&format!(
            "{{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {{name: {name}}}, spec: {{source: {{{source}}}}}}}"
        ))
        .await;
}

/// The content that the controller makes.
async fn content(cluster: &Cluster) -> VolumeSnapshotContent {
    let protected = |c: &&VolumeSnapshotContent| c.metadata.finalizers.iter().flatten().any(|f| f == PROTECTED);
    cluster
        .until_all(
            "",
            secs(60),
            "there is a protected content",
            |all: &[VolumeSnapshotContent]| all.iter().find(protected).cloned(),
        )
        .await
}

/// What a sidecar says.
async fn reports(cluster: &Cluster, content: &str, status: Value) {
    let body = json!({ "status": status });
    let contents = cluster.objects::<VolumeSnapshotContent>();
    let patched = contents.patch_status("", content, Patch::Merge(&body)).await;
    patched.expect("a sidecar reports");
}

fn taken() -> Value {
    json!({"snapshotHandle": "x", "creationTime": 1_700_000_000_000_000_000_i64, "restoreSize": 1_i64 << 30, "readyToUse": true})
}

fn is_held(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.finalizers.iter().flatten().any(|f| f == HELD)
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_made_of_a_claim_and_takes_its_content_along() {
    let cluster = cluster().await;
    snapshot(&cluster, "a", "persistentVolumeClaimName: c").await;
    let made = content(&cluster).await;
    assert_eq!(made.spec.source.volume_handle.as_deref(), Some("h"));
    assert_eq!(made.spec.volume_snapshot_class_name.as_deref(), Some("s"));
    cluster.until("default", "c", secs(10), "is held", is_held).await;
    let failed = json!({"readyToUse": false, "error": {"message": "the disk is tired"}});
    reports(&cluster, made.name(), failed).await;
    let error = |s: &VolumeSnapshot| s.status.as_ref().and_then(|s| s.error.as_ref()?.message.clone());
    cluster
        .until(
            "default",
            "a",
            secs(10),
            "has the driver's error",
            |s: &VolumeSnapshot| error(s).as_deref() == Some("the disk is tired") && !s.is_ready(),
        )
        .await;
    let mut done = taken();
    done["error"] = Value::Null;
    reports(&cluster, made.name(), done).await;
    cluster
        .until("default", "a", secs(10), "is ready", |s: &VolumeSnapshot| {
            s.is_ready() && error(s).is_none() && s.bound() == Some(made.name())
        })
        .await;
    let ready: VolumeSnapshot = cluster.get("default", "a").await;
    let status = ready.status.expect("a status");
    assert_eq!(status.restore_size.map(|q| q.0).as_deref(), Some("1Gi"));
    cluster
        .until("default", "c", secs(10), "is let go", |c: &PersistentVolumeClaim| {
            !is_held(c)
        })
        .await;
    cluster.delete::<VolumeSnapshot>("default", "a", None).await;
    let marked = |c: &VolumeSnapshotContent| {
        let annotations = c.metadata.annotations.as_ref();
        c.is_deleting() && annotations.is_some_and(|a| a.contains_key(BEING_DELETED))
    };
    cluster.until("", made.name(), secs(10), "is told to go", marked).await;
    cluster.sleep(secs(600)).await;
    let waits: VolumeSnapshot = cluster.get("default", "a").await;
    assert!(waits.is_deleting(), "it waits for its content");
    let released = json!({"metadata": {"finalizers": []}});
    cluster.patch::<VolumeSnapshotContent>("", made.name(), released).await;
    cluster.gone::<VolumeSnapshot>("default", "a", secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_was_there_before_is_bound_and_stays_by_its_policy() {
    let cluster = cluster().await;
    snapshot(&cluster, "b", "volumeSnapshotContentName: before").await;
    let missing = |s: &VolumeSnapshot| {
        let error = s.status.as_ref().and_then(|s| s.error.as_ref()?.message.clone());
        error.as_deref() == Some("VolumeSnapshotContent is missing")
    };
    cluster
        .until("default", "b", secs(10), "misses its content", missing)
        .await;
    cluster
        .apply(
            "{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshotContent, metadata: {name: before}, spec: {driver: disk.example.com, \
             deletionPolicy: Retain, source: {snapshotHandle: x}, volumeSnapshotRef: {name: b, namespace: default}}}",
        )
        .await;
    let bound = content(&cluster).await;
    let uid = bound.spec.volume_snapshot_ref.uid.clone();
    reports(&cluster, "before", taken()).await;
    cluster
        .until("default", "b", secs(10), "is ready", VolumeSnapshot::is_ready)
        .await;
    let ready: VolumeSnapshot = cluster.get("default", "b").await;
    assert_eq!(uid.as_deref(), Some(ready.uid()));
    // Another snapshot doesn't get it.
    snapshot(&cluster, "thief", "volumeSnapshotContentName: before").await;
    let refused = |s: &VolumeSnapshot| {
        let error = s.status.as_ref().and_then(|s| s.error.as_ref()?.message.clone());
        error.as_deref() == Some("VolumeSnapshotContent [before] is bound to a different snapshot")
    };
    cluster.until("default", "thief", secs(10), "is refused", refused).await;
    // Not while somebody's claim is being filled from it.
    cluster
        .apply(
            "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: copy}, spec: {storageClassName: '', accessModes: [ReadWriteOnce], \
             resources: {requests: {storage: 1Gi}}, dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: b}}}",
        )
        .await;
    cluster.delete::<VolumeSnapshot>("default", "b", None).await;
    cluster
        .until_all("default", secs(10), "it is told why it stays", |all: &[Event]| {
            all.iter()
                .find(|e| e.reason.as_deref() == Some("SnapshotDeletePending"))
                .map(drop)
        })
        .await;
    cluster.delete::<PersistentVolumeClaim>("default", "copy", None).await;
    cluster.gone::<VolumeSnapshot>("default", "b", secs(30)).await;
    let kept: VolumeSnapshotContent = cluster.get("", "before").await;
    assert!(!kept.is_deleting(), "Retain");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_claim_that_names_anothers_volume_is_refused() {
    let cluster = cluster().await;
    cluster
        .apply("{apiVersion: v1, kind: Namespace, metadata: {name: thieves}}")
        .await;
    // Its owner writes the name of somebody else's volume, and even gets the phase right.
    cluster
        .apply(
            "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: mine, namespace: thieves}, spec: {volumeName: v, storageClassName: '', \
             accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}",
        )
        .await;
    let body = json!({"status": {"phase": "Bound"}});
    let claims = cluster.objects::<PersistentVolumeClaim>();
    let patched = claims.patch_status("thieves", "mine", Patch::Merge(&body)).await;
    patched.expect("a status");
    cluster
        .apply(
            "{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: theft, namespace: thieves}, \
             spec: {volumeSnapshotClassName: s, source: {persistentVolumeClaimName: mine}}}",
        )
        .await;
    let refused = |s: &VolumeSnapshot| s.status.as_ref().is_some_and(|s| s.error.is_some());
    cluster.until("thieves", "theft", secs(30), "is refused", refused).await;
    assert!(cluster.list::<VolumeSnapshotContent>("").await.is_empty());
    let of: PersistentVolume = cluster.get("", "v").await;
    let namespace = of.spec.and_then(|s| s.claim_ref).and_then(|r| r.namespace);
    assert_eq!(namespace.as_deref(), Some("default"));
}
