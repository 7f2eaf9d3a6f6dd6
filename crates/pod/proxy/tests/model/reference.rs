//! What upstream's proxy does with the first packet of a connection, from the API objects: written down by itself, without a
//! thought of rules.

use crate::interpret::{Outcome, Packet, is_local};
use crate::random::{Endpoint, World};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

pub const HERE: &str = "here";
pub const ZONE: &str = "west";

fn in_cluster(ip: Ipv4Addr) -> bool {
    ip.octets()[..2] == [10, 244]
}

/// The endpoints that a policy of the whole cluster uses.
fn everywhere(all: &[Endpoint]) -> Vec<&Endpoint> {
    let ready: Vec<&Endpoint> = all.iter().filter(|e| e.ready).collect();
    if ready.is_empty() {
        return all.iter().filter(|e| e.serving && e.terminating).collect();
    }
    for (hints, own) in [
        ((|e| &e.nodes) as fn(&Endpoint) -> &Vec<String>, HERE),
        (|e| &e.zones, ZONE),
    ] {
        let for_us = |e: &&&Endpoint| hints(e).iter().any(|h| h == own);
        if ready.iter().all(|e| !hints(e).is_empty()) && ready.iter().any(|e| for_us(&e)) {
            return ready.iter().filter(for_us).copied().collect();
        }
    }
    ready
}

/// Those that a policy of this node uses.
fn here(all: &[Endpoint]) -> Vec<&Endpoint> {
    let own = || all.iter().filter(|e| e.here);
    let ready: Vec<&Endpoint> = own().filter(|e| e.ready).collect();
    match ready.is_empty() {
        true => own().filter(|e| e.serving && e.terminating).collect(),
        false => ready,
    }
}

/// Every outcome that there may be.
pub fn outcomes(world: &World, packet: &Packet) -> BTreeSet<Outcome> {
    let one = |outcome| BTreeSet::from([outcome]);
    let to = |endpoints: Vec<&Endpoint>, masquerade: bool| -> BTreeSet<Outcome> {
        let hairpin = |e: &Endpoint| e.here && e.ip == packet.source;
        let mark = |e: &Endpoint| masquerade || hairpin(e);
        endpoints
            .into_iter()
            .map(|e| Outcome::To(e.ip, 8080, mark(e)))
            .collect()
    };
    for s in world.services.iter().filter(|s| s.protocol == packet.protocol) {
        let own = s.port == packet.port;
        let external = own && (s.external == Some(packet.destination) || s.balancer == Some(packet.destination));
        let node_port =
            s.node_port == Some(packet.port) && is_local(packet.destination) && !packet.destination.is_loopback();
        let any = s.endpoints.iter().any(|e| e.ready || (e.serving && e.terminating));
        if own && packet.destination == s.cluster_ip {
            let used = if s.internal_local {
                here(&s.endpoints)
            } else {
                everywhere(&s.endpoints)
            };
            return match (used.is_empty(), any) {
                (true, true) => one(Outcome::Drop),
                (true, false) => one(Outcome::Reject),
                _ => to(used, !in_cluster(packet.source)),
            };
        }
        if !external && !node_port {
            continue;
        }
        if external && s.balancer == Some(packet.destination) && !s.ranges.is_empty() {
            let allowed = s.ranges.iter().any(|r| r.contains(&packet.source));
            let node_allowed = s.ranges.iter().any(|r| r.contains(&crate::interpret::NODE[0]));
            let by_itself = node_allowed && s.balancer == Some(packet.source);
            if !allowed && !by_itself {
                return one(Outcome::Drop);
            }
        }
        if !any {
            return one(Outcome::Reject);
        }
        if !s.external_local {
            return to(everywhere(&s.endpoints), true);
        }
        if in_cluster(packet.source) {
            // The gateway's address is one of pods' range, and the node's own too: pods come first.
            return to(everywhere(&s.endpoints), false);
        }
        if is_local(packet.source) {
            return to(everywhere(&s.endpoints), true);
        }
        let local = here(&s.endpoints);
        return match local.is_empty() {
            true => one(Outcome::Drop),
            false => to(local, false),
        };
    }
    if world.services.iter().any(|s| s.cluster_ip == packet.destination) {
        return one(Outcome::Reject);
    }
    match packet.destination.octets()[..2] == [10, 96] {
        true => one(Outcome::Drop),
        false => one(Outcome::Pass),
    }
}
