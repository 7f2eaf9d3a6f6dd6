//! Which nodes there are, for the network below pods: from Nodes to the addresses, ranges and keys that it knows; and this node's
//! own key, where it needs one ([`rotation`]).

mod keys;
mod rotation;
mod turn;

use k8s_openapi::api::core::v1::Node;
use keelson_client::rest::Rest;
use keelson_client::{ApiObject, Informer, InformerOptions};
use keelson_network::underlay::{self, Known, Peer, Settings};
use keys::Keys;
use rotation::Rotation;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// After this a key that could not be shown is shown again.
const RETRY: Duration = Duration::from_secs(5);

/// Who this node is for the others, where that needs a key.
#[derive(Clone)]
pub struct Secured {
    /// Directory of the keys.
    pub dir: PathBuf,
    /// Writes this node's Node.
    pub own: kube::Client,
}

pub async fn run(
    client: kube::Client,
    settings: Settings,
    secured: Option<Secured>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-network");
    let options = InformerOptions {
        transform: only_what_counts,
        ..InformerOptions::default()
    };
    let rotation = secured.map(|secured| anyhow::Ok(Rotation::new(Keys::open(&secured.dir)?, secured.own)));
    let mut rotation = rotation.transpose()?;
    let nodes: Informer<Node> = Informer::start(&rest, options, &stop);
    let changed = Arc::new(Notify::new());
    let note = changed.clone();
    // Nodes are written to all the time, the more of them the oftener; what counts of them changes rarely.
    nodes.on_change(move |change| {
        let node = change.object();
        let same = |old: &Arc<Node>| old.metadata.annotations == node.metadata.annotations && peer(old) == peer(node);
        if change.is_deleted() || !change.old().is_some_and(same) {
            note.notify_one();
        }
    });
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        // What stood before stands until all nodes are known.
        () = nodes.synced() => {}
    }
    let known = |rotation: &Option<Rotation>| Known {
        nodes: peers(&nodes.store().list()),
        identity: rotation.as_ref().map(Rotation::identity),
    };
    let (tell, told) = watch::channel(known(&rotation));
    let (force, mut in_force) = watch::channel(None);
    let own = settings.node_name.clone();
    let following = async {
        let mut due = Some(Duration::ZERO);
        loop {
            tokio::select! {
                () = changed.notified() => {}
                // Its sender is the other branch below.
                Ok(()) = in_force.changed() => {}
                () = tokio::time::sleep(due.unwrap_or(Duration::MAX)), if due.is_some() => {}
            }
            due = None;
            if let Some(rotation) = &mut rotation
                && let Some(node) = nodes.store().list().iter().find(|n| n.name() == own)
            {
                let now = *in_force.borrow_and_update();
                due = rotation.step(node, now).await.unwrap_or_else(|error| {
                    tracing::warn!(error = format!("{error:#}"), "this node's key for WireGuard");
                    Some(RETRY)
                });
            }
            let now = known(&rotation);
            tell.send_if_modified(|last| {
                let differs = *last != now;
                *last = now;
                differs
            });
        }
    };
    tokio::select! {
        done = underlay::run(settings, told, force, stop) => done,
        () = following => Ok(()),
    }
}

/// A node's status is mostly images, and a copy of it stands on every node.
fn only_what_counts(node: &mut Node) {
    node.metadata.managed_fields = None;
    if let Some(annotations) = &mut node.metadata.annotations {
        annotations.retain(|name, _| rotation::ALL.contains(&name.as_str()));
    }
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
        keys: rotation::shown(node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_its_internal_addresses_and_its_ranges() {
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"a": "b"}, "annotations": {"a": "b", rotation::KEY: "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="}},
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
        assert_eq!(peer.keys.len(), 1);
        assert_eq!(node.metadata.annotations.unwrap().len(), 1);
    }
}
