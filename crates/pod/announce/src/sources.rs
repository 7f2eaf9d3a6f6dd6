//! What the API has, as facts. The other nodes, services and their endpoints are followed only while some pool's addresses are announced, passwords
//! only while a peer has one.

use crate::plan::{Address, Facts, Node};
use crate::routing::{Routed, Routing};
use crate::shown;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_balancing::peer::{PASSWORDS, PASSWORDS_NAMESPACE, SESSIONS};
use keelson_balancing::{
    Advertisement, Announce, BgpPeer, LoadBalancerIpPool, Pool, Pools, Range, ingress, is_local, is_ours, may_answer,
    nodes_with_endpoints,
};
use keelson_bgp::Password;
use keelson_client::{ApiObject, Informer, InformerOptions, Rest};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "of-service";
/// Services of ours that have an address: one value, the empty one.
const BALANCED: &str = "balanced";
/// Facts are made anew at most so often: what changes meanwhile is in the next ones.
const PACE: Duration = Duration::from_millis(50);

pub struct Sources {
    rest: Rest,
    stop: CancellationToken,
    /// The ranges of pods.
    pods: Vec<Range>,
    pools: Informer<LoadBalancerIpPool>,
    peers: Informer<BgpPeer>,
    /// While a peer has one.
    passwords: Option<Informer<core::Secret>>,
    /// This node's Node.
    own: Informer<core::Node>,
    balanced: Option<Balanced>,
    changed: Arc<Notify>,
}

/// What is followed for pools.
struct Balanced {
    nodes: Informer<core::Node>,
    services: Informer<core::Service>,
    slices: Informer<EndpointSlice>,
}

/// A node's status is mostly images, and a copy of it stands on every node.
fn strip_node(node: &mut core::Node) {
    strip_own(node);
    if let Some(annotations) = &mut node.metadata.annotations {
        annotations.retain(|name, _| name == shown::ANNOTATION);
    }
}

fn strip_own(node: &mut core::Node) {
    node.metadata.managed_fields = None;
    if let Some(annotations) = &mut node.metadata.annotations {
        annotations.retain(|name, _| [shown::ANNOTATION, SESSIONS].contains(&name.as_str()));
    }
    if let Some(status) = &mut node.status {
        let (addresses, conditions) = (status.addresses.take(), status.conditions.take());
        let ready = conditions.map(|all| all.into_iter().filter(|c| c.type_ == "Ready").map(undated).collect());
        *status = core::NodeStatus {
            addresses,
            conditions: ready,
            ..core::NodeStatus::default()
        };
    }
}

/// A kubelet that says that it is there says nothing new.
fn undated(condition: core::NodeCondition) -> core::NodeCondition {
    core::NodeCondition {
        last_heartbeat_time: None,
        ..condition
    }
}

/// What a peer's status says comes from these nodes, and is long where there are many.
fn strip_peer(peer: &mut BgpPeer) {
    (peer.metadata.managed_fields, peer.status) = (None, None);
}

fn strip_service(service: &mut core::Service) {
    let meta = &mut service.metadata;
    (meta.managed_fields, meta.annotations, meta.labels) = (None, None, None);
}

fn strip_slice(slice: &mut EndpointSlice) {
    slice.metadata.managed_fields = None;
    slice.metadata.annotations = None;
    slice.ports = None;
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.addresses.clear();
        (endpoint.hints, endpoint.target_ref, endpoint.zone) = (None, None, None);
    }
}

fn stripped<K: keelson_client::Kind>(transform: fn(&mut K)) -> InformerOptions<K> {
    InformerOptions {
        transform,
        ..InformerOptions::default()
    }
}

/// Facts are made anew when something changes that counts, or counted.
fn follow<K: keelson_client::Kind>(
    rest: &Rest,
    options: InformerOptions<K>,
    stop: &CancellationToken,
    changed: &Arc<Notify>,
    counts: impl Fn(&K) -> bool + Send + 'static,
) -> Informer<K> {
    let informer = Informer::start(rest, options, stop);
    let changed = changed.clone();
    informer.on_change(move |change| {
        if counts(change.object()) || change.old().is_some_and(|old| counts(old)) {
            changed.notify_one();
        }
    });
    informer
}

fn is_balanced(service: &core::Service) -> bool {
    is_ours(service) && ingress(service).next().is_some()
}

fn service_of(slice: &EndpointSlice) -> Option<&str> {
    let labels = slice.metadata.labels.as_ref()?;
    labels.get(SERVICE_NAME).map(String::as_str)
}

