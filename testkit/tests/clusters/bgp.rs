//! Peers that nodes tell of addresses by BGP: as the API takes and refuses them, and what is said of their sessions. The sessions themselves are shown by
//! `tools/test-bgp.sh`.

use keelson_balancing::BgpPeer;
use keelson_balancing::peer::{PeerStatus, SESSIONS};
use keelson_testkit::objects::Node;
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};

/// What the program gives who writes peers' statuses, and no more.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: peers}
rules:
- {apiGroups: [keelson.dev], resources: [bgppeers/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: peers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: peers}
subjects: [{kind: ServiceAccount, namespace: kube-system, name: keelson-load-balancer-pools}]
"#;

fn peer(name: &str, spec: &str) -> String {
    format!("apiVersion: keelson.dev/v1\nkind: BGPPeer\nmetadata: {{name: {name}}}\nspec: {{{spec}}}")
}

async fn cluster() -> Cluster {
    let cluster = Cluster::builder()
        .nodes(2)
        .controllers(&["service-lb", "nodelifecycle"])
        .start()
        .await;
    cluster.apply(&keelson_controllers::peer_definition().to_string()).await;
    cluster.apply(RIGHTS).await;
    let peers = cluster.objects::<BgpPeer>();
    cluster
        .eventually("peers are served", secs(30), async || {
            let served = peers.list("", "", "").await;
            served.map(drop).map_err(|e| e.to_string())
        })
        .await;
    cluster
}

#[tokio::test(start_paused = true)]
async fn peers_are_what_can_be_and_complete() {
    let cluster = cluster().await;
    let usual = "localASN: 64512, peerASN: 64500, peerAddress";
    for (wrong, spec) in [
        ("Required value", "localASN: 64512, peerASN: 64500".to_string()),
        (
            "greater than or equal to 1",
            "localASN: 0, peerASN: 64500, peerAddress: 192.0.2.1".into(),
        ),
        (
            "less than or equal to 4294967295",
            "localASN: 1, peerASN: 4294967296, peerAddress: 192.0.2.1".into(),
        ),
        ("must be an address", format!("{usual}: router")),
        ("must be an address", format!("{usual}: 'fe80::1'")),
        ("must be an address", format!("{usual}: 127.0.0.1")),
        ("must be an address", format!("{usual}: 0.0.0.0")),
        (
            "must be 0, or 3 at least",
            format!("{usual}: 192.0.2.1, holdTimeSeconds: 2"),
        ),
        (
            "must be a third of the hold time",
            format!("{usual}: 192.0.2.1, holdTimeSeconds: 9, keepaliveTimeSeconds: 4"),
        ),
        (
            "of another autonomous system",
            "localASN: 1, peerASN: 1, peerAddress: 192.0.2.1, ebgpMultihop: 2".into(),
        ),
        (
            "can't be together with ebgpMultihop",
            format!("{usual}: 192.0.2.1, ebgpMultihop: 2, ttlSecurityHops: 2"),
        ),
        (
            "must be of the peer's family",
            format!("{usual}: 192.0.2.1, sourceAddress: '2001:db8::1'"),
        ),
        (
            "less than or equal to 4095",
            format!("{usual}: 192.0.2.1, gracefulRestart: {{restartTimeSeconds: 5000}}"),
        ),
        ("passwordKey", format!("{usual}: 192.0.2.1, passwordKey: 'a b'")),
    ] {
        let refused = cluster.try_apply(&peer("wrong", &spec)).await.unwrap_err().to_string();
        assert!(refused.contains(wrong), "{spec}: {refused}");
    }
    cluster.apply(&peer("r", &format!("{usual}: 192.0.2.1"))).await;
    let written: BgpPeer = cluster.get("", "r").await;
    let meant: BgpPeer = serde_json::from_value(json!({"spec":
        {"localASN": 64512, "peerASN": 64500, "peerAddress": "192.0.2.1"}}))
    .unwrap();
    assert_eq!(
        written.spec, meant.spec,
        "what the API completes is what nodes take for usual"
    );
}

#[tokio::test(start_paused = true)]
async fn what_nodes_tell_of_their_sessions_stands_in_the_peer() {
    let mut cluster = cluster().await;
    cluster
        .apply(&peer("r", "localASN: 64512, peerASN: 64500, peerAddress: 192.0.2.1"))
        .await;
    let tell = |node: &Node, state: &str| {
        let session = json!({"state": state, "since": "2026-01-01T00:00:00Z", "error": "why", "announced": 3});
        let text = (!state.is_empty()).then(|| json!({"r": session, "other": session}).to_string());
        let body: Value = json!({"metadata": {"annotations": {SESSIONS: text}}});
        (node.metadata.name.clone().unwrap_or_default(), body)
    };
    let nodes: Vec<Node> = cluster.list("").await;
    for (node, state) in nodes.iter().zip(["Established", "Connect"]) {
        let (name, body) = tell(node, state);
        cluster.patch::<Node>("", &name, body).await;
    }
    let names: Vec<String> = nodes.iter().filter_map(|n| n.metadata.name.clone()).collect();
    let states = |status: &PeerStatus| -> Vec<(String, String)> {
        let all = status.sessions.iter();
        all.map(|s| (s.node.clone(), s.session.state.clone())).collect()
    };
    let pair = |n: usize, state: &str| (names[n].clone(), state.to_string());
    let has = async |cluster: &Cluster, counts: (i64, i64), wanted: Vec<(String, String)>| {
        let is = |peer: &BgpPeer| {
            let Some(status) = &peer.status else { return false };
            (status.nodes, status.established) == counts && states(status) == wanted
        };
        cluster
            .until("", "r", secs(90), &format!("{counts:?} {wanted:?}"), is)
            .await;
    };
    has(&cluster, (2, 1), vec![pair(1, "Connect"), pair(0, "Established")]).await;
    // Of a node that isn't heard from nobody knows.
    cluster.halt(&names[0]).await;
    has(&cluster, (2, 0), vec![pair(0, "Unknown"), pair(1, "Connect")]).await;
    cluster.resume(&names[0]);
    has(&cluster, (2, 1), vec![pair(1, "Connect"), pair(0, "Established")]).await;
    let (name, body) = tell(&nodes[1], "");
    cluster.patch::<Node>("", &name, body).await;
    has(&cluster, (1, 1), vec![pair(0, "Established")]).await;
}
