//! API objects as the plain facts that rules are made from.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service, ServicePort as ApiPort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_sys::nft::Family;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Of a slice: its endpoints are reached without a proxy, though the service may have a cluster IP.
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// What of a node decides where its traffic may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// Its name, to tell local endpoints.
    pub node: String,
    /// Of which family the facts are: a service of two has them twice.
    pub family: Family,
    pub zone: String,
    pub internal: Vec<IpAddr>,
    /// Addresses that others translate to an internal one before packets arrive.
    pub external: Vec<IpAddr>,
}

impl Here {
    pub fn of(name: &str, family: Family, node: Option<&Node>) -> Here {
        let labels = node.and_then(|n| n.metadata.labels.as_ref());
        let addresses = |kind: &str| {
            let all = node.and_then(|n| n.status.as_ref()?.addresses.as_ref());
            let of_kind = all.into_iter().flatten().filter(|a| a.type_ == kind);
            of_kind.filter_map(|a| ip(&a.address, family)).collect()
        };
        Here {
            node: name.into(),
            family,
            zone: labels.and_then(|l| l.get(ZONE)).cloned().unwrap_or_default(),
            internal: addresses("InternalIP"),
            external: addresses("ExternalIP"),
        }
    }
}

/// One port of one service, with where its traffic may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name/port-name/protocol`
    pub identity: String,
    pub protocol: u8,
    pub port: u16,
    pub cluster_ip: IpAddr,
    /// External addresses and load-balancer addresses.
    pub external_ips: Vec<IpAddr>,
    /// Those of them that a load balancer has.
    pub balancer_ips: Vec<IpAddr>,
    /// Who may use the load balancer's addresses; none: everybody.
    pub source_ranges: Vec<IpNet>,
    pub node_port: Option<u16>,
    /// Seconds a client keeps its endpoint.
    pub affinity: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Where a load balancer asks whether this node has an endpoint.
    pub health_port: Option<u16>,
    /// Usable endpoints anywhere.
    pub endpoints: BTreeSet<(IpAddr, u16)>,
    /// Usable endpoints of this node.
    pub local_endpoints: BTreeSet<(IpAddr, u16)>,
    /// Pods of this node that are ready: what a load balancer is told, which shall send nothing new to those that end.
    pub local_ready: BTreeSet<IpAddr>,
    /// All that serve, chosen for new connections or not: those that are under way may stay with them.
    pub serving: BTreeSet<(IpAddr, u16)>,
}

impl ServicePort {
    /// A port 80 of TCP at this address, with no endpoint and no wish.
    pub fn at(identity: &str, cluster_ip: IpAddr) -> ServicePort {
        ServicePort {
            identity: identity.into(),
            protocol: 6,
            port: 80,
            cluster_ip,
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            node_port: None,
            affinity: None,
            internal_local: false,
            external_local: false,
            health_port: None,
            endpoints: BTreeSet::new(),
            local_endpoints: BTreeSet::new(),
            local_ready: BTreeSet::new(),
            serving: BTreeSet::new(),
        }
    }
}

/// What an EndpointSlice calls its family.
fn address_type(family: Family) -> &'static str {
    match family {
        Family::Ip6 => "IPv6",
        _ => "IPv4",
    }
}

fn protocol(name: Option<&str>) -> u8 {
    match name {
        Some("UDP") => 17,
        Some("SCTP") => 132,
        _ => 6,
    }
}

fn port(n: i32) -> Option<u16> {
    u16::try_from(n).ok().filter(|p| *p != 0)
}

/// An address of this family. These fields are older than strict parsing: leading zeros count for nothing.
fn ip(text: &str, family: Family) -> Option<IpAddr> {
    address(text).filter(|ip| Family::of(*ip) == family)
}

fn range(text: &str) -> Option<IpNet> {
    let (ip, length) = text.trim().split_once('/')?;
    IpNet::new(address(ip)?, length.parse().ok()?).ok()
}

