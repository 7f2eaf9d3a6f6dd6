//! Addresses of made-up pods: from ranges, none twice at a time.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many addresses of a range are used at most.
const MOST: u128 = 60_000;

#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Where each range begins, and how many addresses it has; one of each family at most.
    ranges: Vec<(IpAddr, u128)>,
    last: u128,
}

impl Addresses {
    /// From ranges as `10.1.2.0/24,fd00::/64`; `None`: they can't be read, or are too small.
    pub fn of(ranges: &str) -> Option<Addresses> {
        let ranges: Option<Vec<_>> = ranges.split(',').map(range).collect();
        Some(Addresses {
            ranges: ranges?,
            last: 0,
        })
    }

    /// Addresses for one pod, the main one first; none where all are used.
    pub fn next(&mut self, used: &BTreeSet<String>) -> Vec<String> {
        let size = self.ranges.iter().map(|(_, size)| *size).min().unwrap_or(0);
        for _ in 0..size {
            self.last = self.last % size + 1;
            // The first address is the network's name, the second its gateway's.
            let nth = self.last + 1;
            let all: Vec<String> = self
                .ranges
                .iter()
                .map(|(base, _)| plus(*base, nth).to_string())
                .collect();
            if all.first().is_some_and(|a| !used.contains(a)) {
                return all;
            }
        }
        Vec::new()
    }
}

fn range(text: &str) -> Option<(IpAddr, u128)> {
    let (base, length) = text.trim().split_once('/')?;
    let (base, length): (IpAddr, u32) = (base.parse().ok()?, length.parse().ok()?);
    let bits = if base.is_ipv4() { 32 } else { 128u32 };
    let free = bits.checked_sub(length)?;
    // Not the network's name, its gateway and its last address.
    let size = 1u128.checked_shl(free).unwrap_or(u128::MAX).checked_sub(3)?;
    (size > 0).then_some((base, size.min(MOST)))
}

fn plus(base: IpAddr, n: u128) -> IpAddr {
    match base {
        IpAddr::V4(a) => Ipv4Addr::from(a.to_bits().wrapping_add(n as u32)).into(),
        IpAddr::V6(a) => Ipv6Addr::from(a.to_bits().wrapping_add(n)).into(),
    }
}
