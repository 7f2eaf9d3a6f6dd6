//! Answers on a link: sockets of its packets, and who is answered for. Nothing of it is in the machine's own tables, so that nothing is left
//! when this program ends, however it ends: an address that a killed program had left on a link would go on being answered for.

use crate::frames::{self, Operation};
use crate::plan::Link;
use keelson_sys::packet::{ARP, IPV6, Packets};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Between tries to read from a link that refuses.
const RETRY: Duration = Duration::from_secs(1);
/// Room for a request with its options; what is longer is cut, and none.
const ROOM: usize = 512;

/// One open link.
pub struct Responder {
    told: Arc<Told>,
    /// Members of the groups to which is sent who asks for an address of IPv6: by that the link hears them, and switches know.
    /// None before there is such an address: a machine may have no IPv6.
    groups: Option<UdpSocket>,
    joined: BTreeMap<Ipv6Addr, usize>,
    /// They end with it.
    _readers: JoinSet<()>,
}

struct Told {
    link: Link,
    arp: Packets,
    ndp: Packets,
    answered: RwLock<BTreeSet<IpAddr>>,
}

impl Responder {
    /// Answers for nothing yet.
    pub fn open(link: &Link) -> io::Result<Responder> {
        let told = Arc::new(Told {
            link: link.clone(),
            arp: Packets::open(link.index, ARP, &frames::ARP_REQUESTS)?,
            ndp: Packets::open(link.index, IPV6, &frames::SOLICITATIONS)?,
            answered: RwLock::default(),
        });
        let mut readers = JoinSet::new();
        readers.spawn(told.clone().read(ARP));
        readers.spawn(told.clone().read(IPV6));
        Ok(Responder {
            told,
            groups: None,
            joined: BTreeMap::new(),
            _readers: readers,
        })
    }

    pub fn answer(&mut self, ip: IpAddr) {
        if let IpAddr::V6(ip) = ip {
            let group = frames::group(ip);
            let members = self.joined.entry(group).or_default();
            *members += 1;
            if *members == 1
                && let Err(error) = self.join(group)
            {
                let link = &self.told.link.name;
                tracing::warn!(link, %ip, %error, "requests for an address may not be heard on a link");
            }
        }
        self.told.answered.write().insert(ip);
    }

    fn join(&mut self, group: Ipv6Addr) -> io::Result<()> {
        let groups = match self.groups.take() {
            Some(there) => there,
            None => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
        };
        let groups = self.groups.insert(groups);
        groups.join_multicast_v6(&group, self.told.link.index)
    }

    pub fn silence(&mut self, ip: IpAddr) {
        self.told.answered.write().remove(&ip);
        let IpAddr::V6(ip) = ip else { return };
        let group = frames::group(ip);
        if let Some(members) = self.joined.get_mut(&group) {
            *members -= 1;
            if *members == 0 {
                self.joined.remove(&group);
                if let Some(groups) = &self.groups {
                    // A link that has gone has no members.
                    let _ = groups.leave_multicast_v6(&group, self.told.link.index);
                }
            }
        }
    }

    /// Tells all neighbours where the address is now, by the forms that one or another of them heeds.
    pub fn announce(&self, ip: IpAddr) -> io::Result<()> {
        let told = &self.told;
        match ip {
            IpAddr::V4(ip) => {
                let own = (told.link.mac, ip);
                for (operation, to) in [(Operation::Request, [0; 6]), (Operation::Reply, frames::BROADCAST)] {
                    told.arp
                        .send(frames::BROADCAST, &frames::arp(operation, own, (to, ip)))?;
                }
                Ok(())
            }
            IpAddr::V6(ip) => {
                let packet = frames::advertisement(told.link.mac, told.source(ip), frames::ALL_NODES, ip);
                told.ndp.send(frames::ALL_NODES_MAC, &packet)
            }
        }
    }
}

impl Told {
    /// A link without an address of its own speaks with the one that it is about.
    fn source(&self, ip: Ipv6Addr) -> Ipv6Addr {
        self.link.local.unwrap_or(ip)
    }

    async fn read(self: Arc<Self>, protocol: u16) {
        let mut buffer = [0; ROOM];
        let packets = if protocol == ARP { &self.arp } else { &self.ndp };
        loop {
            let answered = match packets.next(&mut buffer).await {
                Ok((length, from)) if protocol == ARP => self.arp(&buffer[..length], from),
                Ok((length, from)) => self.ndp(&buffer[..length], from),
                // A link that is down comes back, or goes and is closed.
                Err(error) => {
                    tracing::debug!(link = self.link.name, %error, "requests for addresses can't be read");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            if let Err(error) = answered {
                tracing::debug!(link = self.link.name, %error, "a request for an address wasn't answered");
            }
        }
    }

    fn arp(&self, packet: &[u8], from: [u8; 6]) -> io::Result<()> {
        let asked = frames::arp_asked(packet).filter(|a| self.answers(a.target.into()) && a.by != a.target);
        let Some(asked) = asked else { return Ok(()) };
        let (by, target): (Ipv4Addr, Ipv4Addr) = (asked.by, asked.target);
        let reply = frames::arp(Operation::Reply, (self.link.mac, target), (from, by));
        self.arp.send(from, &reply)
    }

    fn ndp(&self, packet: &[u8], from: [u8; 6]) -> io::Result<()> {
        let asked = frames::ndp_asked(packet).filter(|a| self.answers(a.target.into()));
        let Some(asked) = asked else { return Ok(()) };
        // Who has no address yet asks whether anybody has this one: all hear that somebody does.
        let (to, mac) = match asked.by.is_unspecified() {
            true => (frames::ALL_NODES, frames::ALL_NODES_MAC),
            false => (asked.by, from),
        };
        let packet = frames::advertisement(self.link.mac, self.source(asked.target), to, asked.target);
        self.ndp.send(mac, &packet)
    }

    fn answers(&self, ip: IpAddr) -> bool {
        self.answered.read().contains(&ip)
    }
}
