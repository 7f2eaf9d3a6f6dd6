//! What goes through WireGuard: which key stands for which node, and whose pods it may speak for. Pure.
//!
//! * A node says its key, and nothing else of this: its pods' ranges stand in its Node and can't be changed, and what overlaps an
//!   older node's is refused, so a node can take nobody's addresses. Packets that come by a key are believed only with an address
//!   of that node's ranges.
//! * A key is one node's: who showed it first keeps it as long as it shows it ([`held`]). Keys are public, and a node that
//!   shows another's would else get that one's pods cut off.
//! * A node that is about to have another key shows both. Others know the new one then before it is used, so that changing it costs
//!   a handshake and no search.
//! * The cluster's ranges are fenced: where no key is known yet, or the device is gone, packets are refused, and never leave unencrypted.

use super::plan::{Device, Here, Peer, Plan, Route, gateway};
use super::{Mode, WIREGUARD_PORT};
use ipnet::IpNet;
use keelson_sys::wireguard::PublicKey;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// The device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wireguard {
    /// Its public key: it is `None` until it was given one.
    pub key: Option<PublicKey>,
    pub port: u16,
    pub mtu: u32,
    pub up: bool,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secured {
    /// `None`: the kernel knows none.
    pub endpoint: Option<SocketAddr>,
    pub ranges: BTreeSet<IpNet>,
}

/// Which node each key is.
pub type Holders = BTreeMap<PublicKey, String>;

/// Takes from nodes the keys that are another's, and tells of it. Those that nobody shows any more are free.
pub fn held(holders: &mut Holders, nodes: &mut [Peer]) -> Vec<String> {
    holders.retain(|key, holder| nodes.iter().any(|n| n.name == *holder && n.keys.contains(key)));
    let mut told = Vec::new();
    for node in nodes {
        node.keys.retain(|key| {
            let holder = holders.entry(*key).or_insert_with(|| node.name.clone());
            let its = *holder == node.name;
            if !its {
                told.push(format!(
                    "node {} shows the key {key}, which is node {holder}'s",
                    node.name
                ));
            }
            its
        });
    }
    told
}

/// The way to a peer's range, whose node is at `node`. `Err`: why there is none.
pub fn way(plan: &mut Plan, here: &Here, peer: &Peer, range: &IpNet, node: IpAddr) -> Result<(), &'static str> {
    let mut keys = peer.keys.iter().filter(|key| here.key != Some(**key));
    let key = *keys.next().ok_or("it shows no key for WireGuard that is its own")?;
    let endpoint = Some(SocketAddr::new(node, WIREGUARD_PORT));
    let secured = |ranges| Secured { endpoint, ranges };
    let its = plan.secured.entry(key).or_insert_with(|| secured(BTreeSet::new()));
    its.ranges.insert(*range);
    for next in keys {
        plan.secured.entry(*next).or_insert_with(|| secured(BTreeSet::new()));
    }
    let own = here
        .ranges
        .iter()
        .find(|r| r.addr().is_ipv4() == range.addr().is_ipv4());
    let (device, source) = (Device::Wireguard, own.map(gateway));
    plan.routes.insert(
        *range,
        Route {
            via: None,
            device,
            source,
        },
    );
    Ok(())
}

