//! What rules do with the first packet of a connection: the part of nftables that the proxy uses.

use ipnet::{IpNet, Ipv4Net};
use keelson_sys::nft::{
    Cmp, Datum, Element, ElementData, Expr, Family, Hook, Load, Nat, Op, Ruleset, SetState, Verdict,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Debug)]
pub struct Packet {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub port: u16,
    /// A process of the node sends it.
    pub from_node: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It goes where it was sent.
    Pass,
    /// It goes there, and with the node's address or its own.
    To(Ipv4Addr, u16, bool),
    Drop,
    Reject,
}

/// The world is told in IPv4; in a world of IPv6 these are the addresses.
pub fn told(ip: Ipv4Addr, family: Family) -> IpAddr {
    let [a, b] = [u32::from(ip) >> 16, u32::from(ip) & 0xffff].map(|half| half as u16);
    match family {
        Family::Ip6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, a, b).into(),
        _ => ip.into(),
    }
}

pub fn told_range(range: Ipv4Net, family: Family) -> IpNet {
    let prefix = if family == Family::Ip6 { 96 } else { 0 } + range.prefix_len();
    IpNet::new(told(range.network(), family), prefix).unwrap()
}

fn meant(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => Ipv4Addr::from((u128::from(ip) & u128::from(u32::MAX)) as u32),
    }
}

/// Addresses of the node itself.
pub const NODE: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 244, 3, 1)];

pub fn is_local(ip: Ipv4Addr) -> bool {
    ip.is_loopback() || NODE.contains(&ip)
}

/// The table that these operations make from nothing.
pub fn table(ops: &[Op]) -> Ruleset {
    let mut table = Ruleset::default();
    for op in ops {
        match op.clone() {
            Op::AddChain { name, base } => table.chains.entry(name).or_default().base = base,
            Op::AddRule { chain, exprs } => table.chains.get_mut(&chain).unwrap().rules.push(exprs),
            Op::AddSet(set) => drop(table.sets.insert(set.name.clone(), SetState::empty(set))),
            Op::AddElement { set, element } => drop(table.sets.get_mut(&set).unwrap().elements.insert(element)),
            Op::AddTable | Op::DeleteTable => {}
            other => panic!("not from nothing: {other}"),
        }
    }
    table
}

struct Run<'a> {
    family: Family,
    rules: &'a Ruleset,
    packet: Packet,
    /// The random number, of a million.
    random: u64,
    mark: u32,
    translated: bool,
    masqueraded: bool,
}

enum End {
    Accept,
    Drop,
    Reject,
    FellThrough,
}

/// The packet's way through all hooks; `random` says which endpoint is drawn, of a million.
pub fn run(family: Family, rules: &Ruleset, packet: &Packet, random: u64) -> Outcome {
    let mut run = Run {
        family,
        rules,
        packet: packet.clone(),
        random,
        mark: 0,
        translated: false,
        masqueraded: false,
    };
    let first = if packet.from_node {
        Hook::Output
    } else {
        Hook::Prerouting
    };
    if let Some(end) = run.hook(first) {
        return end;
    }
    let arrives = is_local(run.packet.destination);
    let then: &[Hook] = match (packet.from_node, arrives) {
        (true, true) => &[Hook::Postrouting, Hook::Input],
        (true, false) => &[Hook::Postrouting],
        (false, true) => &[Hook::Input],
        (false, false) => &[Hook::Forward, Hook::Postrouting],
    };
    for hook in then {
        if let Some(end) = run.hook(*hook) {
            return end;
        }
    }
    match run.translated {
        true => Outcome::To(run.packet.destination, run.packet.port, run.masqueraded),
        false => Outcome::Pass,
    }
}

