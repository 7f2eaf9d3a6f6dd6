//! All pools as plain data. An address is of one pool: where two have it, it is the older one's.

use crate::{Advertisement, Announce, LoadBalancerIpPool, Range, selects};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::ApiObject;
use keelson_client::labels::Labels;
use std::net::IpAddr;
use std::sync::Arc;

/// One pool, with what of it counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    pub name: String,
    pub ranges: Vec<Range>,
    pub auto_assign: bool,
    pub avoid_buggy: bool,
    services: Option<LabelSelector>,
    namespaces: Option<LabelSelector>,
    pub announce: Announce,
    /// Why ranges of it don't count.
    pub refused: Vec<String>,
}

impl Pool {
    pub fn has(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(ip))
    }

    /// Whether it is for everybody.
    pub fn is_for_all(&self) -> bool {
        self.services.is_none() && self.namespaces.is_none()
    }

    pub fn selects(&self, service: Option<&Labels>, namespace: Option<&Labels>) -> bool {
        selects(self.services.as_ref(), service) && selects(self.namespaces.as_ref(), namespace)
    }

    /// Whether the address isn't to be given away because of how it ends.
    pub fn avoids(&self, ip: IpAddr) -> bool {
        self.avoid_buggy && matches!(ip, IpAddr::V4(ip) if [0, 255].contains(&ip.octets()[3]))
    }

    /// The network that an address is told as: no longer than the advertisement wants it, and never more than the pool has.
    pub fn prefix(&self, ip: IpAddr, advertisement: &Advertisement) -> IpNet {
        let (length, alone) = match ip {
            IpAddr::V4(_) => (advertisement.aggregation_length, IpNet::from(ip)),
            IpAddr::V6(_) => (advertisement.aggregation_length_v6, IpNet::from(ip)),
        };
        let wide = IpNet::new(ip, length).map(|net| net.trunc());
        let is_within = |net: &IpNet| {
            let mut ranges = self.ranges.iter();
            ranges.any(|range| range.contains(net.network()) && range.contains(net.broadcast()))
        };
        wide.ok().filter(is_within).unwrap_or(alone)
    }

    /// How many addresses it has of a family.
    pub fn size(&self, v6: bool) -> u128 {
        let of_family = self.ranges.iter().filter(|r| r.is_v6() == v6);
        let usable = |r: &Range| r.size() - if self.avoid_buggy { r.buggy() } else { 0 };
        of_family.map(usable).fold(0, u128::saturating_add)
    }
}

/// In the order of their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pools(Vec<Pool>);

impl Pools {
    /// `pods`: the ranges of pods, which can't be in a pool.
    pub fn read(all: &[Arc<LoadBalancerIpPool>], pods: &[Range]) -> Pools {
        let mut by_age: Vec<&Arc<LoadBalancerIpPool>> = all.iter().collect();
        by_age.sort_by_key(|p| {
            (
                p.metadata.creation_timestamp.as_ref().map(|t| t.0),
                p.name().to_string(),
            )
        });
        let of_pods = |range: &Range| (*range, "the cluster's pods".to_string());
        let mut held: Vec<(Range, String)> = pods.iter().map(of_pods).collect();
        let mut pools: Vec<Pool> = Vec::new();
        for pool in by_age {
            let spec = &pool.spec;
            let mut read = Pool {
                name: pool.name().to_string(),
                auto_assign: spec.auto_assign,
                avoid_buggy: spec.avoid_buggy_ips,
                services: spec.service_selector.clone(),
                namespaces: spec.namespace_selector.clone(),
                announce: spec.announce.clone(),
                ..Pool::default()
            };
            for text in &spec.addresses {
                match range(text, &held) {
                    Ok(range) => {
                        held.push((range, format!("pool {}", pool.name())));
                        read.ranges.push(range);
                    }
                    Err(why) => read.refused.push(why),
                }
            }
            read.refused.extend(too_wide(&read));
            pools.push(read);
        }
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        Pools(pools)
    }

    pub fn get(&self, name: &str) -> Option<&Pool> {
        self.0.iter().find(|pool| pool.name == name)
    }

