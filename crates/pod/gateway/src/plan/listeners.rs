//! Listeners, of Gateways and of ListenerSets: what each may take in, and what is wrong with it.

use super::World;
use super::attach;
use super::rules::{GRPC, HTTP, Kind, TCP, TLS, UDP, permitted};
use crate::kinds::{GROUP, Listener, Reference, RouteKind};
use crate::table::{Host, Speaks};
use keelson_client::ObjectKey;
use std::collections::BTreeMap;

/// Who has a listener.
pub struct Holder<'a> {
    pub kind: &'static str,
    pub key: ObjectKey,
    /// When its listeners began to be, as far as is known.
    pub since: i64,
    pub listeners: &'a [Listener],
}

pub const GATEWAY: &str = "Gateway";
pub const SET: &str = "ListenerSet";
/// The reason of a listener whose port can't be had.
pub const UNAVAILABLE: &str = "PortUnavailable";

pub fn read(world: &World, holder: &Holder<'_>, listener: &Listener) -> attach::Listener {
    let mut refused = None;
    let speaks = speaks(&listener.protocol);
    let passes = listener
        .tls
        .as_ref()
        .is_some_and(|t| t.mode.as_deref() == Some("Passthrough"));
    if speaks.is_none() {
        refused = Some((
            "UnsupportedProtocol",
            format!("protocol {} is not supported", listener.protocol),
        ));
    } else if speaks == Some(Speaks::Https) && passes {
        refused = Some((
            "UnsupportedValue",
            "requests can't be read from TLS that is passed through".into(),
        ));
    } else if let Some(option) = listener.tls.as_ref().and_then(|t| t.options.keys().next()) {
        refused = Some(("UnsupportedValue", format!("the option {option:?} is not supported")));
    }
    let shows = speaks == Some(Speaks::Https) || speaks == Some(Speaks::Tls) && !passes;
    let allowed = listener.allowed_routes.clone().unwrap_or_default();
    let ours: &[Kind] = match speaks {
        Some(Speaks::Http | Speaks::Https) => &[HTTP, GRPC],
        Some(Speaks::Tls) => &[TLS],
        Some(Speaks::Tcp) => &[TCP],
        Some(Speaks::Udp) => &[UDP],
        None => &[],
    };
    let ours: Vec<RouteKind> = ours
        .iter()
        .map(|kind| RouteKind {
            group: Some(GROUP.into()),
            kind: kind.0.into(),
        })
        .collect();
    let is_known =
        |k: &RouteKind| ours.iter().any(|o| o.kind == k.kind) && k.group.as_deref().unwrap_or(GROUP) == GROUP;
    let wanted =
        |o: &&RouteKind| allowed.kinds.is_empty() || allowed.kinds.iter().any(|k| is_known(k) && k.kind == o.kind);
    let kinds = ours.iter().filter(wanted).cloned().collect();
    let unknown = allowed.kinds.iter().find(|k| !is_known(k));
    let unknown = unknown.map(|k| {
        (
            "InvalidRouteKinds",
            format!("routes of kind {} can't be attached", k.kind),
        )
    });
    let (certificate, problem) = match shows.then(|| certificate(world, holder, listener)).transpose() {
        Ok(certificate) => (certificate, None),
        Err(problem) => (None, Some(problem)),
    };
    attach::Listener {
        set: (holder.kind == SET).then(|| holder.key.clone()),
        since: holder.since,
        name: listener.name.clone(),
        port: u16::try_from(listener.port).unwrap_or(0),
        speaks: speaks.unwrap_or_default(),
        shows,
        host: host(listener),
        allowed,
        kinds,
        refused,
        conflict: conflict(listener, holder.listeners),
        unresolved: problem.or(unknown),
        certificate,
        overlaps: false,
        clients: None,
        attached: 0,
        hosts: BTreeMap::new(),
    }
}

fn host(listener: &Listener) -> Host {
    Host::new(listener.hostname.as_deref().unwrap_or_default())
}

/// Why a listener can't be served beside others of the same holder. None of them is preferred.
pub fn conflict(listener: &Listener, all: &[Listener]) -> Option<&'static str> {
    // What comes by UDP is told apart from all else.
    let udp = |l: &Listener| l.protocol == "UDP";
    let same =
        |other: &&Listener| other.name != listener.name && other.port == listener.port && udp(other) == udp(listener);
    let mut others = all.iter().filter(same);
    others.find_map(
        |other| match (other.protocol == listener.protocol, host(other) == host(listener)) {
            (false, _) => Some("ProtocolConflict"),
            (true, true) => Some("HostnameConflict"),
            _ => None,
        },
    )
}

/// Says of listeners that they have names of each other: a client that goes on with a connection for another name may meet what it didn't expect.
pub fn overlap(all: &mut [attach::Listener]) {
    let ends = |l: &attach::Listener| l.shows && l.refused.is_none() && l.conflict.is_none();
    for i in 0..all.len() {
        let (before, rest) = all.split_at_mut(i);
        let Some(one) = rest.first_mut().filter(|l| ends(l)) else {
            continue;
        };
        let same = |l: &&mut attach::Listener| ends(l) && l.port == one.port && l.host.and(&one.host).is_some();
        for other in before.iter_mut().filter(same) {
            other.overlaps = true;
            one.overlaps = true;
        }
    }
}

pub type Problem = (&'static str, String);

const INVALID: &str = "InvalidCertificateRef";

fn speaks(protocol: &str) -> Option<Speaks> {
    match protocol {
        "HTTP" => Some(Speaks::Http),
        "HTTPS" => Some(Speaks::Https),
        "TLS" => Some(Speaks::Tls),
        "TCP" => Some(Speaks::Tcp),
        "UDP" => Some(Speaks::Udp),
        _ => None,
    }
}

fn certificate(world: &World, holder: &Holder<'_>, listener: &Listener) -> Result<ObjectKey, Problem> {
    let bad = |text: String| Err((INVALID, text));
    let tls = listener.tls.clone().unwrap_or_default();
    let [reference] = tls.certificate_refs.as_slice() else {
        return bad("a listener has to refer to one certificate".into());
    };
    secret(world, (holder.kind, &holder.key.namespace), reference, INVALID)
}

/// A secret with a certificate that an object may refer to; `invalid`: the reason where it can't be used.
pub fn secret(
    world: &World,
    (holder, own): (&str, &str),
    reference: &Reference,
    invalid: &'static str,
) -> Result<ObjectKey, Problem> {
    let bad = |text: String| Err((invalid, text));
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if kind != "Secret" || reference.group.as_ref().is_some_and(|g| !g.is_empty()) {
        return bad(format!("a certificate can't be in a {kind}"));
    }
    let key = ObjectKey::new(reference.namespace.as_deref().unwrap_or(own), &reference.name);
    if !permitted(world, (holder, own), ("", "Secret", &key)) {
        return Err((
            "RefNotPermitted",
            format!("no ReferenceGrant permits the reference to secret {key}"),
        ));
    }
    match world.certificates.get(&key) {
        Some(Ok(())) => Ok(key),
        Some(Err(why)) => bad(format!("secret {key}: {why}")),
        None => bad(format!("there is no secret {key} of type kubernetes.io/tls")),
    }
}
