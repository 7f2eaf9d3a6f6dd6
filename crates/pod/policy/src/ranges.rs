//! Ranges of addresses and ports that do not overlap, as the kernel's sets need them.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses of one family in `blocks`, each without its exceptions.
pub fn addresses(blocks: &[(IpNet, Vec<IpNet>)], v4: bool) -> Vec<(IpAddr, IpAddr)> {
    let of_family = |net: &IpNet| matches!(net, IpNet::V4(_)) == v4;
    let mut kept = Vec::new();
    for (range, except) in blocks.iter().filter(|(range, _)| of_family(range)) {
        let mut holes: Vec<(u128, u128)> = except.iter().filter(|e| of_family(e)).map(bounds).collect();
        holes.sort();
        let (first, last) = bounds(range);
        let mut next = Some(first);
        for (from, to) in holes {
            let Some(start) = next.filter(|s| *s <= to) else {
                continue;
            };
            if from > last {
                break;
            }
            if start < from {
                kept.push((start, from - 1));
            }
            next = to.checked_add(1);
        }
        if let Some(start) = next.filter(|s| *s <= last) {
            kept.push((start, last));
        }
    }
    let address = |n: u128| match v4 {
        true => IpAddr::V4(Ipv4Addr::from(n as u32)),
        false => IpAddr::V6(Ipv6Addr::from(n)),
    };
    merged(kept)
        .into_iter()
        .map(|(a, b)| (address(a), address(b)))
        .collect()
}

fn bounds(net: &IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(n) => (u32::from(n.network()).into(), u32::from(n.broadcast()).into()),
        IpNet::V6(n) => (n.network().into(), n.broadcast().into()),
    }
}

/// Ports of one protocol.
pub fn ports(list: impl Iterator<Item = (u16, u16)>) -> Vec<(u16, u16)> {
    let wide = list.map(|(a, b)| (u128::from(a), u128::from(b))).collect();
    merged(wide).into_iter().map(|(a, b)| (a as u16, b as u16)).collect()
}

fn merged(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort();
    let mut out: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(blocks: &[(&str, &[&str])], v4: bool) -> Vec<String> {
        let parsed: Vec<(IpNet, Vec<IpNet>)> = blocks
            .iter()
            .map(|(r, e)| (r.parse().unwrap(), e.iter().map(|e| e.parse().unwrap()).collect()))
            .collect();
        addresses(&parsed, v4).iter().map(|(a, b)| format!("{a}-{b}")).collect()
    }

    #[test]
    fn exceptions_are_holes_of_their_own_block_only() {
        assert_eq!(
            show(
                &[("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24", "10.255.0.0/16"])],
                true
            ),
            ["10.0.0.0-10.0.255.255", "10.2.0.0-10.254.255.255"]
        );
        assert_eq!(
            show(&[("10.0.0.0/8", &["10.1.0.0/16"]), ("10.1.5.0/24", &[])], true),
            [
                "10.0.0.0-10.0.255.255",
                "10.1.5.0-10.1.5.255",
                "10.2.0.0-10.255.255.255"
            ]
        );
        assert_eq!(show(&[("0.0.0.0/0", &[])], true), ["0.0.0.0-255.255.255.255"]);
        assert!(show(&[("10.0.0.0/8", &["10.0.0.0/8"])], true).is_empty());
        assert!(show(&[("0.0.0.0/0", &["0.0.0.0/0"])], true).is_empty());
        assert_eq!(
            show(&[("::/0", &["8000::/1"]), ("10.0.0.0/8", &[])], false),
            ["::-7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let list = [(80, 90), (91, 100), (85, 86), (0, 0), (65535, 65535)];
        assert_eq!(ports(list.into_iter()), [(0, 0), (80, 100), (65535, 65535)]);
    }
}
