//! Nodes make volumes of their own disks, for claims that wait for them, and touch nobody else's.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Answer, Api};
use keelson_api::{Value, value};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const SELECTED: &str = "volume.kubernetes.io/selected-node";

/// A claim that waits for a node, if one is named.
async fn claim(api: &Api, name: &str, class: &str, node: Option<&str>) -> Value {
    let mut claim = value!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "resources": {"requests": {"storage": "1Gi"}}}});
    if let Some(node) = node {
        claim.set_at(&["metadata", "annotations", SELECTED], node);
    }
    api.post(CLAIMS, claim).await.expect(201).json()
}

fn text(object: &Value, path: &[&str]) -> String {
    object.at(path).and_then(Value::as_str).unwrap_or_default().to_string()
}

fn volume(claim: &Value, node: &str) -> Value {
    let uid = text(claim, &["metadata", "uid"]);
    value!({"metadata": {"name": (format!("pvc-{uid}"))}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
            "name": (text(claim, &["metadata", "name"])), "uid": uid},
        "csi": {"driver": "local.keelson.dev", "volumeHandle": "vol-1"}, "storageClassName": "local",
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "topology.local.keelson.dev/node", "operator": "In", "values": [node]}]}]}}}})
}

fn refused(answer: Answer, why: &str) {
    let answer = answer.expect(403);
    assert!(answer.str(&["message"]).contains(why), "{}", answer.str(&["message"]));
}

/// May do anything by its rights: what is refused is refused by admission.
fn acting(api: Api, node: &str) -> Api {
    api.called_by(
        &format!("system:keelson:local-storage:{node}"),
        &["system:keelson:local-storage", "system:masters"],
    )
}

#[tokio::test]
async fn a_node_makes_volumes_of_its_own_disk_for_claims_that_wait_for_it() {
    let api = Api::new().await;
    api.post("/api/v1/namespaces", value!({"metadata": {"name": "default"}}))
        .await;
    let mine = claim(&api, "mine", "local", Some("n1")).await;
    let theirs = claim(&api, "theirs", "local", Some("n2")).await;
    let nobodys = claim(&api, "nobodys", "local", None).await;
    let of_other = volume(&theirs, "n2");
    api.post(VOLUMES, of_other.clone()).await.expect(201);
    let api = acting(api, "n1");
    api.post(VOLUMES, volume(&mine, "n1")).await.expect(201);
    refused(
        api.post(VOLUMES, volume(&mine, "n2")).await,
        "can only write volumes of its own disk",
    );
    for other in [&theirs, &nobodys] {
        refused(
            api.post(VOLUMES, volume(other, "n1")).await,
            "for claims that wait for it",
        );
    }
    let mut named = volume(&mine, "n1");
    named.set_at(&["metadata", "name"], "pvc-x");
    refused(api.post(VOLUMES, named).await, "named after their claims");
    let path = |v: &Value| format!("{VOLUMES}/{}", text(v, &["metadata", "name"]));
    refused(
        api.delete(&path(&of_other)).await,
        "can only write volumes of its own disk",
    );
    let own = path(&volume(&mine, "n1"));
    let kind = "merge-patch+json";
    let grown = value!({"metadata": {"finalizers": ["a.io/b"]}, "spec": {"capacity": {"storage": "2Gi"}}});
    api.patch(&own, kind, grown).await.expect(200);
    let other = value!({"spec": {"claimRef": {"name": "theirs", "uid": (text(&theirs, &["metadata", "uid"]))}}});
    refused(
        api.patch(&own, kind, other).await,
        "can only change size, finalizers and annotations",
    );
    api.delete(&own).await.expect(200);
}

#[tokio::test]
async fn a_node_offers_itself_only_where_any_node_will_do() {
    let api = Api::new().await;
    api.post("/api/v1/namespaces", value!({"metadata": {"name": "default"}}))
        .await;
    for (name, mode) in [("local", "WaitForFirstConsumer"), ("now", "Immediate")] {
        let class = value!({"metadata": {"name": name}, "provisioner": "local.keelson.dev", "volumeBindingMode": mode});
        api.post("/apis/storage.k8s.io/v1/storageclasses", class)
            .await
            .expect(201);
    }
    claim(&api, "waits", "local", None).await;
    claim(&api, "now", "now", None).await;
    claim(&api, "theirs", "local", Some("n2")).await;
    let api = acting(api, "n1");
    let kind = "merge-patch+json";
    let select = |node: Value| value!({"metadata": {"annotations": {SELECTED: node}}});
    let patch = async |name: &str, body: Value| api.patch(&format!("{CLAIMS}/{name}"), kind, body).await;
    refused(
        patch("waits", select("n1".into())).await,
        "for claims that may be anywhere",
    );
    refused(patch("now", select("n2".into())).await, "can only offer itself");
    patch("now", select("n1".into())).await.expect(200);
    patch("now", select(Value::Null)).await.expect(200);
    refused(patch("theirs", select(Value::Null)).await, "can only offer itself");
    refused(patch("theirs", select("n1".into())).await, "can only offer itself");
    let more = value!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    refused(patch("now", more).await, "can only change the selected node");
    let status = value!({"status": {"allocatedResources": {"storage": "2Gi"}}});
    refused(patch("now/status", status).await, "that have volumes of its own disk");
    let secret = value!({"metadata": {"name": "s"}});
    refused(
        api.post("/api/v1/namespaces/default/secrets", secret).await,
        "may not write this",
    );
}

#[tokio::test]
async fn the_group_alone_makes_nobody_a_node() {
    let api = Api::new()
        .await
        .called_by("system:kube-proxy", &["system:keelson:local-storage", "system:masters"]);
    let room = value!({"metadata": {"name": "r", "namespace": "kube-system"}, "storageClassName": "local",
        "nodeTopology": {"matchLabels": {"topology.local.keelson.dev/node": "n1"}}});
    let path = "/apis/storage.k8s.io/v1/namespaces/kube-system/csistoragecapacities";
    refused(api.post(path, room).await, "each under its own name");
}
