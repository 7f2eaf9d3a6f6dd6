//! Messages as they are sent: read within fixed bounds, and written. What is wrong with one is the [`Fault`] that its sender is told.

use crate::{Attributes, Family};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

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

/// How long the message is that begins so.
pub fn length(header: &[u8; HEADER]) -> Result<usize, Fault> {
    if header[..16] != [0xff; 16] {
        return Err(Fault::new(1, 1, &[]));
    }
    let (length, kind) = (u16::from_be_bytes([header[16], header[17]]), header[18]);
    let wrong = || Fault::new(1, 2, &length.to_be_bytes());
    let least: u16 = match kind {
        OPEN => 29,
        UPDATE => 23,
        NOTIFICATION => 21,
        KEEPALIVE | REFRESH => 19,
        _ => return Err(Fault::new(1, 3, &[kind])),
    };
    let most = if kind == KEEPALIVE { HEADER } else { LONGEST };
    match usize::from(length) {
        whole if length >= least && whole <= most => Ok(whole),
        _ => Err(wrong()),
    }
}

/// One message, whole: of the length that [`length`] says.
pub fn read(message: &[u8]) -> Result<Message, Fault> {
    let (header, body) = message.split_at_checked(HEADER).ok_or(Fault::new(1, 2, &[]))?;
    match header[HEADER - 1] {
        OPEN => read_open(body).map(Message::Open),
        UPDATE => check_update(body).map(|()| Message::Update),
        NOTIFICATION => {
            let code = |n: usize| body.get(n).copied().unwrap_or_default();
            // What it is about isn't looked at: it may be anything.
            Ok(Message::Notification(Fault::new(code(0), code(1), &[])))
        }
        KEEPALIVE => Ok(Message::Keepalive),
        REFRESH => match *body {
            [a, f, 0, safi] => Ok(Message::Refresh(family(u16::from_be_bytes([a, f]), safi))),
            [_, _, _, _] => Ok(Message::Refresh(None)),
            _ => Err(Fault::new(7, 1, message)),
        },
        kind => Err(Fault::new(1, 3, &[kind])),
    }
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

/// Bytes that are taken from the front; never more than there are.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }
    /// What a length of one octet counts.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let count = self.u8()?;
        self.take(count.into())
    }
}

fn read_open(body: &[u8]) -> Result<Open, Fault> {
    let malformed = || Fault::new(2, 0, &[]);
    let mut body = Bytes(body);
    let version = body.u8().ok_or_else(malformed)?;
    if version != 4 {
        return Err(Fault::new(2, 1, &[0, 4]));
    }
    let asn = body.u16().ok_or_else(malformed)?;
    let hold = body.u16().ok_or_else(malformed)?;
    if hold == 1 || hold == 2 {
        return Err(Fault::new(2, 6, &hold.to_be_bytes()));
    }
    let id = Ipv4Addr::from(body.u32().ok_or_else(malformed)?);
    if id.is_unspecified() || id.is_multicast() || id.is_broadcast() {
        return Err(Fault::new(2, 3, &id.octets()));
    }
    let count = body.u8().ok_or_else(malformed)?;
    // Longer parameters than one octet counts (RFC 9072).
    let extended = count == 255 && body.0.first() == Some(&255);
    let count = match extended {
        true => body.take(1).and(body.u16()).map(usize::from).ok_or_else(malformed)?,
        false => count.into(),
    };
    if count != body.0.len() {
        return Err(malformed());
    }
    let mut open = Open {
        asn: asn.into(),
        hold,
        id,
        families: Vec::new(),
        four_octets: false,
        refresh: false,
        graceful: None,
    };
    let mut named = false;
    while let Some(kind) = body.u8() {
        let value = match extended {
            true => body.u16().and_then(|count| body.take(count.into())),
            false => body.counted(),
        };
        let value = value.ok_or_else(malformed)?;
        if kind != 2 {
            return Err(Fault::new(2, 4, &[kind]));
        }
        let mut capabilities = Bytes(value);
        while let Some(kind) = capabilities.u8() {
            let value = capabilities.counted().ok_or_else(malformed)?;
            named |= kind == MULTIPROTOCOL;
            read_capability(&mut open, kind, value);
        }
    }
    if !named {
        open.families.push(Family::V4);
    }
    match open.asn {
        0 => Err(Fault::bad_peer()),
        _ => Ok(open),
    }
}

