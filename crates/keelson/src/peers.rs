//! Which nodes there are, for the network below pods: from Nodes to the addresses and ranges that it knows.

use k8s_openapi::api::core::v1::Node;
use keelson_client::rest::Rest;
use keelson_client::{ApiObject, Informer, InformerOptions};
use keelson_network::underlay::{self, Peer, Settings};
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub async fn run(client: kube::Client, settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-network");
    let options = InformerOptions {
        transform: only_what_counts,
        ..InformerOptions::default()
    };
    let nodes: Informer<Node> = Informer::start(&rest, options, &stop);
    let changed = Arc::new(Notify::new());
    let note = changed.clone();
    nodes.on_change(move |_| note.notify_one());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        // What stood before stands until all nodes are known.
        () = nodes.synced() => {}
    }
    let read = || peers(&nodes.store().list());
    let (tell, told) = watch::channel(read());
    let following = async {
        loop {
            changed.notified().await;
            let now = read();
            tell.send_if_modified(|last| std::mem::replace(last, now.clone()) != now);
        }
    };
    tokio::select! {
        done = underlay::run(settings, told, stop) => done,
        () = following => Ok(()),
    }
}

/// A node's status is mostly images, and a copy of it stands on every node.
fn only_what_counts(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    node.metadata.labels = None;
    if let Some(status) = &mut node.status {
        let addresses = status.addresses.take();
        *status = k8s_openapi::api::core::v1::NodeStatus {
            addresses,
            ..Default::default()
        };
    }
}

/// The oldest first: a range that is claimed twice is the older node's.
fn peers(nodes: &[Arc<Node>]) -> Vec<Peer> {
    let mut all: Vec<&Arc<Node>> = nodes.iter().collect();
    all.sort_by_key(|n| {
        (
            n.metadata.creation_timestamp.as_ref().map(|t| t.0),
            n.name().to_string(),
        )
    });
    all.into_iter().map(|n| peer(n)).collect()
}

fn peer(node: &Node) -> Peer {
    let status = node.status.as_ref();
    let addresses = status.iter().flat_map(|s| s.addresses.iter().flatten());
    let internal = addresses
        .filter(|a| a.type_ == "InternalIP")
        .filter_map(|a| a.address.parse().ok());
    let spec = node.spec.as_ref();
    let several = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
    let one = spec.and_then(|s| s.pod_cidr.as_ref()).filter(|_| several.is_empty());
    Peer {
        name: node.name().to_string(),
        addresses: internal.collect(),
        ranges: several.iter().chain(one).filter_map(|r| r.parse().ok()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_its_internal_addresses_and_its_ranges() {
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"a": "b"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"images": [{"names": ["i"]}], "addresses": [
                {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"}]},
        }))
        .unwrap();
        only_what_counts(&mut node);
        assert!(node.status.as_ref().unwrap().images.is_none() && node.metadata.labels.is_none());
        let peer = peer(&node);
        assert_eq!(peer.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(peer.ranges.len(), 2);
    }
}
