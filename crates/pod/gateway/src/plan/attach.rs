//! Routes and the listeners that take them.

use super::identity::{self, Identity};
use super::listeners::{GATEWAY, SET};
use super::rules::{GRPC, HTTP, Kind, Read, TCP, TLS, UDP, read};
use super::status::{OfParent, Told};
use super::trust::Policies;
use super::{Plan, World};
use crate::kinds::{AllowedRoutes, FromNamespaces, GROUP, Gateway, ParentRef, Route, RouteKind, RouteSpec};
use crate::table::{ClientTrust, Host, Outer, Rule, Speaks};
use keelson_client::{ApiObject, ObjectKey, labels};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A gateway with its listeners.
pub struct Place {
    pub gateway: Arc<Gateway>,
    pub listeners: Vec<Listener>,
    pub sets: Vec<Set>,
    /// What it shows to backends.
    pub identity: Identity,
    /// The ConfigMaps by which its clients are known.
    pub authorities: BTreeSet<ObjectKey>,
}

/// A ListenerSet whose parent is the gateway.
pub struct Set {
    pub key: ObjectKey,
    /// Whether the gateway takes in listeners of its namespace.
    pub allowed: bool,
}

pub struct Listener {
    /// Whose it is, if not the gateway's own.
    pub set: Option<ObjectKey>,
    /// Rules that were made until then are older.
    pub since: i64,
    pub name: String,
    pub port: u16,
    pub speaks: Speaks,
    /// Whether a certificate has to be shown.
    pub shows: bool,
    pub host: Host,
    pub allowed: AllowedRoutes,
    /// The kinds of routes that it takes.
    pub kinds: Vec<RouteKind>,
    pub refused: Option<(&'static str, String)>,
    pub conflict: Option<&'static str>,
    pub unresolved: Option<(&'static str, String)>,
    pub certificate: Option<ObjectKey>,
    /// Another one that ends TLS on its port has some of its names.
    pub overlaps: bool,
    /// What clients have to show.
    pub clients: Option<Arc<ClientTrust>>,
    pub attached: i32,
    pub hosts: BTreeMap<String, Vec<Rule>>,
}

impl Listener {
    pub fn outer(&self) -> Outer {
        Outer {
            number: self.port,
            udp: self.speaks == Speaks::Udp,
        }
    }
}

pub fn routes(world: &World, places: &mut [Place], plan: &mut Plan) {
    let policies = Policies::read(world);
    all(world, &policies, HTTP, &world.http_routes, places, plan);
    all(world, &policies, GRPC, &world.grpc_routes, places, plan);
    all(world, &policies, TLS, &world.tls_routes, places, plan);
    all(world, &policies, TCP, &world.tcp_routes, places, plan);
    all(world, &policies, UDP, &world.udp_routes, places, plan);
    policies.tell(plan);
}

fn all<R: Route>(
    world: &World,
    policies: &Policies,
    kind: Kind,
    routes: &[Arc<R>],
    places: &mut [Place],
    plan: &mut Plan,
) {
    for route in routes.iter().filter(|r| !r.is_deleting()) {
        let told = attach(world, policies, kind, route.as_ref(), route.spec(), places, plan);
        if !told.is_empty() {
            plan.statuses.routes.insert((kind.0, route.key()), told);
        }
    }
}

fn attach<K: ApiObject>(
    world: &World,
    policies: &Policies,
    kind: Kind,
    route: &K,
    spec: &RouteSpec,
    places: &mut [Place],
    plan: &mut Plan,
) -> Vec<OfParent> {
    let mut told = Vec::new();
    let mut known: Option<Read> = None;
    for parent in &spec.parent_refs {
        let of_the_api = parent.group.as_deref().unwrap_or(GROUP) == GROUP;
        let kind_of_parent = parent.kind.as_deref().unwrap_or(GATEWAY);
        let key = ObjectKey::new(parent.namespace.as_deref().unwrap_or(route.namespace()), &parent.name);
        let of = |p: &&mut Place| match kind_of_parent {
            GATEWAY => p.gateway.key() == key,
            SET => p.sets.iter().any(|s| s.key == key),
            _ => false,
        };
        let Some(place) = places.iter_mut().find(of).filter(|_| of_the_api) else {
            continue;
        };
        let set = (kind_of_parent == SET).then_some(&key);
        let read = known.get_or_insert_with(|| read(world, policies, kind, route, spec.rules.as_deref()));
        let accepted = match &read.rules {
            Ok(rules) => to(world, kind, route.namespace(), spec, (parent, set), place, rules),
            Err(refused) => Err((refused.0, refused.1.clone())),
        };
        let accepted = match accepted {
            Ok(()) => {
                for policy in &read.policies {
                    let told = plan.statuses.policies.entry(policy.clone()).or_default();
                    told.gateways.insert(place.gateway.key());
                }
                Told::new("Accepted", true, "Accepted", "The route is accepted")
            }
            Err((reason, why)) => Told::new("Accepted", false, reason, why),
        };
        told.push(OfParent {
            parent: parent.clone(),
            conditions: vec![accepted, read.resolved.clone()],
        });
    }
    told
}

/// Attaches a route to the listeners of a gateway that take it, or says why none does.
fn to(
    world: &World,
    kind: Kind,
    namespace: &str,
    spec: &RouteSpec,
    (parent, set): (&ParentRef, Option<&ObjectKey>),
    place: &mut Place,
    rules: &[Rule],
) -> Result<(), (&'static str, String)> {
    let own = set.map_or_else(|| place.gateway.namespace().to_string(), |set| set.namespace.clone());
    let meant = |l: &&mut Listener| {
        l.set.as_ref() == set
            && parent.section_name.as_ref().is_none_or(|name| *name == l.name)
            && parent.port.is_none_or(|port| port == i32::from(l.port))
    };
    let meant: Vec<&mut Listener> = place.listeners.iter_mut().filter(meant).collect();
    if meant.is_empty() {
        return Err(("NoMatchingParent", "The parent has no such listener".into()));
    }
    let allows = |l: &&mut Listener| {
        l.kinds.iter().any(|k| k.kind == kind.0)
            && is_from(world, l.allowed.namespaces.as_ref(), "Same", &own, namespace)
    };
    let allowed: Vec<&mut Listener> = meant.into_iter().filter(allows).collect();
    if allowed.is_empty() {
        return Err((
            "NotAllowedByListeners",
            "No listener allows routes of this kind and namespace".into(),
        ));
    }
    let rules = identity::rules(rules, &place.identity);
    let mut attached = false;
    for listener in allowed {
        let hosts = hosts(&listener.host, &spec.hostnames);
        if hosts.is_empty() {
            continue;
        }
        attached = true;
        listener.attached += 1;
        for host in hosts {
            listener
                .hosts
                .entry(host.text().into())
                .or_default()
                .extend(rules.iter().cloned());
        }
    }
    match attached {
        true => Ok(()),
        false => Err((
            "NoMatchingListenerHostname",
            "No listener has a hostname of this route".into(),
        )),
    }
}

fn hosts(listener: &Host, route: &[String]) -> Vec<Host> {
    if route.is_empty() {
        return vec![listener.clone()];
    }
    route.iter().filter_map(|h| listener.and(&Host::new(h))).collect()
}

/// Whether a namespace is one of those that are meant; `usual` is what holds where nothing is said.
pub fn is_from(world: &World, meant: Option<&FromNamespaces>, usual: &str, own: &str, namespace: &str) -> bool {
    match meant.and_then(|m| m.from.as_deref()).unwrap_or(usual) {
        "All" => true,
        "Selector" => {
            let selector = meant.and_then(|m| m.selector.as_ref());
            labels::matches(selector, world.namespaces.get(namespace))
        }
        "Same" => own == namespace,
        _ => false,
    }
}