/// One that isn't understood, or isn't as it should be, counts for nothing (RFC 5492).
fn read_capability(open: &mut Open, kind: u8, value: &[u8]) {
    match (kind, value) {
        (MULTIPROTOCOL, [a, f, _, safi]) => {
            let family = family(u16::from_be_bytes([*a, *f]), *safi);
            let new = family.filter(|family| !open.families.contains(family));
            open.families.extend(new);
        }
        (ROUTE_REFRESH, []) => open.refresh = true,
        (FOUR_OCTETS, [a, b, c, d]) => {
            open.asn = u32::from_be_bytes([*a, *b, *c, *d]);
            open.four_octets = true;
        }
        (GRACEFUL_RESTART, [high, low, families @ ..]) => {
            let told = families.chunks_exact(4);
            let told = told.filter_map(|f| Some((family(u16::from_be_bytes([f[0], f[1]]), f[2])?, f[3] & 0x80 != 0)));
            open.graceful = Some(Graceful {
                restarted: high & 0x80 != 0,
                seconds: u16::from_be_bytes([high & 0x0f, *low]),
                families: told.collect(),
            });
        }
        _ => {}
    }
}

/// Whether all lengths in it are right. What the attributes say concerns who believes them.
fn check_update(body: &[u8]) -> Result<(), Fault> {
    let malformed = || Fault::new(3, 1, &[]);
    let mut body = Bytes(body);
    let count = body.u16().ok_or_else(malformed)?;
    let withdrawn = body.take(count.into()).ok_or_else(malformed)?;
    let count = body.u16().ok_or_else(malformed)?;
    let mut attributes = Bytes(body.take(count.into()).ok_or_else(malformed)?);
    while let Some(flags) = attributes.u8() {
        let kind = attributes.u8();
        let value = match flags & 0x10 != 0 {
            true => attributes.u16().and_then(|count| attributes.take(count.into())),
            false => attributes.counted(),
        };
        kind.and(value).ok_or_else(malformed)?;
    }
    let prefixes = |mut bytes: Bytes| {
        while let Some(bits) = bytes.u8() {
            let octets = usize::from(bits).div_ceil(8);
            if bits > 32 || bytes.take(octets).is_none() {
                return Err(Fault::new(3, 10, &[]));
            }
        }
        Ok(())
    };
    prefixes(Bytes(withdrawn))?;
    prefixes(body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0xff; 16];
    let length = u16::try_from(HEADER + body.len()).unwrap_or(u16::MAX);
    message.extend(length.to_be_bytes());
    message.push(kind);
    message.extend(body);
    message
}

pub fn keepalive() -> Vec<u8> {
    message(KEEPALIVE, &[])
}

pub fn notification(fault: &Fault) -> Vec<u8> {
    let about = &fault.data[..fault.data.len().min(LONGEST - HEADER - 2)];
    message(NOTIFICATION, &[&[fault.code, fault.subcode][..], about].concat())
}

pub fn open(open: &Open) -> Vec<u8> {
    let mut capabilities = Vec::new();
    let mut capability = |kind: u8, value: &[u8]| {
        // None is longer than what two families need.
        capabilities.extend([kind, value.len() as u8]);
        capabilities.extend(value);
    };
    for family in &open.families {
        let [a, f, safi] = codes(*family);
        capability(MULTIPROTOCOL, &[a, f, 0, safi]);
    }
    if open.refresh {
        capability(ROUTE_REFRESH, &[]);
    }
    if open.four_octets {
        capability(FOUR_OCTETS, &open.asn.to_be_bytes());
    }
    if let Some(graceful) = &open.graceful {
        let flag = if graceful.restarted { 0x8000 } else { 0 };
        let mut value = (flag | graceful.seconds.min(0x0fff)).to_be_bytes().to_vec();
        for (family, kept) in &graceful.families {
            value.extend(codes(*family));
            value.push(if *kept { 0x80 } else { 0 });
        }
        capability(GRACEFUL_RESTART, &value);
    }
    let mut body = vec![4];
    body.extend(u16::try_from(open.asn).unwrap_or(AS_TRANS).to_be_bytes());
    body.extend(open.hold.to_be_bytes());
    body.extend(open.id.octets());
    body.extend([capabilities.len() as u8 + 2, 2, capabilities.len() as u8]);
    body.extend(capabilities);
    message(OPEN, &body)
}

