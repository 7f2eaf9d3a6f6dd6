//! What has to stand in the kernel so that other nodes' pods are reached: plain data, made from facts, compared with
//! what stands. Pure.
//!
//! * A peer's pods are reached by a route for its range: through the tunnel, or directly by way of the peer.
//! * In the tunnel nobody is asked where somebody is: a peer's hardware address is a function of its node address, so
//!   neighbour and forwarding entries follow from the Node alone, and no node has to publish anything.
//! * The tunnel has this node's gateway address (every pod link has it too). With it as the source the host's own
//!   connections to other nodes' pods are answered through the tunnel, so that reverse-path filters see one way.
//! * What goes through WireGuard is in [`secure`].

use super::secure::{Secured, Wireguard};
use super::{Mode, PORT, VNI, secure};
use ipnet::IpNet;
use keelson_sys::wireguard::PublicKey;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// A node as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// Where it is reached, the main address first.
    pub addresses: Vec<IpAddr>,
    /// Of its pods.
    pub ranges: Vec<IpNet>,
    /// By which it is known in WireGuard: the key that it has, and the one that it is about to have.
    pub keys: Vec<PublicKey>,
}

/// The link by which this node reaches others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// This node's address on it.
    pub address: IpAddr,
    /// What is reached on it without a router.
    pub networks: Vec<IpNet>,
}

/// This node.
#[derive(Clone, Debug)]
pub struct Here {
    pub uplink: Uplink,
    /// Of its pods; none until it was given one.
    pub ranges: Vec<IpNet>,
    /// Of all pods of the cluster: nobody else's addresses are routed, whatever a node says its pods have.
    pub cluster: Vec<IpNet>,
    /// By which it is known in WireGuard.
    pub key: Option<PublicKey>,
}

/// A hardware address in the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that the node at `ip` has in the tunnel: locally administered, `k`, and the IPv4 address; of an IPv6
    /// address a hash.
    pub fn of(ip: IpAddr) -> Mac {
        let tail = match ip {
            IpAddr::V4(ip) => ip.octets(),
            IpAddr::V6(ip) => {
                let fnv = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
                ip.octets().iter().fold(0x811c_9dc5, fnv).to_be_bytes()
            }
        };
        Mac([0x02, b'k', tail[0], tail[1], tail[2], tail[3]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|b| format!("{b:02x}")).collect();
        f.write_str(&parts.join(":"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    Tunnel,
    Wireguard,
    /// Another link, by index.
    Link(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub vni: u32,
    pub port: u16,
    pub mac: Mac,
    pub mtu: u32,
    pub local: IpAddr,
    /// The link below it, by index.
    pub over: u32,
    pub up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `None`: whoever is at the device's other end.
    pub via: Option<IpAddr>,
    pub device: Device,
    pub source: Option<IpAddr>,
}

/// All that is ours in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub tunnel: Option<Tunnel>,
    /// On the tunnel and the device of WireGuard.
    pub addresses: BTreeSet<(Device, IpNet)>,
    /// Which hardware address a node has in the tunnel, and at which node address it is.
    pub forwarding: BTreeMap<Mac, IpAddr>,
    pub neighbours: BTreeMap<IpAddr, Mac>,
    pub wireguard: Option<Wireguard>,
    pub secured: BTreeMap<PublicKey, Secured>,
    pub routes: BTreeMap<IpNet, Route>,
    /// Ranges that are unreachable but by a route of ours: nothing of them leaves by any other.
    pub fences: BTreeSet<IpNet>,
    /// Whom no route leads to, and why.
    pub unreachable: Vec<String>,
}

/// The first address of a node's range: the host's end of its pod links, and the node's address in the tunnel.
pub(super) fn gateway(range: &IpNet) -> IpAddr {
    match range.network() {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).saturating_add(1).into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).saturating_add(1).into()),
    }
}

/// Why a range that a node claims is not routed to it.
fn refused(range: &IpNet, here: &Here, taken: &BTreeMap<IpNet, &str>) -> Option<String> {
    let overlaps = |other: &IpNet| other.contains(range) || range.contains(other);
    if let Some(own) = here.ranges.iter().find(|own| overlaps(own)) {
        return Some(format!("the range is part of this node's own, {own}"));
    }
    if !here.cluster.iter().any(|all| all.contains(range)) {
        return Some("the range is none of the cluster's pods".to_string());
    }
    let (other, node) = taken.iter().find(|(other, _)| overlaps(other))?;
    Some(format!("the range is part of node {node}'s, {other}"))
}

