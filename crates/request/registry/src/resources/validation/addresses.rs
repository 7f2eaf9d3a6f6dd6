//! Addresses and networks as fields that are older than strict parsing take them: with leading zeros, which count for
//! nothing, with an IPv4 address written as an IPv6 one, and with bits beyond a network's length.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

/// A network as it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cidr {
    /// The address before the slash.
    pub ip: IpAddr,
    /// Without the bits beyond the length.
    pub network: IpNet,
    /// It was written as an IPv6 network of an IPv4 one.
    pub mapped: bool,
    /// It was written with leading zeros.
    pub zeros: bool,
}

/// An address; `None` if it is none even so.
pub fn ip(text: &str) -> Option<IpAddr> {
    let ip = match text.contains(':') {
        true => without_zeros_in_tail(text).parse().ok()?,
        false => IpAddr::V4(v4(text)?),
    };
    Some(match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        ip => ip,
    })
}

/// A network; `None` if it is none even so.
pub fn cidr(text: &str) -> Option<Cidr> {
    let (address, length) = text.split_once('/')?;
    let ip = self::ip(address)?;
    if length.is_empty() || length.len() > 8 || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let written: u8 = length.parse::<u32>().ok()?.try_into().ok()?;
    let mapped = address.contains(':') && ip.is_ipv4();
    let len = if mapped { written.checked_sub(96)? } else { written };
    let network = IpNet::new(ip, len).ok()?.trunc();
    let strict = address.parse::<IpAddr>().is_ok() && (length == "0" || !length.starts_with('0'));
    Some(Cidr {
        ip,
        network,
        mapped,
        zeros: !strict,
    })
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let digits = part.trim_start_matches('0');
        if part.is_empty() || digits.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| octets.into())
}

/// An IPv6 address may end with an IPv4 one.
fn without_zeros_in_tail(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => match v4(tail) {
            Some(v4) => format!("{head}:{v4}"),
            None => text.into(),
        },
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_fields_take() {
        let shown = |text: &str| ip(text).map(|ip| ip.to_string()).unwrap_or_default();
        assert_eq!(shown("010.000.0.01"), "10.0.0.1");
        assert_eq!(shown("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(shown("FD00:0::1"), "fd00::1");
        for none in [
            "",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.1.1",
            "a",
            "10.0.0.-1",
            "fd00::1%eth0",
            "1:2",
        ] {
            assert_eq!(shown(none), "", "{none}");
        }
    }

    #[test]
    fn networks_say_how_they_were_written() {
        let of = |text: &str| cidr(text).map(|c| (c.network.to_string(), c.mapped, c.zeros));
        assert_eq!(of("10.0.0.1/24"), Some(("10.0.0.0/24".into(), false, false)));
        assert_eq!(of("010.0.0.0/08"), Some(("10.0.0.0/8".into(), false, true)));
        assert_eq!(of("::ffff:10.0.0.0/104"), Some(("10.0.0.0/8".into(), true, false)));
        for none in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "x/8"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
