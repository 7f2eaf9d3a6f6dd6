//! Small helpers around sockets and network namespaces.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

/// Makes room for one large message, past the system's ordinary limit where the process may.
pub fn grow_send_buffer(socket: &impl AsRawFd, bytes: usize) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    // SAFETY: the descriptor lives as long as the borrowed socket.
    let fd: BorrowedFd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    if setsockopt(&fd, sockopt::SndBufForce, &bytes).is_err() {
        setsockopt(&fd, sockopt::SndBuf, &bytes)?;
    }
    Ok(())
}

/// The addresses of this thread's network namespace.
pub fn own_addresses() -> io::Result<HashSet<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    let ip = |address: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
        let v4 = address.as_sockaddr_in().map(|a| a.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
    };
    Ok(all.filter_map(|i| ip(i.address?)).collect())
}

/// Moves the calling thread into the network namespace at `path`. Call it only in a thread made for this.
pub fn enter_network_namespace(path: &Path) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Makes a network namespace and keeps it at `path`, where `ip netns` finds those in `/run/netns`. One that was there goes.
pub fn keep_new_namespace(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    forget_namespace(path)?;
    std::fs::File::create(path)?;
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            crate::mount::bind(Path::new("/proc/thread-self/ns/net"), path)
        });
        let made = made.join();
        made.unwrap_or_else(|_| Err(io::Error::other("the thread of the new network namespace panicked")))
    })
}

/// Gives up what [`keep_new_namespace`] made: it goes when nothing runs in it any more.
pub fn forget_namespace(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    crate::mount::unmount(path)?;
    std::fs::remove_file(path)
}

/// What an interface has carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub name: String,
    pub received: Traffic,
    pub sent: Traffic,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// What the interfaces of a process's network have carried; without one, those of the caller's. The loopback is left out.
pub fn carried(pid: Option<i32>) -> std::io::Result<Vec<Carried>> {
    let of = pid.map_or("self".to_owned(), |p| p.to_string());
    let text = std::fs::read_to_string(format!("/proc/{of}/net/dev"))?;
    Ok(text.lines().filter_map(line).collect())
}

fn line(line: &str) -> Option<Carried> {
    let (name, rest) = line.split_once(':')?;
    let name = name.trim();
    let numbers: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let traffic = |from: usize| match numbers.get(from..from + 4) {
        Some(&[bytes, packets, errors, dropped]) => Some(Traffic {
            bytes,
            packets,
            errors,
            dropped,
        }),
        _ => None,
    };
    (name != "lo").then_some(())?;
    Some(Carried {
        name: name.to_owned(),
        received: traffic(0)?,
        sent: traffic(8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_net_dev() {
        let got = line("  eth0: 1296 16 1 3 0 0 0 0 850 11 2 4 0 0 0 0").unwrap();
        let (bytes, packets, errors, dropped) = (1296, 16, 1, 3);
        let received = Traffic {
            bytes,
            packets,
            errors,
            dropped,
        };
        assert_eq!((got.name.as_str(), got.received), ("eth0", received));
        assert_eq!((got.sent.bytes, got.sent.dropped), (850, 4));
        assert!(line("Inter-|   Receive").is_none() && line("    lo: 1 2 3 4 0 0 0 0 1 2 3 4 0 0 0 0").is_none());
    }
}
