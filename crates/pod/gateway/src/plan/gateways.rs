//! Gateways and their listeners: what each may take in, and what is told of it.

use super::attach::{self, Place};
use super::clients::{self, CHANGED};
use super::listeners::{self, GATEWAY, Holder, Problem};
use super::sets;
use super::status::{INSECURE, OVERLAPPING, OfGateway, OfListener, Told};
use super::{Owner, Plan, World, created, identity, infrastructure, shared};
use crate::GATEWAY_CONTROLLER;
use crate::kinds::{Address, Gateway, GatewayClass};
use crate::table::{self, Port};
use keelson_client::{ApiObject, ObjectKey};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub fn plan(world: &World, plan: &mut Plan) {
    let classes: Vec<&Arc<GatewayClass>> = world
        .classes
        .iter()
        .filter(|c| c.spec.controller_name == GATEWAY_CONTROLLER)
        .collect();
    for class in &classes {
        let told = match class.spec.parameters_ref {
            None => Told::new(
                "Accepted",
                true,
                "Accepted",
                "Gateways of this class are served on every node",
            ),
            Some(_) => Told::new("Accepted", false, "InvalidParameters", "parametersRef is not supported"),
        };
        plan.statuses.classes.insert(class.name().into(), vec![told]);
    }
    let is_ours = |g: &Gateway| {
        classes
            .iter()
            .any(|c| c.name() == g.spec.gateway_class_name && c.spec.parameters_ref.is_none())
    };
    let ours = world.gateways.iter().filter(|g| is_ours(g) && !g.is_deleting());
    let mut places: Vec<Place> = ours.map(|g| place(world, g)).collect();
    attach::routes(world, &mut places, plan);
    // Who has ports of its own goes first, then those who share others', the oldest first.
    places.sort_by_key(|p| {
        let gateway = p.gateway.as_ref();
        let front = world.fronts.get(&Owner::Gateway(gateway.key()));
        (front.is_some_and(|f| f.taken), created(gateway), gateway.key())
    });
    for place in places {
        serve(world, place, plan);
    }
}

/// A gateway before anything is attached to it.
fn place(world: &World, gateway: &Arc<Gateway>) -> Place {
    let holder = Holder {
        kind: GATEWAY,
        key: gateway.key(),
        since: created(gateway.as_ref()),
        listeners: &gateway.spec.listeners,
    };
    let listeners = gateway
        .spec
        .listeners
        .iter()
        .map(|l| listeners::read(world, &holder, l));
    let mut place = Place {
        gateway: gateway.clone(),
        listeners: listeners.collect(),
        sets: Vec::new(),
        identity: identity::read(world, gateway),
        authorities: BTreeSet::new(),
    };
    sets::add(world, &mut place);
    place.authorities = clients::ask(world, gateway, &mut place.listeners);
    listeners::overlap(&mut place.listeners);
    place
}