fn address(text: &str) -> Option<IpAddr> {
    let part = |part: &str| part[part.find(|c| c != '0').unwrap_or(part.len().saturating_sub(1))..].to_string();
    let plain = || text.split('.').map(part).collect::<Vec<_>>().join(".");
    let sloppy = || plain().parse::<Ipv4Addr>().ok();
    text.parse().ok().or_else(|| sloppy().map(IpAddr::from))
}

/// Facts of one service, a port each, in a defined order: none unless it has a cluster IP and is ours to serve.
pub fn read(service: &Service, slices: &[Arc<EndpointSlice>], here: &Here) -> Vec<ServicePort> {
    let has = |meta: &ObjectMeta, label: &str| meta.labels.as_ref().is_some_and(|l| l.contains_key(label));
    if has(&service.metadata, PROXY_NAME) {
        return Vec::new();
    }
    let slices: Vec<&EndpointSlice> = slices
        .iter()
        .map(Arc::as_ref)
        .filter(|s| s.address_type == address_type(here.family) && !has(&s.metadata, HEADLESS))
        .collect();
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let mut facts = service_ports(service, namespace, name, &slices, here);
    facts.sort_by(|a, b| a.identity.cmp(&b.identity));
    facts
}

fn service_ports(s: &Service, namespace: &str, name: &str, slices: &[&EndpointSlice], here: &Here) -> Vec<ServicePort> {
    let Some(spec) = &s.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let all_ips = spec
        .cluster_ips
        .clone()
        .unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
    let Some(cluster_ip) = all_ips.iter().find_map(|text| ip(text, here.family)) else {
        return Vec::new();
    };
    let external_ips = spec.external_ips.iter().flatten();
    let mut external_ips: Vec<IpAddr> = external_ips.filter_map(|text| ip(text, here.family)).collect();
    let ingress = s
        .status
        .as_ref()
        .and_then(|st| st.load_balancer.as_ref())
        .and_then(|lb| lb.ingress.as_ref());
    let mut balancer_ips: Vec<IpAddr> = ingress
        .into_iter()
        .flatten()
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| ip(i.ip.as_ref()?, here.family))
        .collect();
    // What is sent to an outer address of this node arrives at an inner one.
    if balancer_ips.iter().any(|ip| here.external.contains(ip)) {
        balancer_ips.extend(&here.internal);
    }
    balancer_ips.sort();
    balancer_ips.dedup();
    let source_ranges = spec.load_balancer_source_ranges.iter().flatten();
    let mut source_ranges: Vec<IpNet> = source_ranges
        .filter_map(|text| range(text))
        .filter(|r| Family::of(r.addr()) == here.family)
        .collect();
    // One of them is everybody of the family.
    if source_ranges.iter().any(|r| r.prefix_len() == 0) {
        source_ranges.clear();
    }
    source_ranges.sort();
    source_ranges.dedup();
    // Where a balancer's address is one of this machine, its clients here have that as their source: they may use it if the
    // node may.
    if here
        .internal
        .iter()
        .any(|ip| source_ranges.iter().any(|r| r.contains(ip)))
    {
        source_ranges.extend(balancer_ips.iter().map(|ip| IpNet::from(*ip)));
    }
    external_ips.extend(&balancer_ips);
    external_ips.sort();
    external_ips.dedup();
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured = spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        u32::try_from(configured.unwrap_or(DEFAULT_AFFINITY_SECONDS)).unwrap_or(0)
    });
    let one = |p: &ApiPort| {
        let port_name = p.name.as_deref().unwrap_or_default();
        let proto = p.protocol.as_deref().unwrap_or("TCP");
        let candidates = candidates(slices, port_name, protocol(Some(proto)), here);
        Some(ServicePort {
            identity: format!("{namespace}/{name}/{port_name}/{}", proto.to_lowercase()),
            protocol: protocol(Some(proto)),
            port: port(p.port)?,
            cluster_ip,
            external_ips: external_ips.clone(),
            balancer_ips: balancer_ips.clone(),
            source_ranges: source_ranges.clone(),
            node_port: p.node_port.and_then(port),
            affinity,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local,
            health_port: spec.health_check_node_port.and_then(port).filter(|_| external_local),
            endpoints: usable(candidates.iter().filter(near(&candidates))),
            local_endpoints: usable(candidates.iter().filter(|c| c.local)),
            local_ready: candidates
                .iter()
                .filter(|c| c.local && c.ready)
                .map(|c| c.target.0)
                .collect(),
            serving: candidates.iter().filter(|c| c.serving).map(|c| c.target).collect(),
        })
    };
    spec.ports.iter().flatten().filter_map(one).collect()
}

