//! Facts as rules, as plain data: [`skeleton`] stands whatever services there are, [`piece`] is what one port of one adds, of
//! which [`balance`] picks the endpoint.
//!
//! A packet's way: the maps `service-ips` and `service-nodeports` send it to its service's chain by one look-up each,
//! however many services there are; a map of endpoints gives it its destination by one more.

mod balance;
mod skeleton;

pub use skeleton::{ENDPOINTS, RANGES, SHARED, shared_set, skeleton};

use crate::model::ServicePort;
use crate::names::name;
use ipnet::IpNet;
use keelson_sys::nft::{
    Cmp, DataType, Datum, Element, ElementData, Expr, Family, KeyType, Load, Ruleset, Set, SetState, Verdict,
};
use skeleton::{CLUSTER_IPS, FIREWALL_IPS, NO_ENDPOINT_NODE_PORTS, NO_ENDPOINTS, NODE_PORTS, SERVICE_IPS};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What a service puts into a map of all services.
pub type Shared = (&'static str, Vec<Datum>);

/// What the rules of one port of a service are: chains and sets of its own, and elements of the maps that all services share,
/// which another may want as well.
#[derive(Default)]
pub struct Piece {
    pub own: Ruleset,
    pub shared: Vec<(Shared, Option<Verdict>)>,
}

impl Piece {
    fn rule(&mut self, chain: &str, exprs: Vec<Expr>) {
        rule(&mut self.own, chain, exprs);
    }
    fn set(&mut self, name: &str, key: Vec<KeyType>, data: Option<DataType>, elements: BTreeSet<Element>) {
        let set = plain(name, key, data);
        self.own.sets.insert(name.into(), SetState { set, elements });
    }
    fn share(&mut self, map: &'static str, key: Vec<Datum>, verdict: Option<Verdict>) {
        self.shared.push(((map, key), verdict));
    }
}

fn rule(r: &mut Ruleset, chain: &str, exprs: Vec<Expr>) {
    r.chains.entry(chain.to_string()).or_default().rules.push(exprs);
}

fn plain(name: &str, key: Vec<KeyType>, data: Option<DataType>) -> Set {
    Set {
        name: name.to_string(),
        key,
        data,
        intervals: false,
        dynamic_timeout_ms: None,
    }
}

/// An element of a map that services share.
pub fn element(key: Vec<Datum>, verdict: Option<Verdict>) -> Element {
    Element {
        data: verdict.map(ElementData::Verdict),
        ..Element::of(key)
    }
}

fn daddr(family: Family) -> Load {
    Load::DestinationAddr(family)
}

fn saddr(family: Family) -> Load {
    Load::SourceAddr(family)
}

impl ServicePort {
    fn family(&self) -> Family {
        Family::of(self.cluster_ip)
    }
}

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

fn jump(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.into()))
}

fn at(s: &ServicePort, ip: IpAddr) -> Vec<Datum> {
    vec![Datum::Addr(ip), Datum::Proto(s.protocol), Datum::Port(s.port)]
}

