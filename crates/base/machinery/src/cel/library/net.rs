//! IP addresses and ranges.

use super::super::value::{CelError, Res, Val};
use super::Found;
use crate::go;
use std::net::IpAddr;

fn parse_ip(s: &str) -> Res<IpAddr> {
    let bad = |why: &str| {
        CelError::new(format!(
            "IP Address {} parse error during conversion from string: {why}",
            go::go_quote(s)
        ))
    };
    if s.contains('%') {
        return Err(bad("IP address with zone value is not allowed"));
    }
    let ip: IpAddr = s
        .parse()
        .map_err(|_| bad(&format!("ParseAddr({}): unable to parse IP", go::go_quote(s))))?;
    if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err(bad("IPv4-mapped IPv6 address is not allowed"));
    }
    Ok(ip)
}

fn parse_cidr(s: &str) -> Res<(IpAddr, u8)> {
    let bad = || {
        CelError::new(format!(
            "network address parse error during conversion from string: netip.ParsePrefix({}): invalid",
            go::go_quote(s)
        ))
    };
    let (ip, bits) = s.split_once('/').ok_or_else(bad)?;
    let ip = parse_ip(ip).map_err(|_| bad())?;
    if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) || (bits.len() > 1 && bits.starts_with('0')) {
        return Err(bad());
    }
    let bits: u8 = bits.parse().map_err(|_| bad())?;
    if bits > if ip.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    Ok((ip, bits))
}

fn number(ip: &IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v) => u128::from(v.to_bits()) << 96,
        IpAddr::V6(v) => v.to_bits(),
    }
}

fn mask(ip: &IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v.to_bits() & keep).into())
        }
        IpAddr::V6(v) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v.to_bits() & keep).into())
        }
    }
}

fn contains(net: &IpAddr, bits: u8, ip: &IpAddr) -> bool {
    if net.is_ipv4() != ip.is_ipv4() {
        return false;
    }
    let keep = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    (number(net) ^ number(ip)) & keep == 0
}

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    let [Val::Str(s)] = args else { return None };
    Some(match name {
        "ip" => parse_ip(s).map(Val::Ip),
        "isIP" => Ok(Val::Bool(parse_ip(s).is_ok())),
        "ip.isCanonical" => parse_ip(s).map(|ip| Val::Bool(ip.to_string() == *s)),
        "cidr" => parse_cidr(s).map(|(ip, n)| Val::Cidr(ip, n)),
        "isCIDR" => Ok(Val::Bool(parse_cidr(s).is_ok())),
        _ => return None,
    })
}

pub fn ip_member<'a>(name: &str, ip: &IpAddr, args: &[Val<'a>]) -> Found<'a> {
    if !args.is_empty() {
        return None;
    }
    let link_local = match ip {
        IpAddr::V4(v) => v.is_link_local(),
        IpAddr::V6(v) => v.is_unicast_link_local(),
    };
    let broadcast = matches!(ip, IpAddr::V4(v) if v.is_broadcast());
    Some(Ok(match name {
        "family" => Val::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(ip.is_unspecified()),
        "isLoopback" => Val::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Val::Bool(match ip {
            IpAddr::V4(v) => v.octets()[..3] == [224, 0, 0],
            IpAddr::V6(v) => v.segments()[0] & 0xff0f == 0xff02,
        }),
        "isLinkLocalUnicast" => Val::Bool(link_local),
        "isGlobalUnicast" => {
            Val::Bool(!(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local || broadcast))
        }
        _ => return None,
    }))
}

pub fn cidr_member<'a>(name: &str, net: IpAddr, bits: u8, args: &[Val<'a>]) -> Found<'a> {
    Some(match (name, args) {
        ("containsIP", [Val::Ip(ip)]) => Ok(Val::Bool(contains(&net, bits, ip))),
        ("containsIP", [Val::Str(s)]) => parse_ip(s).map(|ip| Val::Bool(contains(&net, bits, &ip))),
        ("containsCIDR", [Val::Cidr(ip, n)]) => Ok(Val::Bool(*n >= bits && contains(&net, bits, ip))),
        ("containsCIDR", [Val::Str(s)]) => {
            parse_cidr(s).map(|(ip, n)| Val::Bool(n >= bits && contains(&net, bits, &ip)))
        }
        ("ip", []) => Ok(Val::Ip(net)),
        ("prefixLength", []) => Ok(Val::Int(bits.into())),
        ("masked", []) => Ok(Val::Cidr(mask(&net, bits), bits)),
        _ => return None,
    })
}
