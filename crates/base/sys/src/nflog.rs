//! Packets that rules tell of ([`crate::nft::Expr::Log`]), as a program hears of them: from where to where, and the rule's word.
//!
//! Hears of the network namespace in which it was opened. The kernel keeps a socket's buffer full of them and no more: what is lost is
//! counted. A group has one listener; a second is refused.

use crate::nft;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};
use tokio::io::unix::AsyncFd;

/// The part of a message's number that stands for logging; its messages.
const SUBSYSTEM: u16 = 4;
const PACKET: u16 = 0;
const CONFIGURE: u16 = 1;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Attributes of a configuration, and their contents.
const COMMAND: u16 = 1;
const MODE: u16 = 2;
const THRESHOLD: u16 = 5;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
/// Attributes of a packet.
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub prefix: String,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Of a first fragment of TCP, UDP or SCTP.
    pub ports: Option<(u16, u16)>,
}

struct Descriptor(Socket);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Must be opened within a runtime.
pub struct Listener(AsyncFd<Descriptor>);

impl Listener {
    /// Listens to a group; `length` bytes of a packet are told.
    pub fn open(group: u16, length: u32) -> io::Result<Listener> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut mode = length.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        for (kind, content) in [
            (COMMAND, vec![BIND]),
            (MODE, mode),
            (THRESHOLD, 1u32.to_be_bytes().to_vec()),
        ] {
            socket.send(&configuration(group, kind, &content), 0)?;
            acknowledged(&socket)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the descriptor is open and the same for as long as the socket lives, which is as long as its registration.
        let registered = unsafe { AsyncFd::register(Descriptor(socket)) }?;
        Ok(Listener(registered))
    }

    /// Waits for packets; `Err` of kind `StorageFull`: some were lost.
    pub async fn next(&self) -> io::Result<Vec<Packet>> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|d| d.get_ref().0.recv_from_full()) {
                Err(_would_block) => {}
                Ok(Ok((datagram, _))) => {
                    let told = nft::messages(&datagram).filter(|m| m.kind == SUBSYSTEM << 8 | PACKET);
                    let found: Vec<Packet> = told.filter_map(|m| read(m.payload)).collect();
                    if !found.is_empty() {
                        return Ok(found);
                    }
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

fn configuration(group: u16, kind: u16, content: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    let length = 4 + content.len();
    message.extend((16 + 4 + length.next_multiple_of(4) as u32).to_ne_bytes());
    message.extend((SUBSYSTEM << 8 | CONFIGURE).to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence and port, then family and version, of which there is none to be named.
    message.extend([0; 8]);
    message.extend([0, 0]);
    message.extend(group.to_be_bytes());
    message.extend((length as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(content);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn acknowledged(socket: &Socket) -> io::Result<()> {
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for message in nft::messages(&answer) {
            if message.kind == nft::NLMSG_ERROR {
                return nft::failure(message.payload).map_or(Ok(()), Err);
            }
        }
    }
}

fn read(message: &[u8]) -> Option<Packet> {
    let (mut prefix, mut packet) = (String::new(), None);
    for (kind, content) in nft::attributes(message.get(4..)?) {
        match kind {
            PREFIX => {
                let end = content.iter().position(|b| *b == 0).unwrap_or(content.len());
                prefix = String::from_utf8_lossy(&content[..end]).into_owned();
            }
            PAYLOAD => packet = headers(content),
            _ => {}
        }
    }
    packet.map(|packet| Packet { prefix, ..packet })
}

/// What the first bytes of a packet say. What comes from a pod is read with suspicion: a short one is none.
fn headers(bytes: &[u8]) -> Option<Packet> {
    let (source, destination, protocol, first, rest): (IpAddr, IpAddr, u8, bool, &[u8]) = match bytes.first()? >> 4 {
        4 => {
            let address = |at: usize| bytes.get(at..)?.first_chunk::<4>().map(|a| Ipv4Addr::from(*a));
            let fragment = u16::from_be_bytes(*bytes.get(6..)?.first_chunk()?) & 0x1fff;
            let rest = bytes.get(usize::from(bytes[0] & 15) * 4..).unwrap_or_default();
            (
                address(12)?.into(),
                address(16)?.into(),
                *bytes.get(9)?,
                fragment == 0,
                rest,
            )
        }
        6 => {
            let address = |at: usize| bytes.get(at..)?.first_chunk::<16>().map(|a| Ipv6Addr::from(*a));
            let rest = bytes.get(40..).unwrap_or_default();
            (address(8)?.into(), address(24)?.into(), *bytes.get(6)?, true, rest)
        }
        _ => return None,
    };
    let port = |at: usize| rest.get(at..)?.first_chunk().map(|p| u16::from_be_bytes(*p));
    let ports = match protocol {
        TCP | UDP | SCTP if first => port(0).zip(port(2)),
        _ => None,
    };
    Some(Packet {
        prefix: String::new(),
        source,
        destination,
        protocol,
        ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(fragment: u16) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, TCP, 0, 0, 10, 244, 0, 2, 10, 244, 0, 3, 0x9c, 0x40, 0, 80]);
        bytes
    }

    #[test]
    fn headers_say_from_where_to_where() {
        let whole = headers(&four(0)).unwrap();
        let shown = |p: &Packet| format!("{} {} {} {:?}", p.source, p.destination, p.protocol, p.ports);
        assert_eq!(shown(&whole), "10.244.0.2 10.244.0.3 6 Some((40000, 80))");
        assert_eq!(headers(&four(8)).unwrap().ports, None, "no first fragment");
        let mut six = vec![0x60, 0, 0, 0, 0, 8, UDP, 64];
        six.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        six.extend("fd00::3".parse::<Ipv6Addr>().unwrap().octets());
        six.extend([0, 53, 0, 54]);
        assert_eq!(shown(&headers(&six).unwrap()), "fd00::2 fd00::3 17 Some((53, 54))");
        for bytes in [&four(0), &six] {
            for length in 0..bytes.len() {
                let _ = headers(&bytes[..length]);
            }
        }
        assert_eq!(headers(&six[..30]), None);
        assert_eq!(headers(&[0x75; 60]), None);
    }

    /// Through the kernel, in a namespace of the test: a listener is the only one of its group, until it goes.
    #[test]
    fn a_group_has_one_listener() {
        let walk = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .unwrap();
            let _within = runtime.enter();
            let listener = match Listener::open(77, 64) {
                Ok(listener) => listener,
                Err(error) => return println!("the kernel doesn't tell of packets: {error}"),
            };
            assert!(Listener::open(77, 64).is_err());
            drop(listener);
            Listener::open(77, 64).expect("free again");
        };
        std::thread::spawn(walk).join().unwrap();
    }
}
