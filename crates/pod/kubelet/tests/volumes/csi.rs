//! Volumes of a CSI driver: the real kubelet against a driver behind real sockets, in virtual time.

use super::driver::Driver;
use super::support::{Home, bound_claim, csi, driver_object};
use super::uses;
use crate::support::{Node, condition};
use keelson_csi::v1::node_service_capability::rpc::Type as Capability;
use keelson_csi::v1::volume_capability::{AccessType, access_mode::Mode};
use keelson_kubelet::Host;
use serde_json::{Value, json};
use std::time::Duration;
use tonic::Status;

/// A node and a driver that has registered; its volumes aren't attached.
async fn with_driver(home: &Home, name: &str) -> (Node, Driver, super::driver::Running) {
    let node = Node::start_in(home.path()).await;
    driver_object(&node, name, json!({"attachRequired": false}));
    let driver = Driver::new(&node.host, home.path(), name);
    let running = driver.run().await;
    registered(&node, name).await;
    (node, driver, running)
}

async fn registered(node: &Node, name: &str) -> Value {
    let what = format!("{name} is registered");
    node.until(&what, |n| {
        let object = n.api.get("storage.k8s.io/v1/csinodes/n1")?;
        let drivers = object["spec"]["drivers"].as_array()?.clone();
        drivers.into_iter().find(|d| d["name"] == name)
    })
    .await
}