/// Peers in the order of their precedence: of two that claim a range it is the first one's.
pub fn plan(mode: Mode, here: &Here, peers: &[Peer]) -> Plan {
    let mut plan = Plan::default();
    if mode == Mode::Wireguard {
        plan.fences.extend(&here.cluster);
    }
    if matches!(mode, Mode::None | Mode::Cni) || here.ranges.is_empty() {
        return plan;
    }
    let uplink = &here.uplink;
    let mut taken: BTreeMap<IpNet, &str> = BTreeMap::new();
    for peer in peers {
        for range in &peer.ranges {
            if let Some(why) = refused(range, here, &taken) {
                plan.unreachable.push(format!(
                    "the pods of node {} ({range}) can't be reached: {why}",
                    peer.name
                ));
                continue;
            }
            taken.insert(*range, &peer.name);
            let of_family = |v4: bool| peer.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
            let on_link = of_family(range.addr().is_ipv4()).filter(|a| uplink.networks.iter().any(|n| n.contains(a)));
            let direct = on_link.filter(|_| matches!(mode, Mode::VxlanDirect | Mode::HostGateway));
            if let Some(via) = direct {
                let (via, device, source) = (Some(via), Device::Link(uplink.index), None);
                plan.routes.insert(*range, Route { via, device, source });
            } else if mode == Mode::HostGateway {
                plan.unreachable.push(format!(
                    "the pods of node {} ({range}) can't be reached: it is not on the link {} (with --network vxlan it need not be)",
                    peer.name, uplink.name
                ));
            } else if let Some(node) = of_family(uplink.address.is_ipv4()) {
                let way = match mode {
                    Mode::Wireguard => secure::way(&mut plan, here, peer, range, node),
                    _ => {
                        through_tunnel(&mut plan, here, range, node);
                        Ok(())
                    }
                };
                if let Err(why) = way {
                    plan.unreachable.push(format!(
                        "the pods of node {} ({range}) can't be reached: {why}",
                        peer.name
                    ));
                }
            } else {
                plan.unreachable.push(format!(
                    "the pods of node {} ({range}) can't be reached: it has no address of this node's family ({})",
                    peer.name, uplink.address
                ));
            }
        }
    }
    if !plan.forwarding.is_empty() {
        plan.tunnel = Some(Tunnel {
            vni: VNI,
            port: PORT,
            mac: Mac::of(uplink.address),
            mtu: mode.mtu(uplink),
            local: uplink.address,
            over: uplink.index,
            up: true,
        });
        let addresses = here.ranges.iter().map(|r| (Device::Tunnel, IpNet::from(gateway(r))));
        plan.addresses.extend(addresses);
    }
    secure::device(&mut plan, here);
    plan
}

