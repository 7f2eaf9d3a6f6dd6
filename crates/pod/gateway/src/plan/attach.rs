//! Routes and the listeners that take them.

use super::rules::{GRPC, HTTP, Kind, Read, TCP, TLS, read};
use super::status::{OfParent, Told};
use super::{Plan, World};
use crate::kinds::{AllowedRoutes, GROUP, Gateway, ParentRef, Route, RouteKind, RouteSpec};
use crate::table::{Host, Rule, Speaks};
use keelson_client::{ApiObject, ObjectKey, labels};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A gateway with its listeners.
pub struct Place {
    pub gateway: Arc<Gateway>,
    pub listeners: Vec<Listener>,
}

pub struct Listener {
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
    pub attached: i32,
    pub hosts: BTreeMap<String, Vec<Rule>>,
}

pub fn routes(world: &World, places: &mut [Place], plan: &mut Plan) {
    all(world, HTTP, &world.http_routes, places, plan);
    all(world, GRPC, &world.grpc_routes, places, plan);
    all(world, TLS, &world.tls_routes, places, plan);
    all(world, TCP, &world.tcp_routes, places, plan);
}

fn all<R: Route>(world: &World, kind: Kind, routes: &[Arc<R>], places: &mut [Place], plan: &mut Plan) {
    for route in routes.iter().filter(|r| !r.is_deleting()) {
        let told = attach(world, kind, route.as_ref(), route.spec(), places);
        if !told.is_empty() {
            plan.statuses.routes.insert((kind.0, route.key()), told);
        }
    }
}

fn attach<K: ApiObject>(world: &World, kind: Kind, route: &K, spec: &RouteSpec, places: &mut [Place]) -> Vec<OfParent> {
    let mut told = Vec::new();
    let mut known: Option<Read> = None;
    for parent in &spec.parent_refs {
        let is_gateway = parent.group.as_deref().unwrap_or(GROUP) == GROUP
            && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway";
        let namespace = parent.namespace.as_deref().unwrap_or(route.namespace());
        let of = |p: &&mut Place| p.gateway.namespace() == namespace && p.gateway.name() == parent.name;
        let Some(place) = places.iter_mut().find(of).filter(|_| is_gateway) else {
            continue;
        };
        let read = known.get_or_insert_with(|| read(world, kind, route, spec.rules.as_deref()));
        let accepted = match &read.rules {
            Ok(rules) => to(world, kind, route.namespace(), spec, parent, place, rules),
            Err(refused) => Err((refused.0, refused.1.clone())),
        };
        let accepted = match accepted {
            Ok(()) => Told::new("Accepted", true, "Accepted", "The route is accepted"),
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
    parent: &ParentRef,
    place: &mut Place,
    rules: &[Rule],
) -> Result<(), (&'static str, String)> {
    let own = place.gateway.namespace().to_string();
    let meant = |l: &&mut Listener| {
        parent.section_name.as_ref().is_none_or(|name| *name == l.name)
            && parent.port.is_none_or(|port| port == i32::from(l.port))
    };
    let meant: Vec<&mut Listener> = place.listeners.iter_mut().filter(meant).collect();
    if meant.is_empty() {
        return Err(("NoMatchingParent", "The gateway has no such listener".into()));
    }
    let allows =
        |l: &&mut Listener| l.kinds.iter().any(|k| k.kind == kind.0) && from(world, &l.allowed, &own, namespace);
    let allowed: Vec<&mut Listener> = meant.into_iter().filter(allows).collect();
    if allowed.is_empty() {
        return Err((
            "NotAllowedByListeners",
            "No listener allows routes of this kind and namespace".into(),
        ));
    }
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

fn from(world: &World, allowed: &AllowedRoutes, own: &str, namespace: &str) -> bool {
    let namespaces = allowed.namespaces.clone().unwrap_or_default();
    match namespaces.from.as_deref() {
        Some("All") => true,
        Some("Selector") => labels::matches(namespaces.selector.as_ref(), world.namespaces.get(namespace)),
        Some("None") => false,
        _ => own == namespace,
    }
}
