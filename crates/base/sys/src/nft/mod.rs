//! nftables by native netlink: rules as plain data, applied in one atomic batch.
//!
//! [`Op`] is the vocabulary: tables, chains, sets, maps, elements, rules made of [`Expr`]. Their `Display` is close to
//! the `nft` program's language, so that rule sets can be golden-tested and read. [`apply`] sends a batch and reports
//! the operation that the kernel refused (of elements that were sent together, the last). A [`Ruleset`] is a whole table
//! as data, [`between`] leads from one to the next, a [`Table`] also remembers what changed since it was last applied.
//! [`exchange`] writes a whole table over one that packets pass. [`Monitor`] tells when another program changed a table.
//! Nothing here knows what the rules are for.

mod delta;
mod encode;
mod exchange;
mod expr;
mod monitor;
pub mod names;
mod own;
mod query;
mod ruleset;
mod show;
mod socket;

pub use delta::{between, replace};
pub use exchange::exchange;
pub use expr::{Cmp, Expr, Load, Nat, Verdict};
pub use monitor::{Monitor, Notice};
pub use query::{Counted, FoundChain, FoundRule, chains, counters, rules};
pub use ruleset::{Chain, Ruleset, SetState, Table};
pub(crate) use socket::{NLMSG_ERROR, attributes, failure, messages};
pub use socket::{NftError, apply, remove};

use std::net::IpAddr;

/// The address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    Inet = 1,
    Ip = 2,
    Ip6 = 10,
}

impl Family {
    pub fn of(ip: IpAddr) -> Family {
        match ip {
            IpAddr::V4(_) => Family::Ip,
            IpAddr::V6(_) => Family::Ip6,
        }
    }

    /// What keys of this family's addresses are made of.
    pub fn address(self) -> KeyType {
        match self {
            Family::Ip6 => KeyType::Ipv6,
            Family::Ip | Family::Inet => KeyType::Ipv4,
        }
    }
}

/// One change of the rule set. `table` names are given once, to [`apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    AddTable,
    /// Succeeds also when the table is absent only if preceded by `AddTable` in the same batch.
    DeleteTable,
    AddChain {
        name: String,
        base: Option<Base>,
    },
    /// All rules of all chains go; chains stay.
    FlushRules,
    FlushChain {
        name: String,
    },
    DeleteChain {
        name: String,
    },
    AddRule {
        chain: String,
        exprs: Vec<Expr>,
    },
    /// At the head of a chain, with a comment by which it is found again: for chains that belong to another program.
    InsertRule {
        chain: String,
        exprs: Vec<Expr>,
        comment: String,
    },
    DeleteRule {
        chain: String,
        handle: u64,
    },
    AddSet(Set),
    /// All elements go.
    FlushSet {
        name: String,
    },
    DeleteSet {
        name: String,
    },
    /// A counter that is there goes on.
    AddCounter {
        name: String,
    },
    DeleteCounter {
        name: String,
    },
    AddElement {
        set: String,
        element: Element,
    },
    DeleteElement {
        set: String,
        element: Element,
    },
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A set, or a map when `data` is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub key: Vec<KeyType>,
    pub data: Option<DataType>,
    /// Elements may stand for ranges. Those of one set must not overlap.
    pub intervals: bool,
    /// Elements come from rules and expire after this many milliseconds.
    pub dynamic_timeout_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    Ipv4,
    Ipv6,
    Proto,
    Port,
    Integer,
    /// An owner and a number of it: one key, in the order of which the numbers of an owner are next to each other. So one
    /// set holds ranges of many owners, where a concatenation would be searched part by part.
    Share,
    /// The name of an interface.
    Interface,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataType {
    Verdict,
    Concat(Vec<KeyType>),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    pub key: Vec<Datum>,
    /// The last key of a range, in sets with intervals.
    pub last: Option<Vec<Datum>>,
    pub data: Option<ElementData>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementData {
    Verdict(Verdict),
    Concat(Vec<Datum>),
}

/// A value of a key or register.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Datum {
    Addr(IpAddr),
    Proto(u8),
    Port(u16),
    Integer(u32),
    Share(u64, u32),
    Interface(String),
}

impl Element {
    /// An element of a set.
    pub fn of(key: Vec<Datum>) -> Element {
        Element {
            key,
            last: None,
            data: None,
        }
    }

    /// An element of a map of verdicts.
    pub fn to(key: Vec<Datum>, verdict: Verdict) -> Element {
        Element {
            data: Some(ElementData::Verdict(verdict)),
            ..Element::of(key)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_like_the_nft_language() {
        let set = Op::AddSet(Set {
            name: "service-ips".into(),
            key: vec![KeyType::Ipv4, KeyType::Proto, KeyType::Port],
            data: Some(DataType::Verdict),
            intervals: false,
            dynamic_timeout_ms: None,
        });
        assert_eq!(
            set.to_string(),
            "add map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }"
        );
        let element = Op::AddElement {
            set: "service-ips".into(),
            element: Element {
                key: vec![
                    Datum::Addr("10.96.0.10".parse().unwrap()),
                    Datum::Proto(17),
                    Datum::Port(53),
                ],
                last: None,
                data: Some(ElementData::Verdict(Verdict::Goto("svc-a".into()))),
            },
        };
        assert_eq!(
            element.to_string(),
            "add element service-ips { 10.96.0.10 . udp . 53 : goto svc-a }"
        );
        let rule = Op::AddRule {
            chain: "services".into(),
            exprs: vec![Expr::LookupVerdict {
                load: vec![Load::DestinationAddr(Family::Ip), Load::L4Proto, Load::DestinationPort],
                map: "service-ips".into(),
            }],
        };
        assert_eq!(
            rule.to_string(),
            "add rule services ip daddr . meta l4proto . th dport vmap @service-ips"
        );
    }
}
