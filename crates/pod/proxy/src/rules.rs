//! Facts as rules: the whole table as plain data.
//!
//! A packet's way: the maps `service-ips` and `service-nodeports` send it to its service's chain by one look-up each,
//! however many services there are; a service's map of endpoints sends it to an endpoint's chain by one more.

use crate::model::ServicePort;
use crate::names::name;
use ipnet::Ipv4Net;
use keelson_sys::nft::{
    Base, ChainKind, Cmp, DataType, Datum, Element, ElementData, Expr, Family, Hook, KeyType, Load, Nat, Ruleset, Set,
    SetState, Verdict,
};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The mark of packets that leave with the node's address.
const MASQUERADE: u32 = 0x4000;
const SERVICE_IPS: &str = "service-ips";
const NODE_PORTS: &str = "service-nodeports";
const NO_ENDPOINTS: &str = "no-endpoint-services";
const NO_ENDPOINT_NODE_PORTS: &str = "no-endpoint-nodeports";
const CLUSTER_IPS: &str = "cluster-ips";
const FIREWALL_IPS: &str = "firewall-ips";
/// Before translation, which would hide the load balancer's address.
const BEFORE_TRANSLATION: i32 = -110;

/// A rule set in the making.
trait Making {
    fn rule(&mut self, chain: &str, exprs: Vec<Expr>);
    fn chain(&mut self, chain: &str);
    fn base(&mut self, chain: &str, kind: ChainKind, hook: Hook, priority: i32);
    fn set(&mut self, name: &str, key: Vec<KeyType>, data: Option<DataType>, dynamic_timeout_ms: Option<u64>);
    fn element(&mut self, set: &str, key: Vec<Datum>, verdict: Option<Verdict>);
}

impl Making for Ruleset {
    fn rule(&mut self, chain: &str, exprs: Vec<Expr>) {
        self.chains.entry(chain.to_string()).or_default().rules.push(exprs);
    }
    fn chain(&mut self, chain: &str) {
        self.chains.entry(chain.to_string()).or_default();
    }
    fn base(&mut self, chain: &str, kind: ChainKind, hook: Hook, priority: i32) {
        self.chains.entry(chain.to_string()).or_default().base = Some(Base { kind, hook, priority });
    }
    fn set(&mut self, name: &str, key: Vec<KeyType>, data: Option<DataType>, dynamic_timeout_ms: Option<u64>) {
        let set = Set {
            name: name.to_string(),
            key,
            data,
            intervals: false,
            dynamic_timeout_ms,
        };
        self.sets.insert(name.to_string(), SetState::empty(set));
    }
    fn element(&mut self, set: &str, key: Vec<Datum>, verdict: Option<Verdict>) {
        if let Some(state) = self.sets.get_mut(set) {
            // Of two services that claim one address, the first in order of identity has it.
            let least = Element::of(key);
            if state.elements.range(&least..).next().is_none_or(|e| e.key != least.key) {
                let data = verdict.map(ElementData::Verdict);
                state.elements.insert(Element { data, ..least });
            }
        }
    }
}

const DADDR: Load = Load::DestinationAddr(Family::Ip);
const SADDR: Load = Load::SourceAddr(Family::Ip);

/// The rule set for these facts.
pub fn build(facts: &[ServicePort], cluster_cidr: Ipv4Net) -> Ruleset {
    let mut r = Ruleset::default();
    skeleton(&mut r);
    for s in facts {
        service(&mut r, s, cluster_cidr);
    }
    r
}

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

fn jump(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.into()))
}

