//! Addresses that peers are told of by BGP: which sessions this node is to have, and which routes each peer is to get from it. Pure.
//!
//! Every node answers for itself alone: who takes in an address tells so, and peers spread what comes over those that do.

use crate::plan::{Address, Facts, Node};
use crate::told::Shown;
use ipnet::IpNet;
use keelson_balancing::peer::{PASSWORDS, PASSWORDS_NAMESPACE, PeerSpec};
use keelson_balancing::{Advertisement, selects};
use keelson_bgp::{Attributes, Distance, Password, Peer, Routes, Sessions};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// What the API says, beside [`Facts`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// The oldest first.
    pub peers: Vec<(String, PeerSpec)>,
    pub passwords: BTreeMap<String, Password>,
    pub addresses: BTreeMap<IpAddr, Routed>,
    /// What this node's Node shows of its sessions; `None`: peers haven't been read, so that nothing is known that it is to show.
    pub shown: Shown,
}

/// An address of services that peers are told of, and as what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routed {
    pub address: Address,
    pub advertised: Vec<(IpNet, Advertisement)>,
}

/// The sessions of node `me`, and why there is none with others that select it.
pub fn sessions(facts: &Facts, routing: &Routing, me: &str) -> (Sessions, BTreeMap<String, String>) {
    let (mut sessions, mut refused) = (Sessions::new(), BTreeMap::new());
    let Some(own) = facts.nodes.get(me) else {
        return (sessions, refused);
    };
    let taken = taken(facts, routing, me, own);
    for (name, spec) in &routing.peers {
        if !selects(spec.node_selector.as_ref(), Some(&own.labels)) {
            continue;
        }
        let session = peer(spec, routing, me, own).and_then(|peer| {
            let same =
                |(_, (other, _)): &(&String, &(Peer, _))| (other.address, other.port) == (peer.address, peer.port);
            match sessions.iter().find(same) {
                Some((other, _)) => Err(format!("BGPPeer {other} has the same address")),
                None => Ok(peer),
            }
        });
        match session {
            Ok(peer) => {
                let routes = routes(facts, &taken, name, spec, own, me);
                sessions.insert(name.clone(), (peer, Arc::new(routes)));
            }
            Err(why) => drop(refused.insert(name.clone(), why)),
        }
    }
    (sessions, refused)
}

/// The addresses that this node takes in, whomever it tells.
fn taken<'a>(facts: &Facts, routing: &'a Routing, me: &str, own: &Node) -> Vec<(&'a IpAddr, &'a Routed)> {
    if !own.may_answer {
        return Vec::new();
    }
    let of_nodes = facts.of_nodes();
    let takes = |(ip, routed): &(&IpAddr, &Routed)| {
        let Address { announce, only } = &routed.address;
        let selected = selects(announce.node_selector.as_ref(), Some(&own.labels));
        selected && !of_nodes.contains(*ip) && only.as_ref().is_none_or(|only| only.contains(me))
    };
    routing.addresses.iter().filter(takes).collect()
}

fn routes(facts: &Facts, taken: &[(&IpAddr, &Routed)], name: &str, peer: &PeerSpec, own: &Node, me: &str) -> Routes {
    let mut routes = Routes::new();
    for (_, routed) in taken {
        for (net, advertisement) in &routed.advertised {
            let to_it = advertisement.peers.is_empty() || advertisement.peers.iter().any(|peer| peer == name);
            let selectors = [
                &peer.node_selector,
                &routed.address.announce.node_selector,
                &advertisement.node_selector,
            ];
            let labelled = |node: &Node| {
                let mut all = selectors.iter();
                all.all(|&selector| selects(selector.as_ref(), Some(&node.labels)))
            };
            // Who is about to be emptied lets others take over, if there are any. Where traffic stays, endpoints say where it is.
            let others = || facts.nodes.iter().filter(|(name, _)| *name != me).map(|(_, node)| node);
            let leaves = own.cordoned
                && routed.address.only.is_none()
                && others().any(|node| node.may_answer && !node.cordoned && labelled(node));
            if to_it && labelled(own) && !leaves {
                routes.entry(*net).or_insert_with(|| attributes(advertisement));
            }
        }
    }
    routes
}

