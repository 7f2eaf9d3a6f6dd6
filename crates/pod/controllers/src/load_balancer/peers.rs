//! What peers say of themselves: how their sessions with all nodes are. Nodes tell of theirs on their Node, since each may write its own only; what they
//! tell is collected here.

use super::{TELLER, tell_status};
use crate::context::Context;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use keelson_balancing::peer::{NodeSession, PeerStatus, SESSIONS, Session, Sessions, read_sessions};
use keelson_balancing::{BgpPeer, readiness};
use keelson_client::{ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What changes within this time is told together: each status goes to every node.
const PACE: Duration = Duration::from_secs(1);

pub fn start(context: &Context, nodes: &Informer<Node>) {
    if !context.config.pools {
        return;
    }
    let peers: Informer<BgpPeer> = context.informer();
    // All at once: what one node tells may be of all.
    let controller = Controller::new("bgp-peers")
        .input(nodes)
        .input(&peers)
        .output(BgpPeer::RESOURCE)
        .workers(1);
    let queue = controller.queue();
    nodes.on_change(move |change| {
        let told = |node: &Node| (text(node).cloned(), is_heard(node));
        let now = told(change.object());
        let before = change.old().map(|old| told(old));
        let counts = now.0.is_some() || before.as_ref().is_some_and(|(text, _)| text.is_some());
        if counts && (change.is_deleted() || before != Some(now)) {
            queue.add_after(ObjectKey::default(), PACE);
        }
    });
    let queue = controller.queue();
    peers.on_change(move |_| queue.add_after(ObjectKey::default(), PACE));
    let collector = Collector {
        nodes: nodes.clone(),
        peers: peers.clone(),
        objects: Objects::new(&context.rest(TELLER)),
    };
    context.run(controller, collector);
}

fn text(node: &Node) -> Option<&String> {
    node.metadata.annotations.as_ref()?.get(SESSIONS)
}

/// Whether the node is heard from, so that what it told is so still.
fn is_heard(node: &Node) -> bool {
    readiness(node).is_some_and(|ready| ready != "Unknown")
}

struct Collector {
    nodes: Informer<Node>,
    peers: Informer<BgpPeer>,
    objects: Objects<BgpPeer>,
}

#[async_trait]
impl Reconcile for Collector {
    async fn reconcile(&self, _: &ObjectKey) -> anyhow::Result<Outcome> {
        let mut told = by_peer(&self.nodes.store().list());
        for peer in self.peers.store().list() {
            let wanted = status(told.remove(peer.name()).unwrap_or_default());
            if peer.status.as_ref() != Some(&wanted) {
                tell_status(&self.objects, &*peer, &wanted).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

fn by_peer(nodes: &[Arc<Node>]) -> BTreeMap<String, Vec<NodeSession>> {
    let mut all: BTreeMap<String, Vec<NodeSession>> = BTreeMap::new();
    for node in nodes {
        let sessions: Sessions = text(node).and_then(|text| read_sessions(text)).unwrap_or_default();
        for (peer, mut session) in sessions {
            if !is_heard(node) {
                session.state = Session::UNKNOWN.into();
            }
            // One number that the definition takes none of would keep all from being told.
            session.announced = session.announced.max(0);
            session.received_updates = session.received_updates.max(0);
            let node = node.name().to_string();
            all.entry(peer).or_default().push(NodeSession { node, session });
        }
    }
    all
}

fn status(mut sessions: Vec<NodeSession>) -> PeerStatus {
    let stands = |s: &NodeSession| s.session.state == Session::ESTABLISHED;
    sessions.sort_by_key(|s| (stands(s), s.node.clone()));
    let (nodes, established) = (sessions.len(), sessions.iter().filter(|s| stands(s)).count());
    sessions.truncate(PeerStatus::MOST);
    PeerStatus {
        nodes: nodes as i64,
        established: established as i64,
        sessions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, ready: &str, sessions: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "annotations": {SESSIONS: sessions}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn what_nodes_tell_is_collected_and_what_is_wrong_comes_first() {
        let told = |state: &str| {
            format!(r#"{{"r": {{"state": "{state}", "since": "2026-01-01T00:00:00Z", "announced": 2}}}}"#)
        };
        let nodes = [
            node("a", "True", &told("Established")),
            node("b", "False", &told("Connect")),
            node("c", "Unknown", &told("Established")),
            node("d", "True", "{"),
            node("e", "True", &told("Connect").replace("2}}", "-2}}")),
        ];
        let status = status(by_peer(&nodes).remove("r").unwrap());
        assert_eq!((status.nodes, status.established), (4, 1));
        assert!(
            status
                .sessions
                .iter()
                .all(|s| s.session.announced == if s.node == "e" { 0 } else { 2 })
        );
        let all: Vec<_> = status
            .sessions
            .iter()
            .map(|s| (s.node.as_str(), s.session.state.as_str()))
            .collect();
        let expected = [
            ("b", "Connect"),
            ("c", "Unknown"),
            ("e", "Connect"),
            ("a", "Established"),
        ];
        assert_eq!(all, expected);
        let read = serde_json::from_value::<PeerStatus>(serde_json::to_value(&status).unwrap());
        assert_eq!(read.unwrap(), status);
    }
}
