//! Operations as text, close to the `nft` program's language.

use super::*;
use std::fmt::{self, Display, Formatter};

fn joined<T: Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" . ")
}

impl Display for KeyType {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            KeyType::Ipv4 => "ipv4_addr",
            KeyType::Ipv6 => "ipv6_addr",
            KeyType::Proto => "inet_proto",
            KeyType::Port => "inet_service",
            KeyType::Integer => "integer",
            KeyType::Share => "share",
            KeyType::Interface => "ifname",
        })
    }
}
impl Display for Datum {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Datum::Addr(a) => a.fmt(f),
            Datum::Proto(6) => f.write_str("tcp"),
            Datum::Proto(17) => f.write_str("udp"),
            Datum::Proto(132) => f.write_str("sctp"),
            Datum::Proto(p) => p.fmt(f),
            Datum::Port(p) => p.fmt(f),
            Datum::Integer(i) => i.fmt(f),
            Datum::Share(owner, i) => write!(f, "{owner:016x}/{i}"),
            Datum::Interface(name) => write!(f, "\"{name}\""),
        }
    }
}
impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(c) => write!(f, "jump {c}"),
            Verdict::Goto(c) => write!(f, "goto {c}"),
        }
    }
}
fn family(f: Family) -> &'static str {
    match f {
        Family::Ip => "ip",
        Family::Ip6 => "ip6",
        Family::Inet => "inet",
    }
}
impl Display for Load {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Load::SourceAddr(a) => write!(f, "{} saddr", family(*a)),
            Load::DestinationAddr(a) => write!(f, "{} daddr", family(*a)),
            Load::L4Proto => f.write_str("meta l4proto"),
            Load::SourcePort => f.write_str("th sport"),
            Load::DestinationPort => f.write_str("th dport"),
            Load::IcmpType => f.write_str("icmp type"),
            Load::InputInterface => f.write_str("iifname"),
            Load::Share(owner, n) => write!(f, "{owner:016x}/numgen random mod {n}"),
            Load::Random(n) => write!(f, "numgen random mod {n}"),
        }
    }
}
impl Display for Cmp {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Cmp::Eq => "",
            Cmp::Neq => "!= ",
        })
    }
}
impl Display for Expr {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Expr::Match { load, cmp, value } => write!(f, "{load} {cmp}{value}"),
            Expr::MatchPrefix {
                load,
                cmp,
                addr,
                prefix,
            } => write!(f, "{load} {cmp}{addr}/{prefix}"),
            Expr::DestinationLocal(cmp) => write!(f, "fib daddr type {cmp}local"),
            Expr::SourceLocal(cmp) => write!(f, "fib saddr type {cmp}local"),
            Expr::OutputName { cmp, prefix } => write!(f, "oifname {cmp}\"{prefix}*\""),
            Expr::InputName { cmp, prefix } => write!(f, "iifname {cmp}\"{prefix}*\""),
            Expr::MarkIs { mask, cmp, value } => {
                write!(
                    f,
                    "meta mark & {mask:#x} {}{value:#x}",
                    if *cmp == Cmp::Eq { "== " } else { "!= " }
                )
            }
            Expr::MarkOr(m) => write!(f, "meta mark set mark or {m:#x}"),
            Expr::MarkXor(m) => write!(f, "meta mark set mark xor {m:#x}"),
            Expr::StateNew => f.write_str("ct state new"),
            Expr::StateInvalid => f.write_str("ct state invalid"),
            Expr::StateRelated => f.write_str("ct state related"),
            Expr::Reply => f.write_str("ct direction reply"),
            Expr::Dnatted => f.write_str("ct status dnat"),
            Expr::InSet { load, set, negate } => {
                write!(f, "{} {}@{set}", joined(load), if *negate { "!= " } else { "" })
            }
            Expr::LookupVerdict { load, map } => write!(f, "{} vmap @{map}", joined(load)),
            Expr::Update { load, set, timeout_ms } => {
                write!(f, "update @{set} {{ {} timeout {}s }}", joined(load), timeout_ms / 1000)
            }
            Expr::Dnat(Nat::To { addr, port }) => match addr {
                IpAddr::V4(a) => write!(f, "dnat to {a}:{port}"),
                IpAddr::V6(a) => write!(f, "dnat to [{a}]:{port}"),
            },
            Expr::Dnat(Nat::Map { load, map, .. }) => write!(f, "dnat to {} map @{map}", joined(load)),
            Expr::Masquerade => f.write_str("masquerade fully-random"),
            Expr::Reject { tcp_reset: true } => f.write_str("reject with tcp reset"),
            Expr::Reject { tcp_reset: false } => f.write_str("reject"),
            Expr::Counter(name) => write!(f, "counter name {name}"),
            Expr::Limit { per_second, burst } => write!(f, "limit rate {per_second}/second burst {burst} packets"),
            Expr::Log { group, length, prefix } => {
                write!(f, "log prefix \"{prefix}\" group {group} snaplen {length}")
            }
            Expr::Verdict(v) => v.fmt(f),
        }
    }
}
impl Display for Element {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match &self.last {
            None => f.write_str(&joined(&self.key))?,
            Some(last) => {
                let range = |(from, to): (&Datum, &Datum)| match from == to {
                    true => from.to_string(),
                    false => format!("{from}-{to}"),
                };
                let parts: Vec<String> = self.key.iter().zip(last).map(range).collect();
                f.write_str(&parts.join(" . "))?;
            }
        }
        match &self.data {
            None => Ok(()),
            Some(ElementData::Verdict(v)) => write!(f, " : {v}"),
            Some(ElementData::Concat(d)) => write!(f, " : {}", joined(d)),
        }
    }
}
impl Display for Set {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let word = if self.data.is_some() { "map" } else { "set" };
        write!(f, "{word} {} {{ type {}", self.name, joined(&self.key))?;
        match &self.data {
            None => {}
            Some(DataType::Verdict) => f.write_str(" : verdict")?,
            Some(DataType::Concat(d)) => write!(f, " : {}", joined(d))?,
        }
        if self.intervals {
            f.write_str("; flags interval")?;
        }
        if let Some(ms) = self.dynamic_timeout_ms {
            write!(f, "; flags dynamic,timeout; timeout {}s", ms / 1000)?;
        }
        f.write_str("; }")
    }
}
impl Display for Op {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Op::AddTable => f.write_str("add table"),
            Op::DeleteTable => f.write_str("delete table"),
            Op::AddChain { name, base: None } => write!(f, "add chain {name}"),
            Op::AddChain { name, base: Some(b) } => write!(
                f,
                "add chain {name} {{ type {} hook {} priority {}; }}",
                format!("{:?}", b.kind).to_lowercase(),
                format!("{:?}", b.hook).to_lowercase(),
                b.priority
            ),
            Op::FlushRules => f.write_str("flush table"),
            Op::FlushChain { name } => write!(f, "flush chain {name}"),
            Op::DeleteChain { name } => write!(f, "delete chain {name}"),
            Op::AddRule { chain, exprs } => {
                write!(f, "add rule {chain}")?;
                exprs.iter().try_for_each(|e| write!(f, " {e}"))
            }
            Op::InsertRule { chain, exprs, comment } => {
                write!(f, "insert rule {chain}")?;
                exprs.iter().try_for_each(|e| write!(f, " {e}"))?;
                write!(f, " comment \"{comment}\"")
            }
            Op::DeleteRule { chain, handle } => write!(f, "delete rule {chain} handle {handle}"),
            Op::AddSet(set) => write!(f, "add {set}"),
            Op::FlushSet { name } => write!(f, "flush set {name}"),
            Op::DeleteSet { name } => write!(f, "delete set {name}"),
            Op::AddCounter { name } => write!(f, "add counter {name}"),
            Op::DeleteCounter { name } => write!(f, "delete counter {name}"),
            Op::AddElement { set, element } => write!(f, "add element {set} {{ {element} }}"),
            Op::DeleteElement { set, element } => write!(f, "delete element {set} {{ {element} }}"),
        }
    }
}
