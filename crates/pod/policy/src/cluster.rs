//! ClusterNetworkPolicies as plain facts: two tiers, of which one is asked before a pod's network policies and one after them.
//!
//! What can't be read, and peers by domain names, which aren't known here, fail closed as the API wants it: such a rule
//! accepts nothing, and denies everything if it would deny or pass something on.

use crate::facts::{Namespaces, Peer, Port, SCTP, Scope, TCP, UDP, number};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::cluster_policies::{ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, ClusterRule, Transport};
use keelson_client::labels::Labels;
use std::collections::BTreeSet;
use std::net::IpAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Before network policies, whatever they say.
    Admin,
    /// For pods that no network policy isolates.
    Baseline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Accept,
    Deny,
    /// On to the next tier.
    Pass,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub name: String,
    pub tier: Tier,
    /// The lowest is asked first; of equals, the one whose name is first.
    pub priority: i32,
    pub pods: Scope,
    /// Packets that it denies are told.
    pub logged: bool,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// How people find it.
    pub name: String,
    pub action: Action,
    /// Empty: everybody. That is what failed closed; the API has no such rules.
    pub peers: Vec<Peer>,
    /// Empty: every packet.
    pub ports: Vec<Port>,
}

/// A machine, as a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub labels: Labels,
    pub addresses: BTreeSet<IpAddr>,
}

pub fn node(node: &core::Node) -> Node {
    let listed = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    Node {
        labels: node.metadata.labels.clone().unwrap_or_default(),
        addresses: listed.filter_map(|a| a.address.parse().ok()).collect(),
    }
}

/// The facts of a policy; `None`: whom it is for can't be read.
pub fn policy(p: &ClusterNetworkPolicy) -> Option<Policy> {
    let rules = |list: &[ClusterRule]| list.iter().enumerate().filter_map(|(i, r)| rule(r, i)).collect();
    Some(Policy {
        name: p.metadata.name.clone().unwrap_or_default(),
        tier: match p.spec.tier.as_str() {
            "Admin" => Tier::Admin,
            "Baseline" => Tier::Baseline,
            _ => return None,
        },
        priority: p.spec.priority,
        pods: scope(&p.spec.subject)?,
        logged: crate::denied::is_asked(p.metadata.annotations.as_ref()),
        ingress: rules(&p.spec.ingress),
        egress: rules(&p.spec.egress),
    })
}

fn rule(r: &ClusterRule, index: usize) -> Option<Rule> {
    let action = match r.action.as_str() {
        "Accept" => Action::Accept,
        "Pass" => Action::Pass,
        _ => Action::Deny,
    };
    let name = r.shown(index);
    let peers: Option<Vec<Vec<Peer>>> = r.peers().map(peer).collect();
    let ports: Option<Vec<Vec<Port>>> = r.protocols.iter().map(port).collect();
    match (peers.filter(|p| !p.is_empty()), ports) {
        (Some(peers), Some(ports)) => Some(Rule {
            name,
            action,
            peers: peers.concat(),
            ports: ports.concat(),
        }),
        _ => (action != Action::Accept).then_some(Rule {
            name,
            action: Action::Deny,
            peers: Vec::new(),
            ports: Vec::new(),
        }),
    }
}

fn scope(peer: &ClusterPeer) -> Option<Scope> {
    let (namespaces, pods) = match (&peer.namespaces, &peer.pods) {
        (Some(namespaces), None) => (namespaces.clone(), LabelSelector::default()),
        (None, Some(both)) => (both.namespace_selector.clone(), both.pod_selector.clone()),
        _ => return None,
    };
    Some(Scope {
        namespaces: Namespaces::Selected(namespaces),
        pods,
    })
}

fn peer(p: &ClusterPeer) -> Option<Vec<Peer>> {
    if let Some(scope) = scope(p) {
        return Some(vec![Peer::Pods(scope)]);
    }
    if let Some(selector) = &p.nodes {
        return Some(vec![Peer::Nodes(selector.clone())]);
    }
    let block = |network: &String| {
        Some(Peer::Block {
            range: network.parse().ok()?,
            except: Vec::new(),
        })
    };
    let blocks: Option<Vec<Peer>> = p.networks.iter().map(block).collect();
    blocks.filter(|b| !b.is_empty())
}

fn port(p: &ClusterProtocol) -> Option<Vec<Port>> {
    let name = &p.destination_named_port;
    if !name.is_empty() {
        let of = |protocol| Port::Name {
            protocol,
            name: name.clone(),
        };
        return Some([TCP, UDP, SCTP].map(of).to_vec());
    }
    let all = [(TCP, &p.tcp), (UDP, &p.udp), (SCTP, &p.sctp)];
    let (protocol, transport) = all.into_iter().find_map(|(n, t)| Some((n, t.as_ref()?)))?;
    let (first, last) = numbers(transport)?;
    Some(vec![Port::Numbers { protocol, first, last }])
}

fn numbers(transport: &Transport) -> Option<(u16, u16)> {
    let Some(port) = &transport.destination_port else {
        return Some((0, u16::MAX));
    };
    let (first, last) = match (port.number, &port.range) {
        (Some(n), None) => (n, n),
        (None, Some(range)) => (range.start, range.end),
        _ => return None,
    };
    Some((number(first)?, number(last)?)).filter(|(first, last)| first <= last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rules(rules: Value) -> Vec<Rule> {
        let object = json!({"metadata": {"name": "p"},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": rules}});
        policy(&serde_json::from_value(object).unwrap()).unwrap().egress
    }

    #[test]
    fn what_cannot_be_read_fails_closed() {
        for peers in [
            json!([{"domainNames": ["a.example"]}]),
            json!([{"namespaces": {}}, {"later": {}}]),
            json!([{"networks": ["10.0.0.0/40"]}]),
            json!([]),
        ] {
            for (action, left) in [
                ("Accept", None),
                ("Deny", Some(Action::Deny)),
                ("Pass", Some(Action::Deny)),
            ] {
                let made = rules(json!([{"action": action, "to": peers}]));
                let everything = |r: &Rule| r.peers.is_empty() && r.ports.is_empty();
                assert!(made.iter().all(everything), "{action} {peers}");
                assert_eq!(made.first().map(|r| r.action), left, "{action} {peers}");
            }
        }
        let odd = json!([{"action": "Accept", "to": [{"namespaces": {}}], "protocols": [{"quic": {}}]}]);
        assert!(rules(odd).is_empty());
    }

    #[test]
    fn peers_and_ports_are_those_of_the_api() {
        let made = rules(json!([{"name": "out", "action": "Pass",
            "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}, {"pods": {"podSelector": {}}}],
            "protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"udp": {}},
                {"sctp": {"destinationPort": {"range": {"start": 5, "end": 9}}}}, {"destinationNamedPort": "web"}]}]));
        let rule = &made[0];
        assert_eq!((rule.name.as_str(), rule.action), ("1 (out)", Action::Pass));
        assert_eq!(rule.peers.len(), 4);
        let of = |protocol, first, last| Port::Numbers { protocol, first, last };
        assert_eq!(rule.ports[..3], [of(TCP, 80, 80), of(UDP, 0, u16::MAX), of(SCTP, 5, 9)]);
        assert_eq!(rule.ports.len(), 6);
    }
}
