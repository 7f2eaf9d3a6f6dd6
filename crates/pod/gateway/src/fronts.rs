//! Services of type LoadBalancer by which requests come to the nodes, and their endpoints: pure.
//!
//! A service's target ports are the ports on the nodes; they stay what they are for as long as the service has the port. Traffic stays on
//! the node that it comes to, so backends are told whose it is.

use crate::plan::{Front, Owner, Written};
use crate::table::Outer;
use crate::{LABEL, NAMESPACE, PORTS};
use k8s_openapi::api::core::v1::{Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::{ApiObject, ObjectKey};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Whose front a service is: `ingress`, or `gateway` with the annotation of the same name.
const KIND: &str = "keelson.dev/front";
const OF: &str = "keelson.dev/front-of";
/// Asks pools for addresses, with commas between them.
pub const WISHED: &str = "keelson.dev/load-balancer-ips";
/// Remembers which ports it was refused with, with commas between them.
pub const WITHOUT: &str = "keelson.dev/front-without";
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const US: &str = "keelson-ingress";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SLICES_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The keys of labels and annotations that a Gateway's owner put there, with commas between them.
pub const LABELED: &str = "keelson.dev/front-labels";
pub const ANNOTATED: &str = "keelson.dev/front-annotations";
/// What a load balancer says of itself: why there is no address.
const CONDITION: &str = "keelson.dev/LoadBalancer";
/// Its reason where others have ports.
const TAKEN: &str = "Refused";
/// So many of the ports are Ingress's, however many Gateways there are.
const OF_INGRESS: usize = 2;
/// What the API lets stand in one slice.
const MOST: usize = 1000;

/// Of a service, if it is a front.
pub fn read(service: &Service) -> Option<(Owner, Front)> {
    let kind = service.metadata.labels.as_ref()?.get(KIND)?;
    let owner = match kind.as_str() {
        "ingress" => Owner::Ingress,
        _ => {
            let of = service.metadata.annotations.as_ref()?.get(OF)?;
            let (namespace, name) = of.split_once('/')?;
            Owner::Gateway(ObjectKey::new(namespace, name))
        }
    };
    let mut front = Front::default();
    for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
        let target = match port.target_port {
            Some(IntOrString::Int(target)) => u16::try_from(target).ok().filter(|t| PORTS.contains(t)),
            _ => None,
        };
        if let (Ok(number), Some(target)) = (u16::try_from(port.port), target) {
            let udp = port.protocol.as_deref() == Some("UDP");
            front.ports.insert(Outer { number, udp }, target);
        }
    }
    let annotations = service.metadata.annotations.as_ref();
    let wished = annotations.and_then(|a| a.get(WISHED)).map(String::as_str);
    let wished = wished.unwrap_or_default().split(',').filter_map(|ip| ip.parse().ok());
    front.wished = wished.collect();
    let without = annotations.and_then(|a| a.get(WITHOUT)).map(String::as_str);
    front.without = without.unwrap_or_default().split(',').filter_map(outer).collect();
    front.written = written(service);
    let status = service.status.clone().unwrap_or_default();
    front.addresses = status.load_balancer.and_then(|b| b.ingress).unwrap_or_default();
    let said = status.conditions.into_iter().flatten().find(|c| c.type_ == CONDITION);
    let said = said.filter(|c| c.status == "False");
    front.taken = said.as_ref().is_some_and(|c| c.reason == TAKEN);
    front.refused = said.map(|c| c.message);
    Some((owner, front))
}

/// What a Gateway's owner has put on it; what others have is theirs.
fn written(service: &Service) -> Written {
    let labels = service.metadata.labels.clone().unwrap_or_default();
    let annotations = service.metadata.annotations.clone().unwrap_or_default();
    let of = |all: &BTreeMap<String, String>, keys: &str| {
        let keys = annotations.get(keys).map(String::as_str).unwrap_or_default();
        let all = keys
            .split(',')
            .filter_map(|key| Some((key.to_string(), all.get(key)?.clone())));
        all.collect()
    };
    Written {
        labels: of(&labels, LABELED),
        annotations: of(&annotations, ANNOTATED),
    }
}

/// Takes away what was put there before.
pub fn wipe(service: &mut Service) {
    let before = written(service);
    let labels = service.metadata.labels.get_or_insert_default();
    labels.retain(|key, _| !before.labels.contains_key(key));
    let annotations = service.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| !before.annotations.contains_key(key) && ![LABELED, ANNOTATED].contains(&key.as_str()));
}

/// A port as [`WITHOUT`] has it.
fn outer(text: &str) -> Option<Outer> {
    let (number, transport) = text.split_once('/')?;
    Some(Outer {
        number: number.parse().ok()?,
        udp: transport == "UDP",
    })
}

