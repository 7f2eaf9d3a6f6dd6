//! The facts of the cluster's domain: which names there are and what they stand for.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A service as DNS sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceFacts {
    ClusterIp { ips: Vec<IpAddr>, ports: Vec<Port> },
    Headless { endpoints: Vec<Endpoint> },
    External { name: String },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: String,
    /// `tcp`, `udp`, `sctp`
    pub protocol: String,
    pub number: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub ip: IpAddr,
    /// The pod's host name, or its address with dashes.
    pub label: String,
    pub ports: Vec<Port>,
}

/// All names of one cluster domain. A service that changes is taken out and put in again; the rest stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Zone {
    /// Lower case, without a trailing dot.
    pub domain: String,
    /// `None`: a service without names of its own, which still makes its namespace known.
    services: BTreeMap<String, BTreeMap<String, Option<ServiceFacts>>>,
    reverse: HashMap<IpAddr, Vec<String>>,
}

impl Zone {
    pub fn build(domain: &str, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Zone {
        let mut zone = Zone::empty(domain);
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            if let Some(name) = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)) {
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                by_service.entry((namespace, name)).or_default().push(slice);
            }
        }
        for service in services {
            let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
            let name = service.metadata.name.as_deref().unwrap_or_default();
            let slices = by_service
                .get(&(namespace, name))
                .map(Vec::as_slice)
                .unwrap_or_default();
            zone.set(namespace, name, Some(service), slices);
        }
        zone
    }

    pub fn empty(domain: &str) -> Zone {
        Zone {
            domain: domain.trim_end_matches('.').to_lowercase(),
            ..Zone::default()
        }
    }

    /// The service as it is now; `None`: gone.
    pub fn set(&mut self, namespace: &str, name: &str, service: Option<&Service>, slices: &[&EndpointSlice]) {
        let here = self.services.entry(namespace.into()).or_default();
        if let Some(Some(old)) = here.remove(name) {
            for (ip, gone) in self.pointers(namespace, name, &old) {
                if let Some(names) = self.reverse.get_mut(&ip) {
                    names.retain(|n| *n != gone);
                    if names.is_empty() {
                        self.reverse.remove(&ip);
                    }
                }
            }
        }
        if let Some(service) = service {
            let facts = facts(service, slices);
            let pointers = facts.as_ref().map(|f| self.pointers(namespace, name, f));
            for (ip, pointer) in pointers.into_iter().flatten() {
                let names = self.reverse.entry(ip).or_default();
                let at = names.partition_point(|n| *n < pointer);
                names.insert(at, pointer);
            }
            self.services
                .entry(namespace.into())
                .or_default()
                .insert(name.into(), facts);
        } else if self.services.get(namespace).is_some_and(BTreeMap::is_empty) {
            self.services.remove(namespace);
        }
    }

    /// What addresses point back to.
    fn pointers(&self, namespace: &str, name: &str, facts: &ServiceFacts) -> Vec<(IpAddr, String)> {
        let base = format!("{name}.{namespace}.svc.{}", self.domain);
        match facts {
            ServiceFacts::ClusterIp { ips, .. } => ips.iter().map(|ip| (*ip, base.clone())).collect(),
            ServiceFacts::Headless { endpoints } => endpoints
                .iter()
                .map(|e| (e.ip, format!("{}.{base}", e.label)))
                .collect(),
            ServiceFacts::External { .. } => Vec::new(),
        }
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceFacts> {
        self.services.get(namespace)?.get(name)?.as_ref()
    }
    /// A namespace that has services.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.services.contains_key(namespace)
    }
    pub fn names_of(&self, ip: IpAddr) -> &[String] {
        self.reverse.get(&ip).map(Vec::as_slice).unwrap_or_default()
    }
}

fn port_number(n: i32) -> Option<u16> {
    u16::try_from(n).ok()
}

fn facts(service: &Service, slices: &[&EndpointSlice]) -> Option<ServiceFacts> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.as_deref()?.trim_end_matches('.').to_string();
        return Some(ServiceFacts::External { name });
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Some(ServiceFacts::Headless {
            endpoints: endpoints(slices),
        });
    }
    let all = spec
        .cluster_ips
        .clone()
        .unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
    let ips: Vec<IpAddr> = all.iter().filter_map(|ip| ip.parse().ok()).collect();
    if ips.is_empty() {
        return None;
    }
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|p| {
            Some(Port {
                name: p.name.clone().unwrap_or_default(),
                protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                number: port_number(p.port)?,
            })
        })
        .collect();
    Some(ServiceFacts::ClusterIp { ips, ports })
}

fn endpoints(slices: &[&EndpointSlice]) -> Vec<Endpoint> {
    let mut merged: BTreeMap<(IpAddr, String), BTreeSet<Port>> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<Port> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                Some(Port {
                    name: p.name.clone().unwrap_or_default(),
                    protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                    number: port_number(p.port?)?,
                })
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            if !endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true) {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let dashed = || ip.to_string().replace(['.', ':'], "-");
                let label = endpoint
                    .hostname
                    .clone()
                    .filter(|h| !h.is_empty())
                    .unwrap_or_else(dashed);
                merged.entry((ip, label)).or_default().extend(ports.iter().cloned());
            }
        }
    }
    merged
        .into_iter()
        .map(|((ip, label), ports)| Endpoint {
            ip,
            label,
            ports: ports.into_iter().collect(),
        })
        .collect()
}
