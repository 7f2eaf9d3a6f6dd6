//! Hints: for which zone or node an endpoint is meant.
//!
//! `trafficDistribution` is a matter of each endpoint alone ([`close`]). The older annotation (`topology-mode: Auto`) shares
//! the endpoints out among zones by the processors that their nodes have ([`Topology`]): an endpoint of a zone that has more
//! than its share is meant for one that has less. Where that would leave a zone overloaded nothing is hinted, and an event
//! says why.

use super::fit::Changes;
use crate::service_pods::Family;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForNode, ForZone};
use keelson_api::Quantity;
use keelson_client::{EventType, ObjectKey};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

const ZONE: &str = "topology.kubernetes.io/zone";
const MODE: &str = "service.kubernetes.io/topology-mode";
const OLD_MODE: &str = "service.kubernetes.io/topology-aware-hints";
/// Nodes that aren't for ordinary pods don't count.
const APART: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];
/// So much more than its share an endpoint may have to bear.
const OVERLOAD: f64 = 0.2;

/// Who decides a service's hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    None,
    SameZone,
    SameNode,
    /// By what zones can bear.
    Auto,
}

pub fn mode(service: &Service) -> Mode {
    let annotation = |name: &str| service.metadata.annotations.as_ref().and_then(|a| a.get(name));
    let auto = annotation(OLD_MODE).or_else(|| annotation(MODE));
    if auto.is_some_and(|text| text == "Auto" || text == "auto") {
        return Mode::Auto;
    }
    match service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Mode::SameZone,
        Some("PreferSameNode") => Mode::SameNode,
        _ => Mode::None,
    }
}

/// The hints of an endpoint that is to serve what is close to it.
pub fn close(mode: Mode, endpoint: &Endpoint) -> Option<EndpointHints> {
    let zone = endpoint
        .zone
        .clone()
        .filter(|_| matches!(mode, Mode::SameZone | Mode::SameNode));
    let node = endpoint.node_name.clone().filter(|_| mode == Mode::SameNode);
    let hints = EndpointHints {
        for_zones: zone.map(|name| vec![ForZone { name }]),
        for_nodes: node.map(|name| vec![ForNode { name }]),
    };
    (is_ready(endpoint) && hints != EndpointHints::default()).then_some(hints)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true)
}

/// How many endpoints each zone has.
type Zones = BTreeMap<String, usize>;

/// An event about a service.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub kind: EventType,
    pub reason: &'static str,
    pub message: String,
}

/// What zones can bear, and who has been given hints by it.
#[derive(Default)]
pub struct Topology {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each zone's part of all processors; within, `None`: nodes don't say enough. Without: nobody asked since they changed.
    parts: Option<Option<BTreeMap<String, f64>>>,
    given: HashMap<ObjectKey, BTreeMap<Family, Zones>>,
    hinted: HashSet<ObjectKey>,
}

/// How many endpoints a zone is to have.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Allocation {
    minimum: usize,
    maximum: usize,
    desired: f64,
}

/// The part of a node that counts: whether it is ready, and its zone.
pub fn place(node: &Node) -> (bool, Option<&String>) {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions
        .into_iter()
        .find(|c| c.type_ == "Ready")
        .is_some_and(|c| c.status == "True");
    (ready, node.metadata.labels.as_ref().and_then(|l| l.get(ZONE)))
}

fn parts(nodes: &[Arc<Node>]) -> Option<BTreeMap<String, f64>> {
    let mut processors: BTreeMap<String, i64> = BTreeMap::new();
    for node in nodes {
        let labels = node.metadata.labels.as_ref();
        let (ready, zone) = place(node);
        if !ready || labels.is_some_and(|l| APART.iter().any(|label| l.contains_key(*label))) {
            continue;
        }
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref()?.get("cpu"));
        let milli = allocatable
            .and_then(|q| Quantity::parse(&q.0).ok())
            .map_or(0, |q| q.milli_value());
        let zone = zone.filter(|z| !z.is_empty() && milli != 0)?;
        *processors.entry(zone.clone()).or_default() += milli;
    }
    let all: i64 = processors.values().sum();
    let part = |milli: i64| milli as f64 / all as f64;
    (processors.len() > 1).then(|| {
        processors
            .into_iter()
            .map(|(zone, milli)| (zone, part(milli)))
            .collect()
    })
}