    /// Whose the address is.
    pub fn of(&self, ip: IpAddr) -> Option<&Pool> {
        self.0.iter().find(|pool| pool.has(ip))
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Pool> {
        self.0.iter()
    }
}

/// What can't be told as networks of the length that is wished, since these would be more than the pool has.
fn too_wide(pool: &Pool) -> Vec<String> {
    let advertisements = pool.announce.advertisements.iter();
    let ranges = advertisements.flat_map(|a| pool.ranges.iter().map(move |range| (a, range)));
    let too_wide = ranges.filter_map(|(advertisement, range)| {
        let length = match range.is_v6() {
            true => advertisement.aggregation_length_v6,
            false => advertisement.aggregation_length,
        };
        // Where both ends are in such networks, all between is.
        let mut ends = range.ends().into_iter();
        let fits = ends.all(|ip| pool.prefix(ip, advertisement).prefix_len() == length);
        (!fits).then(|| {
            format!(
                "{range} doesn't consist of networks of length {length}: addresses in none of them are announced one by one"
            )
        })
    });
    too_wide.collect()
}

fn range(text: &str, held: &[(Range, String)]) -> Result<Range, String> {
    let range: Range = text.parse()?;
    if range.is_of_no_host() {
        return Err(format!("{text} has addresses that no host can have"));
    }
    match held.iter().find(|(other, _)| other.overlaps(&range)) {
        Some((other, whose)) => Err(format!("{text} overlaps with {other} of {whose}")),
        None => Ok(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pool(name: &str, day: u32, spec: Value) -> Arc<LoadBalancerIpPool> {
        let pool =
            json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-0{day}T00:00:00Z")}, "spec": spec});
        Arc::new(serde_json::from_value(pool).unwrap())
    }

    #[test]
    fn an_address_is_the_older_pools() {
        let pods = ["10.244.0.0/16".parse::<Range>().unwrap()];
        let all = [
            pool("a", 2, json!({"addresses": ["192.0.2.8/29", "198.51.100.0/24"]})),
            pool("b", 1, json!({"addresses": ["192.0.2.0/28"], "autoAssign": false})),
            pool(
                "c",
                3,
                json!({"addresses": ["10.244.7.1-10.244.7.9", "127.0.0.1/32", "x"]}),
            ),
        ];
        let pools = Pools::read(&all, &pods);
        let whose = |ip: &str| pools.of(ip.parse().unwrap()).map(|p| p.name.as_str());
        assert_eq!(whose("192.0.2.9"), Some("b"));
        assert_eq!(
            whose("198.51.100.7"),
            Some("a"),
            "one range that can't be has no influence on others"
        );
        assert_eq!(whose("10.244.7.1"), None);
        assert_eq!(
            pools.get("a").unwrap().refused,
            ["192.0.2.8/29 overlaps with 192.0.2.0-192.0.2.15 of pool b"]
        );
        assert_eq!(
            pools.get("c").unwrap().refused,
            [
                "10.244.7.1-10.244.7.9 overlaps with 10.244.0.0-10.244.255.255 of the cluster's pods",
                "127.0.0.1/32 has addresses that no host can have",
                "\"x\" is neither a CIDR nor a range of addresses"
            ]
        );
        assert!(!pools.get("b").unwrap().auto_assign && pools.get("a").unwrap().auto_assign);
        assert_eq!(pools.get("a").unwrap().announce.protocol, Announce::LAYER2);
    }

    #[test]
    fn who_knows_no_ranges_of_pods_takes_addresses_for_another_pools() {
        let all = [
            pool("old", 1, json!({"addresses": ["10.0.0.0/8"]})),
            pool("new", 2, json!({"addresses": ["10.1.0.0/24"]})),
        ];
        let whose = |pods: &[Range]| {
            let pools = Pools::read(&all, pods);
            pools.of("10.1.0.7".parse().unwrap()).map(|pool| pool.name.clone())
        };
        assert_eq!(
            whose(&["10.244.0.0/16".parse::<Range>().unwrap()]).as_deref(),
            Some("new")
        );
        assert_eq!(whose(&[]).as_deref(), Some("old"));
    }

    #[test]
    fn addresses_are_told_as_networks_that_are_the_pools() {
        let spec = json!({"addresses": ["192.0.2.64/26", "192.0.2.10-192.0.2.19", "2001:db8::/64", "192.0.2.200-192.0.2.223"],
            "announce": {"protocol": "BGP", "advertisements": [
                {"aggregationLength": 28, "aggregationLengthV6": 64}, {"aggregationLength": 24}]}});
        let pools = Pools::read(&[pool("a", 1, spec)], &[]);
        let pool = pools.get("a").unwrap();
        let [narrow, wide] = &pool.announce.advertisements[..] else {
            panic!()
        };
        let told = |ip: &str, a: &Advertisement| pool.prefix(ip.parse().unwrap(), a).to_string();
        assert_eq!(told("192.0.2.83", narrow), "192.0.2.80/28");
        assert_eq!(told("192.0.2.12", narrow), "192.0.2.12/32");
        assert_eq!(told("192.0.2.203", narrow), "192.0.2.203/32");
        assert_eq!(told("192.0.2.210", narrow), "192.0.2.208/28");
        assert_eq!(told("2001:db8::7", narrow), "2001:db8::/64");
        assert_eq!(told("192.0.2.83", wide), "192.0.2.83/32");
        assert_eq!(told("2001:db8::7", wide), "2001:db8::7/128");
        let refused: Vec<_> = pool.refused.iter().filter_map(|why| why.split_once(": ")).collect();
        let expected = [
            "192.0.2.10-192.0.2.19 doesn't consist of networks of length 28",
            "192.0.2.200-192.0.2.223 doesn't consist of networks of length 28",
            "192.0.2.64-192.0.2.127 doesn't consist of networks of length 24",
            "192.0.2.10-192.0.2.19 doesn't consist of networks of length 24",
            "192.0.2.200-192.0.2.223 doesn't consist of networks of length 24",
        ];
        assert_eq!(
            refused,
            expected.map(|what| (what, "addresses in none of them are announced one by one"))
        );
    }

    #[test]
    fn a_pool_is_for_whom_it_selects() {
        let labels = |key: &str| -> Labels { [(key.to_string(), "x".to_string())].into() };
        let both = json!({"addresses": ["192.0.2.0/28"], "avoidBuggyIPs": true,
            "serviceSelector": {"matchLabels": {"s": "x"}}, "namespaceSelector": {"matchLabels": {"n": "x"}}});
        let pools = Pools::read(&[pool("a", 1, both)], &[]);
        let pool = pools.get("a").unwrap();
        for (service, namespace, selected) in [("s", "n", true), ("s", "s", false), ("n", "n", false)] {
            assert_eq!(pool.selects(Some(&labels(service)), Some(&labels(namespace))), selected);
        }
        assert!(!pool.selects(None, None) && !pool.is_for_all());
        assert_eq!((pool.size(false), pool.size(true)), (15, 0));
        assert!(pool.avoids("192.0.2.0".parse().unwrap()) && !pool.avoids("192.0.2.1".parse().unwrap()));
    }
}
