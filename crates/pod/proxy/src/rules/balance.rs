//! Which endpoint a connection gets.

use super::skeleton::{ENDPOINTS, HAIRPIN, shared_set};
use super::{Piece, goto, merge, plain, saddr};
use crate::model::ServicePort;
use crate::names::{self, name};
use keelson_sys::nft::{DataType, Datum, Element, ElementData, Expr, KeyType, Load, Nat, SetState};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// How finely new connections are shared out.
const SPAN: u32 = 1 << 31;

/// A chain that picks one of `endpoints`: the client's own when it has one, else any.
///
/// Without affinity that is one rule that never changes, over elements that share the numbers below [`SPAN`] out among the
/// endpoints. So an endpoint that comes or goes is a change of elements only: the kernel checks all jumps of a table anew
/// when a rule or a verdict of it changes, which with many services takes longer than all else.
pub(super) fn balance(p: &mut Piece, s: &ServicePort, chain: &str, kind: &str, endpoints: &BTreeSet<(IpAddr, u16)>) {
    if s.affinity.is_some() {
        return stick(p, s, chain, kind, endpoints);
    }
    let owner = names::hash(&format!("{kind} {}", s.identity));
    let map = shard(owner);
    let elements = shares(endpoints.len())
        .zip(endpoints)
        .map(|((first, last), (ip, port))| Element {
            key: vec![Datum::Share(owner, first)],
            last: Some(vec![Datum::Share(owner, last)]),
            data: Some(ElementData::Concat(vec![Datum::Addr(*ip), Datum::Port(*port)])),
        });
    let state = SetState {
        elements: elements.collect(),
        ..SetState::empty(shared_set(map, s.family()))
    };
    merge(&mut p.own.sets, map, state);
    p.rule(
        chain,
        vec![Expr::Dnat(Nat::Map {
            family: s.family(),
            load: vec![Load::Share(owner, SPAN)],
            map: map.into(),
        })],
    );
}

/// Which of the maps of endpoints has the owner's. There are a few, so that each is small, and not one a service: the kernel
/// finds a set by going through the names of all.
fn shard(owner: u64) -> &'static str {
    ENDPOINTS[(owner % ENDPOINTS.len() as u64) as usize]
}

/// The numbers below [`SPAN`] in `count` equal shares (to one): first and last of each.
fn shares(count: usize) -> impl Iterator<Item = (u32, u32)> {
    let begin = move |i: usize| (u64::from(SPAN) * i as u64 / count as u64) as u32;
    (0..count).map(move |i| (begin(i), begin(i + 1) - 1))
}

/// The same for clients that keep their endpoint: each has a chain of its own, which notes who came.
fn stick(p: &mut Piece, s: &ServicePort, chain: &str, kind: &str, endpoints: &BTreeSet<(IpAddr, u16)>) {
    for e in endpoints {
        let known = Expr::InSet {
            load: vec![saddr(s.family())],
            set: affinity_set(s, *e),
            negate: false,
        };
        p.rule(chain, vec![known, Expr::Verdict(goto(&endpoint_name(s, *e)))]);
    }
    let map = name(&format!("choices-{kind}"), &s.identity);
    let elements = endpoints.iter().enumerate().map(|(i, e)| {
        let target = goto(&endpoint_name(s, *e));
        Element::to(vec![Datum::Integer(i as u32)], target)
    });
    p.set(
        &map,
        vec![KeyType::Integer],
        Some(DataType::Verdict),
        elements.collect(),
    );
    p.rule(
        chain,
        vec![Expr::LookupVerdict {
            load: vec![Load::Random(endpoints.len() as u32)],
            map,
        }],
    );
}

fn endpoint_identity(s: &ServicePort, (ip, port): (IpAddr, u16)) -> String {
    format!("{}__{ip}/{port}", s.identity)
}

fn endpoint_name(s: &ServicePort, endpoint: (IpAddr, u16)) -> String {
    name("endpoint", &endpoint_identity(s, endpoint))
}

/// The time is part of the name: sets of the same name are the same.
fn affinity_set(s: &ServicePort, endpoint: (IpAddr, u16)) -> String {
    let seconds = s.affinity.unwrap_or_default();
    name(&format!("affinity-{seconds}"), &endpoint_identity(s, endpoint))
}

pub(super) fn endpoint_chain(p: &mut Piece, s: &ServicePort, endpoint: (IpAddr, u16), seconds: u32) {
    let chain = endpoint_name(s, endpoint);
    let timeout_ms = u64::from(seconds) * 1000;
    let mut set = plain(&affinity_set(s, endpoint), vec![s.family().address()], None);
    set.dynamic_timeout_ms = Some(timeout_ms);
    let update = Expr::Update {
        load: vec![saddr(s.family())],
        set: set.name.clone(),
        timeout_ms,
    };
    p.own.sets.insert(set.name.clone(), SetState::empty(set));
    p.rule(&chain, vec![update]);
    let (ip, port) = endpoint;
    p.rule(&chain, vec![Expr::Dnat(Nat::To { addr: ip, port })]);
}

pub(super) fn hairpin(p: &mut Piece, s: &ServicePort, (ip, port): (IpAddr, u16)) {
    let ip = Datum::Addr(ip);
    let key = vec![ip.clone(), ip, Datum::Proto(s.protocol), Datum::Port(port)];
    p.share(HAIRPIN, key, None);
}
