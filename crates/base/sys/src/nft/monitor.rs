//! The kernel's notices of changed tables: how this program hears that another one interfered.
//!
//! Changes of this process are left out, so whoever mends its table isn't woken by its own mending. A reader that is too
//! slow loses notices, which a large change of its own brings about as well: if another program changed something since
//! the last one, it is told [`Notice::Overrun`], for anything may have changed. A large batch of this program is not told to
//! its monitors at all ([`spared`]): making a notice of each element costs the kernel more than the change itself.

use super::Family;
use super::query::{family, generation_of};
use super::socket::{all_own, attributes, generation, is_own, messages, namespace};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// The multicast group of nftables, and its part of a message's number.
const GROUP: u32 = 7;
const SUBSYSTEM: u16 = 10;
const NEW_GENERATION: u16 = 15;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Another program changed something in this table, or made or deleted it.
    Changed { family: Family, table: String },
    /// Notices were lost.
    Overrun,
}

struct Descriptor(Socket);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// An open monitor's ear, by which it is turned away and back.
struct Ear {
    namespace: (u64, u64),
    fd: RawFd,
    /// It was turned away: what changed since must be looked at.
    back: Arc<Notify>,
}

/// The monitors that are open: each takes itself out before its descriptor is closed.
static EARS: Mutex<Vec<Ear>> = Mutex::new(Vec::new());

fn ears() -> MutexGuard<'static, Vec<Ear>> {
    EARS.lock().unwrap_or_else(PoisonError::into_inner)
}

const ADD_MEMBERSHIP: libc::c_int = 1;
const DROP_MEMBERSHIP: libc::c_int = 2;