/// What stands whatever services there are.
fn skeleton(r: &mut Ruleset) {
    use KeyType::{Ipv4, Port, Proto};
    let verdict = || Some(DataType::Verdict);
    r.set(SERVICE_IPS, vec![Ipv4, Proto, Port], verdict(), None);
    r.set(NODE_PORTS, vec![Proto, Port], verdict(), None);
    r.set(NO_ENDPOINTS, vec![Ipv4, Proto, Port], verdict(), None);
    r.set(NO_ENDPOINT_NODE_PORTS, vec![Proto, Port], verdict(), None);
    r.set(CLUSTER_IPS, vec![Ipv4], None, None);
    r.set(FIREWALL_IPS, vec![Ipv4, Proto, Port], verdict(), None);

    let by_ip = vec![DADDR, Load::L4Proto, Load::DestinationPort];
    let by_port = vec![Load::L4Proto, Load::DestinationPort];
    let not_loopback = || Expr::MatchPrefix {
        load: DADDR,
        cmp: Cmp::Neq,
        addr: Ipv4Addr::LOCALHOST.into(),
        prefix: 8,
    };
    r.rule(
        "services",
        vec![Expr::LookupVerdict {
            load: by_ip.clone(),
            map: SERVICE_IPS.into(),
        }],
    );
    r.rule(
        "services",
        vec![
            Expr::DestinationLocal(Cmp::Eq),
            not_loopback(),
            Expr::LookupVerdict {
                load: by_port.clone(),
                map: NODE_PORTS.into(),
            },
        ],
    );
    for (chain, hook) in [
        ("firewall-prerouting", Hook::Prerouting),
        ("firewall-output", Hook::Output),
    ] {
        r.base(chain, ChainKind::Filter, hook, BEFORE_TRANSLATION);
        let look_up = Expr::LookupVerdict {
            load: by_ip.clone(),
            map: FIREWALL_IPS.into(),
        };
        r.rule(chain, vec![Expr::StateNew, look_up]);
    }
    r.rule(
        "endpoint-check",
        vec![Expr::LookupVerdict {
            load: by_ip,
            map: NO_ENDPOINTS.into(),
        }],
    );
    r.rule(
        "nodeport-check",
        vec![
            Expr::DestinationLocal(Cmp::Eq),
            not_loopback(),
            Expr::LookupVerdict {
                load: by_port,
                map: NO_ENDPOINT_NODE_PORTS.into(),
            },
        ],
    );
    r.rule("reject", vec![Expr::Reject { tcp_reset: false }]);
    r.rule("drop", vec![Expr::Verdict(Verdict::Drop)]);
    r.rule("masquerade", vec![Expr::MarkOr(MASQUERADE)]);

    for (chain, hook) in [
        ("filter-input", Hook::Input),
        ("filter-forward", Hook::Forward),
        ("filter-output", Hook::Output),
    ] {
        // After translation: what still has its service's address found no endpoint. A client of this node may have been
        // sent on where others are dropped. And before `cluster-ips`, which would refuse what is to be dropped.
        r.base(chain, ChainKind::Filter, hook, -10);
        r.rule(chain, vec![Expr::StateNew, jump("endpoint-check")]);
        // What this node sends to its own ports comes in again by the loopback.
        if hook == Hook::Input {
            r.rule(chain, vec![Expr::StateNew, jump("nodeport-check")]);
        }
    }
    for (chain, hook) in [
        ("cluster-ips-forward", Hook::Forward),
        ("cluster-ips-output", Hook::Output),
    ] {
        // After translation: what still goes to a service's address goes to a port that it doesn't have.
        r.base(chain, ChainKind::Filter, hook, 0);
        r.rule(
            chain,
            vec![
                Expr::StateNew,
                Expr::InSet {
                    load: vec![DADDR],
                    set: CLUSTER_IPS.into(),
                    negate: false,
                },
                Expr::Reject { tcp_reset: false },
            ],
        );
    }
    r.base("nat-prerouting", ChainKind::Nat, Hook::Prerouting, -100);
    r.rule("nat-prerouting", vec![jump("services")]);
    r.base("nat-output", ChainKind::Nat, Hook::Output, -100);
    r.rule("nat-output", vec![jump("services")]);
    r.base("nat-postrouting", ChainKind::Nat, Hook::Postrouting, 100);
    r.rule(
        "nat-postrouting",
        vec![
            Expr::MarkIs {
                mask: MASQUERADE,
                cmp: Cmp::Neq,
                value: 0,
            },
            Expr::MarkXor(MASQUERADE),
            Expr::Masquerade,
        ],
    );
}