fn claims(name: &str, claim: &str) -> (Value, Value) {
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": uses(&["data"]),
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]});
    (json!({"name": name}), spec)
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_driver_registers_and_goes() {
    let home = Home::new("registers");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    let entry = registered(&node, "d.test").await;
    assert_eq!(
        entry,
        json!({"name": "d.test", "nodeID": "id-of-d.test", "topologyKeys": ["topology.d.test/zone"], "allocatable": {"count": 8}})
    );
    node.until("the driver was told", |_| {
        (driver.state.lock().told == [(true, String::new())]).then_some(())
    })
    .await;
    let object = node.api.get("nodes/n1").unwrap();
    assert_eq!(object["metadata"]["labels"]["topology.d.test/zone"], "z1");
    let ids = "csi.volume.kubernetes.io/nodeid";
    assert_eq!(object["metadata"]["annotations"][ids], "{\"d.test\":\"id-of-d.test\"}");
    driver.leave();
    node.until("the driver is gone", |n| {
        let object = n.api.get("storage.k8s.io/v1/csinodes/n1")?;
        object["spec"]["drivers"].as_array()?.is_empty().then_some(())
    })
    .await;
    node.until("its id is gone", |n| {
        n.api.get("nodes/n1")?["metadata"]["annotations"][ids]
            .is_null()
            .then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn how_many_volumes_a_node_can_have_is_asked_again() {
    let home = Home::new("limits");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    driver.state.lock().limit = 3;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let count = |entry: &Value| entry["allocatable"]["count"].clone();
    assert_eq!(count(&registered(&node, "d.test").await), 8, "nobody asked for that");
    node.api.change("storage.k8s.io/v1/csidrivers/d.test", |d| {
        d["spec"]["nodeAllocatableUpdatePeriodSeconds"] = 10.into();
    });
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(count(&registered(&node, "d.test").await), 3);
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_staged_once_and_published_to_each_pod() {
    let home = Home::new("publishes");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    node.api.change("storage.k8s.io/v1/csidrivers/d.test", |d| {
        d["spec"]["podInfoOnMount"] = true.into()
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut source = csi("d.test", "vol-1");
    source["csi"]["fsType"] = "ext4".into();
    source["csi"]["volumeAttributes"] = json!({"a": "b"});
    source["mountOptions"] = json!(["noatime"]);
    bound_claim(&node, "data", source);
    let (meta, mut spec) = claims("first", "data");
    spec["securityContext"] = json!({"fsGroup": 77});
    let first = node.pod_with(meta, spec);
    let first_uid = uid(&node.ready(&first).await);
    let (meta, spec) = claims("second", "data");
    let second = node.pod_with(meta, spec);
    let second_uid = uid(&node.ready(&second).await);
    let global = home
        .path()
        .join("plugins/kubernetes.io/csi/d.test")
        .join(hash("vol-1"))
        .join("globalmount");
    let global = global.to_string_lossy().into_owned();
    let target = |uid: &str| {
        let of_pod = format!("pods/{uid}/volumes/kubernetes.io~csi/pv-data/mount");
        home.path().join(of_pod).to_string_lossy().into_owned()
    };
    let call = |name: &'static str, path: &str| (name, "vol-1".to_owned(), path.to_owned());
    assert_eq!(
        driver.calls()[..2],
        [call("stage", &global), call("publish", &target(&first_uid))]
    );
    let request = driver.state.lock().published[0].clone();
    assert_eq!(request.staging_target_path, global);
    assert_eq!(request.volume_context["a"], "b");
    assert_eq!(request.volume_context["csi.storage.k8s.io/pod.name"], "first");
    assert_eq!(request.volume_context["csi.storage.k8s.io/ephemeral"], "false");
    let capability = request.volume_capability.unwrap();
    assert_eq!(capability.access_mode.unwrap().mode, Mode::SingleNodeWriter as i32);
    let Some(AccessType::Mount(mount)) = capability.access_type else {
        panic!("no mount")
    };
    assert_eq!(
        (mount.fs_type.as_str(), mount.mount_flags),
        ("ext4", vec!["noatime".to_owned()])
    );
    let owned = node.host.owned();
    assert_eq!(owned.len(), 1, "only the pod with a group changes owners");
    assert_eq!(
        (owned[0].0.to_string_lossy().into_owned(), owned[0].1.group),
        (target(&first_uid), 77)
    );
    let before = driver.calls().len();
    node.api.delete_pod(&first, 1);
    node.gone(&first).await;
    assert_eq!(
        driver.calls()[before..],
        [call("unpublish", &target(&first_uid))],
        "the other pod has it still"
    );
    node.api.delete_pod(&second, 1);
    node.gone(&second).await;
    assert_eq!(
        driver.calls()[before + 1..],
        [call("unpublish", &target(&second_uid)), call("unstage", &global)]
    );
    assert!(node.host.mounted().is_empty());
    assert_eq!(node.host.kind(global.as_ref()).unwrap(), None);
}

fn hash(handle: &str) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(handle.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn an_attached_volume_waits_for_its_controller() {
    let home = Home::new("attaches");
    let node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let _running = driver.run().await;
    registered(&node, "d.test").await;
    bound_claim(&node, "data", csi("d.test", "vol-1"));
    let (meta, spec) = claims("p", "data");
    let path = node.pod_with(meta, spec);
    let name = "kubernetes.io/csi/d.test^vol-1";
    node.until("the volume is told to be in use", |n| {
        (n.api.get("nodes/n1")?["status"]["volumesInUse"] == json!([name])).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(driver.deeds().is_empty());
    assert!(
        !node.events().iter().any(|(r, _)| r == "FailedMount"),
        "what is missing is the controller's to tell"
    );
    let attachment = format!("csi-{}", hash("vol-1d.testn1"));
    node.api.create(
        "storage.k8s.io/v1/volumeattachments",
        json!({"metadata": {"name": attachment}, "spec": {"attacher": "d.test", "nodeName": "n1", "source": {}},
            "status": {"attached": true, "attachmentMetadata": {"lun": "7"}}}),
    );
    node.api.change("nodes/n1", |n| {
        n["status"]["volumesAttached"] = json!([{"name": name, "devicePath": ""}])
    });
    node.ready(&path).await;
    assert_eq!(driver.state.lock().staged[0].publish_context["lun"], "7");
    assert_eq!(driver.state.lock().published[0].publish_context["lun"], "7");
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    node.until("the volume is told to be free", |n| {
        n.api.get("nodes/n1")?["status"]["volumesInUse"].is_null().then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_while_it_waits_keeps_nothing() {
    let home = Home::new("waits");
    let node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let _running = driver.run().await;
    registered(&node, "d.test").await;
    let mut disk = csi("d.test", "disk");
    disk["volumeMode"] = "Block".into();
    bound_claim(&node, "disk", disk);
    bound_claim(&node, "data", csi("d.test", "data"));
    let path = node.pod(json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "volumeMounts": [{"name": "data", "mountPath": "/d"}],
            "volumeDevices": [{"name": "disk", "devicePath": "/dev/x"}]}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]}));
    let in_use = |n: &Node| n.api.get("nodes/n1").unwrap()["status"]["volumesInUse"].clone();
    node.until("both are in use", |n| (in_use(n).as_array()?.len() == 2).then_some(()))
        .await;
    let begin = tokio::time::Instant::now();
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    node.until("nothing is in use", |n| in_use(n).is_null().then_some(()))
        .await;
    assert!(driver.deeds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_staged_in_vain_is_unstaged() {
    let home = Home::new("in-vain");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    bound_claim(&node, "data", csi("d.test", "vol"));
    // It may have been done: only the driver knows.
    driver
        .state
        .lock()
        .fails
        .insert("stage", vec![Status::aborted("busy"); 100]);
    let (meta, spec) = claims("p", "data");
    let path = node.pod_with(meta, spec);
    node.until("staging fails", |_| driver.deeds().contains(&"stage").then_some(()))
        .await;
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert_eq!(driver.deeds().last(), Some(&"unstage"));
    assert!(!driver.deeds().contains(&"unpublish"));
    let left = home.path().join("plugins/kubernetes.io/csi/d.test").join(hash("vol"));
    assert_eq!(node.host.kind(&left).unwrap(), None);
}

/// Says that a volume is attached, as its controller does.
fn attach(node: &Node, handle: &str) {
    let attachment = format!("csi-{}", hash(&format!("{handle}d.testn1")));
    node.api.create(
        "storage.k8s.io/v1/volumeattachments",
        json!({"metadata": {"name": attachment}, "spec": {"attacher": "d.test", "nodeName": "n1", "source": {}},
            "status": {"attached": true}}),
    );
    node.api.change("nodes/n1", |n| {
        n["status"]["volumesAttached"] =
            json!([{"name": format!("kubernetes.io/csi/d.test^{handle}"), "devicePath": ""}])
    });
}

#[tokio::test(start_paused = true)]
async fn what_may_be_staged_is_in_use_until_the_driver_has_unstaged_it() {
    let home = Home::new("stays");
    let mut node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let _running = driver.run().await;
    registered(&node, "d.test").await;
    bound_claim(&node, "data", csi("d.test", "vol"));
    driver.state.lock().hangs.insert("stage");
    let (meta, spec) = claims("p", "data");
    let path = node.pod_with(meta, spec);
    let in_use = |n: &Node| n.api.get("nodes/n1").unwrap()["status"]["volumesInUse"].clone();
    node.until("it is in use", |n| (!in_use(n).is_null()).then_some(()))
        .await;
    attach(&node, "vol");
    node.until("the driver stages", |_| driver.deeds().contains(&"stage").then_some(()))
        .await;
    // The kubelet is killed, the driver goes on.
    node.halt().await;
    let global = home
        .path()
        .join("plugins/kubernetes.io/csi/d.test")
        .join(hash("vol"))
        .join("globalmount");
    node.host.mount(&global);
    driver.state.lock().hangs.clear();
    let fails = vec![Status::internal("not now"); 3];
    driver.state.lock().fails.insert("unstage", fails);
    node.api.change(&path, |p| p["spec"]["nodeName"] = "elsewhere".into());
    node.resume();
    let times = |name: &str| driver.deeds().iter().filter(|d| **d == name).count();
    node.until("unstaging fails", |n| {
        if times("unstage") < 4 {
            assert!(!in_use(n).is_null(), "it is staged, and told to be free");
        }
        (times("unstage") == 2).then_some(())
    })
    .await;
    node.until("it is told to be free", |n| in_use(n).is_null().then_some(()))
        .await;
    assert_eq!((times("unstage"), times("unpublish")), (4, 0));
    assert!(node.host.mounted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_pod_that_cannot_have_a_volume_takes_nothing_from_the_first() {
    let home = Home::new("second");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    bound_claim(&node, "data", csi("d.test", "vol"));
    let (meta, spec) = claims("first", "data");
    let first = node.pod_with(meta, spec);
    node.ready(&first).await;
    let device = home.path().join("plugins/kubernetes.io/csi/d.test").join(hash("vol"));
    // A driver that keeps files of its own where it stages, and mounts nothing there.
    node.host.unmounted(&device.join("globalmount"));
    node.host.make_dir(&device.join("globalmount"), 0o750).unwrap();
    let refuse = vec![Status::invalid_argument("one pod only"); 100];
    driver.state.lock().fails.insert("stage", refuse);
    let (meta, spec) = claims("second", "data");
    let second = node.pod_with(meta, spec);
    node.until("staging for the second fails", |_| {
        (driver.deeds().iter().filter(|d| **d == "stage").count() >= 2).then_some(())
    })
    .await;
    node.api.delete_pod(&second, 1);
    node.gone(&second).await;
    assert!(node.host.kind(&device.join("vol_data.json")).unwrap().is_some());
    assert!(!driver.deeds().contains(&"unstage"));
    node.api.delete_pod(&first, 1);
    node.gone(&first).await;
    assert_eq!(driver.deeds().last(), Some(&"unstage"));
    assert_eq!(node.host.kind(&device).unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_restart_loses_no_volume_and_gives_back_what_nobody_has() {
    let home = Home::new("restarts");
    let (mut node, driver, _running) = with_driver(&home, "d.test").await;
    for name in ["kept", "lost"] {
        bound_claim(&node, name, csi("d.test", name));
    }
    let (meta, spec) = claims("stays", "kept");
    let stays = node.pod_with(meta, spec);
    let (meta, spec) = claims("goes", "lost");
    let goes = node.pod_with(meta, spec);
    node.ready(&stays).await;
    node.ready(&goes).await;
    node.halt().await;
    // Deleted while nobody looked.
    node.api.change(&goes, |p| p["spec"]["nodeName"] = "elsewhere".into());
    let before = driver.calls().len();
    node.resume();
    node.until("the lost pod's volume is given back", |_| {
        let calls = driver.calls();
        calls.iter().any(|c| c.0 == "unstage").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after: Vec<_> = driver.calls()[before..].to_vec();
    let of = |volume: &str| -> Vec<&str> { after.iter().filter(|c| c.1 == volume).map(|c| c.0).collect() };
    assert_eq!(of("lost"), ["unpublish", "unstage"]);
    // Whether all is still as it was is for the driver to say: it is asked for the same again, and for nothing else.
    assert_eq!(of("kept"), ["stage", "publish"]);
    assert_eq!(condition(&node.api.get(&stays).unwrap(), "Ready"), "True");
    let mounted: Vec<String> = node
        .host
        .mounted()
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .collect();
    assert_eq!(mounted.len(), 2, "{mounted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_hangs_delays_nobody_else() {
    let home = Home::new("hangs");
    let (node, stuck, _running) = with_driver(&home, "stuck.test").await;
    driver_object(&node, "good.test", json!({"attachRequired": false}));
    let good = Driver::new(&node.host, home.path(), "good.test");
    let _good = good.run().await;
    registered(&node, "good.test").await;
    stuck.state.lock().hangs.insert("publish");
    bound_claim(&node, "bad", csi("stuck.test", "bad"));
    bound_claim(&node, "good", csi("good.test", "good"));
    let (meta, spec) = claims("bad", "bad");
    let bad = node.pod_with(meta, spec);
    node.until("the driver hangs", |_| stuck.deeds().contains(&"publish").then_some(()))
        .await;
    let begin = tokio::time::Instant::now();
    let (meta, spec) = claims("good", "good");
    let fine = node.pod_with(meta, spec);
    node.ready(&fine).await;
    assert!(begin.elapsed() < Duration::from_secs(5));
    node.api.delete_pod(&fine, 1);
    node.gone(&fine).await;
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let message = node
        .until("the deadline is told", |n| {
            let events = n.events();
            events.into_iter().find(|(r, _)| r == "FailedMount").map(|(_, m)| m)
        })
        .await;
    assert_eq!(
        message,
        "MountVolume.SetUp failed for volume \"pv-bad\" : rpc error: code = DeadlineExceeded desc = context deadline exceeded"
    );
    // What may still go on is undone by asking, not by supposing that it never was.
    stuck.state.lock().hangs.clear();
    stuck
        .state
        .lock()
        .fails
        .insert("publish", vec![Status::internal("x"); 50]);
    node.api.delete_pod(&bad, 1);
    node.gone(&bad).await;
    let deeds = stuck.deeds();
    assert_eq!(deeds[deeds.len() - 2..], ["unpublish", "unstage"]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_dies_is_waited_for() {
    let home = Home::new("dies");
    let (node, driver, running) = with_driver(&home, "d.test").await;
    bound_claim(&node, "data", csi("d.test", "vol"));
    driver
        .state
        .lock()
        .fails
        .insert("stage", vec![Status::unavailable("going"), Status::internal("not yet")]);
    let (meta, spec) = claims("p", "data");
    let path = node.pod_with(meta, spec);
    node.ready(&path).await;
    assert_eq!(driver.deeds(), ["stage", "stage", "stage", "publish"]);
    let told: Vec<String> = node
        .events()
        .into_iter()
        .filter(|(r, _)| r == "FailedMount")
        .map(|(_, m)| m)
        .collect();
    assert!(
        told.contains(
            &"MountVolume.MountDevice failed for volume \"pv-data\" : rpc error: code = Internal desc = not yet"
                .to_owned()
        ),
        "{told:?}"
    );
    // Gone while the pod ends: the pod waits, and nothing is removed meanwhile.
    drop(running);
    driver.leave();
    node.until("the driver is gone", |n| {
        let object = n.api.get("storage.k8s.io/v1/csinodes/n1")?;
        object["spec"]["drivers"].as_array()?.is_empty().then_some(())
    })
    .await;
    node.api.delete_pod(&path, 1);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(node.api.get(&path).is_some());
    assert_eq!(node.host.mounted().len(), 2);
    let begin = tokio::time::Instant::now();
    let _again = driver.run().await;
    node.gone(&path).await;
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "who waits for a driver is woken: {:?}",
        begin.elapsed()
    );
    assert!(node.host.mounted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_driver_is_told_paths_by_the_name_that_it_uses() {
    let home = Home::new("names");
    let (root, link) = (home.path().join("data"), home.path().join("known"));
    std::fs::create_dir_all(&root).unwrap();
    std::os::unix::fs::symlink(&root, &link).unwrap();
    let mut node = Node::start_in(&root).await;
    node.halt().await;
    node.known_as = Some(link.clone());
    node.resume();
    for (name, called) in [("own.test", &root), ("usual.test", &link)] {
        driver_object(&node, name, json!({"attachRequired": false}));
        let driver = Driver::new(&node.host, called, name).registering_in(&root);
        let _running = driver.run().await;
        registered(&node, name).await;
        bound_claim(&node, name, csi(name, name));
        let (meta, spec) = claims(name, name);
        let path = node.pod_with(meta, spec);
        node.ready(&path).await;
        let request = driver.state.lock().published[0].clone();
        for path in [&request.target_path, &request.staging_target_path] {
            assert!(path.starts_with(&*called.to_string_lossy()), "{name}: {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_volume_is_a_device() {
    let home = Home::new("blocks");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    let mut source = csi("d.test", "vol");
    source["volumeMode"] = "Block".into();
    bound_claim(&node, "disk", source);
    let path = node.pod(json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "volumeDevices": [{"name": "disk", "devicePath": "/dev/x"}]}],
        "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]}));
    let pod = node.ready(&path).await;
    let root = home.path().join("plugins/kubernetes.io/csi/volumeDevices");
    let text = |p: std::path::PathBuf| p.to_string_lossy().into_owned();
    let (staged, published) = (
        text(root.join("staging/pv-disk")),
        text(root.join("publish/pv-disk").join(uid(&pod))),
    );
    let call = |name: &'static str, path: &String| (name, "vol".to_owned(), path.clone());
    assert_eq!(driver.calls(), [call("stage", &staged), call("publish", &published)]);
    let capability = driver.state.lock().published[0].volume_capability.clone().unwrap();
    assert!(matches!(capability.access_type, Some(AccessType::Block(_))));
    let link = home
        .path()
        .join(format!("pods/{}/volumeDevices/kubernetes.io~csi/pv-disk", uid(&pod)));
    let device = node.runtime.config("c").unwrap().devices[0].clone();
    assert_eq!(
        (device.container_path.as_str(), device.host_path),
        ("/dev/x", text(link.clone()))
    );
    assert_eq!(node.host.read(&link, 4096).unwrap(), published.as_bytes());
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert_eq!(
        driver.calls()[2..],
        [call("unpublish", &published), call("unstage", &staged)]
    );
    assert!(node.host.mounted().is_empty());
    assert_eq!(node.host.kind(&root.join("pv-disk")).unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_the_pods_own_lives_with_it() {
    let home = Home::new("inline");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": uses(&["own"]),
        "volumes": [{"name": "own", "csi": {"driver": "d.test", "readOnly": true, "volumeAttributes": {"k": "v"}}}]});
    let path = node.pod(spec);
    node.until("the lifecycle is refused", |n| {
        let wanted = "MountVolume.SetUp failed for volume \"own\" : kubernetes.io/csi: mounter.SetupAt failed to check volume \
                      lifecycle mode: volume mode \"Ephemeral\" not supported by driver d.test (only supports [\"Persistent\"])";
        n.events().iter().any(|(_, m)| m == wanted).then_some(())
    })
    .await;
    node.api.change("storage.k8s.io/v1/csidrivers/d.test", |d| {
        d["spec"]["volumeLifecycleModes"] = json!(["Ephemeral"]);
        d["spec"]["tokenRequests"] = json!([{"audience": "vault"}]);
        d["spec"]["requiresRepublish"] = true.into();
    });
    let pod = node.ready(&path).await;
    assert_eq!(driver.deeds(), ["publish"]);
    let request = driver.state.lock().published[0].clone();
    assert_eq!(request.volume_id, format!("csi-{}", hash(&format!("{}own", uid(&pod)))));
    assert!(request.readonly && request.staging_target_path.is_empty());
    assert_eq!(
        request.volume_context["csi.storage.k8s.io/serviceAccount.tokens"],
        "{\"vault\":{\"expirationTimestamp\":\"2036-01-01T00:00:00Z\",\"token\":\"t0ken\"}}"
    );
    node.until("it is published again", |_| (driver.deeds().len() > 2).then_some(()))
        .await;
    assert!(driver.deeds().iter().all(|d| *d == "publish"));
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert_eq!(driver.deeds().last(), Some(&"unpublish"));
}

#[tokio::test(start_paused = true)]
async fn a_volume_in_use_grows() {
    let home = Home::new("grows");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    let mut source = csi("d.test", "vol");
    source["capacity"] = json!({"storage": "1Gi"});
    bound_claim(&node, "data", source);
    let claim = "namespaces/default/persistentvolumeclaims/data";
    node.api
        .change(claim, |c| c["status"]["capacity"] = json!({"storage": "1Gi"}));
    let (meta, spec) = claims("p", "data");
    let path = node.pod_with(meta, spec);
    let pod = node.ready(&path).await;
    node.api.change("persistentvolumes/pv-data", |v| {
        v["spec"]["capacity"]["storage"] = "2Gi".into()
    });
    node.api.change(claim, |c| {
        c["status"]["allocatedResources"] = json!({"storage": "2Gi"});
        c["status"]["allocatedResourceStatuses"] = json!({"storage": "NodeResizePending"});
        c["status"]["conditions"] = json!([{"type": "FileSystemResizePending", "status": "True"}]);
    });
    // It isn't grown while the driver says so; then it is.
    driver
        .state
        .lock()
        .fails
        .insert("expand", vec![Status::unavailable("busy")]);
    node.until("the claim has its size", |n| {
        (n.api.get(claim)?["status"]["capacity"]["storage"] == "2Gi").then_some(())
    })
    .await;
    let status = node.api.get(claim).unwrap()["status"].clone();
    assert_eq!(status["conditions"], json!([]));
    assert!(status["allocatedResourceStatuses"]["storage"].is_null());
    let request = driver.state.lock().expanded[0].clone();
    assert_eq!(request.capacity_range.unwrap().required_bytes, 2 << 30);
    assert!(
        request
            .volume_path
            .ends_with(&format!("{}/volumes/kubernetes.io~csi/pv-data/mount", uid(&pod)))
    );
    let events = node.events();
    let told = |reason: &str, message: &str| events.iter().any(|(r, m)| r == reason && m == message);
    assert!(told(
        "FileSystemResizeSuccessful",
        "MountVolume.NodeExpandVolume succeeded for volume \"pv-data\" n1"
    ));
    assert!(told(
        "VolumeResizeFailed",
        "NodeExpandVolume.NodeExpandVolume failed for volume \"pv-data\" : Expander.NodeExpand failed to expand the volume : rpc \
         error: code = Unavailable desc = busy"
    ));
    let asked = driver.deeds().iter().filter(|d| **d == "expand").count();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(driver.deeds().iter().filter(|d| **d == "expand").count(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_gives_files_to_groups_does_it_itself() {
    let home = Home::new("groups");
    let (node, driver, _running) = with_driver(&home, "d.test").await;
    driver.state.lock().can.insert(Capability::VolumeMountGroup as i32);
    let mut source = csi("d.test", "vol");
    source["csi"]["fsType"] = "ext4".into();
    source["csi"]["nodePublishSecretRef"] = json!({"namespace": "default", "name": "key"});
    bound_claim(&node, "data", source);
    let (meta, mut spec) = claims("p", "data");
    spec["securityContext"] = json!({"fsGroup": 5});
    let path = node.pod_with(meta, spec);
    node.until("the secret is missed", |n| {
        let wanted =
            "MountVolume.SetUp failed for volume \"pv-data\" : fetching NodePublishSecretRef default/key failed";
        n.events().iter().any(|(_, m)| m.starts_with(wanted)).then_some(())
    })
    .await;
    node.api.create(
        "namespaces/default/secrets",
        json!({"metadata": {"name": "key", "namespace": "default"}, "data": {"password": "cHc="}}),
    );
    node.ready(&path).await;
    let request = driver.state.lock().published[0].clone();
    assert_eq!(request.secrets["password"], "pw");
    let Some(AccessType::Mount(mount)) = request.volume_capability.unwrap().access_type else {
        panic!("no mount")
    };
    assert_eq!(mount.volume_mount_group, "5");
    assert!(node.host.owned().is_empty());
}