fn allocate(parts: Option<&BTreeMap<String, f64>>, endpoints: usize) -> Result<BTreeMap<String, Allocation>, String> {
    let Some(parts) = parts else {
        let text = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
        return Err(text.into());
    };
    let numbers = format!("({endpoints} endpoints, {} zones)", parts.len());
    if parts.len() > endpoints {
        return Err(format!("Insufficient number of endpoints {numbers}"));
    }
    let mut found = BTreeMap::new();
    for (zone, part) in parts {
        let desired = part * endpoints as f64;
        let minimum = (desired * (1.0 / (1.0 + OVERLOAD))).ceil();
        let allocation = Allocation {
            minimum: minimum as usize,
            maximum: 0,
            desired: desired.max(minimum),
        };
        found.insert(zone.clone(), allocation);
    }
    let least: usize = found.values().map(|a| a.minimum).sum();
    let Some(spare) = endpoints.checked_sub(least) else {
        let text = "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold";
        return Err(format!("{text} {numbers}"));
    };
    found.values_mut().for_each(|a| a.maximum = a.minimum + spare);
    Ok(found)
}

/// How many hints a slice that nobody changes gives to each zone; `None`: they have to be given anew.
fn hints_of(slice: &EndpointSlice, before: &Zones, allocations: &BTreeMap<String, Allocation>) -> Option<Zones> {
    let mut zones = Zones::new();
    for endpoint in slice.endpoints.iter().flatten().filter(|e| is_ready(e)) {
        let hints = endpoint.hints.as_ref()?.for_zones.as_ref().filter(|z| !z.is_empty())?;
        for zone in hints {
            allocations.get(&zone.name)?;
            *zones.entry(zone.name.clone()).or_default() += 1;
        }
    }
    let fits = |(zone, count): (&String, &usize)| {
        let already = before.get(zone).copied().unwrap_or(0);
        allocations.get(zone).is_some_and(|a| count + already <= a.maximum)
    };
    zones.iter().all(fits).then_some(zones)
}

/// Whole endpoints that zones with too many give, and that zones with too few receive.
fn transfers(allocations: &BTreeMap<String, Allocation>, have: &Zones) -> (Zones, Zones) {
    let mut giving: BTreeMap<&String, f64> = BTreeMap::new();
    let mut receiving: BTreeMap<&String, f64> = BTreeMap::new();
    for (zone, allocation) in allocations {
        let surplus = have.get(zone).copied().unwrap_or(0) as f64 - allocation.desired;
        if surplus > 0.0 {
            giving.insert(zone, surplus);
        } else if surplus < 0.0 {
            receiving.insert(zone, -surplus);
        }
    }
    fn most<'a>(zones: &BTreeMap<&'a String, f64>) -> Option<(&'a String, f64)> {
        let positive = zones.iter().map(|(zone, n)| (*zone, *n)).filter(|(_, n)| *n > 0.0);
        positive.reduce(|a, b| if b.1 > a.1 { b } else { a })
    }
    let (mut from, mut to) = (Zones::new(), Zones::new());
    while let (Some((giver, give)), Some((taker, take))) = (most(&giving), most(&receiving)) {
        if (give < 1.0 && take < 1.0) || give < 0.5 || take < 0.5 {
            break;
        }
        *from.entry(giver.clone()).or_default() += 1;
        *to.entry(taker.clone()).or_default() += 1;
        giving.entry(giver).and_modify(|n| *n -= 1.0);
        receiving.entry(taker).and_modify(|n| *n -= 1.0);
    }
    (from, to)
}

fn for_zone(zone: &str) -> Option<EndpointHints> {
    Some(EndpointHints {
        for_zones: Some(vec![ForZone { name: zone.into() }]),
        for_nodes: None,
    })
}

