//! Messages read: no further than they say that they are long, and no further than they are.

use super::{
    FOUR_OCTETS, Fault, GRACEFUL_RESTART, Graceful, HEADER, KEEPALIVE, LONGEST, MULTIPROTOCOL, Message, NOTIFICATION,
    OPEN, Open, REFRESH, ROUTE_REFRESH, UPDATE, family,
};
use crate::Family;
use std::net::Ipv4Addr;

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
