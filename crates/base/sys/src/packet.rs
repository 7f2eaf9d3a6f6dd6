//! Packets of one link, past the machine's own IP layer: what a filter lets through is told, what is sent leaves as it is.
//!
//! The kernel puts the link's header around packets and takes it off. Nothing of it stays when a socket is closed, however its program ends.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// Hardware addresses of Ethernet.
pub type Mac = [u8; 6];

pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;

/// A step of a filter, as the kernel's classic BPF has them.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Goes on if the byte there has this value, else drops the packet.
    Byte(u32, u8),
    /// The same of two bytes.
    Half(u32, u16),
}

/// Sockets' packets of one link and one protocol.
pub struct Packets {
    socket: AsyncFd<OwnedFd>,
    link: i32,
    protocol: u16,
}

impl Packets {
    /// Only packets that pass all steps, a hundred at most, are told. Must be opened within a runtime.
    pub fn open(link: u32, protocol: u16, steps: &[Step]) -> io::Result<Packets> {
        if steps.len() > 100 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let link = i32::try_from(link).map_err(|_| io::ErrorKind::InvalidInput)?;
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Of no protocol: nothing arrives before the filter stands.
        // SAFETY: no memory is passed; the descriptor is checked below.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just opened, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut program = program(steps);
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the program, which lives until after the call; its length is the vector's.
        done(unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        })?;
        let address = place(link, protocol, None);
        // SAFETY: the address is of the size that is told.
        done(unsafe {
            libc::bind(
                fd,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        })?;
        // SAFETY: the descriptor is open and the same for as long as the socket lives, which is as long as its registration.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Packets { socket, link, protocol })
    }

    /// The next packet and who sent it; what is longer than the buffer is cut.
    pub async fn next(&self, buffer: &mut [u8]) -> io::Result<(usize, Mac)> {
        self.socket
            .async_io(tokio::io::Interest::READABLE, |socket| {
                let mut from = place(0, 0, None);
                let mut length = size_of_val(&from) as libc::socklen_t;
                // SAFETY: buffer and address are writable for the lengths that are told.
                let read = unsafe {
                    libc::recvfrom(
                        socket.as_raw_fd(),
                        buffer.as_mut_ptr().cast(),
                        buffer.len(),
                        0,
                        (&raw mut from).cast(),
                        &raw mut length,
                    )
                };
                let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
                let mut mac = Mac::default();
                mac.copy_from_slice(&from.sll_addr[..6]);
                Ok((read, mac))
            })
            .await
    }

    /// Sends at once or not at all: a link whose queue is full loses it, as it would on the wire.
    pub fn send(&self, to: Mac, packet: &[u8]) -> io::Result<()> {
        let address = place(self.link, self.protocol, Some(to));
        // SAFETY: packet and address are readable for the lengths that are told.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        match sent {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn place(link: i32, protocol: u16, mac: Option<Mac>) -> libc::sockaddr_ll {
    let mut sll_addr = [0; 8];
    sll_addr[..6].copy_from_slice(&mac.unwrap_or_default());
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: link,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: if mac.is_some() { 6 } else { 0 },
        sll_addr,
    }
}

/// Loads and compares, step by step; a packet that differs goes to the last instruction, which drops it.
fn program(steps: &[Step]) -> Vec<libc::sock_filter> {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let plain = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut all = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        let (load, at, value) = match *step {
            Step::Byte(at, value) => (LOAD_BYTE, at, u32::from(value)),
            Step::Half(at, value) => (LOAD_HALF, at, u32::from(value)),
        };
        all.push(plain(load, at));
        // Over what is left of the steps, and the instruction that accepts.
        let left = u8::try_from(2 * (steps.len() - n - 1) + 1).unwrap_or(u8::MAX);
        all.push(libc::sock_filter {
            jf: left,
            ..plain(IF_EQUAL, value)
        });
    }
    all.push(plain(RETURN, u32::MAX));
    all.push(plain(RETURN, 0));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_differs_anywhere_is_dropped() {
        let steps = [Step::Half(0, 1), Step::Byte(6, 58), Step::Half(6, 1)];
        let program = program(&steps);
        let last = program.len() - 1;
        for (n, jump) in program.iter().enumerate().filter(|(_, i)| i.code == 0x15) {
            assert_eq!(n + 1 + usize::from(jump.jf), last);
            assert_eq!(jump.jt, 0);
        }
        assert_eq!((program[last].code, program[last].k), (6, 0));
        assert_eq!((program[last - 1].code, program[last - 1].k), (6, u32::MAX));
    }
}
