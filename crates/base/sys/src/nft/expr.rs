//! The statements that rules are made of.

use super::{Datum, Family};
use std::net::IpAddr;

/// What a packet is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// A property of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    SourceAddr(Family),
    DestinationAddr(Family),
    L4Proto,
    SourcePort,
    DestinationPort,
    /// The type of an ICMP message, of either family's.
    IcmpType,
    /// The name of the interface by which the packet came.
    InputInterface,
    /// A random number below the modulus.
    Random(u32),
    /// A random number below the modulus as a [`super::KeyType::Share`] of this owner.
    Share(u64, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Neq,
}

/// Where an address translation goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nat {
    To {
        addr: IpAddr,
        port: u16,
    },
    /// `address . port`, looked up by `load` in `map`.
    Map {
        family: Family,
        load: Vec<Load>,
        map: String,
    },
}

/// One statement of a rule. A rule ends at the first statement that does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Compares a property with a value.
    Match {
        load: Load,
        cmp: Cmp,
        value: Datum,
    },
    /// Compares an address with a prefix.
    MatchPrefix {
        load: Load,
        cmp: Cmp,
        addr: IpAddr,
        prefix: u8,
    },
    /// The destination is (`Eq`) or is not an address of this host.
    DestinationLocal(Cmp),
    /// The source is (`Eq`) or is not an address of this host.
    SourceLocal(Cmp),
    /// Output interface whose name begins so.
    OutputName {
        cmp: Cmp,
        prefix: String,
    },
    /// Input interface whose name begins so.
    InputName {
        cmp: Cmp,
        prefix: String,
    },
    MarkIs {
        mask: u32,
        cmp: Cmp,
        value: u32,
    },
    MarkOr(u32),
    MarkXor(u32),
    /// A new connection.
    StateNew,
    /// An invalid packet of a tracked connection.
    StateInvalid,
    /// Belongs to another connection: an ICMP error, or what a helper expected.
    StateRelated,
    /// Goes against the direction of its connection's first packet.
    Reply,
    /// The connection's destination was translated.
    Dnatted,
    InSet {
        load: Vec<Load>,
        set: String,
        negate: bool,
    },
    LookupVerdict {
        load: Vec<Load>,
        map: String,
    },
    /// Adds the key to a dynamic set, or renews its time.
    Update {
        load: Vec<Load>,
        set: String,
        timeout_ms: u64,
    },
    Dnat(Nat),
    Masquerade,
    /// Counts the packet under a name, which stands as long as a rule has it.
    Counter(String),
    /// Holds for so many packets a second only.
    Limit {
        per_second: u64,
        burst: u32,
    },
    /// Tells the packet's first bytes to who listens to the group. A prefix has 127 bytes at most.
    Log {
        group: u16,
        length: u32,
        prefix: String,
    },
    /// ICMP port unreachable, or a TCP reset.
    Reject {
        tcp_reset: bool,
    },
    Verdict(Verdict),
}