pub fn name(owner: &Owner) -> String {
    match owner {
        Owner::Ingress => "ingress".into(),
        Owner::Gateway(key) => format!("gateway-{}", &hash(key)[..16]),
    }
}

/// A name for what belongs to an object of another namespace.
pub fn hash(key: &ObjectKey) -> String {
    hex::encode(Sha256::digest(key.to_string()))
}

/// What fronts have to have while Gateways aren't known, or aren't all: those that are there stay as they are.
pub fn with_unknown_gateways(
    wanted: &BTreeMap<Owner, BTreeSet<Outer>>,
    now: &BTreeMap<Owner, Front>,
) -> BTreeMap<Owner, BTreeSet<Outer>> {
    let mut all = wanted.clone();
    for (owner, front) in now.iter().filter(|(owner, _)| **owner != Owner::Ingress) {
        all.insert(owner.clone(), front.ports.keys().copied().collect());
    }
    all
}

/// Gives each front the ports that it needs. One that gets none of its ports isn't there: all are given away.
pub fn assign(
    wanted: &BTreeMap<Owner, BTreeSet<Outer>>,
    now: &BTreeMap<Owner, Front>,
) -> BTreeMap<Owner, BTreeMap<Outer, u16>> {
    let mut all: BTreeMap<Owner, BTreeMap<Outer, u16>> = BTreeMap::new();
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    let may_have = |owner: &Owner| PORTS.skip(if *owner == Owner::Ingress { 0 } else { OF_INGRESS });
    let kept = |owner: &Owner, port: &Outer| {
        let at = now.get(owner).and_then(|f| f.ports.get(port)).copied();
        at.filter(|at| may_have(owner).any(|p| p == *at))
    };
    for (owner, ports) in wanted {
        let kept = ports.iter().filter_map(|p| Some((*p, kept(owner, p)?)));
        let kept: BTreeMap<Outer, u16> = kept.filter(|(_, at)| taken.insert(*at)).collect();
        all.insert(owner.clone(), kept);
    }
    for (owner, ports) in wanted {
        let given = all.entry(owner.clone()).or_default();
        for port in ports {
            if given.contains_key(port) {
                continue;
            }
            let Some(free) = may_have(owner).find(|p| !taken.contains(p)) else {
                break;
            };
            taken.insert(free);
            given.insert(*port, free);
        }
    }
    all.retain(|_, ports| !ports.is_empty());
    all
}

/// Ours count where both have a key.
fn with(others: &BTreeMap<String, String>, ours: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = others.clone();
    all.extend(ours);
    all
}

fn labels(owner: &Owner) -> BTreeMap<String, String> {
    let kind = match owner {
        Owner::Ingress => "ingress",
        Owner::Gateway(_) => "gateway",
    };
    [(KIND, kind), (MANAGED_BY, US)]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .into()
}

fn port_name(port: Outer) -> String {
    match (port.number, port.udp) {
        (80, false) => "http".into(),
        (443, false) => "https".into(),
        (other, false) => format!("port-{other}"),
        (other, true) => format!("udp-{other}"),
    }
}