fn attributes(advertisement: &Advertisement) -> Attributes {
    let mut attributes = Attributes {
        local_preference: advertisement.local_preference,
        ..Attributes::default()
    };
    for text in &advertisement.communities {
        match community(text) {
            Some(Community::Usual(value)) => drop(attributes.communities.insert(value)),
            Some(Community::Large(value)) => drop(attributes.large_communities.insert(value)),
            // The definition lets none in.
            None => tracing::warn!(text, "no BGP community"),
        }
    }
    attributes
}

#[derive(Debug, PartialEq)]
enum Community {
    Usual(u32),
    Large([u32; 3]),
}

/// Names of communities (RFC 1997, 3765, 7999, 8326).
const NAMED: [(&str, u32); 6] = [
    ("graceful-shutdown", 0xffff_0000),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];

fn community(text: &str) -> Option<Community> {
    if let Some((_, value)) = NAMED.iter().find(|(name, _)| *name == text) {
        return Some(Community::Usual(*value));
    }
    let numbers: Result<Vec<u32>, _> = text
        .strip_prefix("large:")
        .unwrap_or(text)
        .split(':')
        .map(str::parse)
        .collect();
    match numbers.ok()?[..] {
        [a, b] if a.max(b) <= u32::from(u16::MAX) && !text.starts_with("large:") => {
            Some(Community::Usual((a << 16) | b))
        }
        [a, b, c] => Some(Community::Large([a, b, c])),
        _ => None,
    }
}

fn peer(spec: &PeerSpec, routing: &Routing, me: &str, own: &Node) -> Result<Peer, String> {
    let address = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("{text:?} is no address"));
    let seconds = |time: u16| Duration::from_secs(time.into());
    let v4 = own.addresses.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    });
    let v6 = own.addresses.iter().find_map(|ip| match ip {
        IpAddr::V6(ip) => Some(*ip),
        IpAddr::V4(_) => None,
    });
    let password = spec.password_key.as_ref().map(|key| {
        let known = routing.passwords.get(key).cloned();
        known.ok_or_else(|| {
            let most = Password::LONGEST;
            format!("Secret {PASSWORDS_NAMESPACE}/{PASSWORDS} has no key {key} of 1 to {most} bytes")
        })
    });
    Ok(Peer {
        address: address(&spec.peer_address)?,
        port: spec.peer_port,
        source: spec.source_address.as_deref().map(address).transpose()?,
        local_asn: spec.local_asn,
        peer_asn: spec.peer_asn,
        router_id: v4.unwrap_or_else(|| router_id(me)),
        hold: seconds(spec.hold_time_seconds),
        keepalive: seconds(spec.keepalive_time_seconds.unwrap_or_default()),
        retry: seconds(spec.connect_retry_seconds),
        distance: match (spec.ttl_security_hops, spec.ebgp_multihop) {
            (Some(hops), _) => Distance::Secured(hops),
            (None, Some(hops)) => Distance::Multihop(hops),
            (None, None) => Distance::Usual,
        },
        password: password.transpose()?,
        graceful: (spec.graceful_restart.enabled).then(|| seconds(spec.graceful_restart.restart_time_seconds)),
        next_hop_v4: v4,
        next_hop_v6: v6,
    })
}

/// Of a node that has no address of IPv4: a number that is always its own.
fn router_id(name: &str) -> Ipv4Addr {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let mut octets = [0; 4];
    octets.copy_from_slice(&digest.as_ref()[..4]);
    // None of a group, and not nothing.
    Ipv4Addr::from((u32::from_be_bytes(octets) & 0x7fff_ffff) | 1)
}

#[cfg(test)]
mod tests;