/// The device itself, if anybody is to be reached by it.
pub fn device(plan: &mut Plan, here: &Here) {
    if plan.secured.is_empty() {
        return;
    }
    plan.wireguard = Some(Wireguard {
        key: here.key,
        port: WIREGUARD_PORT,
        mtu: Mode::Wireguard.mtu(&here.uplink),
        up: true,
    });
    let addresses = here.ranges.iter().map(|r| (Device::Wireguard, IpNet::from(gateway(r))));
    plan.addresses.extend(addresses);
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{here, peer};
    use super::super::plan::{Plan, plan};
    use super::super::step::{Step, difference};
    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn with(mut peer: Peer, keys: &[u8]) -> Peer {
        peer.keys = keys.iter().map(|n| key(*n)).collect();
        peer
    }

    fn own() -> Here {
        Here {
            key: Some(key(1)),
            ..here()
        }
    }

    fn text(now: &Plan, wanted: &Plan) -> Vec<String> {
        difference(now, wanted).iter().map(Step::to_string).collect()
    }

    /// Keys of one number are shown by their first letters.
    fn short(steps: &[String]) -> Vec<String> {
        let short = |step: &String| {
            (1..9).fold(step.clone(), |text, n| {
                text.replace(&key(n).to_string(), &format!("key{n}"))
            })
        };
        steps.iter().map(short).collect()
    }

    #[test]
    fn a_peer_is_its_key_and_its_ranges_behind_a_fence() {
        let mut near = with(peer("near", "10.0.0.2", "10.244.1.0/24"), &[2]);
        near.ranges.push("fd00:0:0:1::/64".parse().unwrap());
        let mut here = own();
        here.ranges.push("fd00::/64".parse().unwrap());
        let wanted = plan(Mode::Wireguard, &here, &[near]);
        assert_eq!(
            short(&text(&Plan::default(), &wanted)),
            [
                "fence 10.244.0.0/16",
                "fence fd00::/56",
                "add link keelson.wg",
                "set link keelson.wg key key1 port 51820 mtu 1440",
                "set peer key2 at 10.0.0.2:51820 for 10.244.1.0/24, fd00:0:0:1::/64",
                "add address 10.244.0.1/32 dev keelson.wg",
                "add address fd00::1/128 dev keelson.wg",
                "add route 10.244.1.0/24 dev keelson.wg src 10.244.0.1",
                "add route fd00:0:0:1::/64 dev keelson.wg src fd00::1",
            ]
        );
        assert!(difference(&wanted, &wanted).is_empty());
        // Last of all the fence goes.
        assert_eq!(
            short(&text(&wanted, &Plan::default())),
            [
                "delete route 10.244.1.0/24",
                "delete route fd00:0:0:1::/64",
                "delete link keelson.wg",
                "remove fence 10.244.0.0/16",
                "remove fence fd00::/56",
            ]
        );
    }

    #[test]
    fn around_ipv6_there_is_more() {
        let mut here = own();
        here.uplink.address = "2001:db8::1".parse().unwrap();
        let far = with(peer("far", "2001:db8::2", "10.244.1.0/24"), &[2]);
        let wanted = plan(Mode::Wireguard, &here, &[far]);
        assert_eq!(wanted.wireguard.unwrap().mtu, 1420);
        assert_eq!(
            wanted.secured[&key(2)].endpoint.unwrap().to_string(),
            "[2001:db8::2]:51820"
        );
    }

    #[test]
    fn a_new_key_is_known_before_it_is_used_and_takes_the_ranges_over_in_one_step() {
        let at = |keys: &[u8]| {
            plan(
                Mode::Wireguard,
                &own(),
                &[with(peer("near", "10.0.0.2", "10.244.1.0/24"), keys)],
            )
        };
        assert_eq!(
            short(&text(&at(&[2]), &at(&[2, 3]))),
            ["set peer key3 at 10.0.0.2:51820 for nothing"]
        );
        assert_eq!(
            short(&text(&at(&[2, 3]), &at(&[3]))),
            ["set peer key3 at 10.0.0.2:51820 for 10.244.1.0/24", "delete peer key2"]
        );
        // This node's own.
        let mut renewed = own();
        renewed.key = Some(key(4));
        let renewed = plan(
            Mode::Wireguard,
            &renewed,
            &[with(peer("near", "10.0.0.2", "10.244.1.0/24"), &[2])],
        );
        assert_eq!(
            short(&text(&at(&[2]), &renewed)),
            ["set link keelson.wg key key4 port 51820 mtu 1440"]
        );
    }

    #[test]
    fn without_a_key_a_node_is_unreachable_and_nothing_leaves_in_clear() {
        let silent = peer("silent", "10.0.0.2", "10.244.1.0/24");
        let wanted = plan(Mode::Wireguard, &own(), std::slice::from_ref(&silent));
        assert_eq!(
            text(&Plan::default(), &wanted),
            ["fence 10.244.0.0/16", "fence fd00::/56"]
        );
        assert_eq!(
            wanted.unreachable,
            ["the pods of node silent (10.244.1.0/24) can't be reached: it shows no key for WireGuard that is its own"]
        );
        // Nor before this node has a range.
        let mut new = own();
        new.ranges.clear();
        assert_eq!(plan(Mode::Wireguard, &new, &[silent]).fences.len(), 2);
        // This node's own key is nobody else's.
        let mirror = with(peer("mirror", "10.0.0.2", "10.244.1.0/24"), &[1]);
        assert!(plan(Mode::Wireguard, &own(), &[mirror]).secured.is_empty());
    }

    #[test]
    fn from_the_tunnel_to_the_device_there_is_no_moment_in_clear() {
        let near = with(peer("near", "10.0.0.2", "10.244.1.0/24"), &[2]);
        let of = |mode| plan(mode, &own(), std::slice::from_ref(&near));
        assert_eq!(
            short(&text(&of(Mode::Vxlan), &of(Mode::Wireguard))),
            [
                "fence 10.244.0.0/16",
                "fence fd00::/56",
                "delete link keelson.1",
                "add link keelson.wg",
                "set link keelson.wg key key1 port 51820 mtu 1440",
                "set peer key2 at 10.0.0.2:51820 for 10.244.1.0/24",
                "add address 10.244.0.1/32 dev keelson.wg",
                "add route 10.244.1.0/24 dev keelson.wg src 10.244.0.1",
            ]
        );
    }

    #[test]
    fn who_showed_a_key_first_keeps_it_while_it_shows_it() {
        let nodes = |keys: [&[u8]; 2]| {
            vec![
                with(peer("old", "10.0.0.2", "10.244.1.0/24"), keys[0]),
                with(peer("new", "10.0.0.3", "10.244.2.0/24"), keys[1]),
            ]
        };
        let mut holders = Holders::new();
        let mut round = |keys| {
            let mut nodes = nodes(keys);
            let told = held(&mut holders, &mut nodes);
            (nodes.into_iter().map(|n| n.keys).collect::<Vec<_>>(), told.len())
        };
        assert_eq!(round([&[2], &[3]]), (vec![vec![key(2)], vec![key(3)]], 0));
        // The older one takes the younger one's.
        assert_eq!(round([&[3], &[3]]), (vec![vec![], vec![key(3)]], 1));
        // Given up, it is free.
        assert_eq!(round([&[3], &[4]]), (vec![vec![key(3)], vec![key(4)]], 0));
    }
}
