//! Claims: what drivers are asked for, in which order, and what becomes of it when anybody is started anew.

use super::driver::Driver;
use super::{pod_resources, until_health};
use crate::support::Node;
use crate::volumes::support::Home;
use keelson_devices::health::HealthStatus;
use keelson_kubelet::Host;
use serde_json::{Value, json};
use std::time::Duration;

const SLICES: &str = "resource.k8s.io/v1/resourceslices";

/// A pod whose only container uses the claim `c`, or a request of it.
fn pod(node: &Node, name: &str, request: Option<&str>) -> String {
    let mut wanted = json!({"name": "mine"});
    if let Some(request) = request {
        wanted["request"] = request.into();
    }
    node.pod_with(
        json!({"name": name}),
        json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": format!("c-{name}"), "resources": {"claims": [wanted]}}],
            "resourceClaims": [{"name": "mine", "resourceClaimName": "c"}]}),
    )
}

/// The claim `c`, allocated and reserved for pods.
fn claim(node: &Node, pods: &[&str]) {
    let reserved = |path: &&str| {
        let pod = node.api.get(path).unwrap();
        json!({"resource": "pods", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]})
    };
    let object = json!({
        "metadata": {"name": "c", "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "big"}, {"name": "small"}]}},
        "status": {
            "allocation": {"devices": {"results": [
                {"request": "big", "driver": "d.test", "pool": "n1", "device": "c-big"},
                {"request": "small", "driver": "d.test", "pool": "n1", "device": "c-small"}]}},
            "reservedFor": pods.iter().map(reserved).collect::<Value>()}});
    node.api
        .create("resource.k8s.io/v1/namespaces/default/resourceclaims", object);
}

fn names(node: &Node, container: &str) -> Vec<String> {
    let config = node.runtime.config(container).unwrap();
    config.cdi_devices.into_iter().map(|d| d.name).collect()
}

fn told(node: &Node, what: &str) -> bool {
    node.events()
        .iter()
        .any(|(reason, m)| reason == "FailedPrepareDynamicResources" && m.contains(what))
}

#[tokio::test(start_paused = true)]
async fn claims_are_made_ready_before_a_pod_and_given_back_after_its_end() {
    let home = Home::new("claim");
    let node = Node::start_in(home.path()).await;
    let path = pod(&node, "p", Some("big"));
    claim(&node, &[&path]);
    let missing = "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver d.test is not registered";
    node.until("the pod waits for its driver", |n| told(n, missing).then_some(()))
        .await;
    assert_eq!(node.runtime.counts(), (0, 0));
    let driver = Driver::new(&node.host, home.path(), "d.test");
    driver.state.lock().refuses = Some("it is warm".into());
    let _running = driver.run().await;
    let why = "NodePrepareResources failed for ResourceClaim c: it is warm";
    node.until("the driver refuses", |n| told(n, why).then_some(())).await;
    node.ready(&path).await;
    assert_eq!(driver.state.lock().told, [(true, String::new())]);
    assert_eq!(names(&node, "c-p"), ["d.test/claim=c-big"]);
    assert_eq!(driver.calls("prepare"), ["c", "c"]);
    let resources = pod_resources(home.path(), "p").await;
    let of_claim = &resources[0].dynamic_resources[0];
    assert_eq!((of_claim.claim_name.as_str(), of_claim.claim_resources.len()), ("c", 2));
    assert_eq!(of_claim.claim_resources[0].driver_name, "d.test");
    until_health(&node, &path, "d.test/claim=c-big", "Healthy").await;
    driver.tell(HealthStatus::Unhealthy);
    until_health(&node, &path, "d.test/claim=c-big", "Unhealthy").await;
    // A pod's end isn't told before its devices are given back.
    driver.state.lock().refuses = Some("it is busy".into());
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert_eq!(driver.calls("unprepare"), ["c", "c"]);
}

