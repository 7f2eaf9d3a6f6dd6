//! One batch over one netlink socket, answered before this returns.

use super::encode::{batch, get};
use super::monitor::spared;
use super::query::generation_of;
use super::{Family, Op};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("nftables socket: {0}")]
    Socket(#[from] io::Error),
    #[error("nftables refused `{op}`: {error}")]
    Refused { op: String, error: io::Error },
}

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;

/// This program's latest batches, by which [`super::Monitor`] knows its own changes: the ports they were sent from, and the
/// generations they made. Bounded: what is forgotten would be taken for another program's change, which costs one more look.
#[derive(Default)]
struct Own {
    ports: VecDeque<u32>,
    generations: VecDeque<u32>,
}

static OWN: Mutex<Own> = Mutex::new(Own {
    ports: VecDeque::new(),
    generations: VecDeque::new(),
});
const KEPT: usize = 4096;

/// Tries to be the next generation, while other programs are faster.
const TRIES: usize = 16;
/// What a batch is refused with that isn't.
const ERESTART: i32 = 85;

fn own() -> MutexGuard<'static, Own> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn is_own(port: u32) -> bool {
    own().ports.contains(&port)
}

/// Whether all generations after `since` up to `now` were made by this program.
pub(super) fn all_own(since: u32, now: u32) -> bool {
    let own = own();
    let made = now.wrapping_sub(since);
    made as usize <= KEPT && (1..=made).all(|n| own.generations.contains(&since.wrapping_add(n)))
}

/// As if another program had done it.
#[cfg(test)]
pub(super) fn forget() {
    *own() = Own::default();
}

fn remember(list: &mut VecDeque<u32>, number: u32) {
    if !list.contains(&number) {
        if list.len() == KEPT {
            list.pop_front();
        }
        list.push_back(number);
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

/// Sockets for batches, kept for the next one: closing one waits until the kernel has freed what the last batch removed,
/// which is a matter of many milliseconds. Each belongs to the network namespace it was opened in. Bounded: so many batches
/// at a time don't wait for closing.
static SOCKETS: Mutex<Vec<Kept>> = Mutex::new(Vec::new());
const SOCKETS_KEPT: usize = 8;
/// Operations from which on a batch is not told to this program's monitors.
const LARGE: usize = 4096;

struct Kept {
    namespace: (u64, u64),
    socket: Socket,
    port: u32,
}

fn sockets() -> MutexGuard<'static, Vec<Kept>> {
    SOCKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which network namespace the calling thread is in.
pub(super) fn namespace() -> io::Result<(u64, u64)> {
    let here = std::fs::metadata("/proc/thread-self/ns/net")?;
    Ok((here.dev(), here.ino()))
}

impl Kept {
    fn take() -> io::Result<Kept> {
        let namespace = namespace()?;
        {
            let mut sockets = sockets();
            if let Some(at) = sockets.iter().position(|kept| kept.namespace == namespace) {
                return Ok(sockets.swap_remove(at));
            }
        }
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Kept {
            namespace,
            socket,
            port,
        })
    }

    /// For one on which nothing is under way.
    fn keep(self) {
        let mut sockets = sockets();
        if sockets.len() < SOCKETS_KEPT {
            sockets.push(self);
        }
    }

    /// The number of the rule set that is in force: each batch, of whichever program, is the next one.
    fn generation(&self) -> io::Result<u32> {
        self.socket.send(&get::generation(), 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        for message in messages(&answer) {
            if message.kind == NLMSG_ERROR
                && let Some(error) = failure(message.payload)
            {
                return Err(error);
            }
            if let Some(generation) = generation_of(message.payload) {
                return Ok(generation);
            }
        }
        Err(io::Error::other("the kernel does not tell its rules' generation"))
    }

    fn send(&self, family: Family, table: &str, ops: &[Op], generation: Option<u32>) -> Result<(), NftError> {
        let bytes = batch(family, table, ops, generation);
        remember(&mut own().ports, self.port);
        crate::net::grow_send_buffer(&self.socket, bytes.len() + 4096)?;
        self.socket.send(&bytes, 0)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            for message in messages(&answer).filter(|m| m.kind == NLMSG_ERROR) {
                let seq = message.seq as usize;
                if let Some(error) = failure(message.payload) {
                    if error.raw_os_error() == Some(ERESTART) {
                        return Err(error.into());
                    }
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
}

/// The number of the rule set that is in force in this thread's network namespace.
pub(super) fn generation() -> io::Result<u32> {
    let kept = Kept::take()?;
    let generation = kept.generation()?;
    kept.keep();
    Ok(generation)
}

/// Applies all of `ops` to `table`, or none. Blocks for as long as the kernel works (well under a millisecond for
/// ordinary changes); acts on the network namespace of the calling thread.
pub fn apply(family: Family, table: &str, ops: &[Op]) -> Result<(), NftError> {
    if ops.is_empty() {
        return Ok(());
    }
    for tries in 1.. {
        let kept = Kept::take()?;
        // While others write all the time, whose change was whose is told by the ports only.
        let before = match tries <= TRIES {
            true => Some(kept.generation()?),
            false => None,
        };
        let sent = match ops.len() > LARGE {
            true => spared(kept.namespace, || kept.send(family, table, ops, before)),
            false => kept.send(family, table, ops, before),
        };
        match sent {
            Err(NftError::Socket(error)) if error.raw_os_error() == Some(ERESTART) => {}
            Ok(()) => {
                if let Some(before) = before {
                    remember(&mut own().generations, before.wrapping_add(1));
                }
                kept.keep();
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