/// What was attached becomes the table's, and is told.
fn serve(world: &World, mut place: Place, plan: &mut Plan) {
    let gateway = &place.gateway;
    let owner = Owner::Gateway(gateway.key());
    let mut front = world.fronts.get(&owner).cloned().unwrap_or_default();
    let refused = unsupported(gateway);
    let takes_part = |l: &attach::Listener| refused.is_none() && l.refused.is_none() && l.conflict.is_none();
    let extra = sets::extra(place.listeners.iter().filter(|l| takes_part(l)));
    let mut narrow = !extra.is_empty() && front.without == extra;
    if front.taken {
        let listeners = place.listeners.iter_mut().filter(|l| takes_part(l));
        let mut listeners: Vec<&mut attach::Listener> = listeners.collect();
        match shared::front(world, plan, gateway, &mut listeners) {
            Ok(others) => (front, narrow) = (others, false),
            Err(why) => {
                narrow |= extra.iter().any(|port| front.ports.contains_key(port));
                front.refused = Some(format!("{}; {why}", front.refused.unwrap_or_default()));
            }
        }
    }
    if narrow {
        sets::leave_out(&mut place.listeners, &extra);
        plan.without.insert(owner.clone(), extra);
    }
    let addresses: Vec<Address> = front
        .addresses
        .iter()
        .map(|a| match (&a.ip, &a.hostname) {
            (Some(ip), _) => Address {
                r#type: Some(IP.into()),
                value: Some(ip.clone()),
            },
            (None, name) => Address {
                r#type: Some("Hostname".into()),
                value: name.clone(),
            },
        })
        .collect();
    let wished: Vec<IpAddr> = gateway.spec.addresses.iter().filter_map(|a| wish(a)?).collect();
    let has = |ip: &IpAddr| addresses.iter().any(|a| a.value.as_deref() == Some(&ip.to_string()));
    let lacks = wished.iter().find(|ip| !has(ip)).copied();
    let mut told = OfGateway::default();
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    let (mut good, mut bad) = (0, 0);
    let mut of_sets: BTreeMap<ObjectKey, Vec<(bool, OfListener)>> = BTreeMap::new();
    let reached = !addresses.is_empty() && lacks.is_none();
    for listener in place.listeners {
        let serves = takes_part(&listener) && (!listener.shows || listener.certificate.is_some());
        let open = takes_part(&listener);
        let one = of_listener(&listener, open, serves, reached);
        match &listener.set {
            Some(set) => of_sets.entry(set.clone()).or_default().push((serves, one)),
            None => {
                *if serves { &mut good } else { &mut bad } += 1;
                told.listeners.push(one);
            }
        }
        if !open {
            continue;
        }
        plan.fronts.entry(owner.clone()).or_default().insert(listener.outer());
        plan.certificates.extend(listener.certificate.clone());
        if !serves {
            continue;
        }
        let Some(at) = front.ports.get(&listener.outer()) else {
            continue;
        };
        let port = ports.entry(*at).or_default();
        port.number = listener.port;
        port.speaks = listener.speaks;
        let mut hosts = listener.hosts;
        hosts
            .values_mut()
            .for_each(|rules| rules.sort_by(|a, b| a.order.cmp(&b.order)));
        let (kind, holder) = match &listener.set {
            Some(set) => (listeners::SET, set.clone()),
            None => (GATEWAY, gateway.key()),
        };
        port.listeners.push(table::Listener {
            name: format!("{kind}/{holder}/{}", listener.name).into(),
            clients: listener.clients.clone(),
            certificates: listener
                .certificate
                .map(|c| (listener.host.clone(), c))
                .into_iter()
                .collect(),
            host: listener.host,
            one_label: false,
            hosts,
        });
    }
    for (at, mut port) in ports {
        if let Some(others) = plan.table.ports.get(&at) {
            port.listeners.extend(others.listeners.iter().cloned());
        }
        port.listeners.sort_by_key(|l| Reverse(l.host.rank()));
        plan.table.ports.insert(at, Arc::new(port));
    }
    if plan.fronts.contains_key(&owner) {
        plan.written.insert(owner.clone(), infrastructure::read(gateway));
        plan.authorities.extend(place.authorities.iter().cloned());
        plan.certificates.extend(place.identity.iter().flatten().cloned());
    }
    if !wished.is_empty() && plan.fronts.contains_key(&owner) {
        plan.wished.insert(owner, wished);
    }
    told.conditions = of_gateway(refused, (good, bad), &front, &addresses, lacks);
    told.conditions.push(of_references(&place.identity, &told.listeners));
    if clients::is_insecure(gateway) {
        let why = "Clients come in that show no certificate, or one that nobody knows";
        told.conditions.push(Told::new(INSECURE, true, CHANGED, why));
    }
    let accepted = told.conditions.iter().any(|c| c.kind == "Accepted" && c.holds);
    for set in place.sets {
        let of = sets::told(&set, accepted, reached, of_sets.remove(&set.key).unwrap_or_default());
        if of.conditions.iter().any(|c| c.kind == "Accepted" && c.holds) {
            told.sets += 1;
        }
        plan.statuses.listener_sets.insert(set.key, of);
    }
    told.addresses = addresses;
    plan.statuses.gateways.insert(gateway.key(), told);
}

/// Of what the Gateway refers to itself, and in its listeners.
fn of_references(identity: &identity::Identity, listeners: &[OfListener]) -> Told {
    const KIND: &str = "ResolvedRefs";
    let lacks = |l: &&OfListener| l.conditions.iter().any(|c| c.kind == KIND && !c.holds);
    match (identity, listeners.iter().find(lacks)) {
        (Err((reason, why)), _) => Told::new(KIND, false, reason, why),
        (Ok(_), Some(listener)) => {
            let why = format!("Not all references of listener {} are resolved", listener.name);
            Told::new(KIND, false, "ListenersNotResolved", why)
        }
        (Ok(_), None) => Told::new(KIND, true, KIND, "All references are resolved"),
    }
}

