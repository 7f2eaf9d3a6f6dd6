//! The kernel's notices of changed tables: how this program hears that another one interfered.
//!
//! Changes of this process are left out, so whoever mends its table isn't woken by its own mending. A reader that is too
//! slow is told [`Notice::Overrun`]: anything may have changed.

use super::Family;
use super::query::family;
use super::socket::{attributes, is_own, messages};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use tokio::io::unix::AsyncFd;

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

/// Hears of the network namespace in which it was opened. Must be opened within a runtime.
pub struct Monitor {
    socket: AsyncFd<Descriptor>,
}

impl Monitor {
    pub fn open() -> io::Result<Monitor> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(GROUP)?;
        socket.set_non_blocking(true)?;
        // SAFETY: the descriptor is open and the same for as long as the socket lives, which is as long as its registration.
        let socket = unsafe { AsyncFd::register(Descriptor(socket)) }?;
        Ok(Monitor { socket })
    }

    /// Waits for changes by others; each table once, however much changed in it.
    pub async fn next(&self) -> io::Result<Vec<Notice>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let read = ready.try_io(|d| d.get_ref().0.recv_from_full());
            let found = match read {
                Err(_would_block) => continue,
                Ok(Ok((datagram, _))) => notices(&datagram),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => vec![Notice::Overrun],
                Ok(Err(error)) => return Err(error),
            };
            if !found.is_empty() {
                return Ok(found);
            }
        }
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
