//! What stands in the kernel, of whichever program: base chains, and the rules of one chain.

use super::encode::get;
use super::socket::{NLMSG_DONE, NLMSG_ERROR, attributes, failure, messages};
use super::{Family, Hook};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::collections::BTreeSet;
use std::io;

/// A chain that packets enter by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundChain {
    pub family: Family,
    pub table: String,
    pub name: String,
    pub hook: Hook,
    /// What falls out of the chain's end is dropped.
    pub drops: bool,
}

/// A rule, by what a program can find it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRule {
    pub handle: u64,
    pub comment: Option<String>,
}

/// What stands in a table, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub chains: BTreeSet<String>,
    pub sets: BTreeSet<String>,
    pub counters: BTreeSet<String>,
}

/// The chains, sets and named counters of a table. A table that isn't there has none.
pub fn standing(of: Family, table: &str) -> io::Result<Standing> {
    let mut found = Standing::default();
    let is_of = |payload: &[u8], own: &str| payload.first().copied().and_then(family) == Some(of) && own == table;
    dump(&get::chains(), |payload| {
        if let [Some(own), Some(name)] = words(payload, [1, 3])
            && is_of(payload, &own)
        {
            found.chains.insert(name);
        }
    })?;
    let set = |payload: &[u8]| {
        if let [Some(own), Some(name)] = words(payload, [1, 2])
            && is_of(payload, &own)
        {
            found.sets.insert(name);
        }
    };
    match dump(&get::sets(of, table), set) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    found.counters = counters(of, table)?.into_iter().map(|counter| counter.name).collect();
    Ok(found)
}

/// What stands as text in these attributes of a message.
fn words<const N: usize>(payload: &[u8], wanted: [u16; N]) -> [Option<String>; N] {
    let of = |kind| {
        let mut all = attributes(payload.get(4..)?);
        all.find(|(k, _)| *k == kind).map(|(_, content)| text(content))
    };
    wanted.map(of)
}

/// All base chains of the families that IPv4 and IPv6 packets pass.
pub fn chains() -> io::Result<Vec<FoundChain>> {
    let mut found = Vec::new();
    dump(&get::chains(), |payload| found.extend(chain(payload)))?;
    Ok(found)
}

/// The rules of a chain in their order. A chain that isn't there has none.
pub fn rules(family: Family, table: &str, chain: &str) -> io::Result<Vec<FoundRule>> {
    let mut found = Vec::new();
    match dump(&get::rules(family, table, chain), |payload| {
        found.extend(rule(payload, chain))
    }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map(|()| found),
    }
}

/// What a named counter has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    pub name: String,
    pub packets: u64,
    pub bytes: u64,
}

/// The named counters of a table. A table that isn't there has none.
pub fn counters(family: Family, table: &str) -> io::Result<Vec<Counted>> {
    let mut found = Vec::new();
    let each = |payload: &[u8]| found.extend(counter(payload, family, table));
    match dump(&get::counters(family, table), each) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map(|()| found),
    }
}

fn counter(payload: &[u8], of: Family, table: &str) -> Option<Counted> {
    let be64 = |bytes: &[u8]| bytes.first_chunk().map(|b| u64::from_be_bytes(*b));
    let (mut own, mut name, mut bytes, mut packets) = (None, None, None, None);
    for (kind, content) in attributes(payload.get(4..)?) {
        match kind {
            1 => own = Some(text(content)),
            2 => name = Some(text(content)),
            4 => {
                for (kind, number) in attributes(content) {
                    match kind {
                        1 => bytes = be64(number),
                        2 => packets = be64(number),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let is_of = family(*payload.first()?) == Some(of) && own.as_deref() == Some(table);
    is_of.then_some(Counted {
        name: name?,
        packets: packets?,
        bytes: bytes?,
    })
}

/// What a message about generations tells.
pub(super) fn generation_of(payload: &[u8]) -> Option<u32> {
    let mut parts = attributes(payload.get(4..)?);
    parts
        .find(|(kind, _)| *kind == 1)
        .and_then(|(_, content)| be32(content))
}

fn dump(request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for message in messages(&answer) {
            match message.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return failure(message.payload).map_or(Ok(()), Err),
                _ => each(message.payload),
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_be_bytes(*b))
}

pub(super) fn family(number: u8) -> Option<Family> {
    [Family::Inet, Family::Ip, Family::Ip6]
        .into_iter()
        .find(|f| *f as u8 == number)
}

fn chain(payload: &[u8]) -> Option<FoundChain> {
    let family = family(*payload.first()?)?;
    let (mut table, mut name, mut hook, mut policy) = (None, None, None, None);
    for (kind, content) in attributes(payload.get(4..)?) {
        match kind {
            1 => table = Some(text(content)),
            3 => name = Some(text(content)),
            4 => hook = attributes(content).find(|(k, _)| *k == 1).and_then(|(_, c)| be32(c)),
            5 => policy = be32(content),
            _ => {}
        }
    }
    let all = [
        Hook::Prerouting,
        Hook::Input,
        Hook::Forward,
        Hook::Output,
        Hook::Postrouting,
    ];
    Some(FoundChain {
        family,
        table: table?,
        name: name?,
        hook: all.into_iter().find(|h| Some(*h as u32) == hook)?,
        drops: policy == Some(0),
    })
}

fn rule(payload: &[u8], chain: &str) -> Option<FoundRule> {
    let (mut handle, mut comment, mut of) = (None, None, None);
    for (kind, content) in attributes(payload.get(4..)?) {
        match kind {
            2 => of = Some(text(content)),
            3 => handle = content.first_chunk().map(|b| u64::from_be_bytes(*b)),
            7 if content.first() == Some(&0) => comment = content.get(2..).map(text),
            _ => {}
        }
    }
    // Older kernels answer with all rules of the table.
    (of.as_deref() == Some(chain)).then_some(FoundRule {
        handle: handle?,
        comment,
    })
}
