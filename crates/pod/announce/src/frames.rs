//! Requests for a neighbour's hardware address, and answers to them: ARP and NDP, as bytes behind the link's header. Pure; what strangers
//! sent is read with suspicion.

use keelson_sys::packet::{Mac, Step};
use std::net::{Ipv4Addr, Ipv6Addr};

pub const BROADCAST: Mac = [0xff; 6];
/// All nodes of a link, and how Ethernet calls them.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK: u8 = 2;
/// Who is more than a link away can't have this.
const HOPS: u8 = 255;

/// Requests, of Ethernet and IPv4.
pub const ARP_REQUESTS: [Step; 3] = [
    Step::Half(0, 1),
    Step::Half(2, 0x0800),
    Step::Half(6, Operation::Request as u16),
];
pub const SOLICITATIONS: [Step; 3] = [Step::Byte(6, ICMPV6), Step::Byte(7, HOPS), Step::Byte(40, SOLICITATION)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request = 1,
    Reply = 2,
}

/// Somebody asks who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<A> {
    pub by: A,
    pub target: A,
}

pub fn arp_asked(packet: &[u8]) -> Option<Asked<Ipv4Addr>> {
    let head = packet.first_chunk::<28>()?;
    if head[..8] != [0, 1, 8, 0, 6, 4, 0, Operation::Request as u8] {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*head[at..].first_chunk::<4>()?));
    Some(Asked {
        by: address(14)?,
        target: address(24)?,
    })
}

/// From one to another. Who tells all links at once names the same address twice.
pub fn arp(operation: Operation, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation as u8];
    for (mac, ip) in [from, to] {
        packet.extend(mac);
        packet.extend(ip.octets());
    }
    packet
}

pub fn ndp_asked(packet: &[u8]) -> Option<Asked<Ipv6Addr>> {
    let head = packet.first_chunk::<40>()?;
    let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
    // Ethernet fills up what is short.
    let message = packet.get(40..40 + length)?;
    let sound = head[0] >> 4 == 6 && head[6] == ICMPV6 && head[7] == HOPS && message.len() >= 24;
    if !sound || message[..2] != [SOLICITATION, 0] {
        return None;
    }
    let address = |bytes: &[u8]| Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?));
    let (by, to, target) = (address(&head[8..])?, address(&head[24..])?, address(&message[8..])?);
    (checksum(by, to, message) == 0 && !target.is_multicast()).then_some(Asked { by, target })
}

/// Says that `target` is at `mac`: to who asked, or to all on the link.
pub fn advertisement(mac: Mac, source: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let flags = if to.is_multicast() {
        OVERRIDE
    } else {
        SOLICITED | OVERRIDE
    };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend([TARGET_LINK, 1]);
    message.extend(mac);
    let sum = checksum(source, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, HOPS];
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend(message);
    packet
}

/// The group to which it is sent who asks for the address.
pub fn group(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// Of a message with its own sum within it: zero if that is right.
fn checksum(source: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(40 + message.len());
    bytes.extend(source.octets());
    bytes.extend(to.octets());
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, ICMPV6]);
    bytes.extend(message);
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    fn solicitation(by: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let to = group(target);
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend([1, 1]);
        message.extend(MAC);
        let sum = checksum(by, to, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x60, 0, 0, 0, 0, 32, ICMPV6, HOPS];
        packet.extend(by.octets());
        packet.extend(to.octets());
        packet.extend(message);
        packet
    }

    #[test]
    fn requests_of_arp_are_read() {
        let (by, target) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 9));
        let request = arp(Operation::Request, (MAC, by), ([0; 6], target));
        assert_eq!(arp_asked(&request), Some(Asked { by, target }));
        let mut padded = request.clone();
        padded.resize(46, 0);
        assert_eq!(arp_asked(&padded), Some(Asked { by, target }));
        assert_eq!(arp_asked(&arp(Operation::Reply, (MAC, by), (MAC, target))), None);
        assert!((0..28).all(|length| arp_asked(&request[..length]).is_none()));
    }

    #[test]
    fn solicitations_are_read_and_what_is_wrong_is_none() {
        let (by, target): (Ipv6Addr, Ipv6Addr) = ("fe80::1".parse().unwrap(), "2001:db8::aabb:ccdd".parse().unwrap());
        let sound = solicitation(by, target);
        assert_eq!(ndp_asked(&sound), Some(Asked { by, target }));
        assert_eq!(group(target), "ff02::1:ffbb:ccdd".parse::<Ipv6Addr>().unwrap());
        // A link's trailer is none of it.
        assert_eq!(
            ndp_asked(&[sound.as_slice(), &[1, 2, 3]].concat()),
            Some(Asked { by, target })
        );
        for at in 0..sound.len() {
            let mut other = sound.clone();
            other[at] ^= 0x81;
            // The class of traffic and the flow's label are nobody's matter.
            assert!(ndp_asked(&other).is_none() || (1..4).contains(&at), "byte {at}");
            assert!(ndp_asked(&sound[..at]).is_none());
        }
        assert_eq!(ndp_asked(&solicitation(by, ALL_NODES)), None);
    }

    #[test]
    fn an_advertisement_has_its_sum_and_says_whether_it_was_asked_for() {
        let (own, by, target): (Ipv6Addr, Ipv6Addr, Ipv6Addr) = (
            "fe80::2".parse().unwrap(),
            "fe80::1".parse().unwrap(),
            "2001:db8::9".parse().unwrap(),
        );
        for (to, flags) in [(by, 0x60), (ALL_NODES, 0x20)] {
            let packet = advertisement(MAC, own, to, target);
            assert_eq!(packet.len(), 72);
            assert_eq!(checksum(own, to, &packet[40..]), 0);
            assert_eq!((packet[40], packet[44], packet[7]), (ADVERTISEMENT, flags, 255));
            assert_eq!(packet[48..64], target.octets());
            assert_eq!(packet[64..], [2, 1, 2, 0, 0, 0, 0, 7]);
        }
    }
}
