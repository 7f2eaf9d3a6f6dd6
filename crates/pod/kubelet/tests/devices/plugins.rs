//! Device plug-ins: who gets which devices, and what becomes of them when anybody is started anew.

use super::plugin::Plugin;
use super::{Running, amounts, asking, health, pod_resources, until_amounts, until_health};
use crate::support::Node;
use crate::volumes::support::Home;
use keelson_kubelet::Host;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const GIFT: &str = "vendor.test/gift";

async fn with_plugin(home: &Home, devices: &[&str]) -> (Node, Plugin, Running) {
    let node = Node::start_in(home.path()).await;
    let plugin = Plugin::new(home.path(), GIFT, devices);
    let running = plugin.run().await;
    let count = devices.len().to_string();
    until_amounts(&node, GIFT, &count, &count).await;
    (node, plugin, running)
}

/// The variable by which the plug-in says what a container was given.
fn given(node: &Node, container: &str) -> BTreeSet<String> {
    let config = node.runtime.config(container).unwrap();
    let set = config.envs.iter().find(|e| e.key == "GIFTS").unwrap();
    String::from_utf8_lossy(&set.value)
        .split(',')
        .map(str::to_owned)
        .collect()
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn containers_get_what_the_plug_in_says() {
    let home = Home::new("gift");
    let (node, plugin, _running) = with_plugin(&home, &["a", "b"]).await;
    let (meta, spec) = asking("p", GIFT, 2);
    let path = node.pod_with(meta, spec);
    node.ready(&path).await;
    let config = node.runtime.config("c-p").unwrap();
    assert_eq!(given(&node, "c-p"), ["a", "b"].map(str::to_owned).into());
    let devices: Vec<_> = config
        .devices
        .iter()
        .map(|d| (d.container_path.as_str(), d.host_path.as_str()))
        .collect();
    assert_eq!(
        devices,
        [("/dev/gift-a", "/dev/host-a"), ("/dev/gift-b", "/dev/host-b")]
    );
    let mount = config
        .mounts
        .iter()
        .find(|m| m.container_path == "/usr/lib/gift")
        .unwrap();
    assert!(mount.readonly && mount.host_path == "/opt/gift");
    assert_eq!(config.annotations["gift"], "given");
    assert_eq!(config.cdi_devices[0].name, "vendor.test/gift=a");
    assert!(
        plugin.calls("prefer").is_empty() && plugin.calls("start").is_empty(),
        "it didn't ask for that"
    );
    let told = pod_resources(home.path(), "p").await;
    let ids: Vec<_> = told[0]
        .devices
        .iter()
        .map(|d| (d.resource_name.as_str(), d.device_ids[0].as_str()))
        .collect();
    assert_eq!(ids, [(GIFT, "a"), (GIFT, "b")]);
    assert_eq!(told[0].devices[0].topology.as_ref().unwrap().nodes[0].id, 1);
    // Another one finds nothing left, in upstream's words.
    let (meta, spec) = asking("q", GIFT, 1);
    let late = node.phase(&node.pod_with(meta, spec), "Failed").await;
    assert_eq!(late["status"]["reason"], "UnexpectedAdmissionError");
    assert_eq!(
        late["status"]["message"],
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for vendor.test/gift. Requested: 1, \
         Available: 0, which is unexpected"
    );
    // What the first one had is free when it has gone.
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    let (meta, spec) = asking("r", GIFT, 1);
    node.ready(&node.pod_with(meta, spec)).await;
    assert_eq!(given(&node, "c-r").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_node_and_its_pods_tell_how_devices_are() {
    let home = Home::new("health");
    let (node, plugin, running) = with_plugin(&home, &["a", "b"]).await;
    let (meta, spec) = asking("p", GIFT, 1);
    let path = node.pod_with(meta, spec);
    let pod = node.ready(&path).await;
    assert_eq!(health(&pod), [(GIFT.to_owned(), "a".to_owned(), "Healthy".to_owned())]);
    plugin.tell(&["b"], &["a"]);
    until_amounts(&node, GIFT, "2", "1").await;
    until_health(&node, &path, "a", "Unhealthy").await;
    plugin.tell(&["a", "b"], &[]);
    until_health(&node, &path, "a", "Healthy").await;
    // A plug-in that has gone may be starting anew: the node goes on telling what it had, for a while.
    drop(running);
    until_amounts(&node, GIFT, "2", "0").await;
    tokio::time::sleep(Duration::from_secs(4 * 60)).await;
    assert_eq!(amounts(&node, GIFT), Some(("2".into(), "0".into())));
    until_amounts(&node, GIFT, "0", "0").await;
    assert!(
        node.api.get(&path).unwrap()["status"]["phase"] == "Running",
        "its pods go on"
    );
    let _again = plugin.run().await;
    until_amounts(&node, GIFT, "2", "2").await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_leave_their_devices_to_those_after_them() {
    let home = Home::new("init");
    let (node, plugin, _running) = with_plugin(&home, &["a", "b", "c"]).await;
    let wants = |n: &str| json!({"limits": {GIFT: n}, "requests": {GIFT: n}});
    let path = node.pod_with(
        json!({"name": "p"}),
        json!({
            "initContainers": [
                {"name": "first", "command": ["true"], "resources": wants("2")},
                {"name": "beside", "restartPolicy": "Always", "resources": wants("1")}],
            "containers": [{"name": "one", "resources": wants("1")}, {"name": "two", "resources": wants("1")}]}),
    );
    node.ready(&path).await;
    let of = |c: &str| given(&node, c);
    let (first, beside, one, two) = (of("first"), of("beside"), of("one"), of("two"));
    assert!(first.len() == 2 && beside.is_subset(&first));
    let apart: BTreeSet<String> = [&beside, &one, &two].into_iter().flatten().cloned().collect();
    assert_eq!(apart.len(), 3, "those that run together have each their own");
    assert_eq!(plugin.calls("allocate").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_plug_in_is_asked_what_it_prefers_and_told_of_starts() {
    let home = Home::new("prefer");
    let node = Node::start_in(home.path()).await;
    let plugin = Plugin::new(home.path(), GIFT, &["a", "b", "c", "d"]);
    {
        let mut state = plugin.state.lock();
        state.prefers = Some(vec!["d".into(), "c".into()]);
        state.wants_start = true;
    }
    let _running = plugin.run().await;
    until_amounts(&node, GIFT, "4", "4").await;
    // All at once, and all prefer the same.
    let paths: Vec<String> = ["p", "q", "r"]
        .map(|name| {
            let (meta, spec) = asking(name, GIFT, 1);
            node.pod_with(meta, spec)
        })
        .into();
    for path in &paths {
        node.ready(path).await;
    }
    let all: BTreeSet<String> = ["c-p", "c-q", "c-r"]
        .into_iter()
        .flat_map(|c| given(&node, c))
        .collect();
    assert_eq!(all.len(), 3, "no device is given twice");
    assert!(all.contains("d") && all.contains("c"));
    assert_eq!((plugin.calls("prefer").len(), plugin.calls("start").len()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_fails_the_pod_and_costs_no_device() {
    let home = Home::new("refuse");
    let (node, plugin, _running) = with_plugin(&home, &["a"]).await;
    plugin.state.lock().refuses = Some("it is broken".into());
    let (meta, spec) = asking("p", GIFT, 1);
    let pod = node.phase(&node.pod_with(meta, spec), "Failed").await;
    assert_eq!(
        pod["status"]["message"],
        "Pod was rejected: Allocate failed due to rpc error: code = Unknown desc = it is broken, which is unexpected"
    );
    plugin.state.lock().refuses = None;
    let (meta, spec) = asking("q", GIFT, 1);
    node.ready(&node.pod_with(meta, spec)).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_either_side_gives_no_device_twice() {
    let home = Home::new("restart");
    let (mut node, plugin, running) = with_plugin(&home, &["a", "b"]).await;
    let (meta, spec) = asking("p", GIFT, 1);
    let path = node.pod_with(meta, spec);
    node.ready(&path).await;
    assert_eq!(given(&node, "c-p"), ["a".to_owned()].into());
    node.halt().await;
    drop(running);
    node.resume();
    // Until it registers again a pod that wants its devices isn't started without.
    until_amounts(&node, GIFT, "0", "0").await;
    let (meta, spec) = asking("early", GIFT, 1);
    let early = node.phase(&node.pod_with(meta, spec), "Failed").await;
    let why = early["status"]["message"].as_str().unwrap();
    assert!(
        why.contains("no healthy devices present; cannot allocate unhealthy devices vendor.test/gift"),
        "{why}"
    );
    let _running = plugin.run().await;
    until_amounts(&node, GIFT, "2", "2").await;
    let (meta, spec) = asking("q", GIFT, 1);
    node.ready(&node.pod_with(meta, spec)).await;
    assert_eq!(given(&node, "c-q"), ["b".to_owned()].into());
    // The first one has what it had also when its container starts anew.
    node.runtime.crash("c-p", 1);
    node.until("the container is restarted", |n| {
        (n.api.get(&path)?["status"]["containerStatuses"][0]["restartCount"] == 1).then_some(())
    })
    .await;
    assert_eq!(given(&node, "c-p"), ["a".to_owned()].into());
    assert_eq!(plugin.calls("allocate").len(), 2, "it wasn't asked again");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_stops_devices_from_being_given_twice() {
    let home = Home::new("damaged");
    let (mut node, plugin, running) = with_plugin(&home, &["a", "b"]).await;
    let (meta, spec) = asking("p", GIFT, 1);
    let path = node.pod_with(meta, spec);
    let pod = node.ready(&path).await;
    let record = home.path().join("pods").join(uid(&pod)).join("devices.json");
    let kept = String::from_utf8(node.host.read(&record, 1 << 20).unwrap()).unwrap();
    assert!(kept.contains("\"a\""), "{kept}");
    node.halt().await;
    drop(running);
    node.host
        .write(&record, &kept.as_bytes()[..kept.len() / 2], 0o600)
        .unwrap();
    node.resume();
    let _running = plugin.run().await;
    until_amounts(&node, GIFT, "2", "2").await;
    let (meta, spec) = asking("q", GIFT, 1);
    let refused = node.phase(&node.pod_with(meta, spec), "Failed").await;
    let why = refused["status"]["message"].as_str().unwrap();
    assert!(why.contains("its record can't be read"), "{why}");
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    let (meta, spec) = asking("r", GIFT, 1);
    node.ready(&node.pod_with(meta, spec)).await;
}

#[tokio::test(start_paused = true)]
async fn registrations_are_refused_in_upstreams_words() {
    let home = Home::new("refused");
    let (_node, plugin, _running) = with_plugin(&home, &["a"]).await;
    let ask = |version: &str, resource: &str, endpoint: &str| {
        let request = keelson_devices::plugin::RegisterRequest {
            version: version.into(),
            endpoint: endpoint.into(),
            resource_name: resource.into(),
            options: None,
        };
        let plugin = plugin.clone();
        async move { plugin.register(request).await.unwrap_err().message().to_owned() }
    };
    assert_eq!(
        ask("v1alpha", GIFT, "x.sock").await,
        "requested API version \"v1alpha\" is not supported by kubelet. Supported version is [\"v1beta1\"]"
    );
    assert_eq!(
        ask("v1beta1", "gift", "x.sock").await,
        "the ResourceName \"gift\" is invalid"
    );
    assert!(
        ask("v1beta1", GIFT, "../x.sock")
            .await
            .contains("isn't the name of a socket")
    );
    assert!(
        ask("v1beta1", GIFT, "nobody.sock")
            .await
            .contains("failed to get device plugin options")
    );
}