pub fn service(
    owner: &Owner,
    ports: &BTreeMap<Outer, u16>,
    wished: &[IpAddr],
    without: &BTreeSet<Outer>,
    written: &Written,
) -> Service {
    let port = |(port, at): (&Outer, &u16)| ServicePort {
        name: Some(port_name(*port)),
        protocol: Some(port.transport().into()),
        port: i32::from(port.number),
        target_port: Some(IntOrString::Int(i32::from(*at))),
        ..ServicePort::default()
    };
    let mut annotations = written.annotations.clone();
    for (key, all) in [(LABELED, &written.labels), (ANNOTATED, &written.annotations)] {
        let keys: Vec<&str> = all.keys().map(String::as_str).collect();
        if !keys.is_empty() {
            annotations.insert(key.to_string(), keys.join(","));
        }
    }
    if let Owner::Gateway(key) = owner {
        annotations.insert(OF.to_string(), key.to_string());
    }
    if !wished.is_empty() {
        let all: Vec<String> = wished.iter().map(IpAddr::to_string).collect();
        annotations.insert(WISHED.to_string(), all.join(","));
    }
    if !without.is_empty() {
        let all = without.iter().map(|p| format!("{}/{}", p.number, p.transport()));
        annotations.insert(WITHOUT.to_string(), all.collect::<Vec<_>>().join(","));
    }
    Service {
        metadata: ObjectMeta {
            name: Some(name(owner)),
            namespace: Some(NAMESPACE.into()),
            labels: Some(with(&written.labels, labels(owner))),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("LoadBalancer".into()),
            allocate_load_balancer_node_ports: Some(false),
            external_traffic_policy: Some("Local".into()),
            ip_family_policy: Some("PreferDualStack".into()),
            ports: Some(ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The nodes that serve, as endpoints of a front: a slice a family.
pub fn slices(
    owner: &Owner,
    ports: &BTreeMap<Outer, u16>,
    nodes: &[Arc<Node>],
    written: &Written,
) -> Vec<EndpointSlice> {
    let mut labels = with(&written.labels, labels(owner));
    labels.insert(SERVICE_NAME.into(), name(owner));
    labels.insert(SLICES_BY.into(), US.into());
    let port = |(port, at): (&Outer, &u16)| EndpointPort {
        name: Some(port_name(*port)),
        protocol: Some(port.transport().into()),
        port: Some(i32::from(*at)),
        ..EndpointPort::default()
    };
    let of = |v6: bool| {
        let mut endpoints: Vec<Endpoint> = nodes.iter().filter_map(|n| endpoint(n, v6)).collect();
        endpoints.truncate(MOST);
        EndpointSlice {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", name(owner), if v6 { "ipv6" } else { "ipv4" })),
                namespace: Some(NAMESPACE.into()),
                labels: Some(labels.clone()),
                annotations: (!written.annotations.is_empty()).then(|| written.annotations.clone()),
                ..ObjectMeta::default()
            },
            address_type: if v6 { "IPv6" } else { "IPv4" }.into(),
            endpoints: Some(endpoints),
            ports: Some(ports.iter().map(port).collect()),
        }
    };
    let all = [of(false), of(true)];
    all.into_iter()
        .filter(|s| s.endpoints.as_ref().is_some_and(|e| !e.is_empty()))
        .collect()
}

fn endpoint(node: &Node, v6: bool) -> Option<Endpoint> {
    let serves = node.metadata.labels.as_ref()?.get(LABEL).is_some_and(|v| v == "true");
    let status = node.status.as_ref().filter(|_| serves)?;
    let internal = status.addresses.iter().flatten().filter(|a| a.type_ == "InternalIP");
    let mut ips = internal.filter_map(|a| a.address.parse::<IpAddr>().ok());
    // What a node says of itself counts only if it can be so.
    let ip = ips.find(|ip| ip.is_ipv6() == v6 && crate::plan::is_elsewhere(*ip))?;
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    Some(Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready && !node.is_deleting()),
            ..EndpointConditions::default()
        }),
        node_name: Some(node.name().into()),
        ..Endpoint::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(all: &[(u16, u16)]) -> BTreeMap<Outer, u16> {
        all.iter().map(|(port, at)| (Outer::from(*port), *at)).collect()
    }

    fn gateway(name: &str) -> Owner {
        Owner::Gateway(ObjectKey::new("shop", name))
    }

    #[test]
    fn ports_on_nodes_stay_and_none_is_given_twice() {
        let ports = |p: &[u16]| p.iter().map(|p| Outer::from(*p)).collect::<BTreeSet<Outer>>();
        let wanted = BTreeMap::from([(Owner::Ingress, ports(&[80, 443])), (gateway("a"), ports(&[80, 81]))]);
        let first = assign(&wanted, &BTreeMap::new());
        assert_eq!(first[&Owner::Ingress], given(&[(80, 7680), (443, 7681)]));
        assert_eq!(first[&gateway("a")], given(&[(80, 7682), (81, 7683)]));
        let front = |ports: &BTreeMap<Outer, u16>| Front {
            ports: ports.clone(),
            ..Front::default()
        };
        let now = first.iter().map(|(o, p)| (o.clone(), front(p))).collect();
        let wanted = BTreeMap::from([(gateway("a"), ports(&[81, 82])), (gateway("b"), ports(&[80]))]);
        let then = assign(&wanted, &now);
        assert_eq!(then[&gateway("a")], given(&[(81, 7683), (82, 7682)]));
        assert_eq!(then[&gateway("b")], given(&[(80, 7684)]));
        let mut many: BTreeMap<_, _> = (0..300).map(|i| (gateway(&i.to_string()), ports(&[80]))).collect();
        let all = assign(&many, &BTreeMap::new());
        assert_eq!(all.len(), PORTS.count() - 2);
        // Who comes last has its own all the same.
        let now = all.iter().map(|(o, p)| (o.clone(), front(p))).collect();
        many.insert(Owner::Ingress, ports(&[80, 443]));
        assert_eq!(assign(&many, &now)[&Owner::Ingress], first[&Owner::Ingress]);
    }

    #[test]
    fn fronts_of_gateways_that_are_not_known_stay() {
        let front = |ports: &[(u16, u16)]| Front {
            ports: given(ports),
            ..Front::default()
        };
        let now = BTreeMap::from([
            (Owner::Ingress, front(&[(80, 7680), (443, 7681)])),
            (gateway("a"), front(&[(8080, 7690)])),
        ]);
        let wanted = |p: &[u16]| BTreeMap::from([(Owner::Ingress, p.iter().map(|p| Outer::from(*p)).collect())]);
        let all = assign(&with_unknown_gateways(&wanted(&[80, 443]), &now), &now);
        assert_eq!(all[&Owner::Ingress], now[&Owner::Ingress].ports);
        assert_eq!(all[&gateway("a")], now[&gateway("a")].ports);
        // What is known to be wanted no more goes.
        let none = with_unknown_gateways(&BTreeMap::new(), &now);
        assert_eq!(none.keys().collect::<Vec<_>>(), [&gateway("a")]);
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for owner in [Owner::Ingress, gateway("a")] {
            let mut ports = given(&[(80, 7680), (8443, 7690)]);
            ports.insert(Outer { number: 80, udp: true }, 7691);
            let wished = vec![
                IpAddr::from([192, 0, 2, 1]),
                IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            ];
            let without: BTreeSet<Outer> = [6443u16.into(), Outer { number: 53, udp: true }].into();
            let pair = |k: &str| [(k.to_string(), "1".to_string())].into();
            let written = Written {
                labels: pair("team"),
                annotations: pair("example.org/x"),
            };
            let (read, front) = read(&service(&owner, &ports, &wished, &without, &written)).unwrap();
            assert_eq!(
                (read, front.ports, front.wished, front.without, front.written),
                (owner, ports, wished, without, written)
            );
        }
        let mut strange = service(
            &Owner::Ingress,
            &given(&[(80, 22)]),
            &[],
            &BTreeSet::new(),
            &Written::default(),
        );
        assert!(
            read(&strange).unwrap().1.ports.is_empty(),
            "only ports that are the gateway's are opened"
        );
        strange.metadata.labels = None;
        assert!(read(&strange).is_none());
    }

    #[test]
    fn what_a_gateway_has_written_goes_with_it_and_what_others_have_stays() {
        let all = |keys: &[&str]| keys.iter().map(|k| (k.to_string(), "1".to_string())).collect();
        let written = Written {
            labels: all(&["team", KIND]),
            annotations: all(&["example.org/x", "example.org/y"]),
        };
        let ports = given(&[(80, 7690)]);
        let mut service = service(&gateway("a"), &ports, &[], &BTreeSet::new(), &written);
        assert_eq!(
            service.metadata.labels.as_ref().unwrap()[KIND],
            "gateway",
            "what it is, we say"
        );
        service
            .metadata
            .labels
            .as_mut()
            .unwrap()
            .insert("other".into(), "1".into());
        service
            .metadata
            .annotations
            .as_mut()
            .unwrap()
            .insert("other".into(), "1".into());
        assert_eq!(read(&service).unwrap().1.written.annotations, written.annotations);
        wipe(&mut service);
        let labels: Vec<_> = service.metadata.labels.unwrap().into_keys().collect();
        let annotations: Vec<_> = service.metadata.annotations.unwrap().into_keys().collect();
        assert_eq!(
            (labels, annotations),
            (vec![MANAGED_BY.into(), "other".into()], vec![OF.into(), "other".into()])
        );
    }

    #[test]
    fn nodes_that_serve_are_endpoints_ready_as_they_are() {
        let node = |name: &str, label: &str, ready: &str| {
            let node = serde_json::json!({"metadata": {"name": name, "labels": {LABEL: label}}, "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"}],
                "conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(serde_json::from_value::<Node>(node).unwrap())
        };
        let nodes = [
            node("n1", "true", "True"),
            node("n2", "none", "True"),
            node("n3", "true", "Unknown"),
        ];
        let written = Written {
            labels: [("team".to_string(), "blue".to_string())].into(),
            ..Written::default()
        };
        let slices = slices(&Owner::Ingress, &given(&[(80, 7680)]), &nodes, &written);
        assert!(
            slices
                .iter()
                .all(|s| s.metadata.labels.as_ref().unwrap()["team"] == "blue")
        );
        assert_eq!(
            slices.iter().map(|s| s.name()).collect::<Vec<_>>(),
            ["ingress-ipv4", "ingress-ipv6"]
        );
        let told: Vec<_> = slices[0]
            .endpoints
            .iter()
            .flatten()
            .map(|e| (e.node_name.clone().unwrap(), e.conditions.as_ref().unwrap().ready))
            .collect();
        assert_eq!(told, [("n1".to_string(), Some(true)), ("n3".to_string(), Some(false))]);
    }
}
