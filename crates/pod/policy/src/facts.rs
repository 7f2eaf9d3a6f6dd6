//! API objects as the plain facts that rules are made from.

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::labels::{self, Labels};
use keelson_network::LocalPod;
use std::net::IpAddr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

/// The annotation by which a static pod's mirror names the pod it mirrors.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// A pod with addresses of its own. Pods in their node's network are no pods here: they count as their node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    /// `None`: it runs here, but the API hasn't told of it (any more).
    pub labels: Option<Labels>,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<NamedPort>,
    /// It runs on this node, where what it sends and gets is judged.
    pub local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    pub protocol: u8,
    pub name: String,
    pub number: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    pub pods: LabelSelector,
    /// `None`: this direction isn't the policy's matter. Empty: nothing is allowed.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Empty: everybody.
    pub peers: Vec<Peer>,
    /// Empty: every port of every protocol.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    Pods(Scope),
    Block {
        range: IpNet,
        except: Vec<IpNet>,
    },
    /// The addresses of machines.
    Nodes(LabelSelector),
}

/// Which pods of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Scope {
    pub namespaces: Namespaces,
    pub pods: LabelSelector,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Namespaces {
    One(String),
    Selected(LabelSelector),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    Numbers { protocol: u8, first: u16, last: u16 },
    Name { protocol: u8, name: String },
}

impl Scope {
    pub fn all() -> Scope {
        Scope {
            namespaces: Namespaces::Selected(LabelSelector::default()),
            pods: LabelSelector::default(),
        }
    }

    pub fn has_namespace(&self, name: &str, labels: Option<&Labels>) -> bool {
        match &self.namespaces {
            Namespaces::One(own) => own == name,
            // A namespace that isn't known has no labels, and still is one of all.
            Namespaces::Selected(selector) => labels::matches(Some(selector), labels),
        }
    }

    /// Equal for equal scopes, and readable.
    pub fn text(&self) -> String {
        let pods = labels::format(&self.pods);
        match &self.namespaces {
            Namespaces::One(name) => format!("{name}/{pods}"),
            Namespaces::Selected(selector) => format!("[{}]/{pods}", labels::format(selector)),
        }
    }
}

fn protocol(name: Option<&str>) -> u8 {
    match name {
        Some("UDP") => UDP,
        Some("SCTP") => SCTP,
        _ => TCP,
    }
}

pub(crate) fn number(n: i32) -> Option<u16> {
    u16::try_from(n).ok()
}

/// The facts of a policy; `None` only for one without a spec.
pub fn policy(p: &networking::NetworkPolicy) -> Option<Policy> {
    let spec = p.spec.as_ref()?;
    let namespace = p.metadata.namespace.clone().unwrap_or_default();
    let named = |kind: &str| spec.policy_types.iter().flatten().any(|t| t == kind);
    let unsaid = spec.policy_types.as_ref().is_none_or(Vec::is_empty);
    let ingress = named("Ingress") || unsaid;
    let egress = named("Egress") || (unsaid && spec.egress.as_ref().is_some_and(|e| !e.is_empty()));
    let rule = |peers: Option<&[networking::NetworkPolicyPeer]>, ports: Option<&[networking::NetworkPolicyPort]>| {
        let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
        let rule = Rule {
            peers: peers.iter().filter_map(|p| peer(p, &namespace)).collect(),
            ports: ports.iter().filter_map(port).collect(),
        };
        // What can't be read allows nothing: an empty list would allow everything.
        let whole = rule.peers.is_empty() == peers.is_empty() && rule.ports.is_empty() == ports.is_empty();
        whole.then_some(rule)
    };
    let inward = spec.ingress.iter().flatten();
    let outward = spec.egress.iter().flatten();
    Some(Policy {
        name: p.metadata.name.clone().unwrap_or_default(),
        pods: spec.pod_selector.clone().unwrap_or_default(),
        ingress: ingress.then(|| {
            inward
                .filter_map(|r| rule(r.from.as_deref(), r.ports.as_deref()))
                .collect()
        }),
        egress: egress.then(|| {
            outward
                .filter_map(|r| rule(r.to.as_deref(), r.ports.as_deref()))
                .collect()
        }),
        namespace,
    })
}

