//! From what stands in the kernel to what is to stand: single steps, in an order in which each finds what it stands on. Pure.
//!
//! Fences come first and go last, and a key that takes another's place has its ranges before that one goes.

use super::plan::{Device, Mac, Plan, Route, Tunnel};
use super::secure::{Secured, Wireguard};
use super::{TUNNEL, WIREGUARD};
use ipnet::IpNet;
use keelson_sys::wireguard::PublicKey;
use std::fmt;
use std::net::IpAddr;

/// One change in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    DeleteRoute(IpNet, Route),
    DeleteNeighbour(IpAddr),
    DeleteForwarding(Mac, IpAddr),
    DeleteAddress(Device, IpNet),
    DeleteTunnel,
    DeleteWireguard,
    AddFence(IpNet),
    AddTunnel(Tunnel),
    AddWireguard,
    /// Changes the device as it stands.
    SetWireguard(Wireguard),
    SetPeer(PublicKey, Secured),
    DeletePeer(PublicKey),
    AddAddress(Device, IpNet),
    AddForwarding(Mac, IpAddr),
    AddNeighbour(IpAddr, Mac),
    /// Takes the place of another route to the same range.
    AddRoute(IpNet, Route),
    RemoveFence(IpNet),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Tunnel => write!(f, "dev {TUNNEL}"),
            Device::Wireguard => write!(f, "dev {WIREGUARD}"),
            Device::Link(index) => write!(f, "dev #{index}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.via.map_or(Ok(()), |via| write!(f, "via {via} "))?;
        write!(f, "{}", self.device)?;
        if self.device == Device::Tunnel {
            f.write_str(" onlink")?;
        }
        self.source.map_or(Ok(()), |source| write!(f, " src {source}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Step::DeleteRoute(range, _) => write!(f, "delete route {range}"),
            Step::DeleteNeighbour(ip) => write!(f, "delete neighbour {ip}"),
            Step::DeleteForwarding(mac, at) => write!(f, "delete forwarding {mac} to {at}"),
            Step::DeleteAddress(device, address) => write!(f, "delete address {address} {device}"),
            Step::DeleteTunnel => write!(f, "delete link {TUNNEL}"),
            Step::DeleteWireguard => write!(f, "delete link {WIREGUARD}"),
            Step::AddFence(range) => write!(f, "fence {range}"),
            Step::RemoveFence(range) => write!(f, "remove fence {range}"),
            Step::AddWireguard => write!(f, "add link {WIREGUARD}"),
            Step::SetWireguard(w) => {
                write!(f, "set link {WIREGUARD}")?;
                w.key.map_or(Ok(()), |key| write!(f, " key {key}"))?;
                write!(f, " port {} mtu {}", w.port, w.mtu)
            }
            Step::SetPeer(key, peer) => {
                write!(f, "set peer {key}")?;
                peer.endpoint.map_or(Ok(()), |at| write!(f, " at {at}"))?;
                let ranges: Vec<String> = peer.ranges.iter().map(IpNet::to_string).collect();
                let ranges = ranges.join(", ");
                write!(f, " for {}", if ranges.is_empty() { "nothing" } else { &ranges })
            }
            Step::DeletePeer(key) => write!(f, "delete peer {key}"),
            Step::AddTunnel(t) => write!(
                f,
                "add link {TUNNEL} address {} mtu {} vxlan id {} port {} local {} over #{}",
                t.mac, t.mtu, t.vni, t.port, t.local, t.over
            ),
            Step::AddAddress(device, address) => write!(f, "add address {address} {device}"),
            Step::AddForwarding(mac, at) => write!(f, "add forwarding {mac} to {at}"),
            Step::AddNeighbour(ip, mac) => write!(f, "add neighbour {ip} at {mac}"),
            Step::AddRoute(range, route) => write!(f, "add route {range} {route}"),
        }
    }
}

/// What leads from the one to the other: what goes first, then what comes, each thing after what it stands on.
pub fn difference(now: &Plan, wanted: &Plan) -> Vec<Step> {
    let mut steps: Vec<Step> = wanted
        .fences
        .difference(&now.fences)
        .map(|r| Step::AddFence(*r))
        .collect();
    let renewed = now.tunnel != wanted.tunnel;
    let mut now = now.clone();
    let gone = |range: &IpNet| !wanted.routes.contains_key(range);
    steps.extend(
        now.routes
            .iter()
            .filter(|(range, _)| gone(range))
            .map(|(range, route)| Step::DeleteRoute(*range, route.clone())),
    );
    if renewed {
        // All that stands on the link goes with it.
        steps.extend(now.tunnel.take().map(|_| Step::DeleteTunnel));
        now.addresses.retain(|(device, _)| *device != Device::Tunnel);
        now.neighbours.clear();
        now.forwarding.clear();
        now.routes.retain(|_, route| route.device != Device::Tunnel);
    }
    if wanted.wireguard.is_none() && now.wireguard.take().is_some() {
        steps.push(Step::DeleteWireguard);
        now.addresses.retain(|(device, _)| *device != Device::Wireguard);
        now.secured.clear();
        now.routes.retain(|_, route| route.device != Device::Wireguard);
    }
    for ip in now.neighbours.keys().filter(|ip| !wanted.neighbours.contains_key(ip)) {
        steps.push(Step::DeleteNeighbour(*ip));
    }
    for (mac, at) in now
        .forwarding
        .iter()
        .filter(|(mac, _)| !wanted.forwarding.contains_key(mac))
    {
        steps.push(Step::DeleteForwarding(*mac, *at));
    }
    steps.extend(
        now.addresses
            .difference(&wanted.addresses)
            .map(|(device, a)| Step::DeleteAddress(*device, *a)),
    );
    if renewed {
        steps.extend(wanted.tunnel.clone().map(Step::AddTunnel));
    }
    secured(&now, wanted, &mut steps);
    steps.extend(
        wanted
            .addresses
            .difference(&now.addresses)
            .map(|(device, a)| Step::AddAddress(*device, *a)),
    );
    for (mac, at) in &wanted.forwarding {
        if now.forwarding.get(mac) != Some(at) {
            steps.push(Step::AddForwarding(*mac, *at));
        }
    }
    for (ip, mac) in &wanted.neighbours {
        if now.neighbours.get(ip) != Some(mac) {
            steps.push(Step::AddNeighbour(*ip, *mac));
        }
    }
    for (range, route) in &wanted.routes {
        if now.routes.get(range) != Some(route) {
            steps.push(Step::AddRoute(*range, route.clone()));
        }
    }
    steps.extend(now.fences.difference(&wanted.fences).map(|r| Step::RemoveFence(*r)));
    steps
}

/// The device and its peers. It is changed as it stands: what is agreed with peers outlives another MTU.
fn secured(now: &Plan, wanted: &Plan, steps: &mut Vec<Step>) {
    if let Some(device) = &wanted.wireguard {
        if now.wireguard.is_none() {
            steps.push(Step::AddWireguard);
        }
        if now.wireguard.as_ref() != Some(device) {
            steps.push(Step::SetWireguard(device.clone()));
        }
    }
    let changed = |(key, peer): &(&PublicKey, &Secured)| now.secured.get(*key) != Some(*peer);
    let come = wanted.secured.iter().filter(changed);
    steps.extend(come.map(|(key, peer)| Step::SetPeer(*key, peer.clone())));
    let gone = now.secured.keys().filter(|key| !wanted.secured.contains_key(*key));
    steps.extend(gone.map(|key| Step::DeletePeer(*key)));
}
