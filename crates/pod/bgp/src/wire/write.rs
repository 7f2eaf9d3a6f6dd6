//! Messages written.

use super::{
    AS_TRANS, FOUR_OCTETS, Fault, GRACEFUL_RESTART, HEADER, KEEPALIVE, LONGEST, MULTIPROTOCOL, NOTIFICATION, OPEN,
    Open, Origin, ROUTE_REFRESH, UPDATE, codes,
};
use crate::{Attributes, Family};
use ipnet::IpNet;
use std::net::IpAddr;

pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
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
