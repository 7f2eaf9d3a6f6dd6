//! Small helpers around sockets and network namespaces.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
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

/// The IPv4 addresses of this thread's network namespace.
pub fn own_addresses() -> io::Result<HashSet<Ipv4Addr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    Ok(all.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip())).collect())
}

/// Moves the calling thread into the network namespace at `path`. Call it only in a thread made for this.
pub fn enter_network_namespace(path: &Path) -> io::Result<()> {
    let file = std::fs::File::open(path)?;
    nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
