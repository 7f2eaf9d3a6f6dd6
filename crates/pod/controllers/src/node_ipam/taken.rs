//! Which shares of ranges nodes have, kept by what changes of them, and the lowest that is free: found where the last one was.

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

#[derive(Default)]
pub struct Taken {
    nodes: HashMap<String, Vec<IpNet>>,
    /// How many nodes have each. Should two have the same, it is taken until both are gone.
    shares: BTreeMap<IpNet, usize>,
    /// Of each range and size of shares: all before this one are taken. A node that loses a share has it looked for anew.
    first: HashMap<(IpNet, u8), IpNet>,
}

impl Taken {
    /// What a node has now.
    pub fn set(&mut self, node: &str, has: Vec<IpNet>) {
        let has: Vec<IpNet> = has.iter().map(IpNet::trunc).collect();
        let had = self.nodes.get(node).map(Vec::as_slice).unwrap_or_default();
        if had == has {
            return;
        }
        for share in &has {
            *self.shares.entry(*share).or_default() += 1;
        }
        for share in self.nodes.remove(node).unwrap_or_default() {
            let Some(users) = self.shares.get_mut(&share) else {
                continue;
            };
            *users -= 1;
            if *users == 0 {
                self.shares.remove(&share);
                self.first.clear();
            }
        }
        if !has.is_empty() {
            self.nodes.insert(node.to_owned(), has);
        }
    }

    /// The lowest share of a range that overlaps none taken.
    pub fn lowest_free(&mut self, range: IpNet, mask: u8) -> Option<IpNet> {
        let mut from = match self.first.get(&(range, mask)) {
            Some(first) => subnets_from(range, *first, mask)?,
            None => range.subnets(mask).ok()?,
        };
        let share = from.find(|share| !self.overlaps(share))?;
        self.first.insert((range, mask), share);
        Some(share)
    }

    fn overlaps(&self, share: &IpNet) -> bool {
        if self.shares.contains_key(share) {
            return true;
        }
        // Ranges that overlap contain one another: one that contains this, or the next that begins in this.
        let wider = |length: u8| IpNet::new(share.addr(), length).map(|net| net.trunc());
        let mut around = (0..share.prefix_len()).filter_map(|length| wider(length).ok());
        let first_within = IpNet::new(share.network(), 0).unwrap_or(*share);
        let mut within = self.shares.range(first_within..);
        around.any(|net| self.shares.contains_key(&net)) || within.next().is_some_and(|(net, _)| share.contains(net))
    }
}

/// The shares of the range from this one on.
fn subnets_from(range: IpNet, first: IpNet, mask: u8) -> Option<IpSubnets> {
    match (first.network(), range.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Some(IpSubnets::V4(Ipv4Subnets::new(first, last, mask))),
        (IpAddr::V6(first), IpAddr::V6(last)) => Some(IpSubnets::V6(Ipv6Subnets::new(first, last, mask))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn the_lowest_free_share() {
        let range = net("10.244.0.0/22");
        let free = |list: &[&str]| {
            let mut taken = Taken::default();
            list.iter().for_each(|share| taken.set(share, vec![net(share)]));
            taken.lowest_free(range, 24).map(|n| n.to_string())
        };
        let cases: [(&[&str], Option<&str>); 8] = [
            (&[], Some("10.244.0.0/24")),
            (&["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24")),
            (&["10.244.0.0/23"], Some("10.244.2.0/24")),
            (&["10.244.0.128/25"], Some("10.244.1.0/24")),
            (&["10.244.0.0/25", "10.244.1.255/32"], Some("10.244.2.0/24")),
            (&["10.0.0.0/8"], None),
            (&["10.244.0.0/22"], None),
            (&["10.244.4.0/24", "10.243.255.0/24"], Some("10.244.0.0/24")),
        ];
        for (list, lowest) in cases {
            assert_eq!(free(list).as_deref(), lowest, "{list:?}");
        }
    }

    #[test]
    fn a_thousand_nodes_look_at_a_thousand_shares_and_what_is_given_back_is_given_again() {
        for (range, mask) in [(net("10.128.0.0/9"), 24), (net("fd00::/48"), 64)] {
            let mut taken = Taken::default();
            for n in 0..1000 {
                let from = taken.first.get(&(range, mask)).copied();
                let share = taken.lowest_free(range, mask).expect("one is free");
                let looked = from.and_then(|from| subnets_from(range, from, mask)?.position(|s| s == share));
                assert!(looked.is_none_or(|n| n <= 1), "{looked:?} before the one that is free");
                taken.set(&format!("n{n}"), vec![share]);
            }
            let last = taken.lowest_free(range, mask).expect("one is free");
            let (third, others) = (taken.nodes["n2"].clone(), taken.nodes["n7"].clone());
            assert_eq!(range.subnets(mask).expect("shares").nth(1000), Some(last));
            // Two have the same: it is free when both are gone.
            taken.set("twin", third.clone());
            taken.set("n2", Vec::new());
            taken.set("n7", others);
            assert_eq!(taken.lowest_free(range, mask), Some(last));
            taken.set("twin", Vec::new());
            assert_eq!(taken.lowest_free(range, mask), third.first().copied());
        }
    }
}
