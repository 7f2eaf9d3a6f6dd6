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
