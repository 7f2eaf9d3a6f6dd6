//! The kernel's notices of changed tables: how this program hears that another one interfered.
//!
//! Changes of this process are left out, so whoever mends its table isn't woken by its own mending: the notices of a batch
//! end with the generation that it made, and [`super::own`] knows whose that is. A reader that is too slow loses notices,
//! which a large change of its own brings about as well: if another program changed something since the last one, it is told
//! [`Notice::Overrun`], for anything may have changed. A large batch of this program is not told to its monitors at all
//! ([`spared`]): making a notice of each element costs the kernel more than the change itself.

use super::Family;
use super::own::{Namespace, all_own, settled};
use super::query::{family, generation_of};
use super::socket::{NEW_GENERATION, attributes, generation, messages, namespace};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// The multicast group of nftables, and its part of a message's number.
const GROUP: u32 = 7;
const SUBSYSTEM: u16 = 10;

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
    namespace: Namespace,
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
pub(super) fn spared<T>(namespace: Namespace, job: impl FnOnce() -> T) -> T {
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

/// What was told and not judged yet.
#[derive(Default)]
struct Told {
    /// The generation up to which every change was heard of.
    seen: u32,
    /// Tables in notices that no generation has followed yet.
    open: Vec<Notice>,
    /// Generations, each with what was told before it.
    closed: VecDeque<(u32, Vec<Notice>)>,
    /// Notices were lost since.
    lost: bool,
}

/// Hears of the network namespace in which it was opened. Must be opened within a runtime.
pub struct Monitor {
    namespace: Namespace,
    socket: AsyncFd<Descriptor>,
    back: Arc<Notify>,
    told: Mutex<Told>,
}

impl Monitor {
    pub fn open() -> io::Result<Monitor> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(GROUP)?;
        socket.set_non_blocking(true)?;
        // SAFETY: the descriptor is open and the same for as long as the socket lives, which is as long as its registration.
        let socket = unsafe { AsyncFd::register(Descriptor(socket)) }?;
        let told = Told {
            seen: generation()?,
            ..Told::default()
        };
        let back = Arc::new(Notify::new());
        let namespace = namespace()?;
        ears().push(Ear {
            namespace,
            fd: socket.get_ref().as_raw_fd(),
            back: back.clone(),
        });
        Ok(Monitor {
            namespace,
            socket,
            back,
            told: Mutex::new(told),
        })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for changes by others; each table once, however much changed in it. May be given up: nothing is forgotten.
    pub async fn next(&self) -> io::Result<Vec<Notice>> {
        loop {
            let found = self.judge().await?;
            if !found.is_empty() {
                return Ok(found);
            }
            let mut ready = tokio::select! {
                ready = self.socket.readable() => ready?,
                () = self.back.notified() => {
                    turn(self.socket.get_ref().as_fd(), ADD_MEMBERSHIP)?;
                    self.told().lost = true;
                    continue;
                }
            };
            match ready.try_io(|d| d.get_ref().0.recv_from_full()) {
                Err(_would_block) => {}
                Ok(Ok((datagram, _))) => self.told().take_in(&datagram),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => self.told().lost = true,
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// What others changed, as far as it has been told.
    async fn judge(&self) -> io::Result<Vec<Notice>> {
        {
            let told = self.told();
            if told.closed.is_empty() && !told.lost {
                return Ok(Vec::new());
            }
        }
        let now = match self.told().lost {
            true => Some(generation()?),
            false => None,
        };
        settled(self.namespace).await;
        let mut told = self.told();
        if let Some(now) = now {
            told.lost = false;
            told.open.clear();
            told.closed.clear();
            let before = std::mem::replace(&mut told.seen, now);
            return Ok(match all_own(self.namespace, before, now) {
                true => Vec::new(),
                false => vec![Notice::Overrun],
            });
        }
        let mut found: Vec<Notice> = Vec::new();
        for (generation, notices) in std::mem::take(&mut told.closed) {
            if !all_own(self.namespace, generation.wrapping_sub(1), generation) {
                for notice in notices {
                    if !found.contains(&notice) {
                        found.push(notice);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Waits until another program changed the table, or may have.
    pub async fn changed(&self, family: Family, table: &str) -> io::Result<()> {
        self.changed_any(|f, t| f == family && t == table).await
    }

    /// The same of any table that is one of these.
    pub async fn changed_any(&self, of: impl Fn(Family, &str) -> bool) -> io::Result<()> {
        let about = |n: &Notice| match n {
            Notice::Overrun => true,
            Notice::Changed { family, table } => of(*family, table),
        };
        while !self.next().await?.iter().any(about) {}
        Ok(())
    }

    /// Takes in what has been told and not read: one change of another program is many notices, and whoever mends a whole
    /// table does it once for all of them.
    pub fn drain(&self) -> io::Result<()> {
        loop {
            match self.socket.get_ref().0.recv_from_full() {
                Ok((datagram, _)) => {
                    let mut told = self.told();
                    told.take_in(&datagram);
                    told.closed.clear();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let fd = self.socket.get_ref().as_raw_fd();
        ears().retain(|ear| ear.fd != fd);
    }
}

impl Told {
    fn take_in(&mut self, datagram: &[u8]) {
        for message in messages(datagram) {
            if message.kind >> 8 != SUBSYSTEM {
                continue;
            }
            if message.kind == NEW_GENERATION {
                let notices = std::mem::take(&mut self.open);
                if let Some(generation) = generation_of(message.payload)
                    // One that was told late is no news.
                    && (generation.wrapping_sub(self.seen) as i32) > 0
                {
                    self.seen = generation;
                    self.closed.push_back((generation, notices));
                }
            } else if let Some(notice) = notice(message.payload)
                && !self.open.contains(&notice)
            {
                self.open.push(notice);
            }
        }
    }
}

/// The table that a notice is about: its name is the first attribute of every kind.
fn notice(payload: &[u8]) -> Option<Notice> {
    let family = family(*payload.first()?)?;
    let (_, name) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == 1)?;
    let table = String::from_utf8_lossy(name).trim_end_matches('\0').to_string();
    Some(Notice::Changed { family, table })
}

#[cfg(test)]
mod tests {
    use super::super::own::{begin, forget};
    use super::*;
    use crate::nft::{Datum, Element, KeyType, Op, Set, apply};
    use netlink_sys::SocketAddr;
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
                forget(namespace().expect("a namespace"));
                assert_eq!(told(&monitor).await, Some(vec![changed]), "as if by another program");
                apply(Family::Ip, TABLE, &table(20_000)).expect("the table");
                forget(namespace().expect("a namespace"));
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

    /// In a namespace of the test.
    fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        let walk = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(test());
        };
        std::thread::spawn(walk).join().expect("the walk");
    }

    /// A socket on this port, as another program may have one.
    fn on_port(port: u32) -> Socket {
        let mut socket = Socket::new(NETLINK_NETFILTER).expect("a socket");
        socket.bind(&SocketAddr::new(port, 0)).expect("the port is free");
        socket.connect(&SocketAddr::new(0, 0)).expect("the kernel");
        socket
    }

    #[test]
    fn a_program_that_got_a_port_of_ours_is_another_one() {
        alone(|| async {
            apply(Family::Ip, TABLE, &table(1)).expect("the table");
            let port = super::super::socket::port_of_one();
            let other = on_port(port);
            let monitor = Monitor::open().expect("a monitor");
            let ops = [Op::AddTable, Op::DeleteTable];
            other
                .send(&super::super::encode::batch(Family::Ip, TABLE, &ops), 0)
                .expect("sent");
            let changed = Notice::Changed {
                family: Family::Ip,
                table: TABLE.into(),
            };
            assert_eq!(told(&monitor).await, Some(vec![changed]));
        });
    }

    #[test]
    fn a_batch_that_changed_nothing_makes_nobody_s_change_ours() {
        alone(|| async {
            apply(Family::Ip, TABLE, &[Op::AddTable]).expect("the table");
            let monitor = Monitor::open().expect("a monitor");
            let before = generation().expect("a number");
            apply(Family::Ip, TABLE, &[Op::AddTable]).expect("again");
            assert_eq!(generation().expect("a number"), before, "it changed nothing");
            let other = on_port(0x7777_0001);
            let ops = [Op::AddTable, Op::DeleteTable];
            other
                .send(&super::super::encode::batch(Family::Ip, TABLE, &ops), 0)
                .expect("sent");
            assert!(told(&monitor).await.is_some(), "another program's");
        });
    }

    #[test]
    fn a_monitor_that_wakes_while_a_batch_is_under_way_waits_for_its_answer() {
        alone(|| async {
            let here = namespace().expect("a namespace");
            let monitor = Monitor::open().expect("a monitor");
            let under_way = begin(here);
            // The kernel tells of the batch before its sender knows that it is done.
            let sender = on_port(0x7777_0002);
            sender
                .send(&super::super::encode::batch(Family::Ip, TABLE, &table(3)), 0)
                .expect("sent");
            assert_eq!(told(&monitor).await, None, "not known yet");
            under_way.made(generation().expect("a number"));
            drop(under_way);
            assert_eq!(told(&monitor).await, None, "our own");
        });
    }
}
