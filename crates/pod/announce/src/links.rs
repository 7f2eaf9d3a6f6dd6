//! The links of this machine on which neighbours could ask for an address: Ethernet's, with an address of more hosts than one.

use crate::plan::Link;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

const ETHERNET: u16 = 1;
/// So many are looked at; a machine with more has those of the lowest numbers.
const MOST: usize = 64;

/// Of the network namespace in which this is called.
pub fn read() -> io::Result<Vec<Link>> {
    let mut links: BTreeMap<String, Link> = BTreeMap::new();
    let mut addresses: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut local: BTreeMap<String, Ipv6Addr> = BTreeMap::new();
    for found in nix::ifaddrs::getifaddrs()? {
        let unfit = InterfaceFlags::IFF_LOOPBACK
            | InterfaceFlags::IFF_NOARP
            | InterfaceFlags::IFF_POINTOPOINT
            | InterfaceFlags::IFF_SLAVE;
        let (name, Some(address)) = (found.interface_name, found.address) else {
            continue;
        };
        if !found.flags.contains(InterfaceFlags::IFF_UP) || found.flags.intersects(unfit) {
            continue;
        }
        if let Some(link) = address.as_link_addr() {
            let index = u32::try_from(link.ifindex()).map_err(io::Error::other)?;
            if let Some(mac) = link.addr().filter(|_| link.hatype() == ETHERNET) {
                let link = Link {
                    index,
                    name: name.clone(),
                    mac,
                    addresses: BTreeSet::new(),
                    local: None,
                };
                links.insert(name, link);
            }
            continue;
        }
        match ip(&address) {
            Some(IpAddr::V6(ip)) if ip.is_unicast_link_local() => drop(local.insert(name, ip)),
            // The host's end of a pod's link has one address, and nobody beside it.
            Some(ip) if !found.netmask.as_ref().is_some_and(is_one_host) => {
                addresses.entry(name).or_default().insert(ip);
            }
            _ => {}
        }
    }
    let mut all: Vec<Link> = links.into_values().collect();
    for link in &mut all {
        link.addresses = addresses.remove(&link.name).unwrap_or_default();
        link.local = local.remove(&link.name);
    }
    all.retain(|link| !link.addresses.is_empty());
    all.sort_by_key(|link| link.index);
    all.truncate(MOST);
    Ok(all)
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| a.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
}

fn is_one_host(mask: &SockaddrStorage) -> bool {
    match ip(mask) {
        Some(IpAddr::V4(mask)) => u32::from(mask) == u32::MAX,
        Some(IpAddr::V6(mask)) => u128::from(mask) == u128::MAX,
        None => false,
    }
}
