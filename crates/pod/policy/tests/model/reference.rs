//! Upstream's definition of NetworkPolicy, read from the API objects as plainly as it is written, one packet at a time.

use crate::interpret::Packet;
use crate::{NODE, World};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::net::IpAddr;

#[path = "tiers.rs"]
mod tiers;

pub fn address(pod: &Pod) -> Option<IpAddr> {
    let ended = matches!(pod.status.as_ref()?.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || pod.spec.as_ref()?.host_network == Some(true) {
        return None;
    }
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn at(world: &World, ip: IpAddr) -> Option<&Pod> {
    world.pods.values().find(|p| address(p) == Some(ip))
}

pub fn allowed(world: &World, packet: &Packet) -> bool {
    let (from, to) = (at(world, packet.source), at(world, packet.destination));
    if packet.reply {
        return true;
    }
    let here = |pod: Option<&Pod>| {
        pod.filter(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some(NODE))
            .is_some()
    };
    let out = !packet.from_link || (here(from) && one_way(world, from.unwrap(), packet.destination, to, packet, false));
    let into = !packet.to_link || (here(to) && one_way(world, to.unwrap(), packet.source, to, packet, true));
    out && into
}

fn one_way(world: &World, pod: &Pod, other: IpAddr, to: Option<&Pod>, packet: &Packet, ingress: bool) -> bool {
    let tier = |tier: &str| tiers::says(world, tier, pod, other, to, packet, ingress);
    tier("Admin")
        .or_else(|| isolated(world, pod, other, to, packet, ingress))
        .or_else(|| tier("Baseline"))
        .unwrap_or(true)
}

/// What network policies say; `None`: none is for the pod.
fn isolated(world: &World, pod: &Pod, other: IpAddr, to: Option<&Pod>, packet: &Packet, ingress: bool) -> Option<bool> {
    let namespace = pod.metadata.namespace.as_deref().unwrap();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let selecting: Vec<&NetworkPolicy> = world
        .policies
        .values()
        .filter(|p| p.metadata.namespace.as_deref() == Some(namespace))
        .filter(|p| selects(p.spec.as_ref().unwrap().pod_selector.as_ref().unwrap(), &labels))
        .filter(|p| types(p).contains(&if ingress { "Ingress" } else { "Egress" }))
        .collect();
    if selecting.is_empty() {
        return None;
    }
    let allowed = packet.source == packet.destination
        || selecting.iter().any(|policy| {
            let spec = policy.spec.as_ref().unwrap();
            let rules: Vec<(Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>)> = if ingress {
                let rules = spec.ingress.iter().flatten();
                rules
                    .map(|r| (r.from.clone().unwrap_or_default(), r.ports.clone().unwrap_or_default()))
                    .collect()
            } else {
                let rules = spec.egress.iter().flatten();
                rules
                    .map(|r| (r.to.clone().unwrap_or_default(), r.ports.clone().unwrap_or_default()))
                    .collect()
            };
            rules.iter().any(|(peers, ports)| {
                (peers.is_empty() || peers.iter().any(|p| is_peer(world, namespace, p, other)))
                    && (ports.is_empty() || ports.iter().any(|p| is_port(p, packet, to)))
            })
        });
    Some(allowed)
}

fn types(policy: &NetworkPolicy) -> Vec<&str> {
    let spec = policy.spec.as_ref().unwrap();
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().map(String::as_str).collect(),
        _ if spec.egress.iter().flatten().next().is_some() => vec!["Ingress", "Egress"],
        _ => vec!["Ingress"],
    }
}

fn is_peer(world: &World, namespace: &str, peer: &NetworkPolicyPeer, ip: IpAddr) -> bool {
    if let Some(block) = &peer.ip_block {
        let has = |net: &str| net.parse::<IpNet>().unwrap().contains(&ip);
        return has(&block.cidr) && !block.except.iter().flatten().any(|e| has(e));
    }
    let Some(pod) = at(world, ip) else { return false };
    let pod_namespace = pod.metadata.namespace.as_deref().unwrap();
    let in_namespace = match &peer.namespace_selector {
        None => pod_namespace == namespace,
        Some(selector) => {
            let known = world.namespaces.get(pod_namespace);
            selects(
                selector,
                &known.and_then(|n| n.metadata.labels.clone()).unwrap_or_default(),
            )
        }
    };
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    in_namespace && peer.pod_selector.as_ref().is_none_or(|s| selects(s, &labels))
}

fn is_port(port: &NetworkPolicyPort, packet: &Packet, to: Option<&Pod>) -> bool {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match protocol {
        "UDP" => 17,
        "SCTP" => 132,
        _ => 6,
    };
    if packet.protocol != number {
        return false;
    }
    match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&i32::from(packet.port)),
        Some(IntOrString::String(name)) => to.is_some_and(|pod| {
            let ports = pod
                .spec
                .as_ref()
                .unwrap()
                .containers
                .iter()
                .flat_map(|c| c.ports.iter().flatten());
            ports.into_iter().any(|p| {
                p.name.as_ref() == Some(name)
                    && p.protocol.as_deref().unwrap_or("TCP") == protocol
                    && p.container_port == i32::from(packet.port)
            })
        }),
    }
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector
        .match_labels
        .iter()
        .flatten()
        .all(|(k, v)| labels.get(k) == Some(v))
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let among = value.is_some_and(|v| e.values.iter().flatten().any(|w| w == v));
            match e.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("no operator {other}"),
            }
        })
}

pub fn describe(world: &World) -> String {
    let line = |v: serde_json::Value| format!("{v}\n");
    let namespaces = world
        .namespaces
        .values()
        .map(|n| line(serde_json::to_value(n).unwrap()));
    let pods = world.pods.values().map(|p| line(serde_json::to_value(p).unwrap()));
    let policies = world.policies.values().map(|p| line(serde_json::to_value(p).unwrap()));
    let cluster = world.cluster.values().map(|p| line(serde_json::to_value(p).unwrap()));
    let nodes = world.nodes.values().map(|n| line(serde_json::to_value(n).unwrap()));
    namespaces
        .chain(pods)
        .chain(policies)
        .chain(cluster)
        .chain(nodes)
        .collect()
}