/// Takes all hints away, from slices too that would otherwise stay as they are.
fn remove(changes: &mut Changes) {
    let unhinted = |slice: &mut EndpointSlice| slice.endpoints.iter_mut().flatten().for_each(|e| e.hints = None);
    changes.create.iter_mut().chain(&mut changes.update).for_each(unhinted);
    let has = |slice: &Arc<EndpointSlice>| slice.endpoints.iter().flatten().any(|e| e.hints.is_some());
    for slice in changes.unchanged.extract_if(.., |slice| has(slice)) {
        let mut slice = EndpointSlice::clone(&slice);
        unhinted(&mut slice);
        changes.update.push(slice);
    }
}

impl Topology {
    /// Nodes changed: which services that leaves with an overloaded zone. Costs nothing while no service is hinted here.
    pub fn nodes_changed(&self, nodes: impl FnOnce() -> Vec<Arc<Node>>) -> Vec<ObjectKey> {
        let mut state = self.state.lock();
        state.parts = None;
        if state.given.is_empty() {
            return Vec::new();
        }
        let parts = parts(&nodes());
        let overloaded = |families: &BTreeMap<Family, Zones>| families.values().any(|z| overloaded(z, parts.as_ref()));
        let all = state.given.iter().filter(|(_, families)| overloaded(families));
        let found = all.map(|(service, _)| service.clone()).collect();
        state.parts = Some(parts);
        found
    }

    /// Hints the endpoints of a service's slices, and tells of it.
    pub fn hint(
        &self,
        service: &ObjectKey,
        family: Family,
        changes: &mut Changes,
        nodes: impl FnOnce() -> Vec<Arc<Node>>,
    ) -> Option<Told> {
        let mut state = self.state.lock();
        let given = given(changes, state.parts.get_or_insert_with(|| parts(&nodes())).as_ref());
        match given {
            Ok(zones) => {
                let families = state.given.entry(service.clone()).or_default();
                families.insert(family, zones);
                let text = "Topology Aware Hints has been enabled";
                let new = state.hinted.insert(service.clone());
                new.then(|| told(EventType::Normal, "TopologyAwareHintsEnabled", text, family))
            }
            Err(why) => {
                state.forget(service, family);
                remove(changes);
                let warning = told(EventType::Warning, "TopologyAwareHintsDisabled", &why, family);
                Some(warning)
            }
        }
    }

    /// The service is no longer hinted here; what is to be told if it was.
    pub fn forget(&self, service: &ObjectKey, family: Family) -> Option<Told> {
        let mut state = self.state.lock();
        let was = state.hinted.contains(service);
        state.forget(service, family);
        let text = "Topology Aware Hints has been disabled";
        was.then(|| told(EventType::Warning, "TopologyAwareHintsDisabled", text, family))
    }

    pub fn gone(&self, service: &ObjectKey) {
        let mut state = self.state.lock();
        state.given.remove(service);
        state.hinted.remove(service);
    }
}

impl State {
    fn forget(&mut self, service: &ObjectKey, family: Family) {
        if let Some(families) = self.given.get_mut(service) {
            families.remove(&family);
            if families.is_empty() {
                self.given.remove(service);
            }
        }
        self.hinted.remove(service);
    }
}

fn told(kind: EventType, reason: &'static str, text: &str, family: Family) -> Told {
    Told {
        kind,
        reason,
        message: format!("{text}, addressType: {}", family.address_type()),
    }
}

