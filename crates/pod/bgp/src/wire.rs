//! Messages as they are sent: read within fixed bounds, and written. What is wrong with one is the [`Fault`] that its sender is told.

mod read;
mod write;

pub use read::{length, read};
pub use write::{announcement, end_of_rib, keepalive, most, notification, open, withdrawal};

use crate::Family;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The longest message. Longer ones (RFC 8654) aren't offered, so nobody may send any.
pub const LONGEST: usize = 4096;
/// Marker, length and kind.
pub const HEADER: usize = 19;
/// Stands for an autonomous system's number where that has no room.
const AS_TRANS: u16 = 23456;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const REFRESH: u8 = 5;

/// Capabilities (RFC 5492).
const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTETS: u8 = 65;

/// What ends a session, and is told the other side: code, subcode and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

impl Fault {
    pub fn new(code: u8, subcode: u8, data: &[u8]) -> Fault {
        Fault {
            code,
            subcode,
            data: data.to_vec(),
        }
    }
    pub fn hold_timer() -> Fault {
        Fault::new(4, 0, &[])
    }
    pub fn bad_peer() -> Fault {
        Fault::new(2, 2, &[])
    }
    pub fn bad_id() -> Fault {
        Fault::new(2, 3, &[])
    }

    /// In words.
    pub fn describe(&self) -> String {
        let what = match (self.code, self.subcode) {
            (1, 1) => "connection not synchronized",
            (1, 2) => "bad message length",
            (1, 3) => "bad message type",
            (2, 1) => "unsupported version number",
            (2, 2) => "bad peer AS",
            (2, 3) => "bad BGP identifier",
            (2, 4) => "unsupported optional parameter",
            (2, 5) => "authentication failure",
            (2, 6) => "unacceptable hold time",
            (2, 7) => "unsupported capability",
            (1, _) => "message header error",
            (2, _) => "OPEN message error",
            (3, _) => "UPDATE message error",
            (4, _) => "hold timer expired",
            (5, _) => "unexpected message in this state",
            (6, 1) => "maximum number of prefixes reached",
            (6, 2) => "administrative shutdown",
            (6, 3) => "peer de-configured",
            (6, 4) => "administrative reset",
            (6, 5) => "connection rejected",
            (6, 6) => "other configuration change",
            (6, 7) => "connection collision",
            (6, 8) => "out of resources",
            (6, 9) => "hard reset",
            (6, 10) => "BFD down",
            (6, _) => "cease",
            (7, _) => "ROUTE-REFRESH message error",
            (8, _) => "send hold timer expired",
            _ => "unknown error",
        };
        format!("{what} ({}/{})", self.code, self.subcode)
    }
}

/// What a side says of itself at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub asn: u32,
    /// In seconds.
    pub hold: u16,
    pub id: Ipv4Addr,
    /// Families of which routes may be told. Who names none speaks IPv4 only.
    pub families: Vec<Family>,
    /// Whether autonomous systems have four octets (RFC 6793).
    pub four_octets: bool,
    pub refresh: bool,
    pub graceful: Option<Graceful>,
}

/// RFC 4724.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graceful {
    /// It was there before, and starts anew.
    pub restarted: bool,
    pub seconds: u16,
    /// Whether packets were led on meanwhile.
    pub families: BTreeMap<Family, bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Open(Open),
    /// Of which nothing but its form counts.
    Update,
    Notification(Fault),
    Keepalive,
    /// All routes of the family are to be told again; `None`: of one that is none of ours, or a mark beside (RFC 7313).
    Refresh(Option<Family>),
}

/// How the way to this machine is told on a session.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub asn: u32,
    /// To another autonomous system.
    pub external: bool,
    pub four_octets: bool,
}

fn family(afi: u16, safi: u8) -> Option<Family> {
    match (afi, safi) {
        (1, 1) => Some(Family::V4),
        (2, 1) => Some(Family::V6),
        _ => None,
    }
}

fn codes(family: Family) -> [u8; 3] {
    match family {
        Family::V4 => [0, 1, 1],
        Family::V6 => [0, 2, 1],
    }
}

#[cfg(test)]
mod tests;
