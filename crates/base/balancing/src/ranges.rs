//! Ranges of addresses: from one to another, of one family.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses as numbers, so that they can be counted and gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    v6: bool,
    first: u128,
    last: u128,
}

/// What no host has: "this network", loopbacks, links, groups, and IPv4 within IPv6.
const NO_HOSTS: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

fn number(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (false, u32::from(ip).into()),
        IpAddr::V6(ip) => (true, ip.into()),
    }
}

fn address(v6: bool, number: u128) -> IpAddr {
    match v6 {
        true => Ipv6Addr::from(number).into(),
        // It came from one.
        false => Ipv4Addr::from(number as u32).into(),
    }
}

impl Range {
    pub fn is_v6(&self) -> bool {
        self.v6
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let (v6, number) = number(ip);
        v6 == self.v6 && (self.first..=self.last).contains(&number)
    }

    /// The first and the last one.
    pub fn ends(&self) -> [IpAddr; 2] {
        [self.first, self.last].map(|n| address(self.v6, n))
    }

    pub fn overlaps(&self, other: &Range) -> bool {
        self.v6 == other.v6 && self.first <= other.last && other.first <= self.last
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.v6;
        (self.first..=self.last).map(move |n| address(v6, n))
    }

    pub fn size(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// How many of its addresses end in .0 and .255.
    pub fn buggy(&self) -> u128 {
        if self.v6 {
            return 0;
        }
        let below = |n: u128, end: u128| (n + 255 - end) / 256;
        [0, 255]
            .map(|end| below(self.last + 1, end) - below(self.first, end))
            .iter()
            .sum()
    }

    /// Whether no host could have some of its addresses.
    pub fn is_of_no_host(&self) -> bool {
        let none = NO_HOSTS.iter().filter_map(|text| text.parse::<Range>().ok());
        none.into_iter().any(|range| range.overlaps(self))
    }
}

impl FromStr for Range {
    type Err = String;
    fn from_str(text: &str) -> Result<Range, String> {
        let wrong = |what: &str| format!("{text:?} {what}");
        let ip = |text: &str| text.trim().parse::<IpAddr>().ok().map(number);
        if let Some((first, last)) = text.split_once('-') {
            let ends = ip(first).zip(ip(last));
            let ((v6, first), (same, last)) = ends.ok_or_else(|| wrong("is no range of addresses"))?;
            if v6 != same || first > last {
                return Err(wrong("doesn't lead from a lower address to a higher one of its family"));
            }
            return Ok(Range { v6, first, last });
        }
        let parts = text.split_once('/').and_then(|(base, length)| {
            let length = length.trim().parse::<u32>().ok()?;
            Some((ip(base)?, length))
        });
        let ((v6, base), length) = parts.ok_or_else(|| wrong("is neither a CIDR nor a range of addresses"))?;
        let bits = if v6 { 128 } else { 32 };
        let free = bits - Some(length).filter(|l| *l <= bits).ok_or_else(|| wrong("is no CIDR"))?;
        let hosts = u128::MAX.checked_shr(128 - free).unwrap_or(0);
        Ok(Range {
            v6,
            first: base & !hosts,
            last: base | hosts,
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}-{}", address(self.v6, self.first), address(self.v6, self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused() {
        for (text, shown) in [
            ("192.0.2.0/30", "192.0.2.0-192.0.2.3"),
            ("192.0.2.9/32", "192.0.2.9-192.0.2.9"),
            ("192.0.2.9/24", "192.0.2.0-192.0.2.255"),
            ("0.0.0.0/0", "0.0.0.0-255.255.255.255"),
            (" 192.0.2.10 - 192.0.2.12", "192.0.2.10-192.0.2.12"),
            ("2001:db8::/126", "2001:db8::-2001:db8::3"),
            ("2001:db8::5-2001:db8::5", "2001:db8::5-2001:db8::5"),
            ("::/0", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "192.0.2.1",
            "192.0.2.0/33",
            "2001:db8::/129",
            "192.0.2.9-192.0.2.1",
            "192.0.2.1-2001:db8::1",
            "a-b",
            "1/2/3",
        ] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }

    #[test]
    fn they_are_counted_as_they_are_gone_through() {
        for text in [
            "192.0.2.0/24",
            "192.0.2.1-192.0.2.254",
            "192.0.2.0-192.0.2.0",
            "192.0.2.255-192.0.3.0",
            "192.0.2.250-192.0.9.3",
            "1.0.0.0-1.0.0.1",
            "2001:db8::/120",
        ] {
            let range: Range = text.parse().unwrap();
            let all: Vec<IpAddr> = range.addresses().collect();
            assert_eq!(range.size(), all.len() as u128, "{text}");
            let buggy = |ip: &&IpAddr| matches!(ip, IpAddr::V4(ip) if [0, 255].contains(&ip.octets()[3]));
            assert_eq!(range.buggy(), all.iter().filter(buggy).count() as u128, "{text}");
            assert!(all.iter().all(|ip| range.contains(*ip)));
        }
        assert_eq!("::/0".parse::<Range>().unwrap().size(), u128::MAX);
    }

    #[test]
    fn what_no_host_has_is_told() {
        for (text, none) in [
            ("192.0.2.0/24", false),
            ("10.0.0.0/8", false),
            ("2001:db8::/64", false),
            ("fd00::/8", false),
            ("126.0.0.0/7", true),
            ("239.0.0.1-239.0.0.2", true),
            ("169.254.1.0/24", true),
            ("::/0", true),
            ("fe80::1-fe80::2", true),
            ("::1/128", true),
        ] {
            assert_eq!(text.parse::<Range>().unwrap().is_of_no_host(), none, "{text}");
        }
    }
}
