//! One batch over one netlink socket, answered before this returns.

use super::encode::{batch, get};
use super::monitor::spared;
use super::own::{self, Namespace};
use super::query::generation_of;
use super::{Family, Op};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
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

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;

/// A notice, and an echo: the number of the rule set that a batch made.
pub(super) const NEW_GENERATION: u16 = 10 << 8 | 15;

/// A netlink message as it came.
pub(crate) struct Received<'a> {
    pub kind: u16,
    pub seq: u32,
    pub payload: &'a [u8],
}

/// The messages of one datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let head = datagram.get(..16)?;
        let number = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = number(0) as usize;
        let message = Received {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            seq: number(8),
            payload: datagram.get(16..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message or of a nest: number and content.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let content = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// What an error message says; `None`: all is well.
pub(crate) fn failure(payload: &[u8]) -> Option<io::Error> {
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
    namespace: Namespace,
    socket: Socket,
}

fn sockets() -> MutexGuard<'static, Vec<Kept>> {
    SOCKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which network namespace the calling thread is in.
pub(super) fn namespace() -> io::Result<Namespace> {
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
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Kept { namespace, socket })
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

    /// Sends the batch of these operations and gives the generation that it made; one that changes nothing makes none.
    fn send(&self, bytes: &[u8], ops: &[Op]) -> Result<Option<u32>, NftError> {
        crate::net::grow_send_buffer(&self.socket, bytes.len() + 4096)?;
        self.socket.send(bytes, 0)?;
        let mut made = None;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            for message in messages(&answer) {
                if message.kind == NEW_GENERATION {
                    made = generation_of(message.payload);
                }
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                let seq = message.seq as usize;
                if let Some(error) = failure(message.payload) {
                    let op = seq.checked_sub(1).and_then(|i| ops.get(i));
                    let op = op.map_or_else(|| "the batch".to_string(), Op::to_string);
                    return Err(NftError::Refused { op, error });
                }
                if seq == ops.len() {
                    return Ok(made);
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
    let kept = Kept::take()?;
    let under_way = own::begin(kept.namespace);
    let send = || {
        let made = kept.send(&batch(family, table, ops), ops)?;
        // Before a monitor is told, that it may know.
        if let Some(generation) = made {
            under_way.made(generation);
        }
        Ok(())
    };
    let sent = match ops.len() > LARGE {
        true => spared(kept.namespace, send),
        false => send(),
    };
    if sent.is_ok() {
        kept.keep();
    }
    sent
}

/// Removes a table with all that is in it, if it is there. A kernel without nftables of the family has none.
pub fn remove(family: Family, table: &str) -> Result<(), NftError> {
    match apply(family, table, &[Op::AddTable, Op::DeleteTable]) {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

/// Whether the kernel has no nftables of the family (before Linux 4.17 it said so in another word).
fn is_absent(error: &NftError) -> bool {
    let NftError::Refused { error, .. } = error else {
        return false;
    };
    [libc::EOPNOTSUPP, libc::EAFNOSUPPORT]
        .map(Some)
        .contains(&error.raw_os_error())
}

/// Closes the socket that is kept for this thread's namespace, and gives its port, which is free then.
#[cfg(test)]
pub(super) fn port_of_one() -> u32 {
    let kept = Kept::take().expect("a socket");
    let mut addr = SocketAddr::new(0, 0);
    kept.socket.get_address(&mut addr).expect("its address");
    addr.port_number()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absent_family_has_nothing_to_remove() {
        let refused = |errno| NftError::Refused {
            op: "add table".into(),
            error: io::Error::from_raw_os_error(errno),
        };
        for (errno, absent) in [
            (libc::EOPNOTSUPP, true),
            (libc::EAFNOSUPPORT, true),
            (libc::EPERM, false),
            (libc::EBUSY, false),
        ] {
            assert_eq!(is_absent(&refused(errno)), absent, "{errno}");
        }
        assert!(!is_absent(&io::Error::from_raw_os_error(libc::EAFNOSUPPORT).into()));
    }

    /// Through the kernel, in a namespace of the test, with a family that no kernel has tables of.
    #[test]
    fn a_kernel_without_the_family_says_so() {
        const DECNET: u8 = 12;
        let ops = [Op::AddTable, Op::DeleteTable];
        let mut bytes = batch(Family::Ip6, "keelson-test", &ops);
        let mut at = 0;
        while let Some(head) = bytes.get(at..at + 16) {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            // The first and last message are of the batch, the others of nftables.
            if head[5] == 10 {
                bytes[at + 16] = DECNET;
            }
            at += length.next_multiple_of(4);
        }
        let walk = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let kept = Kept::take().expect("a socket");
            let error = kept.send(&bytes, &ops).expect_err("no such family");
            assert!(is_absent(&error), "{error}");
            for _ in 0..2 {
                remove(Family::Ip6, "keelson-test").expect("there or not");
                apply(Family::Ip6, "keelson-test", &[Op::AddTable]).expect("the table");
            }
            remove(Family::Ip6, "keelson-test").expect("gone");
        };
        std::thread::spawn(walk).join().expect("the walk");
    }
}
