use super::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn node(n: u8, zone: &str) -> Node {
    let ips = [format!("192.0.2.{n}"), format!("2001:db8::{n}")].map(|ip| ip.parse::<IpAddr>().unwrap());
    Node {
        may_answer: true,
        labels: [("zone".to_string(), zone.to_string())].into(),
        addresses: ips.to_vec(),
        own: ips.into(),
        ..Node::default()
    }
}

fn facts() -> Facts {
    Facts {
        nodes: [("a", node(1, "x")), ("b", node(2, "x")), ("c", node(3, "y"))]
            .map(|(name, node)| (name.to_string(), node))
            .into(),
        ..Facts::default()
    }
}

fn spec(value: Value) -> PeerSpec {
    let mut whole = json!({"localASN": 64512, "peerASN": 64500, "peerAddress": "192.0.2.254"});
    whole
        .as_object_mut()
        .unwrap()
        .extend(value.as_object().unwrap().clone());
    serde_json::from_value(whole).unwrap()
}

fn routed(net: &str, announce: Value, advertisement: Value, only: Option<&[&str]>) -> (IpAddr, Routed) {
    let net: IpNet = net.parse().unwrap();
    let routed = Routed {
        address: Address {
            announce: serde_json::from_value(announce).unwrap(),
            only: only.map(|names| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>()),
        },
        advertised: vec![(net, serde_json::from_value(advertisement).unwrap())],
    };
    (net.addr(), routed)
}

fn told(facts: &Facts, routing: &Routing, me: &str, peer: &str) -> Vec<String> {
    let (sessions, _) = sessions(facts, routing, me);
    let (_, routes) = &sessions[peer];
    routes.keys().map(IpNet::to_string).collect()
}

#[test]
fn every_node_that_takes_an_address_in_tells_of_it() {
    let routing = Routing {
        peers: vec![
            ("r1".into(), spec(json!({}))),
            (
                "r2".into(),
                spec(json!({"peerAddress": "192.0.2.253", "nodeSelector": {"matchLabels": {"zone": "x"}}})),
            ),
        ],
        addresses: [
            routed("203.0.113.1/32", json!({}), json!({}), None),
            routed("203.0.113.2/32", json!({}), json!({}), Some(&["b"])),
            routed(
                "203.0.113.3/32",
                json!({"nodeSelector": {"matchLabels": {"zone": "y"}}}),
                json!({}),
                None,
            ),
            routed("203.0.113.4/32", json!({}), json!({"peers": ["r2"]}), None),
            routed(
                "2001:db8:1::1/128",
                json!({}),
                json!({"nodeSelector": {"matchLabels": {"zone": "x"}}}),
                None,
            ),
            // A node's own is nobody's.
            routed("192.0.2.2/32", json!({}), json!({}), None),
        ]
        .into(),
        ..Routing::default()
    };
    let mut facts = facts();
    assert_eq!(
        told(&facts, &routing, "a", "r1"),
        ["203.0.113.1/32", "2001:db8:1::1/128"]
    );
    assert_eq!(
        told(&facts, &routing, "b", "r1"),
        ["203.0.113.1/32", "203.0.113.2/32", "2001:db8:1::1/128"]
    );
    assert_eq!(told(&facts, &routing, "c", "r1"), ["203.0.113.1/32", "203.0.113.3/32"]);
    assert_eq!(
        told(&facts, &routing, "a", "r2"),
        ["203.0.113.1/32", "203.0.113.4/32", "2001:db8:1::1/128"]
    );
    assert!(
        !sessions(&facts, &routing, "c").0.contains_key("r2"),
        "the peer isn't for it"
    );
    // A node that is about to be emptied leaves what others take in, and only that.
    for name in ["b", "c"] {
        facts.nodes.get_mut(name).unwrap().cordoned = true;
    }
    assert_eq!(told(&facts, &routing, "b", "r1"), ["203.0.113.2/32"]);
    assert_eq!(told(&facts, &routing, "c", "r1"), ["203.0.113.3/32"]);
    facts.nodes.get_mut("a").unwrap().may_answer = false;
    assert_eq!(told(&facts, &routing, "b", "r1").len(), 3, "nobody else is left");
    assert!(
        told(&facts, &routing, "a", "r1").is_empty(),
        "the session stays, and nothing is told"
    );
}

#[test]
fn a_peer_is_as_it_is_written() {
    let password = Password::new(b"secret").unwrap();
    let routing = Routing {
        peers: vec![
            ("plain".into(), spec(json!({}))),
            ("twice".into(), spec(json!({"peerASN": 1}))),
            (
                "all".into(),
                spec(
                    json!({"peerAddress": "2001:db8::fe", "peerPort": 1179, "holdTimeSeconds": 3, "keepaliveTimeSeconds": 1,
                    "ttlSecurityHops": 1, "passwordKey": "all", "gracefulRestart": {"enabled": false},
                    "sourceAddress": "2001:db8::1"}),
                ),
            ),
            (
                "far".into(),
                spec(json!({"peerAddress": "198.51.100.1", "ebgpMultihop": 4})),
            ),
            (
                "unknown".into(),
                spec(json!({"peerAddress": "198.51.100.2", "passwordKey": "other"})),
            ),
        ],
        passwords: [("all".to_string(), password.clone())].into(),
        ..Routing::default()
    };
    let (sessions, refused) = sessions(&facts(), &routing, "a");
    let plain = &sessions["plain"].0;
    assert_eq!(
        (plain.port, plain.hold, plain.retry),
        (179, Duration::from_secs(90), Duration::from_secs(10))
    );
    assert_eq!(
        (plain.distance, plain.graceful),
        (Distance::Usual, Some(Duration::from_secs(30)))
    );
    assert_eq!(plain.router_id, Ipv4Addr::new(192, 0, 2, 1));
    let all = &sessions["all"].0;
    assert_eq!(
        (all.port, all.distance, all.graceful),
        (1179, Distance::Secured(1), None)
    );
    assert_eq!(
        (&all.password, all.keepalive),
        (&Some(password), Duration::from_secs(1))
    );
    assert!(!format!("{all:?}").contains("secret\"") && format!("{all:?}").contains("(secret)"));
    assert_eq!(sessions["far"].0.distance, Distance::Multihop(4));
    assert_eq!(refused["twice"], "BGPPeer plain has the same address");
    assert_eq!(
        refused["unknown"],
        "Secret kube-system/keelson-bgp has no key other of 1 to 80 bytes"
    );
    let id = router_id("a");
    assert!(id == router_id("a") && id != router_id("b") && !id.is_multicast() && !id.is_unspecified());
}

#[test]
fn communities_are_numbers_or_names() {
    let usual = |a: u32, b: u32| Some(Community::Usual((a << 16) | b));
    assert_eq!(community("64512:100"), usual(64512, 100));
    assert_eq!(community("no-export"), Some(Community::Usual(0xffff_ff01)));
    assert_eq!(
        community("4200000000:1:2"),
        Some(Community::Large([4_200_000_000, 1, 2]))
    );
    assert_eq!(community("large:1:2:3"), Some(Community::Large([1, 2, 3])));
    for wrong in ["", "1", "65536:1", "large:1:2", "1:2:3:4", "x", "-1:2"] {
        assert_eq!(community(wrong), None, "{wrong}");
    }
}