fn at(s: &ServicePort, ip: Ipv4Addr) -> Vec<Datum> {
    vec![Datum::Addr(ip.into()), Datum::Proto(s.protocol), Datum::Port(s.port)]
}

fn service(r: &mut Ruleset, s: &ServicePort, cluster_cidr: Ipv4Net) {
    let node_port = s.node_port.map(|p| vec![Datum::Proto(s.protocol), Datum::Port(p)]);
    r.element(CLUSTER_IPS, vec![Datum::Addr(s.cluster_ip.into())], None);

    let internal = if s.internal_local {
        &s.local_endpoints
    } else {
        &s.endpoints
    };
    let internal_chain = if s.internal_local {
        name("local", &s.identity)
    } else {
        name("service", &s.identity)
    };
    if internal.is_empty() {
        // With endpoints elsewhere the policy, not an absence, keeps the traffic out.
        let verdict = if s.endpoints.is_empty() {
            goto("reject")
        } else {
            goto("drop")
        };
        r.element(NO_ENDPOINTS, at(s, s.cluster_ip), Some(verdict));
    } else {
        let entry = name("internal", &s.identity);
        r.rule(
            &entry,
            vec![
                Expr::MatchPrefix {
                    load: SADDR,
                    cmp: Cmp::Neq,
                    addr: cluster_cidr.network().into(),
                    prefix: cluster_cidr.prefix_len(),
                },
                jump("masquerade"),
            ],
        );
        r.rule(&entry, vec![Expr::Verdict(goto(&internal_chain))]);
        r.element(SERVICE_IPS, at(s, s.cluster_ip), Some(goto(&entry)));
    }

    firewall(r, s);
    let exposed = node_port.is_some() || !s.external_ips.is_empty();
    if exposed && s.endpoints.is_empty() {
        for ip in &s.external_ips {
            r.element(NO_ENDPOINTS, at(s, *ip), Some(goto("reject")));
        }
        if let Some(key) = node_port.clone() {
            r.element(NO_ENDPOINT_NODE_PORTS, key, Some(goto("reject")));
        }
    } else if exposed {
        let entry = name("external", &s.identity);
        external(r, s, &entry, cluster_cidr);
        for ip in &s.external_ips {
            r.element(SERVICE_IPS, at(s, *ip), Some(goto(&entry)));
        }
        if let Some(key) = node_port {
            r.element(NODE_PORTS, key, Some(goto(&entry)));
        }
    }
    if !s.endpoints.is_empty() {
        let everywhere = name("service", &s.identity);
        if !s.internal_local || exposed {
            balance(r, s, &everywhere, "endpoints", &s.endpoints);
        }
        if !s.local_endpoints.is_empty() && (s.internal_local || (exposed && s.external_local)) {
            balance(r, s, &name("local", &s.identity), "local-endpoints", &s.local_endpoints);
        }
        // One that terminates may be all this node has, while others elsewhere are ready.
        for endpoint in s.endpoints.union(&s.local_endpoints) {
            endpoint_chain(r, s, *endpoint);
        }
    }
}

/// Who may use a load balancer's addresses.
fn firewall(r: &mut Ruleset, s: &ServicePort) {
    if s.source_ranges.is_empty() || s.balancer_ips.is_empty() {
        return;
    }
    let chain = name("firewall", &s.identity);
    // The balancer's own address: where it is an address of this node, its clients here have it as their source.
    let own = s.balancer_ips.iter().map(|ip| Ipv4Net::from(*ip));
    for range in s.source_ranges.iter().copied().chain(own) {
        let matches = Expr::MatchPrefix {
            load: SADDR,
            cmp: Cmp::Eq,
            addr: range.network().into(),
            prefix: range.prefix_len(),
        };
        r.rule(&chain, vec![matches, Expr::Verdict(Verdict::Return)]);
    }
    r.rule(&chain, vec![Expr::Verdict(Verdict::Drop)]);
    for ip in &s.balancer_ips {
        r.element(FIREWALL_IPS, at(s, *ip), Some(goto(&chain)));
    }
}