/// Gives hints; how many each zone has then, or why there can't be any.
fn given(changes: &mut Changes, parts: Option<&BTreeMap<String, f64>>) -> Result<Zones, String> {
    let ready = |slice: &EndpointSlice| slice.endpoints.iter().flatten().filter(|e| is_ready(e)).count();
    let written: usize = changes.create.iter().chain(&changes.update).map(ready).sum();
    let total = written + changes.unchanged.iter().map(|s| ready(s)).sum::<usize>();
    let allocations = allocate(parts, total)?;
    let mut zones = Zones::new();
    let mut anew = Vec::new();
    changes
        .unchanged
        .retain(|slice| match hints_of(slice, &zones, &allocations) {
            Some(found) => {
                found
                    .into_iter()
                    .for_each(|(zone, n)| *zones.entry(zone).or_default() += n);
                true
            }
            None => {
                anew.push(EndpointSlice::clone(slice));
                false
            }
        });
    changes.update.extend(anew);
    let endpoints = |changes: &mut Changes, each: &mut dyn FnMut(&mut Endpoint, &str) -> bool| {
        let slices = changes.create.iter_mut().chain(&mut changes.update);
        for endpoint in slices
            .flat_map(|s| s.endpoints.iter_mut().flatten())
            .filter(|e| is_ready(e))
        {
            let zone = endpoint.zone.clone().unwrap_or_default();
            if !each(endpoint, &zone) {
                return false;
            }
        }
        true
    };
    let everywhere = endpoints(changes, &mut |endpoint, zone| {
        endpoint.hints = for_zone(zone);
        *zones.entry(zone.into()).or_default() += 1;
        !zone.is_empty()
    });
    if !everywhere {
        return Err("One or more endpoints do not have a zone specified".into());
    }
    let (mut from, mut to) = transfers(&allocations, &zones);
    endpoints(changes, &mut |endpoint, zone| {
        if from.get(zone).is_some_and(|n| *n > 0)
            && let Some((taker, count)) = to.iter_mut().find(|(_, n)| **n > 0)
        {
            endpoint.hints = for_zone(taker);
            *count -= 1;
            from.entry(zone.into()).and_modify(|n| *n -= 1);
            zones.entry(zone.into()).and_modify(|n| *n -= 1);
            *zones.entry(taker.clone()).or_default() += 1;
        }
        true
    });
    match zones.is_empty() {
        true => Err("No hints allocated for zones".into()),
        false => Ok(zones),
    }
}