impl Run<'_> {
    fn hook(&mut self, hook: Hook) -> Option<Outcome> {
        let mut bases: Vec<_> = self
            .rules
            .chains
            .iter()
            .filter_map(|(n, c)| Some((c.base.as_ref()?, n)))
            .collect();
        bases.sort_by_key(|(base, _)| base.priority);
        for (_, name) in bases.iter().filter(|(base, _)| base.hook == hook) {
            match self.chain(name) {
                End::Drop => return Some(Outcome::Drop),
                End::Reject => return Some(Outcome::Reject),
                End::Accept | End::FellThrough => {}
            }
        }
        None
    }

    fn chain(&mut self, name: &str) -> End {
        let rules = self.rules;
        'rules: for rule in &rules.chains[name].rules {
            for expr in rule {
                let verdict = match expr {
                    Expr::Verdict(v) => v.clone(),
                    Expr::LookupVerdict { load, map } => match self.find(map, load).and_then(|e| e.data.clone()) {
                        Some(ElementData::Verdict(v)) => v,
                        _ => continue 'rules,
                    },
                    Expr::Reject { .. } => return End::Reject,
                    Expr::Masquerade => {
                        self.masqueraded = true;
                        return End::Accept;
                    }
                    Expr::MarkOr(bits) => {
                        self.mark |= bits;
                        continue;
                    }
                    Expr::MarkXor(bits) => {
                        self.mark ^= bits;
                        continue;
                    }
                    Expr::Update { .. } => continue,
                    Expr::Dnat(nat) => match self.target(nat) {
                        Some((ip, port)) => {
                            (self.packet.destination, self.packet.port, self.translated) = (ip, port, true);
                            return End::Accept;
                        }
                        None => continue 'rules,
                    },
                    other if self.holds(other) => continue,
                    _ => continue 'rules,
                };
                match verdict {
                    Verdict::Accept => return End::Accept,
                    Verdict::Drop => return End::Drop,
                    Verdict::Return => return End::FellThrough,
                    Verdict::Goto(chain) => return self.chain(&chain),
                    Verdict::Jump(chain) => match self.chain(&chain) {
                        End::FellThrough => {}
                        ended => return ended,
                    },
                }
            }
        }
        End::FellThrough
    }

    fn target(&self, nat: &Nat) -> Option<(Ipv4Addr, u16)> {
        let concat = match nat {
            Nat::To { addr, port } => vec![Datum::Addr(*addr), Datum::Port(*port)],
            Nat::Map { load, map, .. } => match self.find(map, load)?.data.clone()? {
                ElementData::Concat(data) => data,
                ElementData::Verdict(_) => panic!("a verdict is no target"),
            },
        };
        match concat[..] {
            [Datum::Addr(ip), Datum::Port(port)] => {
                assert_eq!(Family::of(ip), self.family);
                Some((meant(ip), port))
            }
            _ => panic!("{concat:?} is no target"),
        }
    }

    fn holds(&self, expr: &Expr) -> bool {
        let is = |cmp: &Cmp, found: bool| (*cmp == Cmp::Eq) == found;
        match expr {
            Expr::StateNew => true,
            Expr::Dnatted => self.translated,
            Expr::SourceLocal(cmp) => is(cmp, is_local(self.packet.source)),
            Expr::DestinationLocal(cmp) => is(cmp, is_local(self.packet.destination)),
            Expr::MarkIs { mask, cmp, value } => is(cmp, self.mark & mask == *value),
            Expr::MatchPrefix {
                load,
                cmp,
                addr,
                prefix,
            } => {
                let Datum::Addr(ip) = self.load(load) else {
                    panic!("no address")
                };
                is(cmp, ipnet::IpNet::new(*addr, *prefix).unwrap().contains(&ip))
            }
            Expr::InSet { load, set, negate } => self.find(set, load).is_some() != *negate,
            other => panic!("the interpreter doesn't know {other}"),
        }
    }

    fn load(&self, load: &Load) -> Datum {
        let drawn = |modulus: u32| (u64::from(modulus) * self.random / 1_000_000) as u32;
        match load {
            Load::SourceAddr(family) if *family == self.family => Datum::Addr(told(self.packet.source, *family)),
            Load::DestinationAddr(family) if *family == self.family => {
                Datum::Addr(told(self.packet.destination, *family))
            }
            Load::L4Proto => Datum::Proto(self.packet.protocol),
            Load::DestinationPort => Datum::Port(self.packet.port),
            Load::Random(modulus) => Datum::Integer(drawn(*modulus)),
            Load::Share(owner, modulus) => Datum::Share(*owner, drawn(*modulus)),
            other => panic!("the interpreter doesn't know {other}"),
        }
    }

    fn find(&self, set: &str, load: &[Load]) -> Option<&Element> {
        let key: Vec<Datum> = load.iter().map(|l| self.load(l)).collect();
        let within = |e: &&Element| match &e.last {
            None => e.key == key,
            Some(last) => e.key <= key && key <= *last,
        };
        let mut found = self.rules.sets[set].elements.iter().filter(within);
        let first = found.next();
        assert!(found.next().is_none(), "two elements of {set} have {key:?}");
        first
    }
}