impl Sources {
    /// Of the node `name`.
    pub fn start(rest: &Rest, name: &str, pods: Vec<Range>, stop: &CancellationToken) -> Sources {
        let changed = Arc::new(Notify::new());
        let own = InformerOptions {
            fields: format!("metadata.name={name}"),
            ..stripped(strip_own)
        };
        let differs = |a: &BgpPeer, b: &BgpPeer| a.spec != b.spec;
        let peers = Informer::start(rest, stripped(strip_peer), stop);
        let tell = changed.clone();
        peers.on_change(move |change: &keelson_client::Change<BgpPeer>| {
            if change.is_deleted() || change.old().is_none_or(|old| differs(old, change.object())) {
                tell.notify_one();
            }
        });
        Sources {
            peers,
            passwords: None,
            pods,
            pools: follow(rest, InformerOptions::default(), stop, &changed, |_| true),
            own: follow(rest, own, stop, &changed, |_| true),
            balanced: None,
            rest: rest.clone(),
            stop: stop.clone(),
            changed,
        }
    }

    /// The facts, when all that they are made of has been read, and then whenever something has changed.
    pub async fn next(&mut self) -> (Facts, Routing) {
        self.changed.notified().await;
        tokio::time::sleep(PACE).await;
        self.pools.synced().await;
        self.own.synced().await;
        let pools = Pools::read(&self.pools.store().list(), &self.pods);
        let by = |protocol: &str| pools.iter().any(|pool| pool.announce.protocol == protocol);
        let announced = by(Announce::LAYER2);
        match (announced || by(Announce::BGP), &self.balanced) {
            (true, None) => self.balanced = Some(self.follow_services()),
            (false, Some(_)) => self.balanced = None,
            _ => {}
        }
        let mut facts = Facts {
            announced,
            ..Facts::default()
        };
        let mut routing = self.routing().await;
        let mut nodes = &self.own;
        if let Some(balanced) = &self.balanced {
            nodes = &balanced.nodes;
            nodes.synced().await;
            balanced.services.synced().await;
            balanced.slices.synced().await;
            facts.addresses = balanced.addresses(&pools, Announce::LAYER2, |_, _, address| address);
            routing.addresses = balanced.addresses(&pools, Announce::BGP, routed);
        }
        for node in nodes.store().list() {
            facts.nodes.insert(node.name().to_string(), node_facts(&node));
        }
        (facts, routing)
    }

    /// Peers and their passwords. A server of an earlier version may know no peers: then there are none.
    async fn routing(&mut self) -> Routing {
        let read = self.peers.is_synced();
        let mut peers = self.peers.store().list();
        peers.sort_by_key(|peer| {
            let created = peer.metadata.creation_timestamp.as_ref().map(|at| at.0);
            (created, peer.name().to_string())
        });
        let signed = peers.iter().any(|peer| peer.spec.password_key.is_some());
        match (signed, &self.passwords) {
            (true, None) => self.passwords = Some(self.follow_passwords()),
            (false, Some(_)) => self.passwords = None,
            _ => {}
        }
        let mut passwords = BTreeMap::new();
        if let Some(secrets) = &self.passwords {
            secrets.synced().await;
            for secret in secrets.store().list() {
                let keys = secret.data.iter().flatten();
                passwords.extend(keys.filter_map(|(key, value)| Some((key.clone(), Password::new(&value.0)?))));
            }
        }
        let own = self.own.store().list();
        let shown = own
            .first()
            .and_then(|node| node.metadata.annotations.as_ref()?.get(SESSIONS));
        Routing {
            peers: peers
                .iter()
                .map(|peer| (peer.name().to_string(), peer.spec.clone()))
                .collect(),
            passwords,
            addresses: BTreeMap::new(),
            shown: read.then(|| shown.cloned()),
        }
    }

    fn follow_passwords(&self) -> Informer<core::Secret> {
        let options = InformerOptions {
            namespace: PASSWORDS_NAMESPACE.into(),
            fields: format!("metadata.name={PASSWORDS}"),
            ..InformerOptions::default()
        };
        follow(&self.rest, options, &self.stop, &self.changed, |_| true)
    }

    fn follow_services(&self) -> Balanced {
        let (rest, stop, changed) = (&self.rest, &self.stop, &self.changed);
        let services: Informer<core::Service> = follow(rest, stripped(strip_service), stop, changed, is_balanced);
        // Where endpoints are counts where traffic stays. Of a service that isn't known yet all are looked at when it comes.
        let known = services.clone();
        let counts = move |slice: &EndpointSlice| {
            let service = service_of(slice).and_then(|name| known.store().get(slice.namespace(), name));
            service.is_some_and(|service| is_balanced(&service) && is_local(&service))
        };
        let slices: Informer<EndpointSlice> = follow(rest, stripped(strip_slice), stop, changed, counts);
        services
            .store()
            .add_index(BALANCED, |s| is_balanced(s).then(String::new).into_iter().collect());
        slices.store().add_index(BY_SERVICE, |slice| {
            let key = service_of(slice).map(|name| format!("{}/{name}", slice.namespace()));
            key.into_iter().collect()
        });
        Balanced {
            nodes: follow(rest, stripped(strip_node), stop, changed, |_| true),
            services,
            slices,
        }
    }
}

