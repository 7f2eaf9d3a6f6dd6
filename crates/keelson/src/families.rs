//! Addresses and ranges of one family or of both, the primary one first, as upstream's components take them.

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits that a node's share of the pods' range leaves for pods, by family: masks of 24 and 64.
pub const NODE_MASKS: (u8, u8) = (24, 64);
/// Bits of a pods' range that tell nodes apart: upstream's bound.
const NODES_BITS: u8 = 16;
/// Upstream's bound for a range of services of IPv6.
const SERVICES_V6: u8 = 64;

/// In a file: one text, with commas between its parts, or a list.
pub fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        List(Vec<String>),
    }
    Ok(
        Option::<Written>::deserialize(deserializer)?.map(|written| match written {
            Written::Text(text) => text.split(',').map(String::from).collect(),
            Written::List(list) => list,
        }),
    )
}

fn parse<T: std::str::FromStr>(option: &str, list: &[String], what: &str) -> anyhow::Result<Vec<T>> {
    let one = |text: &String| {
        let parsed = text.trim().parse::<T>();
        parsed.ok().with_context(|| format!("{option} {text}: not {what}"))
    };
    list.iter().map(one).collect()
}

/// Two are of different families.
fn paired<T>(option: &str, list: Vec<T>, is_ipv4: impl Fn(&T) -> bool) -> anyhow::Result<Vec<T>> {
    match list.as_slice() {
        [] => bail!("{option} must contain at least one value"),
        [_] => Ok(list),
        [one, two] if is_ipv4(one) != is_ipv4(two) => Ok(list),
        [_, _] => bail!("{option}: expected values to be from different IP families"),
        _ => bail!("{option} must not contain more than two entries"),
    }
}

pub fn ranges(option: &str, list: &[String]) -> anyhow::Result<Vec<IpNet>> {
    let parsed: Vec<IpNet> = parse(option, list, "an address range like 10.244.0.0/16")?;
    let parsed: Vec<IpNet> = parsed.into_iter().map(|range| range.trunc()).collect();
    for range in &parsed {
        for (what, special) in SPECIAL {
            if special.parse::<IpNet>().is_ok_and(|special| meet(special, *range)) {
                bail!("{option} {range}: it has {what} ({special}), which no pod and no service can have");
            }
        }
    }
    paired(option, parsed, |range: &IpNet| range.addr().is_ipv4())
}

const SPECIAL: [(&str, &str); 9] = [
    ("addresses of no host", "0.0.0.0/8"),
    ("addresses of the loopback", "127.0.0.0/8"),
    ("addresses of one link", "169.254.0.0/16"),
    ("addresses of groups", "224.0.0.0/4"),
    ("addresses that nobody has", "240.0.0.0/4"),
    ("addresses of the loopback", "::/96"),
    ("IPv4's addresses", "::ffff:0:0/96"),
    ("addresses of one link", "fe80::/10"),
    ("addresses of groups", "ff00::/8"),
];

