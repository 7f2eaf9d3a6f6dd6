//! Devices of nodes: the real kubelet against plug-ins and drivers behind real sockets, in virtual time.

mod claims;
mod driver;
mod plugin;
mod plugins;

use crate::support::Node;
use keelson_devices::podresources as api;
use keelson_devices::podresources::pod_resources_lister_client::PodResourcesListerClient;
use serde_json::{Value, json};
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

/// A server that dies with all its connections, as a process does, when this is dropped.
pub struct Running(CancellationToken);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Serves at a socket. What comes there is passed on, so that it can be cut off.
async fn serve(socket: &Path, router: Router) -> Running {
    let inner = socket.with_extension("inner");
    for stale in [socket, &inner] {
        let _none = std::fs::remove_file(stale);
    }
    let incoming = keelson_grpc::bind(&inner).await.unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let token = CancellationToken::new();
    let (running, passing) = (Running(token.clone()), token.clone());
    tokio::spawn(
        token
            .clone()
            .run_until_cancelled_owned(router.serve_with_incoming(incoming)),
    );
    tokio::spawn(token.run_until_cancelled_owned(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let inner = inner.clone();
            tokio::spawn(passing.clone().run_until_cancelled_owned(async move {
                let mut far = UnixStream::connect(inner).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }));
        }
    }));
    running
}

/// A pod with one container that asks for devices of a resource.
fn asking(name: &str, resource: &str, count: u32) -> (Value, Value) {
    let amounts = json!({resource: count.to_string()});
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": format!("c-{name}"), "resources": {"limits": amounts, "requests": amounts}}]});
    (json!({"name": name}), spec)
}

/// What the node tells of a resource: capacity and allocatable.
fn amounts(node: &Node, resource: &str) -> Option<(String, String)> {
    let object = node.api.get("nodes/n1")?;
    let of = |list: &str| Some(object["status"][list][resource].as_str()?.to_owned());
    Some((of("capacity")?, of("allocatable")?))
}

async fn until_amounts(node: &Node, resource: &str, capacity: &str, allocatable: &str) {
    let wanted = (capacity.to_owned(), allocatable.to_owned());
    let what = format!("the node has {wanted:?} of {resource}");
    node.until(&what, |n| (amounts(n, resource)? == wanted).then_some(()))
        .await;
}

/// The health of a container's devices, as a pod's status tells it: resource, device and health.
fn health(pod: &Value) -> Vec<(String, String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let none = Vec::new();
    let all = pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"]
        .as_array()
        .unwrap_or(&none);
    let of = |r: &Value| {
        let list = r["resources"].as_array().cloned().unwrap_or_default();
        let one = |d: &Value| (text(&r["name"]), text(&d["resourceID"]), text(&d["health"]));
        list.iter().map(one).collect::<Vec<_>>()
    };
    all.iter().flat_map(of).collect()
}

async fn until_health(node: &Node, path: &str, device: &str, health_is: &str) {
    let what = format!("{device} of {path} is {health_is}");
    node.until(&what, |n| {
        let all = health(&n.api.get(path)?);
        all.iter()
            .any(|(_, id, h)| id == device && h == health_is)
            .then_some(())
    })
    .await;
}

/// What the kubelet tells monitors of a pod's containers.
async fn pod_resources(root: &Path, pod: &str) -> Vec<api::ContainerResources> {
    let channel = keelson_grpc::channel(&root.join("pod-resources/kubelet.sock"));
    let request = api::GetPodResourcesRequest {
        pod_name: pod.into(),
        pod_namespace: "default".into(),
    };
    let answer = PodResourcesListerClient::new(channel.clone())
        .get(request)
        .await
        .unwrap();
    let got = answer.into_inner().pod_resources.unwrap();
    let listed = PodResourcesListerClient::new(channel)
        .list(api::ListPodResourcesRequest {})
        .await
        .unwrap();
    assert!(listed.into_inner().pod_resources.contains(&got), "both tell the same");
    got.containers
}
