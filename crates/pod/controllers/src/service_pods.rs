//! How services and pods find each other: shared by the two kinds of endpoints.

use crate::pods;
use crate::wire::Queue;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::{ApiObject, Informer, labels, selection};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn address_type(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
    fn has(self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self == Family::V4)
    }
}

pub fn family_of(ip: &str) -> Option<Family> {
    let ip: IpAddr = ip.parse().ok()?;
    Some(if ip.is_ipv4() { Family::V4 } else { Family::V6 })
}

/// Whether the service's endpoints follow from its selector.
pub fn has_selector(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|s| s.selector.is_some() && s.type_.as_deref() != Some("ExternalName"))
}

pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    has_selector(service) && selector.is_some_and(|s| labels::includes(pod.metadata.labels.as_ref(), s))
}

pub fn is_headless(service: &Service) -> bool {
    let ip = service
        .spec
        .as_ref()
        .and_then(|s| s.cluster_ip.as_deref())
        .unwrap_or_default();
    ip.is_empty() || ip == "None"
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false)
}

pub fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|f| match f.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    match spec.cluster_ip.as_deref().and_then(family_of) {
        Some(family) => vec![family],
        None => vec![Family::V4, Family::V6],
    }
}

/// The pod's addresses of a family, in their usual form.
pub fn addresses(pod: &Pod, family: Family) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref());
    }
    let parsed = all.into_iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
    parsed.filter(|ip| family.has(ip)).map(|ip| ip.to_string()).collect()
}

/// Whether a pod can be an endpoint at all: it has an address and hasn't ended.
pub fn is_candidate(pod: &Pod, include_terminating: bool) -> bool {
    let status = pod.status.as_ref();
    let has_ip = status.is_some_and(|s| {
        s.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty()) || s.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty())
    });
    !pods::is_finished(pod) && has_ip && (include_terminating || !pod.is_deleting())
}

pub fn host_name(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let is_sub = spec.subdomain.as_deref() == Some(service.name()) && pod.namespace() == service.namespace();
    spec.hostname.clone().filter(|h| is_sub && !h.is_empty())
}

/// The number of a service's port on a pod; a name is looked up among the containers that keep running.
pub fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = |p: Option<&String>| {
        p.map_or("TCP", |p| if p.is_empty() { "TCP" } else { p.as_str() })
            .to_string()
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .find_map(|p| {
            let same =
                p.name.as_deref() == Some(name) && protocol(p.protocol.as_ref()) == protocol(port.protocol.as_ref());
            same.then_some(p.container_port)
        })
}

/// The pods a service selects, by name.
pub fn selected(pods: &Informer<Pod>, service: &Service) -> Vec<Arc<Pod>> {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    match selector.filter(|_| has_selector(service)) {
        Some(labels) => pods.store().having(service.namespace(), labels),
        None => Vec::new(),
    }
}

/// Queues the services whose endpoints a pod's change may change.
pub fn watch_pods(pods: &Informer<Pod>, services: &Informer<Service>, queue: &Queue) {
    pods.store().index_labels();
    services
        .store()
        .index_wanted(|s| selection::wanted(s.namespace(), s.spec.as_ref().and_then(|s| s.selector.as_ref())));
    let (services, queue) = (services.clone(), queue.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let before = match change.old() {
            Some(old) if !changes_endpoints(old, pod) => return,
            old => old.filter(|old| old.metadata.labels != pod.metadata.labels),
        };
        let mut keys = BTreeSet::new();
        for pod in [Some(pod), before].into_iter().flatten() {
            let some = services
                .store()
                .selecting(pod.namespace(), pod.metadata.labels.as_ref());
            keys.extend(
                some.iter()
                    .filter(|service| selects(service, pod))
                    .map(|service| service.key()),
            );
        }
        keys.into_iter().for_each(|key| queue.add(key));
    });
}

fn changes_endpoints(old: &Pod, new: &Pod) -> bool {
    let view = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        (
            pod.metadata.labels.clone(),
            pod.is_deleting(),
            pods::is_ready(pod),
            pods::is_finished(pod),
            (addresses(pod, Family::V4), addresses(pod, Family::V6)),
            spec.map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone())),
        )
    };
    view(old) != view(new)
}
