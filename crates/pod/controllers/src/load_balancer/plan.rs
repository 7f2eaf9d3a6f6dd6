//! Which addresses a service gets: pure.

use super::ports::{Port, Takers};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, PortStatus, Service};
use keelson_balancing::{ingress, takes_part};
use keelson_client::ApiObject;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// So many nodes are named in a refusal.
const NAMED: usize = 3;

/// Where a service could be reached.
pub struct Places {
    pub nodes: Vec<Arc<Node>>,
    /// The nodes that have an endpoint, for a service whose traffic stays local.
    pub with_endpoints: Option<BTreeSet<String>>,
}

/// What becomes of a service.
#[derive(Debug, Default, PartialEq)]
pub struct Decision {
    pub ingress: Vec<LoadBalancerIngress>,
    /// Why not at all, or not on some nodes.
    pub refused: Vec<String>,
}

/// All about a node that matters here. Unequal: services are to be looked at again.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    usable: bool,
    external: Vec<IpAddr>,
    internal: Vec<IpAddr>,
    pub kubelet: Option<Port>,
}

impl Place {
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        self.external.into_iter().chain(self.internal)
    }
}

pub fn place(node: &Node) -> Place {
    let of_kind = |kind: &str| {
        let all = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let of_kind = all.filter(|a| a.type_ == kind);
        of_kind.filter_map(|a| a.address.parse().ok()).collect()
    };
    let endpoints = node.status.as_ref().and_then(|s| s.daemon_endpoints.as_ref());
    let kubelet = endpoints.and_then(|e| e.kubelet_endpoint.as_ref());
    Place {
        usable: takes_part(node),
        external: of_kind("ExternalIP"),
        internal: of_kind("InternalIP"),
        kubelet: kubelet.map(|k| Port::new("TCP", k.port)),
    }
}

/// The service's own ports.
pub fn ports(service: &Service) -> Vec<Port> {
    let all = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let mut ports: Vec<Port> = all
        .map(|p| Port::new(p.protocol.as_deref().unwrap_or("TCP"), p.port))
        .collect();
    ports.sort();
    ports
}

/// The addresses that it has, from here or elsewhere.
pub fn held_addresses(service: &Service) -> BTreeSet<&str> {
    ingress(service).filter_map(|i| i.ip.as_deref()).collect()
}

/// The nodes' outer addresses if any has one, as these are what is reached from outside; else their inner ones.
pub fn decide(service: &Service, wanted: &[Port], places: &Places, takers: &Takers) -> Decision {
    let mut decision = Decision::default();
    decision
        .refused
        .extend(wanted.iter().filter_map(|port| takers.everywhere(port)));
    if !decision.refused.is_empty() {
        return decision;
    }
    let families = service.spec.iter().flat_map(|s| s.ip_families.iter().flatten());
    let families: BTreeSet<&str> = families.map(String::as_str).collect();
    let of_service = |ip: &&IpAddr| {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        families.is_empty() || families.contains(family)
    };
    let all: Vec<(&str, Place)> = places.nodes.iter().map(|n| (n.name(), place(n))).collect();
    let usable = || all.iter().filter(|(_, p)| p.usable);
    let outside = usable().any(|(_, p)| !p.external.is_empty());
    let asked = service.spec.as_ref().and_then(|s| s.load_balancer_ip.as_deref());
    let asked = asked.filter(|ip| !ip.is_empty());
    let mut found: BTreeSet<IpAddr> = BTreeSet::new();
    let mut known = false;
    let mut refusals: Vec<String> = Vec::new();
    for (node, place) in usable() {
        let addresses = if outside { &place.external } else { &place.internal };
        let addresses: Vec<IpAddr> = addresses.iter().filter(of_service).copied().collect();
        let asked_for = |ip: &&IpAddr| asked.is_none_or(|asked| asked.parse() == Ok(**ip));
        known |= addresses.iter().any(|ip| asked_for(&ip));
        if places.with_endpoints.as_ref().is_some_and(|with| !with.contains(*node)) {
            continue;
        }
        for ip in addresses.iter().filter(asked_for) {
            let taken = wanted.iter().find_map(|port| takers.at(node, place, ip, port));
            match taken {
                None => drop(found.insert(*ip)),
                Some(why) => refusals.push(why),
            }
        }
    }
    if let Some(asked) = asked.filter(|_| !known) {
        refusals = vec![format!("{asked} is the address of no available node")];
    }
    let more = refusals.len().saturating_sub(NAMED);
    refusals.truncate(NAMED);
    if more > 0 {
        refusals.push(format!("and {more} more"));
    }
    decision.refused = refusals;
    decision.ingress = found.into_iter().map(|ip| entry(ip, wanted)).collect();
    decision
}

