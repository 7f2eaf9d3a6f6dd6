//! What rules do with a packet that is forwarded: the part of nftables that policies use.

use keelson_network::LINK_PREFIX;
use keelson_sys::nft::{Cmp, Datum, Element, ElementData, Expr, Hook, Load, Ruleset, Verdict};
use std::net::IpAddr;

#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub port: u16,
    /// It comes from, or goes to, a pod's link of this node.
    pub from_link: bool,
    pub to_link: bool,
    pub reply: bool,
}

enum Outcome {
    Accept,
    Drop,
    FellThrough,
}

pub fn passes(rules: &Ruleset, packet: &Packet) -> bool {
    let mut bases: Vec<_> = rules
        .chains
        .iter()
        .filter_map(|(n, c)| Some((c.base.as_ref()?, n)))
        .collect();
    bases.sort_by_key(|(b, _)| b.priority);
    // An accept ends one base chain; every one has its say.
    bases
        .iter()
        .filter(|(b, _)| b.hook == Hook::Forward)
        .all(|(_, name)| !matches!(run(rules, name, packet), Outcome::Drop))
}

fn run(rules: &Ruleset, chain: &str, packet: &Packet) -> Outcome {
    'rules: for rule in &rules.chains[chain].rules {
        for expr in rule {
            let verdict = match expr {
                Expr::Verdict(v) => Some(v.clone()),
                Expr::LookupVerdict { load, map } => match find(rules, map, &key(load, packet)) {
                    Some(Element {
                        data: Some(ElementData::Verdict(v)),
                        ..
                    }) => Some(v.clone()),
                    _ => continue 'rules,
                },
                other => match holds(rules, other, packet) {
                    true => None,
                    false => continue 'rules,
                },
            };
            match verdict {
                None => {}
                Some(Verdict::Accept) => return Outcome::Accept,
                Some(Verdict::Drop) => return Outcome::Drop,
                Some(Verdict::Return) => return Outcome::FellThrough,
                Some(Verdict::Goto(c)) => return run(rules, &c, packet),
                Some(Verdict::Jump(c)) => match run(rules, &c, packet) {
                    Outcome::FellThrough => {}
                    ended => return ended,
                },
            }
        }
    }
    Outcome::FellThrough
}

fn holds(rules: &Ruleset, expr: &Expr, packet: &Packet) -> bool {
    match expr {
        Expr::Reply => packet.reply,
        Expr::StateRelated => false,
        Expr::Counter(_) | Expr::Limit { .. } | Expr::Log { .. } => true,
        Expr::InputName { cmp: Cmp::Eq, prefix } if prefix == LINK_PREFIX => packet.from_link,
        Expr::OutputName { cmp: Cmp::Eq, prefix } if prefix == LINK_PREFIX => packet.to_link,
        Expr::Match {
            load,
            cmp: Cmp::Eq,
            value,
        } => key(&[*load], packet)[0] == *value,
        Expr::InSet {
            load,
            set,
            negate: false,
        } => find(rules, set, &key(load, packet)).is_some(),
        other => panic!("the interpreter doesn't know {other}"),
    }
}

fn key(load: &[Load], packet: &Packet) -> Vec<Datum> {
    load.iter()
        .map(|l| match l {
            Load::SourceAddr(_) => Datum::Addr(packet.source),
            Load::DestinationAddr(_) => Datum::Addr(packet.destination),
            Load::L4Proto => Datum::Proto(packet.protocol),
            Load::DestinationPort => Datum::Port(packet.port),
            other => panic!("the interpreter doesn't know {other}"),
        })
        .collect()
}

fn find<'a>(rules: &'a Ruleset, set: &str, key: &[Datum]) -> Option<&'a Element> {
    let within = |e: &&Element| {
        let last = e.last.as_ref().unwrap_or(&e.key);
        key.iter()
            .zip(&e.key)
            .zip(last)
            .all(|((k, first), last)| first <= k && k <= last)
    };
    rules.sets[set].elements.iter().find(within)
}