fn node_facts(node: &core::Node) -> Node {
    let addresses = || node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let internal = addresses().filter(|a| a.type_ == "InternalIP");
    let annotation = node
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(shown::ANNOTATION));
    Node {
        may_answer: may_answer(node),
        cordoned: node
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or_default(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        addresses: internal.filter_map(|a| a.address.parse().ok()).collect(),
        own: addresses().filter_map(|a| a.address.parse().ok()).collect(),
        shown: annotation.and_then(|text| shown::read(text)),
    }
}

/// As what peers are told of an address.
fn routed(ip: IpAddr, pool: &Pool, address: Address) -> Routed {
    let usual = [Advertisement::default()];
    let advertisements: &[Advertisement] = match pool.announce.advertisements.as_slice() {
        [] => &usual,
        some => some,
    };
    let advertised = advertisements.iter().map(|a| (pool.prefix(ip, a), a.clone()));
    Routed {
        advertised: advertised.collect(),
        address,
    }
}

impl Balanced {
    /// Those that are announced by this protocol, made into what it needs.
    fn addresses<T>(
        &self,
        pools: &Pools,
        protocol: &str,
        make: impl Fn(IpAddr, &Pool, Address) -> T,
    ) -> BTreeMap<IpAddr, T> {
        let mut all: BTreeMap<IpAddr, Address> = BTreeMap::new();
        for service in self.services.store().by_index(BALANCED, "") {
            let only = is_local(&service).then(|| self.nodes_with_endpoints(&service));
            for ip in ingress(&service).filter_map(|i| i.ip.as_deref()?.parse().ok()) {
                let Some(pool) = pools.of(ip).filter(|p| p.announce.protocol == protocol) else {
                    continue;
                };
                let new = Address {
                    announce: pool.announce.clone(),
                    only: only.clone(),
                };
                match all.get_mut(&ip) {
                    Some(there) => there.only = shared(there.only.take(), new.only),
                    None => drop(all.insert(ip, new)),
                }
            }
        }
        let made = all.into_iter();
        made.filter_map(|(ip, address)| Some((ip, make(ip, pools.of(ip)?, address))))
            .collect()
    }

    fn nodes_with_endpoints(&self, service: &core::Service) -> BTreeSet<String> {
        let key = format!("{}/{}", service.namespace(), service.name());
        nodes_with_endpoints(&self.slices.store().by_index(BY_SERVICE, &key))
    }
}

/// For two services of one address: nodes that have endpoints of both, else of either.
fn shared(a: Option<BTreeSet<String>>, b: Option<BTreeSet<String>>) -> Option<BTreeSet<String>> {
    match (a, b) {
        (Some(a), Some(b)) => {
            let both: BTreeSet<String> = a.intersection(&b).cloned().collect();
            Some(if both.is_empty() {
                a.union(&b).cloned().collect()
            } else {
                both
            })
        }
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_what_counts_of_it() {
        let mut node: core::Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"a": "b"}, "annotations": {"x": "y", shown::ANNOTATION: "?"}},
            "status": {"images": [{"names": ["i"]}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "203.0.113.1"}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
                    {"type": "DiskPressure", "status": "False"}]}}))
        .unwrap();
        strip_node(&mut node);
        assert!(node.status.as_ref().unwrap().images.is_none());
        let facts = node_facts(&node);
        assert!(facts.may_answer && facts.shown.is_none());
        assert_eq!(facts.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            facts.own,
            ["10.0.0.1", "203.0.113.1"]
                .map(|ip| ip.parse::<IpAddr>().unwrap())
                .into()
        );
        assert_eq!(facts.labels["a"], "b");
    }

    #[test]
    fn an_address_of_two_services_is_where_both_are() {
        let set = |names: &[&str]| Some(names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>());
        assert_eq!(shared(set(&["a", "b"]), set(&["b", "c"])), set(&["b"]));
        assert_eq!(shared(set(&["a"]), set(&["c"])), set(&["a", "c"]));
        assert_eq!(shared(set(&["a"]), None), set(&["a"]));
        assert_eq!(shared(None, None), None);
    }
}