/// The rules of one port of a service.
pub fn piece(s: &ServicePort, cluster_cidr: IpNet) -> Piece {
    let mut piece = Piece::default();
    let p = &mut piece;
    let node_port = s.node_port.map(|n| vec![Datum::Proto(s.protocol), Datum::Port(n)]);
    p.share(CLUSTER_IPS, vec![Datum::Addr(s.cluster_ip)], None);
    let (everywhere, here) = (name("service", &s.identity), name("local", &s.identity));
    let (internal, internal_chain) = match s.internal_local {
        true => (&s.local_endpoints, &here),
        false => (&s.endpoints, &everywhere),
    };
    if internal.is_empty() {
        // With endpoints elsewhere the policy, not an absence, keeps the traffic out.
        let verdict = if s.endpoints.is_empty() { "reject" } else { "drop" };
        p.share(NO_ENDPOINTS, at(s, s.cluster_ip), Some(goto(verdict)));
    } else {
        p.share(SERVICE_IPS, at(s, s.cluster_ip), Some(goto(internal_chain)));
    }

    firewall(p, s);
    let exposed = node_port.is_some() || !s.external_ips.is_empty();
    if exposed && s.endpoints.is_empty() {
        for ip in &s.external_ips {
            p.share(NO_ENDPOINTS, at(s, *ip), Some(goto("reject")));
        }
        if let Some(key) = node_port.clone() {
            p.share(NO_ENDPOINT_NODE_PORTS, key, Some(goto("reject")));
        }
    } else if exposed {
        let entry = name("external", &s.identity);
        external(p, s, &entry, cluster_cidr);
        for ip in &s.external_ips {
            p.share(SERVICE_IPS, at(s, *ip), Some(goto(&entry)));
        }
        if let Some(key) = node_port {
            p.share(NODE_PORTS, key, Some(goto(&entry)));
        }
    }
    if s.endpoints.is_empty() {
        return piece;
    }
    let (uses_all, uses_local) = (
        !s.internal_local || exposed,
        !s.local_endpoints.is_empty() && (s.internal_local || (exposed && s.external_local)),
    );
    if uses_all {
        balance::balance(p, s, &everywhere, "all", &s.endpoints);
    }
    if uses_local {
        balance::balance(p, s, &here, "local", &s.local_endpoints);
    }
    for endpoint in &s.local_endpoints {
        balance::hairpin(p, s, *endpoint);
    }
    if let Some(seconds) = s.affinity {
        // One that terminates may be all this node has, while others elsewhere are ready.
        for endpoint in s.endpoints.union(&s.local_endpoints) {
            balance::endpoint_chain(p, s, *endpoint, seconds);
        }
    }
    piece
}

/// Who may use a load balancer's addresses.
fn firewall(p: &mut Piece, s: &ServicePort) {
    if s.source_ranges.is_empty() || s.balancer_ips.is_empty() {
        return;
    }
    let chain = name("firewall", &s.identity);
    for range in &s.source_ranges {
        let matches = Expr::MatchPrefix {
            load: saddr(s.family()),
            cmp: Cmp::Eq,
            addr: range.network(),
            prefix: range.prefix_len(),
        };
        p.rule(&chain, vec![matches, Expr::Verdict(Verdict::Return)]);
    }
    p.rule(&chain, vec![Expr::Verdict(Verdict::Drop)]);
    for ip in &s.balancer_ips {
        p.share(FIREWALL_IPS, at(s, *ip), Some(goto(&chain)));
    }
}

/// Traffic from outside the cluster.
fn external(p: &mut Piece, s: &ServicePort, entry: &str, cluster_cidr: IpNet) {
    let everywhere = name("service", &s.identity);
    if !s.external_local {
        p.rule(entry, vec![jump("masquerade")]);
        p.rule(entry, vec![Expr::Verdict(goto(&everywhere))]);
        return;
    }
    // Clients within the cluster aren't bound to local endpoints.
    p.rule(
        entry,
        vec![
            Expr::MatchPrefix {
                load: saddr(s.family()),
                cmp: Cmp::Eq,
                addr: cluster_cidr.network(),
                prefix: cluster_cidr.prefix_len(),
            },
            Expr::Verdict(goto(&everywhere)),
        ],
    );
    p.rule(entry, vec![Expr::SourceLocal(Cmp::Eq), jump("masquerade")]);
    p.rule(
        entry,
        vec![Expr::SourceLocal(Cmp::Eq), Expr::Verdict(goto(&everywhere))],
    );
    if s.local_endpoints.is_empty() {
        for ip in &s.external_ips {
            p.share(NO_ENDPOINTS, at(s, *ip), Some(goto("drop")));
        }
        if let Some(port) = s.node_port {
            let key = vec![Datum::Proto(s.protocol), Datum::Port(port)];
            p.share(NO_ENDPOINT_NODE_PORTS, key, Some(goto("drop")));
        }
    } else {
        p.rule(entry, vec![Expr::Verdict(goto(&name("local", &s.identity)))]);
    }
}

/// Puts elements to those that a set has.
pub fn merge(into: &mut BTreeMap<String, SetState>, name: &str, state: SetState) {
    match into.get_mut(name) {
        Some(there) => there.elements.extend(state.elements),
        None => drop(into.insert(name.into(), state)),
    }
}