fn peer(p: &networking::NetworkPolicyPeer, namespace: &str) -> Option<Peer> {
    if let Some(block) = &p.ip_block {
        let except: Option<Vec<IpNet>> = block.except.iter().flatten().map(|e| e.parse().ok()).collect();
        return Some(Peer::Block {
            range: block.cidr.parse().ok()?,
            except: except?,
        });
    }
    let namespaces = match &p.namespace_selector {
        Some(selector) => Namespaces::Selected(selector.clone()),
        None => Namespaces::One(namespace.to_string()),
    };
    if p.pod_selector.is_none() && p.namespace_selector.is_none() {
        return None;
    }
    Some(Peer::Pods(Scope {
        namespaces,
        pods: p.pod_selector.clone().unwrap_or_default(),
    }))
}

fn port(p: &networking::NetworkPolicyPort) -> Option<Port> {
    let protocol = protocol(p.protocol.as_deref());
    Some(match &p.port {
        None => Port::Numbers {
            protocol,
            first: 0,
            last: u16::MAX,
        },
        Some(IntOrString::String(name)) => Port::Name {
            protocol,
            name: name.clone(),
        },
        Some(IntOrString::Int(first)) => {
            let first = number(*first)?;
            let last = p.end_port.map_or(Some(first), number)?;
            (first <= last).then_some(Port::Numbers { protocol, first, last })?
        }
    })
}

/// Drops what no rule depends on, before a pod is kept.
pub fn strip(pod: &mut core::Pod) {
    let meta = &mut pod.metadata;
    meta.managed_fields = None;
    meta.owner_references = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, _| key == CONFIG_HASH);
    }
    if let Some(spec) = pod.spec.take() {
        let container = |c: core::Container| core::Container {
            name: c.name,
            ports: c.ports,
            restart_policy: c.restart_policy,
            ..core::Container::default()
        };
        pod.spec = Some(core::PodSpec {
            containers: spec.containers.into_iter().map(container).collect(),
            init_containers: spec.init_containers.map(|i| i.into_iter().map(container).collect()),
            host_network: spec.host_network,
            node_name: spec.node_name,
            ..core::PodSpec::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(core::PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..core::PodStatus::default()
        });
    }
}

/// Whether this is the sandbox of that object: of the pod itself, or of the static pod that it mirrors.
pub fn is_of(local: &LocalPod, pod: &core::Pod) -> bool {
    let meta = &pod.metadata;
    let mirrored = meta.annotations.as_ref().and_then(|a| a.get(CONFIG_HASH));
    [meta.uid.as_ref(), mirrored].contains(&Some(&local.uid))
}

/// The facts of a pod: `here` are its sandboxes on this node, whose addresses are so before the API says it.
pub fn pod(pod: &core::Pod, here: &[&LocalPod], node: &str, taken: impl Fn(IpAddr) -> bool) -> Option<Pod> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.clone().unwrap_or_default();
    // An address of a pod that has ended may be another's by now.
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || ended {
        return None;
    }
    let on_node = spec.node_name.as_deref() == Some(node);
    let addresses: Vec<IpAddr> = if here.is_empty() {
        let listed = status.pod_ips.unwrap_or_default().into_iter().map(|i| i.ip);
        let mut all: Vec<IpAddr> = listed.chain(status.pod_ip).filter_map(|ip| ip.parse().ok()).collect();
        all.retain(|ip| !taken(*ip));
        all
    } else {
        here.iter().flat_map(|l| l.addresses()).collect()
    };
    let containers = spec.containers.iter();
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = containers.chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let mut pod = Pod {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        labels: Some(pod.metadata.labels.clone().unwrap_or_default()),
        addresses,
        ports: ports
            .filter_map(|p| {
                Some(NamedPort {
                    protocol: protocol(p.protocol.as_deref()),
                    name: p.name.clone()?,
                    number: number(p.container_port)?,
                })
            })
            .collect(),
        local: on_node || !here.is_empty(),
    };
    pod.addresses.sort();
    pod.addresses.dedup();
    Some(pod)
}
