//! Which node answers for an address, and what this one is to answer for: pure, and the same on all nodes that know the same.

use crate::beat::Key;
use keelson_balancing::{Announce, selects};
use keelson_client::labels::Labels;
use keelson_sys::packet::Mac;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// What the API says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Whether there is a pool whose addresses nodes answer for.
    pub announced: bool,
    pub nodes: BTreeMap<String, Node>,
    /// The addresses of services that nodes answer for.
    pub addresses: BTreeMap<IpAddr, Address>,
}

impl Facts {
    /// What nodes have themselves: nobody else announces it.
    pub fn of_nodes(&self) -> BTreeSet<IpAddr> {
        self.nodes.values().flat_map(|node| node.own.iter().copied()).collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Unless it is silent.
    pub may_answer: bool,
    /// Whether it is about to be emptied.
    pub cordoned: bool,
    pub labels: Labels,
    /// Where it is spoken to.
    pub addresses: Vec<IpAddr>,
    /// All that it has: its kernel answers for these, and nobody else may, whatever pools and services say.
    pub own: BTreeSet<IpAddr>,
    /// What it shows of itself; `None`: it answers for nothing.
    pub shown: Option<Shown>,
}

/// What a node shows of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    pub key: Key,
    /// The links on which it could answer.
    pub links: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Address {
    pub announce: Announce,
    /// Only these nodes, since traffic stays where it arrives.
    pub only: Option<BTreeSet<String>>,
}

/// A link of this node on which it could answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Mac,
    pub addresses: BTreeSet<IpAddr>,
    /// With which it speaks to its neighbours.
    pub local: Option<Ipv6Addr>,
}

/// What this node answers for, link by link; links are those of which sockets are open.
pub type Plan = BTreeMap<u32, (Link, BTreeSet<IpAddr>)>;

/// A step from one plan to the next. What ends comes first.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Close(u32),
    Silence(u32, IpAddr),
    Open(Link),
    Answer(u32, IpAddr),
}

/// The nodes that could answer for an address if they live.
fn candidates<'a>(facts: &'a Facts, address: &'a Address) -> impl Iterator<Item = &'a str> {
    let announce = &address.announce;
    let able = move |(name, node): &(&String, &Node)| {
        let links = node.shown.as_ref().map(|shown| &shown.links);
        let selected = selects(announce.node_selector.as_ref(), Some(&node.labels));
        let fits = |links: &BTreeSet<String>| match announce.interfaces.is_empty() {
            true => !links.is_empty(),
            false => announce.interfaces.iter().any(|name| links.contains(name)),
        };
        node.may_answer
            && links.is_some_and(fits)
            && selected
            && address.only.as_ref().is_none_or(|only| only.contains(*name))
    };
    facts.nodes.iter().filter(able).map(|(name, _)| name.as_str())
}

/// By rendezvous: when a node comes or goes, only addresses move that are its own.
pub fn owner<'a>(facts: &'a Facts, ip: IpAddr, address: &'a Address, living: &BTreeSet<String>) -> Option<&'a str> {
    let rank = |name: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, format!("{name}#{ip}").as_bytes());
        digest.as_ref().to_vec()
    };
    let alive = candidates(facts, address).filter(|name| living.contains(*name));
    alive.max_by_key(|name| rank(name))
}

/// What this node answers for, if it is among those that live.
pub fn plan(facts: &Facts, me: &str, living: &BTreeSet<String>, links: &[Link]) -> Plan {
    let mut plan = Plan::new();
    let own = facts
        .nodes
        .get(me)
        .map(|node| node.addresses.as_slice())
        .unwrap_or_default();
    let of_nodes = facts.of_nodes();
    for (ip, address) in &facts.addresses {
        if of_nodes.contains(ip) || owner(facts, *ip, address, living) != Some(me) {
            continue;
        }
        let names = &address.announce.interfaces;
        let chosen = |link: &&Link| match names.is_empty() {
            true => own.iter().any(|ip| link.addresses.contains(ip)),
            false => names.contains(&link.name),
        };
        for link in links.iter().filter(chosen) {
            let (_, answered) = plan
                .entry(link.index)
                .or_insert_with(|| (link.clone(), BTreeSet::new()));
            answered.insert(*ip);
        }
    }
    plan
}