/// Joins or leaves the group of notices.
fn turn(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let group = GROUP;
    let size = size_of_val(&group) as libc::socklen_t;
    // SAFETY: the descriptor is borrowed, and the value outlives the call.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const group).cast(),
            size,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Does something large to the rules of a namespace of which the monitors there need not hear. Each listens again when it is
/// next asked, and looks whether another program changed something meanwhile.
pub(super) fn spared<T>(namespace: (u64, u64), job: impl FnOnce() -> T) -> T {
    let here = |ear: &&Ear| ear.namespace == namespace;
    for ear in ears().iter().filter(here) {
        // SAFETY: a descriptor is open while it is in the list, whose lock is held.
        let fd = unsafe { BorrowedFd::borrow_raw(ear.fd) };
        if let Err(error) = turn(fd, DROP_MEMBERSHIP) {
            tracing::debug!(%error, "a monitor of rules hears of a large change");
        }
    }
    let done = job();
    ears().iter().filter(here).for_each(|ear| ear.back.notify_one());
    done
}

/// Hears of the network namespace in which it was opened. Must be opened within a runtime.
pub struct Monitor {
    socket: AsyncFd<Descriptor>,
    back: Arc<Notify>,
    /// The generation up to which every change was heard of.
    seen: AtomicU32,
}

impl Monitor {
    pub fn open() -> io::Result<Monitor> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(GROUP)?;
        socket.set_non_blocking(true)?;
        // SAFETY: the descriptor is open and the same for as long as the socket lives, which is as long as its registration.
        let socket = unsafe { AsyncFd::register(Descriptor(socket)) }?;
        let seen = AtomicU32::new(generation()?);
        let back = Arc::new(Notify::new());
        ears().push(Ear {
            namespace: namespace()?,
            fd: socket.get_ref().as_raw_fd(),
            back: back.clone(),
        });
        Ok(Monitor { socket, back, seen })
    }

    /// Waits for changes by others; each table once, however much changed in it.
    pub async fn next(&self) -> io::Result<Vec<Notice>> {
        loop {
            let mut ready = tokio::select! {
                ready = self.socket.readable() => ready?,
                () = self.back.notified() => {
                    turn(self.socket.get_ref().as_fd(), ADD_MEMBERSHIP)?;
                    match self.lost()? {
                        found if found.is_empty() => continue,
                        found => return Ok(found),
                    }
                }
            };
            let read = ready.try_io(|d| d.get_ref().0.recv_from_full());
            let found = match read {
                Err(_would_block) => continue,
                Ok(Ok((datagram, _))) => self.notices(&datagram),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost()?,
                Ok(Err(error)) => return Err(error),
            };
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    /// What lost notices may have told.
    fn lost(&self) -> io::Result<Vec<Notice>> {
        let now = generation()?;
        let before = self.seen.swap(now, Ordering::Relaxed);
        Ok(if all_own(before, now) {
            Vec::new()
        } else {
            vec![Notice::Overrun]
        })
    }

    /// Waits until another program changed the table, or may have.
    pub async fn changed(&self, family: Family, table: &str) -> io::Result<()> {
        let about = |n: &Notice| match n {
            Notice::Overrun => true,
            Notice::Changed { family: f, table: t } => *f == family && t == table,
        };
        while !self.next().await?.iter().any(about) {}
        Ok(())
    }

    /// Takes in what has been told and not read: one change of another program is many notices, and whoever mends a whole
    /// table does it once for all of them.
    pub fn drain(&self) -> io::Result<()> {
        loop {
            match self.socket.get_ref().0.recv_from_full() {
                Ok((datagram, _)) => drop(self.notices(&datagram)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn notices(&self, datagram: &[u8]) -> Vec<Notice> {
        for message in messages(datagram) {
            if message.kind == SUBSYSTEM << 8 | NEW_GENERATION
                && let Some(generation) = generation_of(message.payload)
            {
                // One that was told late is no news.
                let seen = self.seen.load(Ordering::Relaxed);
                if (generation.wrapping_sub(seen) as i32) > 0 {
                    self.seen.store(generation, Ordering::Relaxed);
                }
            }
        }
        notices(datagram)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let fd = self.socket.get_ref().as_raw_fd();
        ears().retain(|ear| ear.fd != fd);
    }
}

fn notices(datagram: &[u8]) -> Vec<Notice> {
    let mut found: Vec<Notice> = Vec::new();
    for message in messages(datagram) {
        if message.kind >> 8 != SUBSYSTEM || message.kind & 0xff == NEW_GENERATION || is_own(message.port) {
            continue;
        }
        // The table's name is the first attribute of every kind of notice.
        let Some(family) = message.payload.first().and_then(|f| family(*f)) else {
            continue;
        };
        let rest = message.payload.get(4..).unwrap_or_default();
        let name = attributes(rest)
            .find(|(kind, _)| *kind == 1)
            .map(|(_, content)| content);
        if let Some(name) = name {
            let table = String::from_utf8_lossy(name).trim_end_matches('\0').to_string();
            let notice = Notice::Changed { family, table };
            if !found.contains(&notice) {
                found.push(notice);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::socket::forget;
    use super::*;
    use crate::nft::{Datum, Element, KeyType, Op, Set, apply};
    use std::time::Duration;

    const TABLE: &str = "keelson-test";

    fn table(elements: u32) -> Vec<Op> {
        let set = Op::AddSet(Set {
            name: "numbers".into(),
            key: vec![KeyType::Integer],
            data: None,
            intervals: false,
            dynamic_timeout_ms: None,
        });
        let element = |n| Op::AddElement {
            set: "numbers".into(),
            element: Element::of(vec![Datum::Integer(n)]),
        };
        let begin = [Op::AddTable, Op::DeleteTable, Op::AddTable, set];
        begin.into_iter().chain((0..elements).map(element)).collect()
    }

    async fn told(monitor: &Monitor) -> Option<Vec<Notice>> {
        let next = tokio::time::timeout(Duration::from_millis(200), monitor.next()).await;
        next.ok().map(|notices| notices.expect("notices"))
    }

    /// Through the kernel, in a namespace of the test.
    #[test]
    fn only_what_others_changed_is_told_however_much_this_program_did() {
        let walk = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let monitor = Monitor::open().expect("a monitor");
                for elements in [10, 20_000, 10] {
                    apply(Family::Ip, TABLE, &table(elements)).expect("the table");
                    assert_eq!(told(&monitor).await, None, "its own: {elements}");
                }
                let changed = Notice::Changed {
                    family: Family::Ip,
                    table: TABLE.into(),
                };
                apply(Family::Ip, TABLE, &table(1)).expect("the table");
                forget();
                assert_eq!(told(&monitor).await, Some(vec![changed]), "as if by another program");
                apply(Family::Ip, TABLE, &table(20_000)).expect("the table");
                forget();
                assert_eq!(
                    told(&monitor).await,
                    Some(vec![Notice::Overrun]),
                    "while it did not listen"
                );
                apply(Family::Ip, TABLE, &[Op::DeleteTable]).expect("gone");
                assert_eq!(told(&monitor).await, None);
            });
        };
        std::thread::spawn(walk).join().expect("the walk");
    }
}
