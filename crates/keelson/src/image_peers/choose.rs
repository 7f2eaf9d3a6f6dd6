//! Which nodes to ask for what belongs to an image. No I/O; whom of equals is chance.

use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus};
use keelson_client::ApiObject;
use rand::seq::SliceRandom;
use std::sync::Arc;

/// Nodes asked for one thing, of which as many as possible say that they have the image.
const MOST: usize = 4;
/// Of nodes that don't say so: a node tells of fifty images, and not at once.
const UNSURE: usize = 2;

/// Where a node's kubelet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub name: String,
    pub host: String,
    pub port: u16,
}

/// Keeps of a node where it is, and of its images the digests that they are pulled by, short: a copy stands on every node.
pub fn only_what_counts(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    node.metadata.labels = None;
    node.spec = None;
    let Some(status) = node.status.take() else { return };
    let names = status
        .images
        .into_iter()
        .flatten()
        .flat_map(|image| image.names.unwrap_or_default());
    let known: Vec<String> = names.filter_map(|name| short(&name).map(str::to_owned)).collect();
    node.status = Some(NodeStatus {
        addresses: status.addresses,
        daemon_endpoints: status.daemon_endpoints,
        images: Some(vec![ContainerImage {
            names: Some(known),
            size_bytes: None,
        }]),
        ..NodeStatus::default()
    });
}

/// Of a name with a digest, enough of the digest.
fn short(name: &str) -> Option<&str> {
    name.split_once("@sha256:")?.1.get(..24)
}

fn has(node: &Node, wanted: &str) -> bool {
    let images = node.status.iter().flat_map(|s| s.images.iter().flatten());
    images.flat_map(|i| i.names.iter().flatten()).any(|name| name == wanted)
}

fn neighbour(node: &Node) -> Option<Neighbour> {
    let status = node.status.as_ref()?;
    let internal = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP")?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    Some(Neighbour {
        name: node.name().to_owned(),
        host: internal.address.clone(),
        port: u16::try_from(port).ok().filter(|port| *port != 0)?,
    })
}

/// In which order to ask, of nodes that `usable` doesn't rule out. Whom of several is chance, so that no node is everybody's.
pub fn choose(nodes: &[Arc<Node>], image: &str, usable: impl Fn(&str) -> bool) -> Vec<Neighbour> {
    let wanted = short(image).unwrap_or_default();
    let usable = nodes.iter().filter(|n| usable(n.name()));
    let (mut sure, mut unsure): (Vec<&Arc<Node>>, Vec<&Arc<Node>>) = usable.partition(|n| has(n, wanted));
    let mut chance = rand::rng();
    sure.shuffle(&mut chance);
    unsure.shuffle(&mut chance);
    unsure.truncate(UNSURE);
    let all = sure.into_iter().chain(unsure);
    all.filter_map(|n| neighbour(n)).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, images: &[&str]) -> Arc<Node> {
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"a": "b"}},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": format!("10.0.0.{name}")}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "images": [{"names": images, "sizeBytes": 5}]}
        }))
        .unwrap();
        only_what_counts(&mut node);
        Arc::new(node)
    }

    #[test]
    fn who_has_the_image_is_asked_first_and_never_everybody() {
        let image = format!("r.example/a@sha256:{}", "a".repeat(64));
        let other = format!("r.example/a@sha256:{}", "b".repeat(64));
        let mut nodes: Vec<Arc<Node>> = (10..60)
            .map(|n| node(&n.to_string(), &[&other, "r.example/a:1"]))
            .collect();
        nodes.push(node("1", &[&image]));
        nodes.push(node("2", &[&other, &image]));
        nodes.push(node("3", &[&image]));
        for _ in 0..20 {
            let chosen = choose(&nodes, &image, |name| name != "3");
            let names: Vec<&str> = chosen.iter().map(|n| n.name.as_str()).collect();
            assert_eq!(names.len(), 4);
            assert!(
                names[..2].contains(&"1") && names[..2].contains(&"2") && !names.contains(&"3"),
                "{names:?}"
            );
        }
        assert_eq!(choose(&nodes, "r.example/none@sha256:", |_| true).len(), 2);
        let one = choose(&[node("1", &[])], &image, |_| true);
        assert_eq!((one[0].host.as_str(), one[0].port), ("10.0.0.1", 10250));
        assert!(choose(&[], &image, |_| true).is_empty());
    }
}