/// Whether ranges have addresses in common.
fn meet(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

pub fn addresses(option: &str, list: &[String]) -> anyhow::Result<Vec<IpAddr>> {
    let parsed = parse(option, list, "an address")?;
    paired(option, parsed, IpAddr::is_ipv4)
}

pub fn cluster_cidrs(list: &[String]) -> anyhow::Result<Vec<IpNet>> {
    let ranges = ranges("--cluster-cidr", list)?;
    for range in &ranges {
        let mask = if range.addr().is_ipv4() {
            NODE_MASKS.0
        } else {
            NODE_MASKS.1
        };
        if range.prefix_len() > mask {
            bail!("--cluster-cidr {range}: a node's share is a /{mask}, which it has no room for");
        }
        if mask - range.prefix_len() > NODES_BITS {
            bail!(
                "--cluster-cidr {range}: it must not be larger than a /{}",
                mask - NODES_BITS
            );
        }
    }
    Ok(ranges)
}

pub fn service_cidrs(list: &[String]) -> anyhow::Result<Vec<IpNet>> {
    let ranges = ranges("--service-cidr", list)?;
    for range in &ranges {
        if range.max_prefix_len() - range.prefix_len() < 4 {
            bail!("--service-cidr {range}: it has no room for the services that a cluster begins with");
        }
        if range.addr().is_ipv6() && range.prefix_len() < SERVICES_V6 {
            bail!("--service-cidr {range} is too large; the mask must be >= {SERVICES_V6}");
        }
    }
    Ok(ranges)
}

/// Pods, services and the node have to be of the same families, in the same order of precedence.
pub fn agree(pods: &[IpNet], services: &[IpNet], node: &[IpAddr]) -> anyhow::Result<()> {
    for pods in pods {
        if let Some(services) = services.iter().find(|services| meet(*pods, **services)) {
            bail!(
                "--cluster-cidr {pods} and --service-cidr {services} have addresses in common: pods would get those of services"
            );
        }
    }
    let families = |list: &[IpNet]| -> Vec<bool> { list.iter().map(|range| range.addr().is_ipv4()).collect() };
    let shown = |list: &[bool]| -> String {
        let names: Vec<&str> = list.iter().map(|ipv4| if *ipv4 { "IPv4" } else { "IPv6" }).collect();
        names.join(", ")
    };
    let (pods, services) = (families(pods), families(services));
    if pods != services {
        bail!(
            "--cluster-cidr and --service-cidr must have the same families in the same order: {} and {}",
            shown(&pods),
            shown(&services)
        );
    }
    let of_node: Vec<bool> = node.iter().map(IpAddr::is_ipv4).collect();
    if let Some(missing) = pods.iter().find(|family| !of_node.contains(family)) {
        let family = if *missing { "IPv4" } else { "IPv6" };
        bail!("this machine has no {family} address for the cluster's pods: give it one, or name it with --node-ip");
    }
    Ok(())
}

/// A machine's own addresses are in no range. Asked when a cluster's ranges are known: what else stands for them is only a default.
pub fn apart(pods: &[IpNet], services: &[IpNet], node: &[IpAddr]) -> anyhow::Result<()> {
    for (option, range) in pods
        .iter()
        .map(|r| ("--cluster-cidr", r))
        .chain(services.iter().map(|r| ("--service-cidr", r)))
    {
        if let Some(own) = node.iter().find(|own| range.contains(*own)) {
            bail!("{option} {range}: this machine's own address {own} is in it");
        }
    }
    Ok(())
}

/// The n-th address of a range.
pub fn nth(range: IpNet, n: u32) -> IpAddr {
    match range {
        IpNet::V4(range) => IpAddr::V4(u32::from(range.network()).saturating_add(n).into()),
        IpNet::V6(range) => IpAddr::V6(u128::from(range.network()).saturating_add(n.into()).into()),
    }
}

/// What a URL says of it.
pub fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// The address that this machine would use towards the world. Nothing is sent.
pub fn default_address(ipv4: bool) -> anyhow::Result<IpAddr> {
    let (any, world): (IpAddr, IpAddr) = match ipv4 {
        true => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        false => {
            let world = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            (Ipv6Addr::UNSPECIFIED.into(), world.into())
        }
    };
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let without = || format!("this machine has no default route of {family}: give its address with --node-ip");
    let socket = std::net::UdpSocket::bind((any, 0)).with_context(without)?;
    socket.connect((world, 9)).with_context(without)?;
    Ok(socket.local_addr()?.ip())
}

/// An interface's address of a family: the given one, which has to be among its addresses, or its first that isn't the link's
/// own.
pub fn on_interface(name: &str, given: Option<IpAddr>, ipv4: bool) -> anyhow::Result<IpAddr> {
    let ip = |address: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
        match ipv4 {
            true => Some(address.as_sockaddr_in()?.ip().into()),
            false => Some(address.as_sockaddr_in6()?.ip())
                .filter(|ip| !ip.is_unicast_link_local())
                .map(IpAddr::V6),
        }
    };
    let all: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter(|i| i.interface_name == name)
        .filter_map(|i| ip(i.address?))
        .collect();
    let (family, flag) = if ipv4 { ("IPv4", "-4") } else { ("IPv6", "-6") };
    match given {
        Some(ip) if all.contains(&ip) => Ok(ip),
        Some(ip) => bail!("--node-ip {ip} is no address of --network-interface {name}, which has {all:?}"),
        None => all.first().copied().with_context(|| {
            format!("--network-interface {name}: there is no such interface with an {family} address (ip {flag} addr)")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split(',').map(String::from).collect()
    }

    #[test]
    fn one_range_or_one_of_each_family() {
        let shown = |text: &str| match cluster_cidrs(&list(text)) {
            Ok(ranges) => ranges.iter().map(IpNet::to_string).collect::<Vec<_>>().join(","),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(shown("10.244.0.0/16"), "10.244.0.0/16");
        assert_eq!(shown("fd00:244::/48, 10.244.0.0/16"), "fd00:244::/48,10.244.0.0/16");
        for (text, why) in [
            ("10.244.0.0/16,10.245.0.0/16", "from different IP families"),
            ("10.244.0.0/16,fd00::/48,fd01::/48", "not contain more than two"),
            ("10.244.0.0/25", "no room"),
            ("fd00::/40", "not be larger than a /48"),
            ("fd00::/72", "no room"),
            ("16.0.0.0/6", "not be larger than a /8"),
            ("10.0.0.0/4", "addresses of no host (0.0.0.0/8)"),
            ("127.0.0.0/16", "loopback"),
            ("224.0.0.0/16", "groups"),
            ("169.254.0.0/16", "one link"),
            ("fe80::/48", "one link"),
            ("::ffff:10.0.0.0/112", "IPv4's"),
            ("pods", "not an address range"),
        ] {
            assert!(shown(text).contains(why), "{text}: {}", shown(text));
        }
        assert!(service_cidrs(&list("fd00:96::/112,10.96.0.0/16")).is_ok());
        let large = service_cidrs(&list("fd00:96::/48")).unwrap_err().to_string();
        assert!(large.contains("the mask must be >= 64"), "{large}");
        assert!(service_cidrs(&list("10.96.0.0/29")).is_err());
    }

    #[test]
    fn families_have_to_agree() {
        let pods = |text: &str| cluster_cidrs(&list(text)).unwrap();
        let services = |text: &str| service_cidrs(&list(text)).unwrap();
        let node = |text: &str| addresses("--node-ip", &list(text)).unwrap();
        let (both, four) = (pods("10.244.0.0/16,fd00:244::/48"), pods("10.244.0.0/16"));
        let (services_both, services_four) = (services("10.96.0.0/16,fd00:96::/112"), services("10.96.0.0/16"));
        assert!(agree(&both, &services_both, &node("10.0.0.1,2001:db8::1")).is_ok());
        assert!(agree(&four, &services_four, &node("10.0.0.1")).is_ok());
        assert!(agree(&both, &services_four, &node("10.0.0.1,2001:db8::1")).is_err());
        let missing = agree(&both, &services_both, &node("10.0.0.1")).unwrap_err().to_string();
        assert!(missing.contains("no IPv6 address"), "{missing}");
    }

    #[test]
    fn addresses_of_ranges() {
        assert_eq!(nth("fd00:96::/112".parse().unwrap(), 10).to_string(), "fd00:96::a");
        assert_eq!(nth("10.96.0.0/16".parse().unwrap(), 1).to_string(), "10.96.0.1");
        assert_eq!(host("fd00::1".parse().unwrap()), "[fd00::1]");
    }

    #[test]
    fn pods_services_and_machines_share_no_address() {
        let nets = |text: &str| ranges("--x", &list(text)).unwrap();
        let judged = |pods: &str, services: &str, node: &str| {
            let node: Vec<IpAddr> = node.split(',').map(|ip| ip.parse().unwrap()).collect();
            let (pods, services) = (nets(pods), nets(services));
            let judged = agree(&pods, &services, &node).and_then(|()| apart(&pods, &services, &node));
            judged.map_err(|e| e.to_string())
        };
        assert_eq!(judged("10.244.0.0/16", "10.96.0.0/16", "192.0.2.1"), Ok(()));
        for (pods, services, node, why) in [
            ("10.1.0.0/16", "10.1.0.0/20", "192.0.2.1", "addresses in common"),
            ("10.1.0.0/20", "10.0.0.0/12", "192.0.2.1", "addresses in common"),
            (
                "10.77.0.0/16",
                "10.96.0.0/16",
                "10.77.1.10",
                "own address 10.77.1.10 is in it",
            ),
            (
                "10.244.0.0/16",
                "10.96.0.0/16",
                "10.96.0.9",
                "--service-cidr 10.96.0.0/16",
            ),
            ("10.244.0.0/16", "fd00:96::/112", "192.0.2.1", "IPv4 and IPv6"),
        ] {
            let said = judged(pods, services, node).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
