//! Images of a node: who may use them, and what goes first when the disk is full.

mod providers;

use crate::support::{Node, condition};
use base64::Engine;
use keelson_kubelet::host::fake::FakeHost;
use serde_json::json;
use std::time::Duration;

/// A pull secret for `docker.io/private`.
fn secret(node: &Node, name: &str, user: &str) {
    let config = json!({"auths": {"docker.io/private": {"username": user, "password": "p"}}}).to_string();
    node.api.create(
        "namespaces/default/secrets",
        json!({"metadata": {"name": name, "namespace": "default"}, "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(config)}}),
    );
}

fn private(node: &Node, name: &str, secret: Option<&str>) -> String {
    let secrets: Vec<_> = secret.iter().map(|s| json!({"name": s})).collect();
    node.pod_with(
        json!({"name": name}),
        json!({"containers": [{"name": "c", "image": "private/a:1"}], "imagePullSecrets": secrets}),
    )
}

#[tokio::test(start_paused = true)]
async fn a_private_image_on_the_machine_wants_credentials() {
    let mut node = Node::start().await;
    for (name, user) in [("good", "u"), ("same", "u"), ("bad", "x")] {
        secret(&node, name, user);
    }
    let first = private(&node, "first", Some("good"));
    node.ready(&first).await;
    // The image is there, but not for these; also after a restart of the kubelet.
    for (name, secret) in [("none", None), ("bad", Some("bad")), ("restarted", None)] {
        if name == "restarted" {
            node.halt().await;
            node.resume();
        }
        let path = private(&node, name, secret);
        node.until("the pull is refused", |n| {
            let waiting = n.api.get(&path)?["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
            matches!(waiting.as_str(), Some("ErrImagePull" | "ImagePullBackOff")).then_some(())
        })
        .await;
    }
    // Nobody is told that it is there, by a policy that never pulls.
    let never = node.pod_with(
        json!({"name": "never"}),
        json!({"containers": [{"name": "c", "image": "private/a:1"}]}),
    );
    node.api.change(&never, |p| {
        p["spec"]["containers"][0]["imagePullPolicy"] = "Never".into()
    });
    let pulls = |n: &Node| n.events().into_iter().filter(|(reason, _)| reason == "Pulling").count();
    let before = pulls(&node);
    let same = private(&node, "same", Some("same"));
    node.ready(&same).await;
    // Brought by somebody: for everybody.
    node.runtime.bring_image("private/b:1");
    let brought = node.pod_with(
        json!({"name": "brought"}),
        json!({"containers": [{"name": "c", "image": "private/b:1"}]}),
    );
    node.ready(&brought).await;
    let told = node.events();
    assert!(
        told.iter()
            .any(|(_, text)| text.contains("\"private/b:1\" already present on machine and can be accessed")),
        "{told:?}"
    );
    assert!(pulls(&node) >= before);
}

#[tokio::test(start_paused = true)]
async fn pulls_begin_no_faster_than_the_rate_says() {
    let node = Node::start_with(|c| {
        c.pull_rate.per_second = Some(1);
        c.pull_rate.burst = Some(1);
    })
    .await;
    let began = tokio::time::Instant::now();
    let pods: Vec<String> = (0..4)
        .map(|n| {
            let name = format!("p{n}");
            node.pod_with(
                json!({"name": name}),
                json!({"containers": [{"name": "c", "image": format!("one:{n}")}]}),
            )
        })
        .collect();
    for pod in &pods {
        node.ready(pod).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_takes_unused_images_before_pods() {
    let node = Node::start().await;
    let kept = node.pod_with(
        json!({"name": "kept"}),
        json!({"containers": [{"name": "c", "image": "used:1"}]}),
    );
    node.ready(&kept).await;
    let done = node.pod_with(
        json!({"name": "done"}),
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "done:1", "command": ["sleep", "1"]}]}),
    );
    node.phase(&done, "Succeeded").await;
    node.runtime.bring_image("unused:1");
    // Images are looked at every five minutes, and two minutes are the youngest age to go at.
    tokio::time::sleep(Duration::from_secs(700)).await;
    let runtime = node.runtime.clone();
    node.host
        .set_disk(move || FakeHost::disk_with(if runtime.images().len() > 1 { 5 } else { 50 }));
    node.until("the images are gone", |n| {
        (n.runtime.images() == ["used:1"]).then_some(())
    })
    .await;
    node.until("the node tells of it", |n| {
        (condition(&n.api.get("nodes/n1")?, "DiskPressure") == "True").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let pod = node.api.get(&kept).unwrap();
    assert_eq!(pod["status"]["phase"], "Running");
    // The pod that is done keeps what is known of it.
    let pod = node.api.get(&done).unwrap();
    assert_eq!(pod["status"]["phase"], "Succeeded");
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    assert!(
        node.events().iter().all(|(reason, _)| reason != "Evicted"),
        "{:?}",
        node.events()
    );
    // When nothing else helps, a pod ends.
    node.host.set_disk(|| FakeHost::disk_with(5));
    let pod = node.phase(&kept, "Failed").await;
    assert_eq!(pod["status"]["reason"], "Evicted");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_of_images_is_cleared_by_itself() {
    let node = Node::start().await;
    node.runtime.set_disks("/images", "/var/lib/containers");
    node.host.add_disk("/images", || FakeHost::disk_with(50));
    let kept = node.pod_with(
        json!({"name": "kept"}),
        json!({"containers": [{"name": "c", "image": "used:1"}]}),
    );
    node.ready(&kept).await;
    node.runtime.bring_image("unused:1");
    tokio::time::sleep(Duration::from_secs(700)).await;
    // The node's own disk is full, and images are on another: they stay, and a pod ends.
    node.host.set_disk(|| FakeHost::disk_with(5));
    let ended = node.phase(&kept, "Failed").await;
    assert_eq!(ended["status"]["reason"], "Evicted");
    assert!(
        node.runtime.images().contains(&"unused:1".to_owned()),
        "{:?}",
        node.runtime.images()
    );

    // Then the other way round.
    node.host.set_disk(|| FakeHost::disk_with(80));
    node.until("the pressure is over", |n| {
        (condition(&n.api.get("nodes/n1")?, "DiskPressure") == "False").then_some(())
    })
    .await;
    let other = node.pod_with(
        json!({"name": "other"}),
        json!({"containers": [{"name": "c", "image": "other:1"}]}),
    );
    node.ready(&other).await;
    let runtime = node.runtime.clone();
    let is_full = move || runtime.images().contains(&"unused:1".to_owned());
    node.host
        .add_disk("/images", move || FakeHost::disk_with(if is_full() { 5 } else { 50 }));
    node.until("the image that nobody uses is gone", |n| {
        (!n.runtime.images().contains(&"unused:1".to_owned())).then_some(())
    })
    .await;
    node.until("the node tells of it", |n| {
        (condition(&n.api.get("nodes/n1")?, "DiskPressure") == "True").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(node.api.get(&other).unwrap()["status"]["phase"], "Running");
}
