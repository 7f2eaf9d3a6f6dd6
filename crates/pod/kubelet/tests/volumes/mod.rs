//! Volumes of a node: which are made, whose they become, and what is left of them.

mod csi;
mod driver;
pub mod support;

use crate::support::Node;
use keelson_kubelet::Host;
use serde_json::{Value, json};
use std::time::Duration;
pub use support::bound_claim;

fn uses(names: &[&str]) -> Value {
    let mounts: Vec<Value> = names
        .iter()
        .map(|n| json!({"name": n, "mountPath": format!("/{n}")}))
        .collect();
    json!([{"name": "c", "volumeMounts": mounts}])
}

#[tokio::test(start_paused = true)]
async fn only_volumes_of_the_pods_own_go_to_its_group() {
    let mut node = Node::start().await;
    bound_claim(&node, "host", json!({"hostPath": {"path": "/srv/host"}}));
    bound_claim(&node, "disk", json!({"local": {"path": "/srv/disk"}}));
    for dir in ["/srv/host", "/srv/disk"] {
        node.host.make_dir(dir.as_ref(), 0o755).unwrap();
    }
    let path = node.pod(json!({
        "securityContext": {"fsGroup": 1234, "fsGroupChangePolicy": "OnRootMismatch"},
        "containers": uses(&["scratch", "plain", "host", "disk"]),
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "plain", "hostPath": {"path": "/srv/host"}},
            {"name": "host", "persistentVolumeClaim": {"claimName": "host"}},
            {"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]}));
    node.ready(&path).await;
    let mut owned = node.host.owned();
    owned.sort_by_key(|(p, _)| p.file_name().unwrap().to_owned());
    let seen: Vec<(String, u32, bool)> = owned
        .iter()
        .map(|(p, o)| {
            let name = p.file_name().unwrap().to_string_lossy().into_owned();
            (name, o.group, o.only_if_root_differs)
        })
        .collect();
    // The host's files stay the host's, whether a claim leads to them or the pod. Of an emptyDir all go to the group.
    assert_eq!(seen, [("disk".into(), 1234, true), ("scratch".into(), 1234, false)]);
    node.halt().await;
    node.resume();
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.ready(&path).await;
    assert_eq!(node.host.owned().len(), 2, "a restart gives nothing away again");
}

/// Of SELinux: what is the pod's is given its label, and what is the host's or somebody else's is not.
#[tokio::test(start_paused = true)]
async fn files_of_the_pods_own_get_its_label() {
    let node = Node::start().await;
    node.host.make_dir("/srv/host".as_ref(), 0o755).unwrap();
    let path = node.pod(json!({
        "containers": uses(&["scratch", "facts", "host"]),
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "facts", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"name": "host", "hostPath": {"path": "/srv/host"}}]}));
    let pod = node.ready(&path).await;
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let request = keelson_cri::v1::ContainerStatusRequest {
        container_id: id.trim_start_matches("fake://").into(),
        verbose: false,
    };
    let answer = node
        .runtime
        .clients()
        .runtime
        .clone()
        .container_status(request)
        .await
        .unwrap();
    let mounts = answer.into_inner().status.unwrap().mounts;
    let relabelled: Vec<(&str, bool)> = mounts
        .iter()
        .map(|m| (m.container_path.as_str(), m.selinux_relabel))
        .collect();
    let wanted = [
        ("/scratch", true),
        ("/facts", true),
        ("/host", false),
        ("/etc/hosts", true),
    ];
    assert!(wanted.iter().all(|w| relabelled.contains(w)), "{relabelled:?}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_no_container_uses_holds_nobody_up() {
    let node = Node::start().await;
    let path = node.pod(json!({
        "containers": uses(&["used"]),
        "volumes": [{"name": "used", "emptyDir": {}}, {"name": "unused", "configMap": {"name": "missing"}}]}));
    node.ready(&path).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_claims_is_told_as_upstream_does() {
    let node = Node::start().await;
    node.api.create(
        "namespaces/default/persistentvolumeclaims",
        json!({"metadata": {"name": "open", "namespace": "default"}, "spec": {}, "status": {"phase": "Pending"}}),
    );
    bound_claim(&node, "disk", json!({"local": {"path": "/srv/disk"}}));
    node.host.make_dir("/srv/disk".as_ref(), 0o755).unwrap();
    node.pod(json!({
        "containers": [{"name": "c", "volumeMounts": [{"name": "a", "mountPath": "/a"}], "volumeDevices": [{"name": "b", "devicePath": "/b"}]}],
        "volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "open"}},
            {"name": "b", "persistentVolumeClaim": {"claimName": "disk"}}]}));
    let message = node
        .until("the mount has failed", |n| {
            let events = n.events();
            events.into_iter().find(|(r, _)| r == "FailedMount").map(|(_, m)| m)
        })
        .await;
    assert_eq!(
        message,
        "Unable to attach or mount volumes: unmounted volumes=[a b], unattached volumes=[], failed to process volumes=[a b]: \
         error processing PVC default/open: PVC is not bound; volume b has volumeMode Filesystem, but is specified in \
         volumeDevices"
    );
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_other_nodes_is_not_mounted() {
    let node = Node::start().await;
    node.host.make_dir("/srv/disk".as_ref(), 0o755).unwrap();
    let only = |zone: &str| {
        let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [zone]}]});
        json!({"local": {"path": "/srv/disk"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}})
    };
    bound_claim(&node, "here", only("n1"));
    bound_claim(&node, "there", only("n2"));
    for name in ["here", "there"] {
        node.pod_with(
            json!({"name": name}),
            json!({"containers": uses(&["v"]), "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}),
        );
    }
    node.ready("namespaces/default/pods/here").await;
    node.until("the other is refused", |n| {
        let wanted = "MountVolume.NodeAffinity check failed for volume \"pv-there\" : no matching NodeSelectorTerms";
        n.events()
            .iter()
            .any(|(r, m)| r == "FailedMount" && m == wanted)
            .then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_leaves_nothing() {
    let node = Node::start().await;
    let path = node.pod(json!({
        "terminationGracePeriodSeconds": 1,
        "containers": uses(&["memory", "scratch"]),
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "scratch", "emptyDir": {}}]}));
    let pod = node.ready(&path).await;
    let dir = format!("/var/lib/kubelet/pods/{}", pod["metadata"]["uid"].as_str().unwrap());
    assert_eq!(
        node.host.mounted(),
        [format!("{dir}/volumes/kubernetes.io~empty-dir/memory")].map(std::path::PathBuf::from)
    );
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert!(node.host.mounted().is_empty());
    assert_eq!(node.host.kind(dir.as_ref()).unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn directories_of_servers_are_mounted_by_their_program() {
    let mut node = Node::start().await;
    let mut share = json!({"nfs": {"server": "files", "path": "/share"}});
    share["mountOptions"] = json!(["nfsvers=4.1"]);
    bound_claim(&node, "share", share);
    let path = node.pod(json!({
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"fsGroup": 7},
        "containers": uses(&["inline", "share"]),
        "volumes": [
            {"name": "inline", "nfs": {"server": "fd00::1", "path": "/", "readOnly": true}},
            {"name": "share", "persistentVolumeClaim": {"claimName": "share"}}]}));
    node.ready(&path).await;
    let mut asked = node.host.mounted_by_programs();
    asked.sort();
    assert_eq!(asked, ["nfs [fd00::1]:/ ro", "nfs files:/share nfsvers=4.1"]);
    assert!(
        node.host.owned().is_empty(),
        "whose the files are is the server's matter"
    );
    node.halt().await;
    node.resume();
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.ready(&path).await;
    assert_eq!(node.host.mounted_by_programs().len(), 2, "a restart finds them");
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert!(node.host.mounted().is_empty());
    node.pod(json!({"containers": uses(&["v"]), "volumes": [{"name": "v", "nfs": {"server": "down", "path": "/x"}}]}));
    node.until("the program's words are told", |n| {
        let wanted = "MountVolume.SetUp failed for volume \"v\" : mount failed: exit status 32";
        n.events()
            .iter()
            .any(|(r, m)| r == "FailedMount" && m == wanted)
            .then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn kinds_that_are_not_served_are_named() {
    let node = Node::start().await;
    let source = json!({"targetPortal": "192.0.2.1:3260", "iqn": "iqn.2026-01.example:a", "lun": 0});
    node.pod(json!({"containers": uses(&["v"]), "volumes": [{"name": "v", "iscsi": source}]}));
    node.until("it is refused", |n| {
        let wanted = "iscsi volumes are not supported by this kubelet, use a CSI driver";
        n.events()
            .iter()
            .any(|(r, m)| r == "FailedMount" && m.contains(wanted))
            .then_some(())
    })
    .await;
}
