//! Messages of `linux/wireguard.h` (generic netlink's family `wireguard`), and the two others that are needed around them.

use super::{Change, Device, Peer, PublicKey, Range};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_NEW: u16 = 0x600;

/// Generic netlink's own family, which knows the others' numbers.
const CONTROL: u16 = 0x10;
const NESTED: u16 = 1 << 15;
const LENGTH: usize = 4;

/// One message, from its head on.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        Message(bytes)
    }

    fn generic(family: u16, flags: u16, command: u8, version: u8) -> Message {
        let mut message = Message::new(family, flags);
        message.0.extend([command, version, 0, 0]);
        message
    }

    fn attribute(&mut self, kind: u16, content: &[u8]) {
        self.nest(kind, |message| message.0.extend(content));
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// An attribute of what `fill` writes. Its length doesn't count what makes it end at a multiple of four.
    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let at = self.0.len();
        self.0.extend([0; LENGTH]);
        fill(self);
        // A few addresses and keys: far from what two bytes can count.
        let length = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[at + 2..at + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn done(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Asks for the number of the family `wireguard`; the kernel loads its module then.
pub fn family() -> Vec<u8> {
    const GET_FAMILY: u8 = 3;
    let mut message = Message::generic(CONTROL, ACK, GET_FAMILY, 1);
    message.text(2, "wireguard");
    message.done()
}

pub fn family_in(payload: &[u8]) -> Option<u16> {
    let (_, id) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == 1)?;
    Some(u16::from_ne_bytes(*id.first_chunk()?))
}

/// A link of that kind.
pub fn new_link(name: &str) -> Vec<u8> {
    const NEW_LINK: u16 = 16;
    let mut message = Message::new(NEW_LINK, ACK | CREATE_NEW);
    message.0.extend([0; 16]);
    message.text(3, name);
    message.nest(18 | NESTED, |m| m.attribute(1, b"wireguard"));
    message.done()
}

pub fn get(family: u16, link: &str) -> Vec<u8> {
    let mut message = Message::generic(family, DUMP, 0, 1);
    message.text(2, link);
    message.done()
}

pub fn set(family: u16, link: &str, change: &Change) -> Vec<u8> {
    const REMOVE: u32 = 1;
    const REPLACE_RANGES: u32 = 2;
    let mut message = Message::generic(family, ACK, 1, 1);
    message.text(2, link);
    let mut peer = |key: &PublicKey, flags: u32, fill: &dyn Fn(&mut Message)| {
        message.nest(8 | NESTED, |m| {
            m.nest(NESTED, |m| {
                m.attribute(1, &key.0);
                m.attribute(3, &flags.to_ne_bytes());
                fill(m);
            });
        });
    };
    match change {
        Change::Remove(key) => peer(key, REMOVE, &|_| {}),
        Change::Peer { key, endpoint, ranges } => peer(key, REPLACE_RANGES, &|m| {
            m.attribute(4, &socket_address(*endpoint));
            m.nest(9 | NESTED, |m| {
                for range in *ranges {
                    m.nest(NESTED, |m| put_range(m, *range));
                }
            });
        }),
        Change::Own { key, port } => {
            message.attribute(3, &key.0);
            message.attribute(6, &port.to_ne_bytes());
        }
    }
    message.done()
}

fn put_range(message: &mut Message, (address, bits): Range) {
    let (family, bytes) = match address {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    message.attribute(1, &(family as u16).to_ne_bytes());
    message.attribute(2, &bytes);
    message.attribute(3, &[bits]);
}

/// `sockaddr_in`, `sockaddr_in6`.
fn socket_address(at: SocketAddr) -> Vec<u8> {
    let (family, rest) = match at {
        SocketAddr::V4(at) => (libc::AF_INET, [&at.ip().octets()[..], &[0; 8]].concat()),
        SocketAddr::V6(at) => {
            let (flow, scope) = (at.flowinfo().to_be_bytes(), at.scope_id().to_ne_bytes());
            (libc::AF_INET6, [&flow[..], &at.ip().octets(), &scope].concat())
        }
    };
    [&(family as u16).to_ne_bytes()[..], &at.port().to_be_bytes(), &rest].concat()
}

fn address_in(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip: IpAddr = match i32::from(u16::from_ne_bytes(*bytes.first_chunk()?)) {
        libc::AF_INET => Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The messages of one datagram: kind and payload.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
        let payload = datagram.get(16..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// What an error message, or the end of a dump, says.
pub fn outcome(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & 0x3fff;
        let content = bytes.get(LENGTH..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Adds what one message of a dump says. A peer with many ranges goes on in the next one, which names it again.
pub fn add(device: &mut Device, last: &mut Option<PublicKey>, payload: &[u8]) {
    for (kind, content) in attributes(payload.get(4..).unwrap_or_default()) {
        match kind {
            4 => device.key = key_in(content).filter(|key| key.0 != [0; 32]),
            6 => device.port = content.first_chunk().map_or(0, |p| u16::from_ne_bytes(*p)),
            8 => attributes(content).for_each(|(_, peer)| add_peer(device, last, peer)),
            _ => {}
        }
    }
}

fn key_in(bytes: &[u8]) -> Option<PublicKey> {
    bytes.try_into().ok().map(PublicKey)
}

fn add_peer(device: &mut Device, last: &mut Option<PublicKey>, bytes: &[u8]) {
    let named = attributes(bytes).find_map(|(kind, content)| key_in(content).filter(|_| kind == 1));
    let Some(key) = named.or(*last) else { return };
    *last = Some(key);
    let peer: &mut Peer = device.peers.entry(key).or_default();
    for (kind, content) in attributes(bytes) {
        match kind {
            4 => peer.endpoint = address_in(content),
            6 => peer.last_handshake = content.first_chunk().map_or(0, |s| i64::from_ne_bytes(*s)),
            9 => peer
                .ranges
                .extend(attributes(content).filter_map(|(_, range)| range_in(range))),
            _ => {}
        }
    }
}

fn range_in(bytes: &[u8]) -> Option<Range> {
    let of = |kind: u16| attributes(bytes).find(|(k, _)| *k == kind).map(|(_, content)| content);
    let address = of(2)?;
    let ip = match address.len() {
        4 => Ipv4Addr::from(*address.first_chunk::<4>()?).into(),
        16 => Ipv6Addr::from(*address.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some((ip, *of(3)?.first()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn ranges() -> BTreeSet<Range> {
        [("10.244.1.0".parse().unwrap(), 24), ("fd00::".parse().unwrap(), 64)].into()
    }

    /// As the kernel's header has it, byte by byte (little-endian).
    #[test]
    #[cfg(target_endian = "little")]
    fn a_peer_is_set_with_its_address_and_ranges() {
        let bytes = set(
            0x21,
            "wg0",
            &Change::Peer {
                key: PublicKey([7; 32]),
                endpoint: "192.0.2.7:51820".parse().unwrap(),
                ranges: &ranges(),
            },
        );
        let expected = [
            "ac000000 2100 0500 00000000 00000000", // 172 bytes, family, request and acknowledgement
            "01 01 0000",
            "0800 0200 77673000",  // the name
            "9000 0880 8c00 0080", // peers, one of them
            &format!("2400 0100 {}", "07".repeat(32)),
            "0800 0300 02000000", // ranges are replaced
            "1400 0400 0200ca6cc0000207 0000000000000000",
            "4800 0980",
            "1c00 0080 0600 0100 0200 0000 0800 0200 0af40100 0500 0300 18000000",
            "2800 0080 0600 0100 0a00 0000 1400 0200 fd000000000000000000000000000000 0500 0300 40000000",
        ];
        assert_eq!(hex(&bytes), expected.concat().replace(' ', ""));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_family_is_asked_for_by_name() {
        let expected = "24000000 1000 0500 00000000 00000000 03 01 0000 0e00 0200 776972656775617264000000";
        assert_eq!(hex(&family()), expected.replace(' ', ""));
        let mut answer = Message::generic(CONTROL, 0, 1, 2);
        answer.text(2, "wireguard");
        answer.attribute(1, &0x21u16.to_ne_bytes());
        assert_eq!(family_in(&answer.0[16..]), Some(0x21));
        assert_eq!(family_in(&[]), None);
    }

    #[test]
    fn what_is_told_in_pieces_is_one_device() {
        let part = |fill: &dyn Fn(&mut Message)| {
            let mut message = Message::generic(0x21, 0, 0, 1);
            fill(&mut message);
            message.done()
        };
        let peer = |m: &mut Message, fill: &dyn Fn(&mut Message)| m.nest(8 | NESTED, |m| m.nest(NESTED, fill));
        let (own, other) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let [first, second]: [Range; 2] = ranges().into_iter().collect::<Vec<_>>().try_into().unwrap();
        let one = part(&|m| {
            m.attribute(4, &own.0);
            m.attribute(6, &51820u16.to_ne_bytes());
            peer(m, &|m| {
                m.attribute(1, &other.0);
                m.attribute(4, &socket_address("[2001:db8::7]:51820".parse().unwrap()));
                m.attribute(6, &[5i64.to_ne_bytes(), 0i64.to_ne_bytes()].concat());
                m.nest(9 | NESTED, |m| m.nest(NESTED, |m| put_range(m, first)));
            });
        });
        let two = part(&|m| {
            peer(m, &|m| {
                m.attribute(1, &other.0);
                m.nest(9 | NESTED, |m| m.nest(NESTED, |m| put_range(m, second)));
            });
        });
        let (mut device, mut last) = (Device::default(), None);
        for bytes in [one, two] {
            for (_, payload) in messages(&bytes) {
                add(&mut device, &mut last, payload);
            }
        }
        let wanted = Peer {
            endpoint: Some("[2001:db8::7]:51820".parse().unwrap()),
            ranges: ranges(),
            last_handshake: 5,
        };
        let wanted = Device {
            key: Some(own),
            port: 51820,
            peers: [(other, wanted)].into(),
        };
        assert_eq!(device, wanted);
    }

    /// Whatever bytes come, nothing panics and nothing is read past them.
    #[test]
    fn what_is_cut_short_is_read_as_far_as_it_goes() {
        let whole = set(
            1,
            "wg0",
            &Change::Peer {
                key: PublicKey([7; 32]),
                endpoint: "192.0.2.7:51820".parse().unwrap(),
                ranges: &ranges(),
            },
        );
        for end in 0..whole.len() {
            let (mut device, mut last) = (Device::default(), None);
            add(&mut device, &mut last, whole.get(16..end).unwrap_or_default());
            assert!(messages(&whole[..end]).count() == 0 && device.peers.len() <= 1);
        }
        assert!(outcome(&(-2i32).to_ne_bytes()).is_err() && outcome(&[]).is_ok());
    }
}