/// Traffic from outside the cluster.
fn external(r: &mut Ruleset, s: &ServicePort, entry: &str, cluster_cidr: Ipv4Net) {
    let everywhere = name("service", &s.identity);
    if !s.external_local {
        r.rule(entry, vec![jump("masquerade")]);
        r.rule(entry, vec![Expr::Verdict(goto(&everywhere))]);
        return;
    }
    // Clients within the cluster aren't bound to local endpoints.
    r.rule(
        entry,
        vec![
            Expr::MatchPrefix {
                load: SADDR,
                cmp: Cmp::Eq,
                addr: cluster_cidr.network().into(),
                prefix: cluster_cidr.prefix_len(),
            },
            Expr::Verdict(goto(&everywhere)),
        ],
    );
    r.rule(entry, vec![Expr::SourceLocal(Cmp::Eq), jump("masquerade")]);
    r.rule(
        entry,
        vec![Expr::SourceLocal(Cmp::Eq), Expr::Verdict(goto(&everywhere))],
    );
    if s.local_endpoints.is_empty() {
        for ip in &s.external_ips {
            r.element(NO_ENDPOINTS, at(s, *ip), Some(goto("drop")));
        }
        if let Some(port) = s.node_port {
            let key = vec![Datum::Proto(s.protocol), Datum::Port(port)];
            r.element(NO_ENDPOINT_NODE_PORTS, key, Some(goto("drop")));
        }
    } else {
        r.rule(entry, vec![Expr::Verdict(goto(&name("local", &s.identity)))]);
    }
}

/// A chain that picks one of `endpoints`: the client's own when it has one, else any.
fn balance(r: &mut Ruleset, s: &ServicePort, chain: &str, map_kind: &str, endpoints: &BTreeSet<(Ipv4Addr, u16)>) {
    r.chain(chain);
    if s.affinity.is_some() {
        for e in endpoints {
            let id = endpoint_identity(s, *e);
            r.rule(
                chain,
                vec![
                    Expr::InSet {
                        load: vec![SADDR],
                        set: name("affinity", &id),
                        negate: false,
                    },
                    Expr::Verdict(goto(&name("endpoint", &id))),
                ],
            );
        }
    }
    let map = name(map_kind, &s.identity);
    r.set(&map, vec![KeyType::Integer], Some(DataType::Verdict), None);
    for (i, e) in endpoints.iter().enumerate() {
        let target = goto(&name("endpoint", &endpoint_identity(s, *e)));
        r.element(&map, vec![Datum::Integer(i as u32)], Some(target));
    }
    r.rule(
        chain,
        vec![Expr::LookupVerdict {
            load: vec![Load::Random(endpoints.len() as u32)],
            map,
        }],
    );
}

fn endpoint_identity(s: &ServicePort, (ip, port): (Ipv4Addr, u16)) -> String {
    format!("{}__{ip}/{port}", s.identity)
}

fn endpoint_chain(r: &mut Ruleset, s: &ServicePort, (ip, port): (Ipv4Addr, u16)) {
    let id = endpoint_identity(s, (ip, port));
    let chain = name("endpoint", &id);
    if let Some(seconds) = s.affinity {
        let set = name("affinity", &id);
        let timeout_ms = u64::from(seconds) * 1000;
        r.set(&set, vec![KeyType::Ipv4], None, Some(timeout_ms));
        r.rule(
            &chain,
            vec![Expr::Update {
                load: vec![SADDR],
                set,
                timeout_ms,
            }],
        );
    }
    // A pod that reaches itself through its service must get the answer by way of the node.
    r.rule(
        &chain,
        vec![
            Expr::Match {
                load: SADDR,
                cmp: Cmp::Eq,
                value: Datum::Addr(ip.into()),
            },
            jump("masquerade"),
        ],
    );
    r.rule(
        &chain,
        vec![
            Expr::Match {
                load: Load::L4Proto,
                cmp: Cmp::Eq,
                value: Datum::Proto(s.protocol),
            },
            Expr::Dnat(Nat::To { addr: ip.into(), port }),
        ],
    );
}
