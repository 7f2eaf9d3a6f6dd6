//! The kernel's table of flows, by netlink: read, and delete from it. Both block for as long as the kernel works and act on
//! the network namespace of the calling thread. Which flows are stale is for others to say.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::IpAddr;

/// Numbers of `linux/netfilter/nfnetlink_conntrack.h` that the message crate has no names for.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

pub const UDP: u8 = 17;

/// A flow as its first packet was sent, and who answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub protocol: u8,
    pub destination: (IpAddr, u16),
    pub answers_from: (IpAddr, u16),
}

type Message = NetlinkMessage<NetfilterMessage>;

/// Deletes the flows that `stale` picks; how many there were.
pub fn delete(stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut picked = Vec::new();
    exchange(&socket, &dump(), |message| {
        if let Some((flow, handle)) = read(message)
            && stale(&flow)
        {
            picked.push((family(flow.destination.0), handle));
        }
    })?;
    let mut deleted = 0;
    for (family, handle) in picked {
        match exchange(&socket, &removal(family, handle), |_| {}) {
            Ok(()) => deleted += 1,
            // It ended on its own, or another flow has its addresses by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

fn request(flags: u16, family: NetfilterProtoFamily, message: ConntrackMessage) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let family = NetfilterHeader::new(family, 0, 0);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(NetfilterMessage::new(family, message)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Flows of every family.
fn dump() -> Vec<u8> {
    request(
        NLM_F_DUMP,
        NetfilterProtoFamily::Unspec,
        ConntrackMessage::Get(Vec::new()),
    )
}

fn family(ip: IpAddr) -> NetfilterProtoFamily {
    match ip {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    }
}

/// `handle` must have the flow's addresses: a removal without any empties the whole table.
fn removal(family: NetfilterProtoFamily, handle: Vec<ConntrackAttribute>) -> Vec<u8> {
    request(NLM_F_ACK, family, ConntrackMessage::Delete(handle))
}

/// Sends one request and reads to the end of its answer.
fn exchange(socket: &Socket, request: &[u8], mut each: impl FnMut(Message)) -> io::Result<()> {
    socket.send(request, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for bytes in messages(&answer) {
            let message = Message::deserialize(bytes).map_err(io::Error::other)?;
            match &message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(e) if e.code.is_none() => return Ok(()),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                _ => each(message),
            }
        }
    }
}

/// The messages of one datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let message = datagram.get(..length).filter(|m| m.len() >= 16)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A flow, and what names it in a removal: its addresses, so that nothing but a flow can be meant, and its id and zone.
fn read(message: Message) -> Option<(Flow, Vec<ConntrackAttribute>)> {
    let NetlinkPayload::InnerMessage(inner) = message.payload else {
        return None;
    };
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(mut attributes)) = inner.inner else {
        return None;
    };
    let (mut original, mut reply) = (None, None);
    for attribute in &attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(t) => original = Some(ends(t)),
            ConntrackAttribute::CtaTupleReply(t) => reply = Some(ends(t)),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let flow = Flow {
        protocol: original.protocol?,
        destination: original.destination?,
        answers_from: reply.source?,
    };
    attributes.retain(|a| matches!(a, ConntrackAttribute::CtaTupleOrig(_)) || [CTA_ID, CTA_ZONE].contains(&a.kind()));
    Some((flow, attributes))
}

struct Ends {
    protocol: Option<u8>,
    source: Option<(IpAddr, u16)>,
    destination: Option<(IpAddr, u16)>,
}

fn ends(tuple: &[Tuple]) -> Ends {
    let (mut protocol, mut from, mut to, mut from_port, mut to_port) = (None, None, None, None, None);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(ip) => from = Some(*ip),
                        IPTuple::DestinationAddress(ip) => to = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(facts) => {
                for fact in facts {
                    match fact {
                        ProtoTuple::Protocol(p) => protocol = Some(u8::from(*p)),
                        ProtoTuple::SourcePort(p) => from_port = Some(*p),
                        ProtoTuple::DestinationPort(p) => to_port = Some(*p),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ends {
        protocol,
        source: from.zip(from_port),
        destination: to.zip(to_port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
    use netlink_packet_netfilter::conntrack::Protocol;

    fn at(text: &str) -> (IpAddr, u16) {
        let address: std::net::SocketAddr = text.parse().unwrap();
        (address.ip(), address.port())
    }

    fn tuple(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<Tuple> {
        vec![
            Tuple::Ip(vec![IPTuple::SourceAddress(from.0), IPTuple::DestinationAddress(to.0)]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(Protocol::Udp),
                ProtoTuple::SourcePort(from.1),
                ProtoTuple::DestinationPort(to.1),
            ]),
        ]
    }

    /// A client's flow to the address of a DNS service, translated to `endpoint`.
    fn translated(client: &str, endpoint: &str) -> Vec<ConntrackAttribute> {
        let service = match at(client).0 {
            IpAddr::V4(_) => "10.96.0.10:53",
            IpAddr::V6(_) => "[fd00:96::a]:53",
        };
        vec![
            ConntrackAttribute::CtaTupleOrig(tuple(at(client), at(service))),
            ConntrackAttribute::CtaTupleReply(tuple(at(endpoint), at(client))),
            ConntrackAttribute::CtaTimeout(120),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_requests_bytes() {
        // Length, type (subsystem 1, message 1), flags (request, dump), sequence, port; family, version, resource.
        assert_eq!(
            hex(&dump()),
            "14000000010101030000000000000000".to_string() + "00000000"
        );
        let handle = vec![ConntrackAttribute::CtaTupleOrig(tuple(
            at("10.244.0.7:4000"),
            at("10.96.0.10:53"),
        ))];
        let expected = [
            "48000000020105000000000000000000", // message 2, flags: request, acknowledge
            "02000000",
            "34000180", // the original tuple, nested
            "14000180", // addresses, nested
            "080001000af40007",
            "080002000a60000a",
            "1c000280", // protocol, nested
            "0500010011000000",
            "060002000fa00000",
            "0600030000350000",
        ];
        assert_eq!(hex(&removal(NetfilterProtoFamily::IPv4, handle)), expected.concat());
    }

    #[test]
    fn a_flow_is_read_and_named_by_its_addresses_and_id() {
        let mut attributes = translated("10.244.0.7:4000", "10.244.0.5:5353");
        let id = netlink_packet_core::DefaultNla::new(CTA_ID, vec![1, 2, 3, 4]);
        attributes.push(ConntrackAttribute::Other(id));
        let one = request(0, NetfilterProtoFamily::IPv4, ConntrackMessage::New(attributes.clone()));
        let mut datagram = one.clone();
        datagram.extend_from_slice(&one);
        datagram.extend_from_slice(&[9; 7]);
        let all: Vec<_> = messages(&datagram).collect();
        assert_eq!(all, [&one[..], &one[..]]);
        let (flow, handle) = read(Message::deserialize(&one).unwrap()).unwrap();
        assert_eq!(flow.protocol, UDP);
        assert_eq!(flow.destination, at("10.96.0.10:53"));
        assert_eq!(flow.answers_from, at("10.244.0.5:5353"));
        assert_eq!(handle, [attributes[0].clone(), attributes[3].clone()]);
    }

    #[test]
    fn what_has_no_addresses_is_no_flow() {
        let timeout = ConntrackMessage::New(vec![ConntrackAttribute::CtaTimeout(1)]);
        let empty = request(0, NetfilterProtoFamily::IPv4, timeout);
        assert!(read(Message::deserialize(&empty).unwrap()).is_none());
    }

    /// Through the kernel, in a namespace of the test; where it can't do this, that must be an error and nothing else.
    #[test]
    fn the_kernel_deletes_what_is_picked() {
        let walk = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
            socket.bind_auto().unwrap();
            for (client, endpoint) in [
                ("10.244.0.7:4000", "10.244.0.5:53"),
                ("10.244.0.7:4001", "10.244.0.6:53"),
                ("10.244.0.8:4000", "10.244.0.5:53"),
                ("[fd00:244::7]:4000", "[fd00:244::5]:53"),
                ("[fd00:244::7]:4001", "[fd00:244::6]:53"),
            ] {
                let new = ConntrackMessage::New(translated(client, endpoint));
                let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
                let new = request(flags, family(at(client).0), new);
                if let Err(error) = exchange(&socket, &new, |_| {}) {
                    println!("no connection tracking here: {error}");
                    assert!(delete(|_| true).is_err());
                    return;
                }
            }
            assert_eq!(delete(|f| f.answers_from == at("10.244.0.5:53")).unwrap(), 2);
            assert_eq!(delete(|f| f.answers_from == at("10.244.0.5:53")).unwrap(), 0);
            assert_eq!(delete(|f| f.answers_from == at("[fd00:244::5]:53")).unwrap(), 1);
            assert_eq!(delete(|_| true).unwrap(), 2, "one of each family is left");
        };
        std::thread::spawn(walk).join().unwrap();
    }
}