/// An endpoint of one port, whatever its state.
struct Candidate {
    target: (IpAddr, u16),
    local: bool,
    /// Whether it is meant for this node, and for its zone; `None`: it doesn't say for which it is.
    for_node: Option<bool>,
    for_zone: Option<bool>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

fn candidates(slices: &[&EndpointSlice], port_name: &str, proto: u8, here: &Here) -> Vec<Candidate> {
    let mut found = Vec::new();
    for slice in slices {
        let named =
            slice.ports.iter().flatten().find(|p| {
                p.name.as_deref().unwrap_or_default() == port_name && protocol(p.protocol.as_deref()) == proto
            });
        let Some(number) = named.and_then(|p| port(p.port?)) else {
            continue;
        };
        let of = |endpoint: &Endpoint| candidate(endpoint, number, here);
        found.extend(slice.endpoints.iter().flatten().filter_map(of));
    }
    found
}

/// The API promises that all addresses of an endpoint are one place: the first stands for it.
fn candidate(endpoint: &Endpoint, port: u16, here: &Here) -> Option<Candidate> {
    let ip = ip(endpoint.addresses.first()?, here.family)?;
    let conditions = endpoint.conditions.as_ref();
    let nodes = endpoint.hints.as_ref().and_then(|h| h.for_nodes.as_ref());
    let zones = endpoint.hints.as_ref().and_then(|h| h.for_zones.as_ref());
    Some(Candidate {
        target: (ip, port),
        for_node: nodes
            .filter(|n| !n.is_empty())
            .map(|n| n.iter().any(|n| n.name == here.node)),
        for_zone: zones
            .filter(|z| !z.is_empty())
            .map(|z| z.iter().any(|z| z.name == here.zone)),
        local: endpoint.node_name.as_deref() == Some(&here.node),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    })
}

/// Only what is meant for this node, if all ready endpoints say for which nodes they are, and one is for this; else the same
/// of its zone; else all.
fn near(all: &[Candidate]) -> impl Fn(&&Candidate) -> bool + Clone + use<> {
    let prefer = |hint: fn(&Candidate) -> Option<bool>| {
        let mut ready = all.iter().filter(|c| c.ready);
        ready.clone().all(|c| hint(c).is_some()) && ready.any(|c| hint(c) == Some(true))
    };
    let (node, zone) = (prefer(|c| c.for_node), prefer(|c| c.for_zone));
    move |c| match (node, zone) {
        (true, _) => c.for_node == Some(true),
        (_, true) => c.for_zone == Some(true),
        _ => true,
    }
}

/// Ready endpoints; when there are none, those that still serve while they terminate.
fn usable<'a>(candidates: impl Iterator<Item = &'a Candidate> + Clone) -> BTreeSet<(IpAddr, u16)> {
    let ready: BTreeSet<_> = candidates.clone().filter(|c| c.ready).map(|c| c.target).collect();
    if !ready.is_empty() {
        return ready;
    }
    candidates
        .filter(|c| c.serving && c.terminating)
        .map(|c| c.target)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_one(endpoints: serde_json::Value) -> ServicePort {
        let service = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 53, "protocol": "UDP"}]}});
        let slice = json!({"metadata": {"namespace": "shop", "name": "web-1", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 5353, "protocol": "UDP"}], "endpoints": endpoints});
        let service: Service = serde_json::from_value(service).unwrap();
        let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
        read(&service, &[Arc::new(slice)], &here()).remove(0)
    }

    fn here() -> Here {
        Here {
            node: "here".into(),
            family: Family::Ip,
            zone: "west".into(),
            internal: vec!["10.0.0.1".parse().unwrap()],
            external: vec!["203.0.113.7".parse().unwrap()],
        }
    }

    fn at(ip: &str) -> BTreeSet<(IpAddr, u16)> {
        BTreeSet::from([(ip.parse().unwrap(), 5353)])
    }

    #[test]
    fn an_endpoint_that_terminates_serves_on_but_is_not_chosen_beside_a_ready_one() {
        let facts = read_one(json!([
            {"addresses": ["10.244.0.5"], "conditions": {"ready": true}},
            {"addresses": ["10.244.0.6"], "nodeName": "here",
             "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.244.0.7"], "conditions": {"ready": false, "serving": false}},
        ]));
        assert_eq!(facts.endpoints, at("10.244.0.5"));
        assert_eq!(facts.local_endpoints, at("10.244.0.6"));
        assert!(
            facts.local_ready.is_empty(),
            "a load balancer is to send nothing new to it"
        );
        assert_eq!(facts.serving, &at("10.244.0.5") | &at("10.244.0.6"));
    }

    #[test]
    fn services_of_others_and_headless_slices_are_left_alone() {
        let labelled = |label: &str| {
            let service = json!({"metadata": {"namespace": "shop", "name": "web", "labels": {label: ""}},
                "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 53}]}});
            let slice = json!({"metadata": {"namespace": "shop", "name": "web-1", "labels": {SERVICE_NAME: "web", label: ""}},
                "addressType": "IPv4", "ports": [{"name": "", "port": 5353}], "endpoints": [{"addresses": ["10.244.0.5"]}]});
            let service: Service = serde_json::from_value(service).unwrap();
            let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
            read(&service, &[Arc::new(slice)], &here())
        };
        assert!(labelled(PROXY_NAME).is_empty());
        assert!(labelled(HEADLESS)[0].endpoints.is_empty());
        assert_eq!(labelled("tier")[0].endpoints.len(), 1);
    }

    #[test]
    fn source_ranges_are_for_the_load_balancers_addresses() {
        let service = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.1.1", "externalIPs": ["198.51.100.1"], "ports": [{"port": 53}],
                "loadBalancerSourceRanges": [" 203.0.113.0/24", "2001:db8::/32"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let service: Service = serde_json::from_value(service).unwrap();
        let facts = read(&service, &[], &here()).remove(0);
        assert_eq!(facts.balancer_ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(facts.source_ranges, ["203.0.113.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(facts.external_ips.len(), 2);
    }

    #[test]
    fn each_family_has_its_addresses_and_is_not_bound_by_ranges_of_the_other() {
        let service = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd00:96::1"], "ports": [{"port": 53}],
                "externalIPs": ["198.51.100.1", "2001:db8::7"], "loadBalancerSourceRanges": ["203.0.113.0/24"]}});
        let service: Service = serde_json::from_value(service).unwrap();
        let slice = |kind: &str, ip: &str| {
            let slice = json!({"metadata": {"namespace": "shop", "name": kind, "labels": {SERVICE_NAME: "web"}},
                "addressType": kind, "ports": [{"name": "", "port": 5353}], "endpoints": [{"addresses": [ip]}]});
            Arc::new(serde_json::from_value::<EndpointSlice>(slice).unwrap())
        };
        let slices = [slice("IPv4", "10.244.0.5"), slice("IPv6", "fd00:244::5")];
        let six = Here {
            family: Family::Ip6,
            ..here()
        };
        let facts = read(&service, &slices, &six).remove(0);
        assert_eq!(facts.cluster_ip.to_string(), "fd00:96::1");
        assert_eq!(facts.endpoints, at("fd00:244::5"));
        assert_eq!(facts.external_ips, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
        assert!(facts.source_ranges.is_empty());
        assert_eq!(read(&service, &slices, &here()).remove(0).endpoints, at("10.244.0.5"));
    }

    #[test]
    fn what_is_not_said_about_an_endpoint_is_taken_as_serving() {
        let facts = read_one(json!([{"addresses": ["10.244.0.6", "10.244.0.9"],
            "conditions": {"ready": false, "terminating": true}}]));
        assert_eq!(facts.endpoints, at("10.244.0.6"));
    }

    #[test]
    fn an_endpoint_on_the_own_node_is_preferred_as_long_as_it_is_ready() {
        let pair = |own_ready: bool, hints: serde_json::Value| {
            read_one(json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": own_ready}, "hints": {"forNodes": [{"name": "here"}]}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "hints": hints},
            ]))
            .endpoints
        };
        let there = json!({"forNodes": [{"name": "there"}]});
        assert_eq!(pair(true, there.clone()), at("10.0.0.1"));
        assert_eq!(pair(false, there), at("10.0.0.2"));
        assert_eq!(pair(true, json!(null)), &at("10.0.0.1") | &at("10.0.0.2"));
    }

    #[test]
    fn the_own_zone_is_preferred_as_long_as_it_has_a_ready_endpoint() {
        let three = |own_ready: bool, hints: serde_json::Value| {
            read_one(json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": own_ready}, "hints": {"forZones": [{"name": "west"}]}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "hints": hints},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ]))
            .endpoints
        };
        let east = json!({"forZones": [{"name": "east"}]});
        assert_eq!(three(true, east.clone()), at("10.0.0.1"));
        assert_eq!(three(false, east), at("10.0.0.2"), "nothing is ready in the zone");
        assert_eq!(
            three(true, json!(null)),
            &at("10.0.0.1") | &at("10.0.0.2"),
            "one does not say"
        );
        let here = json!({"forZones": [{"name": "east"}], "forNodes": [{"name": "here"}]});
        assert_eq!(three(false, here), at("10.0.0.2"), "the node before the zone");
    }

    fn balanced(address: &str, ranges: serde_json::Value) -> ServicePort {
        let service = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 53}], "loadBalancerSourceRanges": ranges},
            "status": {"loadBalancer": {"ingress": [{"ip": address}]}}});
        read(&serde_json::from_value(service).unwrap(), &[], &here()).remove(0)
    }

    #[test]
    fn a_range_of_everybody_is_none_of_its_family() {
        let ranges = |ranges: serde_json::Value| -> Vec<String> {
            let facts = balanced("192.0.2.1", ranges);
            facts.source_ranges.iter().map(IpNet::to_string).collect()
        };
        for (given, kept) in [
            (json!(["203.0.113.0/24", "0.0.0.0/0"]), vec![]),
            (json!(["203.0.113.0/24", " 203.0.113.9/0 "]), vec![]),
            (json!(["203.0.113.0/24", "::/0"]), vec!["203.0.113.0/24"]),
            (json!(["::/0"]), vec![]),
            (json!(["2001:db8::/32"]), vec![]),
            // Leading zeros count for nothing.
            (
                json!(["203.000.113.00/24", "010.001.0.0/16"]),
                vec!["10.1.0.0/16", "203.0.113.0/24"],
            ),
            (json!(["000.0.0.0/0"]), vec![]),
        ] {
            assert_eq!(ranges(given.clone()), kept, "{given}");
        }
        assert_eq!(ip("010.96.001.00", Family::Ip), "10.96.1.0".parse().ok());
        assert_eq!(ip("10..1.0", Family::Ip), None);
    }

    #[test]
    fn what_is_sent_to_an_outer_address_arrives_at_an_inner_one() {
        let ips = |address: &str| -> Vec<String> {
            let facts = balanced(address, json!(null));
            facts.balancer_ips.iter().map(IpAddr::to_string).collect()
        };
        assert_eq!(ips("203.0.113.7"), ["10.0.0.1", "203.0.113.7"]);
        assert_eq!(ips("203.0.113.8"), ["203.0.113.8"]);
    }

    #[test]
    fn a_balancers_own_address_may_use_it_where_the_node_may() {
        let ranges = |range: &str| -> Vec<String> {
            let facts = balanced("192.0.2.1", json!([range]));
            facts.source_ranges.iter().map(IpNet::to_string).collect()
        };
        assert_eq!(ranges("10.0.0.0/8"), ["10.0.0.0/8", "192.0.2.1/32"]);
        assert_eq!(ranges("10.1.0.0/16"), ["10.1.0.0/16"]);
    }
}
