//! API objects as the plain facts that rules are made from.

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort as ApiPort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Said to be reached without a proxy, though it may have a cluster IP.
const HEADLESS: &str = "service.kubernetes.io/headless";
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// One port of one service, with where its traffic may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name/port-name/protocol`
    pub identity: String,
    pub protocol: u8,
    pub port: u16,
    pub cluster_ip: Ipv4Addr,
    /// External addresses and load-balancer addresses.
    pub external_ips: Vec<Ipv4Addr>,
    /// Those of them that a load balancer has.
    pub balancer_ips: Vec<Ipv4Addr>,
    /// Who may use the load balancer's addresses; empty: everybody.
    pub source_ranges: Vec<Ipv4Net>,
    pub node_port: Option<u16>,
    /// Seconds a client keeps its endpoint.
    pub affinity: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Where a load balancer asks whether this node has an endpoint.
    pub health_port: Option<u16>,
    /// Usable endpoints anywhere.
    pub endpoints: BTreeSet<(Ipv4Addr, u16)>,
    /// Usable endpoints of this node.
    pub local_endpoints: BTreeSet<(Ipv4Addr, u16)>,
    /// All that serve, chosen for new connections or not: those that are under way may stay with them.
    pub serving: BTreeSet<(Ipv4Addr, u16)>,
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

fn addresses(list: Option<&[String]>) -> Vec<Ipv4Addr> {
    list.unwrap_or_default()
        .iter()
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

/// Facts of all services that have a cluster IP, in a defined order.
pub fn read(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node: &str) -> Vec<ServicePort> {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        if let (Some(name), "IPv4") = (labels.and_then(|l| l.get(SERVICE_NAME)), slice.address_type.as_str()) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut facts: Vec<ServicePort> = services
        .iter()
        .filter(|s| {
            let foreign = [PROXY_NAME, HEADLESS];
            let labels = s.metadata.labels.as_ref();
            !labels.is_some_and(|l| foreign.iter().any(|f| l.contains_key(*f)))
        })
        .flat_map(|s| {
            let namespace = s.metadata.namespace.as_deref().unwrap_or_default();
            let name = s.metadata.name.as_deref().unwrap_or_default();
            let slices = by_service
                .get(&(namespace, name))
                .map(Vec::as_slice)
                .unwrap_or_default();
            service_ports(s, namespace, name, slices, node)
        })
        .collect();
    facts.sort_by(|a, b| a.identity.cmp(&b.identity));
    facts
}

fn service_ports(s: &Service, namespace: &str, name: &str, slices: &[&EndpointSlice], node: &str) -> Vec<ServicePort> {
    let Some(spec) = &s.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let all_ips = spec
        .cluster_ips
        .clone()
        .unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
    let Some(cluster_ip) = all_ips.iter().find_map(|ip| ip.parse::<Ipv4Addr>().ok()) else {
        return Vec::new();
    };
    let mut external_ips = addresses(spec.external_ips.as_deref());
    let ingress = s
        .status
        .as_ref()
        .and_then(|st| st.load_balancer.as_ref())
        .and_then(|lb| lb.ingress.as_ref());
    let mut balancer_ips: Vec<Ipv4Addr> = ingress
        .into_iter()
        .flatten()
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_ref()?.parse().ok())
        .collect();
    balancer_ips.sort();
    balancer_ips.dedup();
    let source_ranges = spec.load_balancer_source_ranges.iter().flatten();
    let mut source_ranges: Vec<Ipv4Net> = source_ranges.filter_map(|r| r.trim().parse().ok()).collect();
    source_ranges.sort();
    source_ranges.dedup();
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
        let candidates = candidates(slices, port_name, protocol(Some(proto)), node);
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
            serving: candidates.iter().filter(|c| c.serving).map(|c| c.target).collect(),
        })
    };
    spec.ports.iter().flatten().filter_map(one).collect()
}

/// An endpoint of one port, whatever its state.
struct Candidate {
    target: (Ipv4Addr, u16),
    local: bool,
    /// Whether it is meant for this node; `None`: it doesn't say for which it is.
    hinted: Option<bool>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

fn candidates(slices: &[&EndpointSlice], port_name: &str, proto: u8, node: &str) -> Vec<Candidate> {
    let mut found = Vec::new();
    for slice in slices {
        let named =
            slice.ports.iter().flatten().find(|p| {
                p.name.as_deref().unwrap_or_default() == port_name && protocol(p.protocol.as_deref()) == proto
            });
        let Some(number) = named.and_then(|p| port(p.port?)) else {
            continue;
        };
        let of = |endpoint: &Endpoint| candidate(endpoint, number, node);
        found.extend(slice.endpoints.iter().flatten().filter_map(of));
    }
    found
}

/// The API promises that all addresses of an endpoint are one place: the first stands for it.
fn candidate(endpoint: &Endpoint, port: u16, node: &str) -> Option<Candidate> {
    let ip: Ipv4Addr = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.as_ref();
    let nodes = endpoint.hints.as_ref().and_then(|h| h.for_nodes.as_ref());
    Some(Candidate {
        target: (ip, port),
        hinted: nodes
            .filter(|n| !n.is_empty())
            .map(|n| n.iter().any(|n| n.name == node)),
        local: endpoint.node_name.as_deref() == Some(node),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    })
}

/// Only what is meant for this node, if all ready endpoints say for which nodes they are, and one is for this; else all.
fn near(all: &[Candidate]) -> impl Fn(&&Candidate) -> bool + Clone + use<> {
    let mut ready = all.iter().filter(|c| c.ready);
    let prefer = ready.clone().all(|c| c.hinted.is_some()) && ready.any(|c| c.hinted == Some(true));
    move |c| !prefer || c.hinted == Some(true)
}

/// Ready endpoints; when there are none, those that still serve while they terminate.
fn usable<'a>(candidates: impl Iterator<Item = &'a Candidate> + Clone) -> BTreeSet<(Ipv4Addr, u16)> {
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
        read(&[Arc::new(service)], &[Arc::new(slice)], "here").remove(0)
    }

    fn at(ip: &str) -> BTreeSet<(Ipv4Addr, u16)> {
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
        assert_eq!(facts.serving, &at("10.244.0.5") | &at("10.244.0.6"));
    }

    #[test]
    fn services_of_others_and_headless_ones_are_left_alone() {
        for label in [PROXY_NAME, HEADLESS] {
            let service = json!({"metadata": {"namespace": "shop", "name": "web", "labels": {label: ""}},
                "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 53}]}});
            let service: Service = serde_json::from_value(service).unwrap();
            assert!(read(&[Arc::new(service)], &[], "here").is_empty(), "{label}");
        }
    }

    #[test]
    fn source_ranges_are_for_the_load_balancers_addresses() {
        let service = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.1.1", "externalIPs": ["198.51.100.1"], "ports": [{"port": 53}],
                "loadBalancerSourceRanges": [" 203.0.113.0/24", "2001:db8::/32"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let service: Service = serde_json::from_value(service).unwrap();
        let facts = read(&[Arc::new(service)], &[], "here").remove(0);
        assert_eq!(facts.balancer_ips, ["192.0.2.1".parse::<Ipv4Addr>().unwrap()]);
        assert_eq!(facts.source_ranges, ["203.0.113.0/24".parse::<Ipv4Net>().unwrap()]);
        assert_eq!(facts.external_ips.len(), 2);
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
}