pub fn difference(before: &Plan, after: &Plan) -> Vec<Step> {
    let nothing = BTreeSet::new();
    let mut steps = Vec::new();
    // A link with another name, hardware address or local address is opened anew.
    let stays = |link: &Link| before.get(&link.index).is_some_and(|(old, _)| alike(old, link));
    for (index, (link, answered)) in before {
        match after.get(index).filter(|(new, _)| alike(link, new)) {
            None => steps.push(Step::Close(*index)),
            Some((_, now)) => steps.extend(answered.difference(now).map(|ip| Step::Silence(*index, *ip))),
        }
    }
    for (index, (link, answered)) in after {
        let had = if stays(link) {
            before.get(index).map_or(&nothing, |(_, had)| had)
        } else {
            steps.push(Step::Open(link.clone()));
            &nothing
        };
        steps.extend(answered.difference(had).map(|ip| Step::Answer(*index, *ip)));
    }
    steps
}

fn alike(a: &Link, b: &Link) -> bool {
    (a.index, &a.name, a.mac, a.local) == (b.index, &b.name, b.mac, b.local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| n.to_string()).collect()
    }

    fn node(n: u8) -> Node {
        Node {
            may_answer: true,
            cordoned: false,
            labels: [("rack".to_string(), format!("r{}", n % 2))].into(),
            addresses: vec![ip(&format!("192.0.2.{n}"))],
            own: [ip(&format!("192.0.2.{n}"))].into(),
            shown: Some(Shown {
                key: [n; 32],
                links: set(&["eth0"]),
            }),
        }
    }

    fn facts(nodes: u8, addresses: u8) -> Facts {
        Facts {
            announced: true,
            nodes: (1..=nodes).map(|n| (format!("n{n}"), node(n))).collect(),
            addresses: (0..addresses)
                .map(|n| (ip(&format!("203.0.113.{n}")), Address::default()))
                .collect(),
        }
    }

    fn link(index: u32, name: &str, address: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mac: [2, 0, 0, 0, 0, index as u8],
            addresses: [ip(address)].into(),
            local: None,
        }
    }

    fn owners(facts: &Facts, living: &BTreeSet<String>) -> BTreeMap<IpAddr, String> {
        let all = facts.addresses.iter();
        all.filter_map(|(ip, a)| Some((*ip, owner(facts, *ip, a, living)?.to_string())))
            .collect()
    }

    #[test]
    fn only_the_addresses_of_a_node_that_dies_move_and_they_come_back() {
        let facts = facts(5, 200);
        let all = set(&["n1", "n2", "n3", "n4", "n5"]);
        let before = owners(&facts, &all);
        for name in &all {
            let share = before.values().filter(|o| *o == name).count();
            assert!((20..70).contains(&share), "{name} has {share} of 200");
        }
        let mut left = all.clone();
        left.remove("n3");
        let after = owners(&facts, &left);
        for (ip, owner) in &before {
            assert!(owner == "n3" || after[ip] == *owner);
            assert_ne!(after[ip], "n3");
        }
        assert_eq!(owners(&facts, &all), before);
    }

    #[test]
    fn who_may_answer() {
        let mut facts = facts(4, 1);
        let (vip, living) = (ip("203.0.113.0"), set(&["n1", "n2", "n3", "n4"]));
        let can = |change: &dyn Fn(&mut Facts)| -> BTreeSet<String> {
            let mut now = facts.clone();
            change(&mut now);
            // Whoever is first, then whoever is first without him, and so on.
            let (mut found, mut left) = (BTreeSet::new(), living.clone());
            while let Some(name) = owner(&now, vip, &now.addresses[&vip], &left).map(String::from) {
                left.remove(&name);
                found.insert(name);
            }
            found
        };
        assert_eq!(can(&|_| ()), living);
        assert_eq!(
            can(&|f| f.nodes.get_mut("n1").unwrap().may_answer = false),
            set(&["n2", "n3", "n4"])
        );
        assert_eq!(
            can(&|f| f.nodes.get_mut("n1").unwrap().shown = None),
            set(&["n2", "n3", "n4"])
        );
        assert_eq!(
            can(&|f| f.nodes.get_mut("n1").unwrap().shown.as_mut().unwrap().links = set(&[])),
            set(&["n2", "n3", "n4"]),
            "it has no link to answer on"
        );
        let only = |names: &[&str]| Some(set(names));
        assert_eq!(
            can(&|f| f.addresses.get_mut(&vip).unwrap().only = only(&["n2", "n9"])),
            set(&["n2"])
        );
        assert_eq!(can(&|f| f.addresses.get_mut(&vip).unwrap().only = only(&[])), set(&[]));
        let announce = |value| serde_json::from_value::<Announce>(value).unwrap();
        let racks = announce(json!({"nodeSelector": {"matchLabels": {"rack": "r1"}}}));
        assert_eq!(
            can(&|f| f.addresses.get_mut(&vip).unwrap().announce = racks.clone()),
            set(&["n1", "n3"])
        );
        let links = announce(json!({"interfaces": ["eth1", "eth2"]}));
        let with_link = |f: &mut Facts| {
            f.addresses.get_mut(&vip).unwrap().announce = links.clone();
            f.nodes.get_mut("n4").unwrap().shown.as_mut().unwrap().links = set(&["eth0", "eth2"]);
        };
        assert_eq!(can(&with_link), set(&["n4"]));
        facts.nodes.clear();
        assert!(owners(&facts, &living).is_empty());
    }

    #[test]
    fn a_node_answers_on_the_links_that_are_meant() {
        let mut facts = facts(1, 1);
        let vip = ip("203.0.113.0");
        let links = [link(2, "eth0", "192.0.2.1"), link(3, "eth1", "198.51.100.1")];
        let on = |facts: &Facts, living: &[&str]| -> Vec<u32> {
            let plan = plan(facts, "n1", &set(living), &links);
            assert!(plan.values().all(|(_, answered)| *answered == [vip].into()));
            plan.into_keys().collect()
        };
        assert_eq!(on(&facts, &["n1"]), [2], "where the node's address is");
        assert!(on(&facts, &[]).is_empty());
        facts.nodes.get_mut("n1").unwrap().shown.as_mut().unwrap().links = set(&["eth0", "eth1"]);
        for (names, wanted) in [
            (json!(["eth1", "eth7"]), vec![3]),
            (json!(["eth0", "eth1"]), vec![2, 3]),
        ] {
            facts.addresses.get_mut(&vip).unwrap().announce =
                serde_json::from_value(json!({"interfaces": names})).unwrap();
            assert_eq!(on(&facts, &["n1"]), wanted);
        }
    }

    #[test]
    fn nobody_answers_for_what_a_node_has() {
        let mut facts = facts(2, 0);
        // A pool around the nodes' addresses, and a service that was given these.
        facts.addresses = ["192.0.2.1", "192.0.2.2"].map(|n| (ip(n), Address::default())).into();
        let (all, links) = (set(&["n1", "n2"]), [link(2, "eth0", "192.0.2.1")]);
        assert!(plan(&facts, "n1", &all, &links).is_empty());
        for node in facts.nodes.values_mut() {
            node.own.clear();
        }
        assert_eq!(plan(&facts, "n1", &set(&["n1"]), &links)[&2].1.len(), 2);
    }

    #[test]
    fn what_changes_is_done_and_nothing_else() {
        let (a, b) = (ip("203.0.113.1"), ip("203.0.113.2"));
        let eth0 = link(2, "eth0", "192.0.2.1");
        let of = |link: &Link, ips: &[IpAddr]| -> Plan {
            [(link.index, (link.clone(), ips.iter().copied().collect()))].into()
        };
        let (none, one, two) = (Plan::new(), of(&eth0, &[a]), of(&eth0, &[b]));
        assert_eq!(difference(&none, &one), [Step::Open(eth0.clone()), Step::Answer(2, a)]);
        assert_eq!(difference(&one, &two), [Step::Silence(2, a), Step::Answer(2, b)]);
        assert!(difference(&one, &one).is_empty());
        assert_eq!(difference(&one, &none), [Step::Close(2)]);
        let moved = Link {
            addresses: [b].into(),
            ..eth0.clone()
        };
        assert!(
            difference(&one, &of(&moved, &[a])).is_empty(),
            "its addresses are nobody's matter"
        );
        let changed = Link {
            mac: [2; 6],
            ..eth0.clone()
        };
        let steps = difference(&one, &of(&changed, &[a]));
        assert_eq!(steps, [Step::Close(2), Step::Open(changed), Step::Answer(2, a)]);
    }
}