/// How the way to this machine is told on a session.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub asn: u32,
    /// To another autonomous system.
    pub external: bool,
    pub four_octets: bool,
}

const WELL_KNOWN: u8 = 0x40;
const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0xc0;
const EXTENDED: u8 = 0x10;

fn attribute(into: &mut Vec<u8>, flags: u8, kind: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => into.extend([flags, kind, length]),
        // Nothing here is longer than a message.
        Err(_) => {
            into.extend([flags | EXTENDED, kind]);
            into.extend((value.len() as u16).to_be_bytes());
        }
    }
    into.extend(value);
}

fn prefixes<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for net in nets {
        let octets = usize::from(net.prefix_len()).div_ceil(8);
        bytes.push(net.prefix_len());
        match net.network() {
            IpAddr::V4(ip) => bytes.extend(&ip.octets()[..octets]),
            IpAddr::V6(ip) => bytes.extend(&ip.octets()[..octets]),
        }
    }
    bytes
}

fn update(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let mut body = (withdrawn.len() as u16).to_be_bytes().to_vec();
    body.extend(withdrawn);
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    body.extend(nlri);
    message(UPDATE, &body)
}

fn path(origin: Origin, four_octets: bool) -> Vec<u8> {
    if !origin.external {
        return Vec::new();
    }
    // One sequence of one.
    let mut path = vec![2, 1];
    match four_octets {
        true => path.extend(origin.asn.to_be_bytes()),
        false => path.extend(u16::try_from(origin.asn).unwrap_or(AS_TRANS).to_be_bytes()),
    }
    path
}

/// Routes of one family with the same attributes. How many fit the caller knows ([`most`]).
pub fn announcement(origin: Origin, next_hop: IpAddr, attributes: &Attributes, nets: &[IpNet]) -> Vec<u8> {
    let mut all = Vec::new();
    let reached = prefixes(nets);
    // In the order of their kinds, as most are used to it.
    attribute(&mut all, WELL_KNOWN, 1, &[0]);
    attribute(&mut all, WELL_KNOWN, 2, &path(origin, origin.four_octets));
    if let IpAddr::V4(ip) = next_hop {
        attribute(&mut all, WELL_KNOWN, 3, &ip.octets());
    }
    if !origin.external {
        attribute(&mut all, WELL_KNOWN, 5, &attributes.local_preference.to_be_bytes());
    }
    if !attributes.communities.is_empty() {
        let value: Vec<u8> = attributes.communities.iter().flat_map(|c| c.to_be_bytes()).collect();
        attribute(&mut all, TRANSITIVE, 8, &value);
    }
    if let IpAddr::V6(ip) = next_hop {
        let mut value = codes(Family::V6).to_vec();
        value.push(16);
        value.extend(ip.octets());
        value.push(0);
        value.extend(&reached);
        attribute(&mut all, OPTIONAL, 14, &value);
    }
    if origin.external && !origin.four_octets && origin.asn > u32::from(u16::MAX) {
        attribute(&mut all, TRANSITIVE, 17, &path(origin, true));
    }
    if !attributes.large_communities.is_empty() {
        let parts = attributes.large_communities.iter().flatten();
        let value: Vec<u8> = parts.flat_map(|part| part.to_be_bytes()).collect();
        attribute(&mut all, TRANSITIVE, 32, &value);
    }
    match next_hop {
        IpAddr::V4(_) => update(&[], &all, &reached),
        IpAddr::V6(_) => update(&[], &all, &[]),
    }
}

/// How many routes of the family are told by one message, whatever their attributes within bounds.
pub fn most(family: Family) -> usize {
    match family {
        Family::V4 => 400,
        Family::V6 => 120,
    }
}

pub fn withdrawal(family: Family, nets: &[IpNet]) -> Vec<u8> {
    match family {
        Family::V4 => update(&prefixes(nets), &[], &[]),
        Family::V6 => {
            let mut all = Vec::new();
            let value = [&codes(family)[..], &prefixes(nets)].concat();
            attribute(&mut all, OPTIONAL, 15, &value);
            update(&[], &all, &[])
        }
    }
}

/// Says that all routes of the family have been told (RFC 4724).
pub fn end_of_rib(family: Family) -> Vec<u8> {
    withdrawal(family, &[])
}

#[cfg(test)]
mod tests;