fn through_tunnel(plan: &mut Plan, here: &Here, range: &IpNet, node: IpAddr) {
    let own = here
        .ranges
        .iter()
        .find(|r| r.addr().is_ipv4() == range.addr().is_ipv4());
    let (via, device, source) = (gateway(range), Device::Tunnel, own.map(gateway));
    let route = Route {
        via: Some(via),
        device,
        source,
    };
    plan.routes.insert(*range, route);
    plan.neighbours.insert(via, Mac::of(node));
    plan.forwarding.insert(Mac::of(node), node);
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::step::{Step, difference};
    use super::*;

    pub fn here() -> Here {
        Here {
            uplink: Uplink {
                index: 2,
                name: "eth0".into(),
                mtu: 1500,
                address: "10.0.0.1".parse().unwrap(),
                networks: vec!["10.0.0.0/24".parse().unwrap()],
            },
            ranges: vec!["10.244.0.0/24".parse().unwrap()],
            cluster: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/56".parse().unwrap()],
            key: None,
        }
    }

    pub fn peer(name: &str, address: &str, range: &str) -> Peer {
        Peer {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            ranges: vec![range.parse().unwrap()],
            keys: Vec::new(),
        }
    }

    fn near_and_far() -> Vec<Peer> {
        vec![
            peer("near", "10.0.0.2", "10.244.1.0/24"),
            peer("far", "192.0.2.7", "10.244.2.0/24"),
        ]
    }

    fn text(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::to_string).collect()
    }

    #[test]
    fn a_tunnel_to_every_peer() {
        let plan = plan(Mode::Vxlan, &here(), &near_and_far());
        assert_eq!(
            text(&difference(&Plan::default(), &plan)),
            [
                "add link keelson.1 address 02:6b:0a:00:00:01 mtu 1450 vxlan id 1 port 8472 local 10.0.0.1 over #2",
                "add address 10.244.0.1/32 dev keelson.1",
                "add forwarding 02:6b:0a:00:00:02 to 10.0.0.2",
                "add forwarding 02:6b:c0:00:02:07 to 192.0.2.7",
                "add neighbour 10.244.1.1 at 02:6b:0a:00:00:02",
                "add neighbour 10.244.2.1 at 02:6b:c0:00:02:07",
                "add route 10.244.1.0/24 via 10.244.1.1 dev keelson.1 onlink src 10.244.0.1",
                "add route 10.244.2.0/24 via 10.244.2.1 dev keelson.1 onlink src 10.244.0.1",
            ]
        );
        assert!(difference(&plan, &plan).is_empty());
    }

    #[test]
    fn directly_where_the_peer_is_on_the_link() {
        let direct = plan(Mode::VxlanDirect, &here(), &near_and_far());
        let routes: Vec<String> = direct.routes.iter().map(|(r, route)| format!("{r} {route}")).collect();
        assert_eq!(
            routes,
            [
                "10.244.1.0/24 via 10.0.0.2 dev #2",
                "10.244.2.0/24 via 10.244.2.1 dev keelson.1 onlink src 10.244.0.1"
            ]
        );
        let gateway = plan(Mode::HostGateway, &here(), &near_and_far());
        assert_eq!((gateway.routes.len(), &gateway.tunnel), (1, &None));
        assert_eq!(
            gateway.unreachable,
            [
                "the pods of node far (10.244.2.0/24) can't be reached: it is not on the link eth0 (with --network vxlan it need not be)"
            ]
        );
    }

    #[test]
    fn a_node_that_goes_leaves_no_trace_and_the_last_one_takes_the_tunnel_along() {
        let both = plan(Mode::Vxlan, &here(), &near_and_far());
        let one = plan(Mode::Vxlan, &here(), &near_and_far()[..1]);
        assert_eq!(
            text(&difference(&both, &one)),
            [
                "delete route 10.244.2.0/24",
                "delete neighbour 10.244.2.1",
                "delete forwarding 02:6b:c0:00:02:07 to 192.0.2.7"
            ]
        );
        assert_eq!(
            text(&difference(&one, &plan(Mode::Vxlan, &here(), &[]))),
            ["delete route 10.244.1.0/24", "delete link keelson.1"]
        );
    }

    #[test]
    fn an_address_or_mtu_that_changed_renews_the_tunnel_and_all_on_it() {
        let before = plan(Mode::Vxlan, &here(), &near_and_far()[..1]);
        let mut moved = here();
        moved.uplink.address = "10.0.0.9".parse().unwrap();
        moved.uplink.mtu = 9000;
        let steps = text(&difference(&before, &plan(Mode::Vxlan, &moved, &near_and_far()[..1])));
        assert_eq!(
            steps[..2],
            [
                "delete link keelson.1",
                "add link keelson.1 address 02:6b:0a:00:00:09 mtu 8950 vxlan id 1 port 8472 local 10.0.0.9 over #2"
            ]
        );
        assert_eq!(steps.len(), 6);
        // A peer that moved: its hardware address goes with it, its route stays.
        let peer_moved = plan(Mode::Vxlan, &here(), &[peer("near", "10.0.0.3", "10.244.1.0/24")]);
        assert_eq!(
            text(&difference(&before, &peer_moved)),
            [
                "delete forwarding 02:6b:0a:00:00:02 to 10.0.0.2",
                "add forwarding 02:6b:0a:00:00:03 to 10.0.0.3",
                "add neighbour 10.244.1.1 at 02:6b:0a:00:00:03"
            ]
        );
    }

    #[test]
    fn a_node_gets_no_addresses_but_those_of_its_own_pods() {
        for (range, why) in [
            ("10.244.0.0/25", "part of this node's own, 10.244.0.0/24"),
            ("128.0.0.0/1", "none of the cluster's pods"),
            ("10.0.0.0/8", "part of this node's own, 10.244.0.0/24"),
            ("10.0.0.0/24", "none of the cluster's pods"),
            ("10.244.1.128/25", "part of node near's, 10.244.1.0/24"),
        ] {
            let greedy = peer("greedy", "10.0.0.5", range);
            let plan = plan(
                Mode::Vxlan,
                &here(),
                &[peer("near", "10.0.0.2", "10.244.1.0/24"), greedy],
            );
            assert_eq!(plan.routes.len(), 1, "{range}");
            assert_eq!(plan.forwarding.len(), 1, "{range}");
            assert!(plan.unreachable[0].ends_with(why), "{:?}", plan.unreachable);
        }
    }

    #[test]
    fn both_families_go_through_one_tunnel() {
        let mut here = here();
        here.ranges.push("fd00:0:0:0::/64".parse().unwrap());
        let mut near = peer("near", "10.0.0.2", "10.244.1.0/24");
        near.ranges.push("fd00:0:0:1::/64".parse().unwrap());
        let plan = plan(Mode::Vxlan, &here, &[near]);
        assert_eq!(plan.forwarding.len(), 1);
        assert_eq!(plan.addresses.len(), 2);
        let six = &plan.routes[&"fd00:0:0:1::/64".parse().unwrap()];
        assert_eq!(six.to_string(), "via fd00:0:0:1::1 dev keelson.1 onlink src fd00::1");
    }

    #[test]
    fn nothing_is_made_before_this_node_has_a_range_nor_over_its_own() {
        let mut new = here();
        new.ranges.clear();
        assert_eq!(plan(Mode::Vxlan, &new, &near_and_far()), Plan::default());
        assert_eq!(plan(Mode::None, &here(), &near_and_far()), Plan::default());
        let same = plan(Mode::Vxlan, &here(), &[peer("twin", "10.0.0.5", "10.244.0.0/24")]);
        assert!(
            same.routes.is_empty() && same.unreachable[0].contains("this node's own"),
            "{same:?}"
        );
    }
}