const IP: &str = "IPAddress";

/// The address that is asked for, if it matters which; `None`: it is none that can be asked for.
fn wish(address: &Address) -> Option<Option<IpAddr>> {
    let text = address.value.as_deref().filter(|v| !v.is_empty());
    match (address.r#type.as_deref().unwrap_or(IP), text) {
        (IP, None) => Some(None),
        (IP, Some(text)) => text.parse().ok().map(Some),
        _ => None,
    }
}

/// What a gateway asks for that can't be honoured.
fn unsupported(gateway: &Gateway) -> Option<Problem> {
    let spec = &gateway.spec;
    let known = |a: &&Address| wish(a).is_none();
    if let Some(other) = spec.addresses.iter().find(known) {
        let kind = other.r#type.as_deref().unwrap_or(IP);
        let value = other.value.as_deref().unwrap_or_default();
        return Some((
            "UnsupportedAddress",
            format!("address {value:?} of type {kind} can't be asked for: it has to be an IP address"),
        ));
    }
    infrastructure::refused(gateway)
}

fn of_gateway(
    refused: Option<Problem>,
    (good, bad): (u32, u32),
    front: &super::Front,
    addresses: &[Address],
    lacks: Option<IpAddr>,
) -> Vec<Told> {
    let accepted = match (&refused, good, bad) {
        (Some((reason, why)), ..) => Told::new("Accepted", false, reason, why),
        (None, 0, _) => Told::new("Accepted", false, "ListenersNotValid", "No listener is valid"),
        (None, _, 1..) => Told::new("Accepted", true, "ListenersNotValid", "Some listeners are not valid"),
        _ => Told::new("Accepted", true, "Accepted", "The gateway is accepted"),
    };
    let programmed = if !accepted.holds {
        Told::new("Programmed", false, "Invalid", "The gateway is not accepted")
    } else if let Some(ip) = lacks {
        let why = front.refused.clone().unwrap_or_else(|| "no pool has given it".into());
        Told::new(
            "Programmed",
            false,
            "AddressNotUsable",
            format!("Address {ip} can't be had: {why}"),
        )
    } else if addresses.is_empty() {
        let why = front
            .refused
            .clone()
            .unwrap_or_else(|| "No address has been assigned yet".into());
        Told::new("Programmed", false, "AddressNotAssigned", why)
    } else {
        Told::new("Programmed", true, "Programmed", "The gateway is served on every node")
    };
    vec![accepted, programmed]
}

fn of_listener(listener: &attach::Listener, open: bool, serves: bool, has_address: bool) -> OfListener {
    let conflicted = match listener.conflict {
        Some(reason) => Told::new("Conflicted", true, reason, "Another listener has the same port"),
        None => Told::new(
            "Conflicted",
            false,
            "NoConflicts",
            "No other listener is in conflict with this one",
        ),
    };
    let accepted = match (&listener.refused, listener.conflict) {
        (Some((reason, why)), _) => Told::new("Accepted", false, reason, why),
        (None, Some(reason)) => Told::new("Accepted", false, reason, "Another listener has the same port"),
        _ => Told::new("Accepted", true, "Accepted", "The listener is accepted"),
    };
    let resolved = match &listener.unresolved {
        Some((reason, why)) => Told::new("ResolvedRefs", false, reason, why),
        None => Told::new("ResolvedRefs", true, "ResolvedRefs", "All references are resolved"),
    };
    let programmed = match (open && serves, has_address) {
        (true, true) => Told::new("Programmed", true, "Programmed", "The listener is served on every node"),
        (true, false) => Told::new("Programmed", false, "Pending", "The gateway has no address yet"),
        _ => {
            let reason = listener
                .conflict
                .filter(|_| listener.set.is_some())
                .unwrap_or("Invalid");
            Told::new("Programmed", false, reason, "The listener is not valid")
        }
    };
    let overlapping = listener.overlaps.then(|| {
        let why = "Another listener that ends TLS on this port has some of its names";
        Told::new(OVERLAPPING, true, "OverlappingHostnames", why)
    });
    let conditions = [conflicted, accepted, resolved, programmed];
    OfListener {
        name: listener.name.clone(),
        kinds: listener.kinds.clone(),
        attached: listener.attached,
        conditions: conditions.into_iter().chain(overlapping).collect(),
    }
}
