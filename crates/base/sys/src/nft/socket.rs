//! One batch over one netlink socket, answered before this returns.

use super::encode::batch;
use super::{Family, Op};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("nftables socket: {0}")]
    Socket(#[from] io::Error),
    #[error("nftables refused `{op}`: {error}")]
    Refused { op: String, error: io::Error },
}

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;

/// The ports of this program's latest batches, by which [`super::Monitor`] knows its own changes. Bounded: what is
/// forgotten would be taken for another program's change, which costs one more look.
static OWN_PORTS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());
const PORTS_KEPT: usize = 4096;

pub(super) fn is_own(port: u32) -> bool {
    OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner).contains(&port)
}

fn remember(port: u32) {
    let mut ports = OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    if !ports.contains(&port) {
        if ports.len() == PORTS_KEPT {
            ports.pop_front();
        }
        ports.push_back(port);
    }
}

/// A netlink message as it came.
pub(super) struct Received<'a> {
    pub kind: u16,
    pub seq: u32,
    /// Whose request it answers, or tells of.
    pub port: u32,
    pub payload: &'a [u8],
}

/// The messages of one datagram.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let head = datagram.get(..16)?;
        let number = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = number(0) as usize;
        let message = Received {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            seq: number(8),
            port: number(12),
            payload: datagram.get(16..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message or of a nest: number and content.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let content = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// What an error message says; `None`: all is well.
pub(super) fn failure(payload: &[u8]) -> Option<io::Error> {
    let code = payload.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

/// Applies all of `ops` to `table`, or none. Blocks for as long as the kernel works (well under a millisecond for
/// ordinary changes); acts on the network namespace of the calling thread.
pub fn apply(family: Family, table: &str, ops: &[Op]) -> Result<(), NftError> {
    if ops.is_empty() {
        return Ok(());
    }
    let bytes = batch(family, table, ops);
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    remember(socket.bind_auto()?.port_number());
    socket.connect(&SocketAddr::new(0, 0))?;
    crate::net::grow_send_buffer(&socket, bytes.len() + 4096)?;
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for message in messages(&answer).filter(|m| m.kind == NLMSG_ERROR) {
            let seq = message.seq as usize;
            if let Some(error) = failure(message.payload) {
                let op = seq.checked_sub(1).and_then(|i| ops.get(i));
                let op = op.map_or_else(|| "the batch".to_string(), Op::to_string);
                return Err(NftError::Refused { op, error });
            }
            if seq == ops.len() {
                return Ok(());
            }
        }
    }
}
