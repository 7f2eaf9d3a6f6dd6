//! Who holds which port of the nodes' addresses: other services by their status, node ports, host ports of pods, and this
//! program itself.

use super::plan::Place;
use super::pods;
use crate::wire::Queue;
use k8s_openapi::api::core::v1::{Pod, Service};
use keelson_balancing::{ingress, is_ours};
use keelson_client::{ApiObject, Informer, ObjectKey};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Services that want a port, have it as a node port, and pods that have it as a host port.
const WANTED: &str = "balancer-port";
const NODE: &str = "node-port";
const HOST: &str = "host-port";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub number: i32,
    pub protocol: String,
}

impl Port {
    pub fn new(protocol: &str, number: i32) -> Port {
        Port {
            number,
            protocol: protocol.into(),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// Ports that this program needs on every node, and for what.
pub type Reserved = Vec<(Port, &'static str)>;

pub fn index(services: &Informer<Service>, all_pods: &Informer<Pod>) {
    services.store().add_index(WANTED, |s| texts(wanted(s)));
    services.store().add_index(NODE, |s| texts(node_ports(s)));
    all_pods.store().add_index(HOST, |p| texts(host_ports(p)));
}

fn texts(ports: Vec<Port>) -> Vec<String> {
    ports.iter().map(Port::to_string).collect()
}

fn wanted(service: &Service) -> Vec<Port> {
    if is_ours(service) {
        super::plan::ports(service)
    } else {
        Vec::new()
    }
}

/// The health check's listens on every address too.
fn node_ports(service: &Service) -> Vec<Port> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ports = spec.ports.iter().flatten();
    let mut found: Vec<Port> = ports
        .filter_map(|p| Some(Port::new(p.protocol.as_deref().unwrap_or("TCP"), p.node_port?)))
        .collect();
    found.extend(spec.health_check_node_port.map(|port| Port::new("TCP", port)));
    found.retain(|p| p.number != 0);
    found
}

/// Of a pod that has a node and hasn't ended.
fn host_ports(pod: &Pod) -> Vec<Port> {
    if pods::node(pod).is_none() || pods::is_finished(pod) {
        return Vec::new();
    }
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| Some(Port::new(p.protocol.as_deref().unwrap_or("TCP"), p.host_port?)))
        .filter(|p| p.number != 0)
        .collect()
}

/// What a service holds: by address, the ports.
fn held(service: &Service) -> BTreeSet<(String, Port)> {
    let of = |i: &k8s_openapi::api::core::v1::LoadBalancerIngress| {
        let ip = i.ip.clone().unwrap_or_default();
        let ports = i.ports.iter().flatten();
        let ports: Vec<Port> = ports.map(|p| Port::new(&p.protocol, p.port)).collect();
        ports.into_iter().map(move |port| (ip.clone(), port))
    };
    ingress(service).flat_map(of).collect()
}

/// A change is looked at for its own service, and for those that wait for a port it set free. The one that waits longest
/// comes first.
pub fn watch(services: &Informer<Service>, all_pods: &Informer<Pod>, queue: &Queue) {
    let wake = {
        let (queue, services) = (queue.clone(), services.clone());
        move |freed: &BTreeSet<Port>| {
            let waiting = freed
                .iter()
                .flat_map(|p| services.store().by_index(WANTED, &p.to_string()));
            let waiting: BTreeMap<_, ObjectKey> = waiting.map(|s| ((created(&s), s.key()), s.key())).collect();
            waiting.into_values().for_each(|key| queue.add(key));
        }
    };
    let claims = |service: &Service| -> BTreeSet<(String, Port)> {
        let of_nodes = node_ports(service).into_iter().map(|p| (String::new(), p));
        held(service).into_iter().chain(of_nodes).collect()
    };
    let (own, wake_others) = (queue.clone(), wake.clone());
    services.on_change(move |change| {
        let service = change.object();
        if is_ours(service) || super::condition(service).is_some() {
            own.add(service.key());
        }
        let now = if change.is_deleted() {
            BTreeSet::new()
        } else {
            claims(service)
        };
        let before = change.old().unwrap_or(service);
        let freed: BTreeSet<Port> = claims(before).difference(&now).map(|(_, p)| p.clone()).collect();
        wake_others(&freed);
    });
    all_pods.on_change(move |change| {
        let now = if change.is_deleted() {
            Vec::new()
        } else {
            host_ports(change.object())
        };
        let before = match change.old() {
            Some(old) => host_ports(old),
            None if change.is_deleted() => host_ports(change.object()),
            None => Vec::new(),
        };
        if now != before {
            wake(&now.into_iter().chain(before).collect());
        }
    });
}

fn created(service: &Service) -> Option<jiff::Timestamp> {
    service.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// Who has ports that a service wants.
#[derive(Default)]
pub struct Takers {
    everywhere: BTreeMap<Port, String>,
    addresses: BTreeMap<(IpAddr, Port), String>,
    nodes: BTreeMap<(String, Port), String>,
}

impl Takers {
    /// Why no node can give this port.
    pub fn everywhere(&self, port: &Port) -> Option<String> {
        self.everywhere.get(port).map(|who| format!("port {port} is {who}"))
    }

    /// Why this address of a node can't give it.
    pub fn at(&self, node: &str, place: &Place, ip: &IpAddr, port: &Port) -> Option<String> {
        let of_node = || self.nodes.get(&(node.to_string(), port.clone()));
        let who = self.addresses.get(&(*ip, port.clone())).or_else(of_node);
        let kubelet = (place.kubelet.as_ref() == Some(port)).then(|| "the kubelet's".to_string());
        let who = who.cloned().or(kubelet)?;
        Some(format!("port {port} of node {node} is {who}"))
    }
}

/// What a service already holds can't have been taken from it by a node port or by another service that came later.
pub fn takers(
    service: &Service,
    wanted: &[Port],
    services: &Informer<Service>,
    all_pods: &Informer<Pod>,
    reserved: &Reserved,
) -> Takers {
    let mut takers = Takers::default();
    let own: BTreeSet<Port> = held(service).into_iter().map(|(_, port)| port).collect();
    for port in wanted {
        let text = port.to_string();
        if let Some((_, what)) = reserved.iter().find(|(p, _)| p == port) {
            takers.everywhere.insert(port.clone(), what.to_string());
        }
        let others = services.store().by_index(NODE, &text);
        if let Some(other) = others.iter().find(|s| s.key() != service.key())
            && !own.contains(port)
        {
            let who = format!("the node port of service {}", other.key());
            takers.everywhere.entry(port.clone()).or_insert(who);
        }
        for other in services.store().by_index(WANTED, &text) {
            if other.key() == service.key() {
                continue;
            }
            for (ip, held) in held(&other) {
                if let (Ok(ip), true) = (ip.parse::<IpAddr>(), held == *port) {
                    takers
                        .addresses
                        .insert((ip, held), format!("held by service {}", other.key()));
                }
            }
        }
        for pod in all_pods.store().by_index(HOST, &text) {
            if let Some(node) = pods::node(&pod) {
                let at = (node.to_string(), port.clone());
                takers.nodes.insert(at, format!("a host port of pod {}", pod.key()));
            }
        }
    }
    takers
}