/// Packets come to the node as they were sent: the address is the service's, and each node's proxy may answer for it.
pub fn entry(ip: IpAddr, ports: &[Port]) -> LoadBalancerIngress {
    let port = |p: &Port| PortStatus {
        port: p.number,
        protocol: p.protocol.clone(),
        error: None,
    };
    LoadBalancerIngress {
        ip: Some(ip.to_string()),
        ip_mode: Some("VIP".into()),
        ports: Some(ports.iter().map(port).collect()),
        hostname: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ports::Takers;
    use super::*;
    use serde_json::{Value, json};

    const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
    const GOING: &str = "ToBeDeletedByClusterAutoscaler";

    fn node(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Node> {
        let number = name.trim_start_matches('n');
        let mut node = json!({"metadata": {"name": name, "labels": {}}, "status": {
            "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        }});
        change(&mut node);
        Arc::new(Node::decode(node.to_string().as_bytes()).unwrap())
    }

    fn service(spec: Value) -> Service {
        let mut service = json!({"metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}]}});
        for (key, value) in spec.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        Service::decode(service.to_string().as_bytes()).unwrap()
    }

    fn addresses(spec: Value, nodes: &[Arc<Node>], local: Option<&[&str]>, takers: &Takers) -> (String, String) {
        let service = service(spec);
        let places = Places {
            nodes: nodes.to_vec(),
            with_endpoints: local.map(|l| l.iter().map(|n| n.to_string()).collect()),
        };
        let decision = decide(&service, &ports(&service), &places, takers);
        let ips: Vec<String> = decision.ingress.iter().filter_map(|i| i.ip.clone()).collect();
        (ips.join(" "), decision.refused.join("; "))
    }

    #[test]
    fn every_node_that_may_take_part_gives_its_address() {
        let nodes = [
            node("n1", |_| ()),
            node("n2", |n| n["status"]["conditions"][0]["status"] = json!("Unknown")),
            node("n3", |n| n["metadata"]["labels"][EXCLUDE] = json!("")),
            node("n4", |n| n["metadata"]["labels"][EXCLUDE] = json!("false")),
            node("n5", |n| {
                n["spec"]["taints"] = json!([{"key": GOING, "effect": "NoSchedule"}])
            }),
            node("n6", |n| n["status"]["conditions"] = json!(null)),
            node("n7", |n| n["status"]["conditions"][0]["type"] = json!("DiskPressure")),
        ];
        let got = addresses(json!({}), &nodes, None, &Takers::default());
        assert_eq!(got, ("192.0.2.1 192.0.2.4".into(), String::new()));
        let got = addresses(json!({}), &nodes, Some(&["n4", "n2"]), &Takers::default());
        assert_eq!(got.0, "192.0.2.4", "traffic stays where endpoints are");
        let got = addresses(json!({"ipFamilies": ["IPv6"]}), &nodes, None, &Takers::default());
        assert_eq!(
            got,
            (String::new(), String::new()),
            "no node has an address of the family"
        );
    }

    #[test]
    fn outer_addresses_if_there_are_any() {
        let outer = node("n2", |n| {
            n["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.0.2.2"},
                {"type": "ExternalIP", "address": "203.0.113.2"}])
        });
        let got = addresses(json!({}), &[node("n1", |_| ()), outer], None, &Takers::default());
        assert_eq!(got.0, "203.0.113.2");
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_or_refused() {
        let nodes = [node("n1", |_| ()), node("n2", |_| ())];
        let ask = |ip: &str| addresses(json!({"loadBalancerIP": ip}), &nodes, None, &Takers::default());
        assert_eq!(ask("192.0.2.2").0, "192.0.2.2");
        assert_eq!(
            ask("198.51.100.1"),
            (String::new(), "198.51.100.1 is the address of no available node".into())
        );
        let got = addresses(
            json!({"loadBalancerIP": "192.0.2.2"}),
            &nodes,
            Some(&["n1"]),
            &Takers::default(),
        );
        assert_eq!(
            got,
            (String::new(), String::new()),
            "it is there, and has no endpoint now"
        );
    }

    #[test]
    fn the_kubelets_port_is_the_machines() {
        let spec = json!({"ports": [{"port": 80}, {"port": 10250}]});
        let other = node("n2", |n| {
            n["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] = json!(10350)
        });
        let got = addresses(spec, &[node("n1", |_| ()), other], None, &Takers::default());
        assert_eq!(got.0, "192.0.2.2");
        assert_eq!(got.1, "port 10250/TCP of node n1 is the kubelet's");
    }
}