/// Whoever sees that it has ended gives its claims to others.
#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_by_itself_has_not_ended_before_its_claims_are_given_back() {
    let home = Home::new("ended");
    let node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let running = driver.run().await;
    let path = node.pod_with(
        json!({"name": "p"}),
        json!({
            "restartPolicy": "Never",
            "containers": [{"name": "c-p", "command": ["sleep", "5"], "resources": {"claims": [{"name": "mine"}]}}],
            "resourceClaims": [{"name": "mine", "resourceClaimName": "c"}]}),
    );
    claim(&node, &[&path]);
    node.ready(&path).await;
    // Its driver is away when it ends.
    drop(running);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(node.runtime.running().is_empty());
    assert_eq!(node.api.get(&path).unwrap()["status"]["phase"], "Running");
    let _running = driver.serve().await;
    node.phase(&path, "Succeeded").await;
    assert_eq!(driver.calls("unprepare"), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_shared_claim_is_given_back_by_its_last_pod_whoever_was_started_anew() {
    let home = Home::new("shared");
    let mut node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let running = driver.run().await;
    let (first, second, stranger) = (pod(&node, "p", None), pod(&node, "q", None), pod(&node, "s", None));
    claim(&node, &[&first, &second]);
    node.ready(&first).await;
    node.ready(&second).await;
    assert_eq!(names(&node, "c-p"), ["d.test/claim=c-big", "d.test/claim=c-small"]);
    node.until("who has no reservation waits", |n| {
        told(n, "is not allowed to use ResourceClaim c").then_some(())
    })
    .await;
    assert!(node.runtime.config("c-s").is_none());
    node.api.delete_pod(&stranger, 1);
    node.gone(&stranger).await;
    node.api.delete_pod(&first, 1);
    node.gone(&first).await;
    assert!(driver.calls("unprepare").is_empty());
    node.halt().await;
    drop(running);
    node.resume();
    // It ends while its driver is away, and waits for it.
    node.api.delete_pod(&second, 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(node.api.get(&second).is_some() && driver.calls("unprepare").is_empty());
    std::fs::remove_file(home.path().join("plugins_registry/d.test-reg.sock")).unwrap();
    let _running = driver.run().await;
    node.gone(&second).await;
    assert_eq!(driver.calls("unprepare"), ["c"]);
    let kept = node.host.read(&home.path().join("claims.json"), 1 << 20).unwrap();
    assert_eq!(String::from_utf8_lossy(&kept), "[]");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_claims_is_asked_for_again_when_it_cannot_be_read() {
    let home = Home::new("lost");
    let mut node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let _running = driver.run().await;
    let path = pod(&node, "p", None);
    claim(&node, &[&path]);
    node.ready(&path).await;
    node.halt().await;
    node.host.write(&home.path().join("claims.json"), b"[{", 0o600).unwrap();
    node.resume();
    node.until("the driver is asked again", |_| {
        (driver.calls("prepare").len() == 2).then_some(())
    })
    .await;
    node.api.delete_pod(&path, 1);
    node.gone(&path).await;
    assert_eq!(driver.calls("unprepare"), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn slices_of_a_driver_that_is_away_go() {
    let home = Home::new("slices");
    let node = Node::start_in(home.path()).await;
    let slice = |name: &str, driver: &str, of: &str| {
        let object = json!({"metadata": {"name": name}, "spec": {"driver": driver, "nodeName": of}});
        node.api.create(SLICES, object);
    };
    let left = |n: &Node| -> Vec<String> {
        let all = n.api.list(SLICES);
        all.iter()
            .map(|s| s["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let mut running = driver.run().await;
    node.until("the driver has registered", |_| {
        (!driver.state.lock().told.is_empty()).then_some(())
    })
    .await;
    slice("mine", "d.test", "n1");
    slice("others", "e.test", "n1");
    slice("elsewhere", "d.test", "n2");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(left(&node).len(), 3);
    // It dies and is back in time.
    drop(running);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let again = driver.serve().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(left(&node).len(), 3);
    drop(again);
    node.until("its slices are gone", |n| {
        (left(n) == ["elsewhere", "others"]).then_some(())
    })
    .await;
    // One that takes its socket away is away, too.
    std::fs::remove_file(home.path().join("plugins_registry/d.test-reg.sock")).unwrap();
    running = driver.run().await;
    node.until("the driver is back", |_| {
        (driver.state.lock().told.len() == 2).then_some(())
    })
    .await;
    slice("mine", "d.test", "n1");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(left(&node).len(), 3);
    driver.leave();
    drop(running);
    node.until("its slices are gone again", |n| (left(n).len() == 2).then_some(()))
        .await;
}

#[tokio::test(start_paused = true)]
async fn drivers_of_the_version_before_are_served_and_unknown_ones_refused() {
    let home = Home::new("versions");
    let node = Node::start_in(home.path()).await;
    let mut driver = Driver::new(&node.host, home.path(), "d.test");
    driver.versions = vec!["v9.DRAPlugin"];
    let _running = driver.run().await;
    let told = node
        .until("it is told", |_| driver.state.lock().told.first().cloned())
        .await;
    assert!(
        !told.0 && told.1.contains("none of services supported by the plugin"),
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_started_anew_while_it_registers_registers_again() {
    let home = Home::new("anew");
    let node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    driver.state.lock().begins_anew = true;
    let _running = driver.run().await;
    let told = node
        .until("it is told", |_| driver.state.lock().told.first().cloned())
        .await;
    assert_eq!(told, (true, String::new()));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_read_ends_no_plug_in() {
    let home = Home::new("unread");
    let node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let _running = driver.run().await;
    node.until("the driver has registered", |_| {
        (!driver.state.lock().told.is_empty()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let told = driver.state.lock().told.len();
    let (dir, other) = ("plugins_registry", "plugins_registry/other.sock");
    node.host.spoil(&home.path().join(dir), true);
    node.host.write(&home.path().join(other), b"", 0o600).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    node.host.spoil(&home.path().join(dir), false);
    node.host.remove_file(&home.path().join(other)).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    // Nor is it asked again.
    assert_eq!(driver.state.lock().told.len(), told);
    let path = pod(&node, "p", None);
    claim(&node, &[&path]);
    node.ready(&path).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_by_two_names_is_made_ready_once() {
    let home = Home::new("names");
    let node = Node::start_in(home.path()).await;
    let driver = Driver::new(&node.host, home.path(), "d.test");
    let _running = driver.run().await;
    let path = node.pod_with(
        json!({"name": "p"}),
        json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c-p", "resources": {"claims": [
                {"name": "one", "request": "big"}, {"name": "two", "request": "small"}]}}],
            "resourceClaims": [
                {"name": "one", "resourceClaimName": "c"}, {"name": "two", "resourceClaimName": "c"}]}),
    );
    claim(&node, &[&path]);
    node.ready(&path).await;
    assert_eq!(names(&node, "c-p"), ["d.test/claim=c-big", "d.test/claim=c-small"]);
    assert_eq!(driver.calls("prepare"), ["c"]);
}
