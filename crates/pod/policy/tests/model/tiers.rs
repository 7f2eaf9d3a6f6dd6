//! The API's definition of ClusterNetworkPolicy, read as plainly as it is written.

use super::{at, selects};
use crate::World;
use crate::interpret::Packet;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::cluster_policies::{ClusterNetworkPolicy, ClusterPeer, ClusterProtocol, Transport};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a tier says of a packet of a pod: `None` if none of its rules is met, or the first one passes it on.
pub fn says(
    world: &World,
    tier: &str,
    pod: &Pod,
    other: IpAddr,
    to: Option<&Pod>,
    packet: &Packet,
    ingress: bool,
) -> Option<bool> {
    let mut policies: Vec<&ClusterNetworkPolicy> = world.cluster.values().filter(|p| p.spec.tier == tier).collect();
    policies.sort_by_key(|p| (p.spec.priority, p.metadata.name.clone()));
    for policy in policies.iter().filter(|p| is_one(world, &p.spec.subject, pod)) {
        let rules = if ingress {
            &policy.spec.ingress
        } else {
            &policy.spec.egress
        };
        for rule in rules {
            // By domains nobody is found here: such a rule accepts nothing, or else denies everything.
            if rule.peers().any(|p| !p.domain_names.is_empty()) {
                match rule.action.as_str() {
                    "Accept" => continue,
                    _ => return Some(false),
                }
            }
            let is_met = rule.peers().any(|p| is_peer(world, p, other))
                && (rule.protocols.is_empty() || rule.protocols.iter().any(|p| is_protocol(p, packet, to)));
            match rule.action.as_str() {
                _ if !is_met => {}
                "Accept" => return Some(true),
                "Deny" => return Some(false),
                _ => return None,
            }
        }
    }
    None
}

fn is_one(world: &World, peer: &ClusterPeer, pod: &Pod) -> bool {
    let namespace = world.namespaces.get(pod.metadata.namespace.as_deref().unwrap());
    let of_namespace = namespace.and_then(|n| n.metadata.labels.clone()).unwrap_or_default();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    match (&peer.namespaces, &peer.pods) {
        (Some(selector), _) => selects(selector, &of_namespace),
        (_, Some(both)) => selects(&both.namespace_selector, &of_namespace) && selects(&both.pod_selector, &labels),
        _ => false,
    }
}

fn is_peer(world: &World, peer: &ClusterPeer, ip: IpAddr) -> bool {
    let has_address = |selector: &LabelSelector| {
        world.nodes.values().any(|node| {
            let labels: BTreeMap<String, String> = node.metadata.labels.clone().unwrap_or_default();
            let mut listed = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
            selects(selector, &labels) && listed.any(|a| a.address == ip.to_string())
        })
    };
    peer.networks.iter().any(|n| n.parse::<IpNet>().unwrap().contains(&ip))
        || peer.nodes.as_ref().is_some_and(has_address)
        || at(world, ip).is_some_and(|pod| is_one(world, peer, pod))
}

fn is_protocol(protocol: &ClusterProtocol, packet: &Packet, to: Option<&Pod>) -> bool {
    let port = i32::from(packet.port);
    let of = |number: u8, transport: &Option<Transport>| {
        transport
            .as_ref()
            .filter(|_| packet.protocol == number)
            .is_some_and(|t| {
                t.destination_port.as_ref().is_none_or(|p| {
                    p.number == Some(port) || p.range.as_ref().is_some_and(|r| (r.start..=r.end).contains(&port))
                })
            })
    };
    let named = |pod: &Pod| {
        let containers = pod.spec.as_ref().unwrap().containers.iter();
        let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
        ports.any(|p| {
            let number = match p.protocol.as_deref() {
                Some("UDP") => 17,
                Some("SCTP") => 132,
                _ => 6,
            };
            p.name.as_deref() == Some(protocol.destination_named_port.as_str())
                && number == packet.protocol
                && p.container_port == port
        })
    };
    of(6, &protocol.tcp) || of(17, &protocol.udp) || of(132, &protocol.sctp) || to.is_some_and(named)
}