/// Whether a zone has fewer endpoints than it needs.
fn overloaded(zones: &Zones, parts: Option<&BTreeMap<String, f64>>) -> bool {
    let Some(parts) = parts.filter(|_| !zones.is_empty()) else {
        return !zones.is_empty();
    };
    let total: usize = zones.values().sum();
    parts.iter().any(|(zone, part)| {
        let least = (total as f64 * part * (1.0 / (1.0 + OVERLOAD))).ceil() as usize;
        zones.get(zone).is_none_or(|n| *n < least)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_client::ApiObject;
    use serde_json::json;

    fn node(zone: &str, cpu: &str) -> Arc<Node> {
        let node = json!({"metadata": {"labels": {ZONE: zone}}, "status": {"allocatable": {"cpu": cpu},
            "conditions": [{"type": "Ready", "status": "True"}]}});
        Arc::new(Node::decode(node.to_string().as_bytes()).unwrap())
    }

    fn slice(endpoints: &[(&str, &str)]) -> EndpointSlice {
        let one = |(zone, hint): &(&str, &str)| {
            let hints = if hint.is_empty() {
                json!(null)
            } else {
                json!({"forZones": [{"name": hint}]})
            };
            json!({"addresses": ["10.0.0.1"], "zone": zone, "conditions": {"ready": true}, "hints": hints})
        };
        let all: Vec<_> = endpoints.iter().map(one).collect();
        let slice = json!({"metadata": {}, "addressType": "IPv4", "ports": [], "endpoints": all});
        EndpointSlice::decode(slice.to_string().as_bytes()).unwrap()
    }

    fn hints(slice: &EndpointSlice) -> String {
        let one = |e: &Endpoint| {
            let zones = e.hints.as_ref().and_then(|h| h.for_zones.clone()).unwrap_or_default();
            zones.first().map_or("-".into(), |z| z.name.clone())
        };
        slice.endpoints.iter().flatten().map(one).collect::<Vec<_>>().join(" ")
    }

    fn hint(nodes: &[Arc<Node>], topology: &Topology, changes: &mut Changes) -> Option<Told> {
        topology.hint(&web(), Family::V4, changes, || nodes.to_vec())
    }

    fn web() -> ObjectKey {
        ObjectKey::new("shop", "web")
    }

    #[test]
    fn endpoints_are_shared_out_by_what_zones_can_bear() {
        let topology = Topology::default();
        let equal = [node("a", "2"), node("b", "2")];
        let mut changes = Changes {
            create: vec![slice(&[("a", ""), ("a", ""), ("a", ""), ("b", "")])],
            ..Changes::default()
        };
        let told = hint(&equal, &topology, &mut changes).unwrap();
        assert_eq!(hints(&changes.create[0]), "b a a b");
        assert_eq!(
            (told.reason, told.kind),
            ("TopologyAwareHintsEnabled", EventType::Normal)
        );
        assert_eq!(told.message, "Topology Aware Hints has been enabled, addressType: IPv4");
        assert_eq!(hint(&equal, &topology, &mut changes), None, "said once");
        assert!(topology.nodes_changed(|| equal.to_vec()).is_empty());
        assert_eq!(topology.nodes_changed(|| vec![node("a", "6"), node("b", "1")]), [web()]);
    }

    #[test]
    fn slices_whose_hints_still_fit_stay_as_they_are() {
        let topology = Topology::default();
        let nodes = [node("a", "1"), node("b", "1")];
        let kept = Arc::new(slice(&[("a", "a"), ("b", "b")]));
        let mut changes = Changes {
            unchanged: vec![kept.clone(), Arc::new(slice(&[("a", "a"), ("b", "c")]))],
            ..Changes::default()
        };
        hint(&nodes, &topology, &mut changes);
        assert_eq!(changes.unchanged, [kept]);
        assert_eq!(hints(&changes.update[0]), "a b");
    }

    #[test]
    fn where_hints_can_t_be_given_they_are_taken_away_and_it_is_said_why() {
        let why = |nodes: &[Arc<Node>], endpoints: &[(&str, &str)]| {
            let topology = Topology::default();
            let mut changes = Changes {
                unchanged: vec![Arc::new(slice(endpoints))],
                ..Changes::default()
            };
            let told = hint(nodes, &topology, &mut changes).unwrap();
            assert!(changes.update.iter().all(|s| !hints(s).contains(['a', 'b'])));
            assert_eq!(changes.update.len(), 1);
            told.message.trim_end_matches(", addressType: IPv4").to_string()
        };
        let two = [node("a", "1"), node("b", "1")];
        let text = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
        assert_eq!(why(&[node("a", "1")], &[("a", "a")]), text);
        assert_eq!(why(&[node("a", "1"), node("", "1")], &[("a", "a"), ("b", "b")]), text);
        assert_eq!(
            why(&two, &[("a", "a")]),
            "Insufficient number of endpoints (1 endpoints, 2 zones)"
        );
        let text = "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (3 endpoints, 2 zones)";
        assert_eq!(why(&two, &[("a", "a"), ("b", "b"), ("b", "b")]), text);
        let text = "One or more endpoints do not have a zone specified";
        assert_eq!(why(&two, &[("", "a"), ("b", ""), ("a", "a"), ("b", "b")]), text);
    }

    #[test]
    fn what_is_close_follows_from_the_endpoint() {
        let mut endpoint = slice(&[("a", "")]).endpoints.unwrap().remove(0);
        endpoint.node_name = Some("n".into());
        let zone = for_zone("a");
        assert_eq!(close(Mode::SameZone, &endpoint), zone);
        let node = close(Mode::SameNode, &endpoint).unwrap();
        assert_eq!(
            (node.for_zones, node.for_nodes.unwrap()[0].name.as_str()),
            (zone.unwrap().for_zones, "n")
        );
        assert_eq!(close(Mode::None, &endpoint), None);
        endpoint.conditions.as_mut().unwrap().ready = Some(false);
        assert_eq!(close(Mode::SameZone, &endpoint), None, "not ready");
    }
}
