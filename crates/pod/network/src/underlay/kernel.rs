//! Reads what the kernel has of a [`Plan`], and applies single [`Step`]s, by rtnetlink.

use super::plan::{Device, Mac, Plan, Route, Tunnel, Uplink};
use super::secure::{Secured, Wireguard};
use super::step::Step;
use super::{Identity, TUNNEL, WIREGUARD};
use crate::link;
use anyhow::{Context, anyhow, bail};
use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use keelson_sys::wireguard::{self, Change, PublicKey};
use parking_lot::Mutex;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::SocketAddr as Port;
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, LinkWireguard, MulticastGroup, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// By this protocol number our routes are known from all others (`k`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'k');
/// A fence goes before another route to the whole of a range, unless that has no metric at all.
const FENCE: u32 = 1;
/// For how many quiet times notices that don't cease are waited for.
const MOST_QUIETS: u32 = 10;

pub struct Kernel {
    handle: Handle,
    /// Where peers were said to be. The kernel answers a peer where it heard from it last, and that is its matter.
    said: Mutex<BTreeMap<PublicKey, SocketAddr>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What the kernel tells of links, addresses, routes and neighbours. Whoever has it takes from the queue all the time but
/// for the moment of a look; if the kernel's own overflows, it says so, and that counts as a notice.
pub struct Notices(UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, Port)>);

impl Notices {
    /// Returns some time after something that may concern the underlay has happened: when nothing more of it has for `quiet`, or
    /// after a few times of that, if it goes on and on.
    pub async fn wait(&mut self, quiet: Duration) {
        self.concerning().await;
        let settled = async { while tokio::time::timeout(quiet, self.concerning()).await.is_ok() {} };
        // Whichever it was: now it is looked at.
        let _ = tokio::time::timeout(quiet * MOST_QUIETS, settled).await;
    }

    /// Lets go what is told in `time`: for who looks anew afterwards.
    pub async fn skip(&mut self, time: Duration) {
        let told = async {
            while self.0.next().await.is_some() {}
            std::future::pending::<()>().await;
        };
        // It ends by the time only.
        let _ = tokio::time::timeout(time, told).await;
    }

    /// Pods, and what the node speaks to, have notices without end that say nothing of the underlay.
    async fn concerning(&mut self) {
        loop {
            match self.0.next().await {
                Some((message, _)) if concerns(&message.payload) => return,
                Some(_) => {}
                // The socket is gone; the caller has its other reasons to look.
                None => std::future::pending().await,
            }
        }
    }
}

/// Pods that come and go change links, addresses and routes of theirs; those say nothing of other nodes.
fn concerns(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    let of_pod =
        |name: &str| name.starts_with(crate::ports::LINK_PREFIX) || name.starts_with(crate::shape::DEVICE_PREFIX);
    let link = |m: &LinkMessage| link_name(m).is_some_and(|name| !of_pod(name));
    let route = |m: &RouteMessage| {
        let single = if m.header.address_family == AddressFamily::Inet {
            32
        } else {
            128
        };
        m.header.protocol == PROTOCOL || m.header.destination_prefix_length != single
    };
    match payload {
        NetlinkPayload::Overrun(_) => true,
        NetlinkPayload::InnerMessage(inner) => match inner {
            RouteNetlinkMessage::NewLink(m) | RouteNetlinkMessage::DelLink(m) => link(m),
            RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => route(m),
            RouteNetlinkMessage::NewAddress(m) | RouteNetlinkMessage::DelAddress(m) => {
                !attribute(&m.attributes, |a| match a {
                    AddressAttribute::Label(label) => Some(label.starts_with(crate::ports::LINK_PREFIX)),
                    _ => None,
                })
                .unwrap_or(false)
            }
            RouteNetlinkMessage::DelNeighbour(m) => m.header.family == AddressFamily::Bridge || permanent(m),
            _ => false,
        },
        _ => false,
    }
}

fn permanent(m: &NeighbourMessage) -> bool {
    m.header.state == rtnetlink::packet_route::neighbour::NeighbourState::Permanent
}

fn attribute<A, T>(all: &[A], pick: impl Fn(&A) -> Option<T>) -> Option<T> {
    all.iter().find_map(pick)
}

fn link_name(m: &LinkMessage) -> Option<&str> {
    m.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn address(m: &AddressMessage) -> Option<IpNet> {
    let local = attribute(&m.attributes, |a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let any = || {
        attribute(&m.attributes, |a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    };
    IpNet::new(local.or_else(any)?, m.header.prefix_len).ok()
}

fn route_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// A link or an entry that is not there any more was to go anyway.
fn unless_gone(result: Result<(), rtnetlink::Error>) -> anyhow::Result<()> {
    const GONE: [i32; 4] = [2, 3, 19, 99]; // ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL
    match result {
        Err(rtnetlink::Error::NetlinkError(e)) if GONE.contains(&-e.raw_code()) => Ok(()),
        other => Ok(other?),
    }
}

impl Kernel {
    fn of(handle: Handle, driver: tokio::task::JoinHandle<()>) -> Kernel {
        let said = Mutex::default();
        Kernel { handle, said, driver }
    }

    /// Of the network namespace in which this is called.
    pub fn open() -> anyhow::Result<Kernel> {
        let (handle, driver) = link::here().context("no netlink socket")?;
        Ok(Kernel::of(handle, driver))
    }

    /// The same, and what the kernel tells from now on.
    pub fn listen() -> anyhow::Result<(Kernel, Notices)> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, notices) =
            rtnetlink::new_multicast_connection(&groups).context("no netlink socket")?;
        let driver = tokio::spawn(connection);
        Ok((Kernel::of(handle, driver), Notices(notices)))
    }

    async fn links(&self) -> anyhow::Result<Vec<LinkMessage>> {
        Ok(self.handle.link().get().execute().try_collect().await?)
    }

    async fn addresses(&self) -> anyhow::Result<Vec<(u32, IpNet, AddressScope)>> {
        let all: Vec<AddressMessage> = self.handle.address().get().execute().try_collect().await?;
        let of = |m: &AddressMessage| Some((m.header.index, address(m)?, m.header.scope));
        Ok(all.iter().filter_map(of).collect())
    }

    pub async fn uplink(&self, node: IpAddr) -> anyhow::Result<Uplink> {
        let addresses = self.addresses().await?;
        let carrier = addresses.iter().find(|(_, net, _)| net.addr() == node);
        let index = carrier
            .map(|(index, ..)| *index)
            .with_context(|| format!("no link of this machine has the node's address {node} (--node-ip)"))?;
        let links = self.links().await?;
        let link = links.iter().find(|l| l.header.index == index);
        let link = link.with_context(|| format!("the link of {node} has gone"))?;
        let mtu = attribute(&link.attributes, |a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok(Uplink {
            index,
            name: link_name(link).unwrap_or_default().to_string(),
            mtu: mtu.unwrap_or(1500),
            address: node,
            networks: addresses
                .iter()
                .filter(|(i, ..)| *i == index)
                .map(|(_, n, _)| n.trunc())
                .collect(),
        })
    }

    /// What is ours.
    pub async fn read(&self) -> anyhow::Result<Plan> {
        let mut plan = Plan::default();
        let links = self.links().await?;
        let named = |name: &str| links.iter().find(|l| link_name(l) == Some(name));
        let (mut devices, mut index) = (BTreeMap::new(), None);
        if let Some(found) = named(TUNNEL) {
            plan.tunnel = Some(tunnel(found));
            devices.insert(found.header.index, Device::Tunnel);
            index = Some(found.header.index);
        }
        if let Some(found) = named(WIREGUARD) {
            self.read_wireguard(&mut plan, found)?;
            devices.insert(found.header.index, Device::Wireguard);
        }
        for (at, net, scope) in self.addresses().await? {
            // The kernel gives every link an IPv6 address for the link itself.
            if let Some(device) = devices.get(&at)
                && (scope != AddressScope::Link || net.addr().is_ipv4())
            {
                plan.addresses.insert((*device, net));
            }
        }
        if index.is_some() {
            for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
                let get = self.handle.neighbours().get().set_address_family(family);
                let all: Vec<NeighbourMessage> = get.execute().try_collect().await?;
                all.iter()
                    .filter(|n| Some(n.header.ifindex) == index && permanent(n))
                    .for_each(|n| neighbour(&mut plan, n));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let query = match family {
                AddressFamily::Inet => RouteMessageBuilder::<Ipv4Addr>::new().build(),
                _ => RouteMessageBuilder::<Ipv6Addr>::new().build(),
            };
            let all: Vec<RouteMessage> = self.handle.route().get(query).execute().try_collect().await?;
            for ours in all.iter().filter(|r| r.header.protocol == PROTOCOL) {
                match ours.header.kind {
                    RouteType::Unreachable => plan.fences.extend(destination(ours)),
                    _ => plan.routes.extend(route(ours, &devices)),
                }
            }
        }
        Ok(plan)
    }

    fn read_wireguard(&self, plan: &mut Plan, link: &LinkMessage) -> anyhow::Result<()> {
        let device = wireguard::read(WIREGUARD).with_context(|| format!("reading the device {WIREGUARD}"))?;
        let mtu = attribute(&link.attributes, |a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        plan.wireguard = Some(Wireguard {
            key: device.key,
            port: device.port,
            mtu: mtu.unwrap_or_default(),
            up: link.header.flags.contains(LinkFlags::Up),
        });
        let said = self.said.lock();
        plan.secured.extend(device.peers.into_iter().map(|(key, peer)| {
            let secured = Secured {
                endpoint: said.get(&key).copied().or(peer.endpoint),
                ranges: peer
                    .ranges
                    .iter()
                    .filter_map(|(ip, bits)| IpNet::new(*ip, *bits).ok())
                    .collect(),
            };
            (key, secured)
        }));
        Ok(())
    }

    async fn tunnel_index(&self) -> anyhow::Result<u32> {
        self.index(Device::Tunnel).await
    }

    async fn index(&self, device: Device) -> anyhow::Result<u32> {
        let name = match device {
            Device::Tunnel => TUNNEL,
            Device::Wireguard => WIREGUARD,
            Device::Link(index) => return Ok(index),
        };
        let index = link::index_of(&self.handle, name).await?;
        index.with_context(|| format!("the link {name} has gone"))
    }

    /// The device's own settings, its private key among them.
    async fn set_wireguard(&self, device: &Wireguard, identity: Option<&Identity>) -> anyhow::Result<()> {
        let own = identity.filter(|i| device.key == Some(i.public));
        let own = own.context("this node has no key for WireGuard yet")?;
        let index = self.index(Device::Wireguard).await?;
        let link = LinkUnspec::new_with_index(index).mtu(device.mtu);
        self.handle.link().set(link.build()).execute().await?;
        let change = Change::Own {
            key: &own.private,
            port: device.port,
        };
        wireguard::change(WIREGUARD, &change)?;
        let up = link::up(&self.handle, index).await;
        up.with_context(|| format!("does another program use the UDP port {}?", device.port))
    }

    fn set_peer(&self, key: PublicKey, peer: &Secured) -> anyhow::Result<()> {
        let endpoint = peer.endpoint.context("nobody knows where the peer is")?;
        let ranges = peer.ranges.iter().map(|r| (r.addr(), r.prefix_len())).collect();
        let change = Change::Peer {
            key,
            endpoint,
            ranges: &ranges,
        };
        wireguard::change(WIREGUARD, &change)?;
        self.said.lock().insert(key, endpoint);
        Ok(())
    }

    pub async fn apply(&self, step: &Step, identity: Option<&Identity>) -> anyhow::Result<()> {
        let handle = &self.handle;
        match step {
            Step::DeleteRoute(range, route) => {
                let message = self.route_message(*range, route).await;
                match message {
                    Ok(message) => unless_gone(handle.route().del(message).execute().await),
                    // Its link has gone, and the route with it.
                    Err(_) => Ok(()),
                }
            }
            Step::DeleteNeighbour(ip) => {
                let mut add = handle.neighbours().add(self.tunnel_index().await?, *ip);
                let message = add.message_mut().clone();
                unless_gone(handle.neighbours().del(message).execute().await)
            }
            Step::DeleteForwarding(mac, at) => {
                let add = handle.neighbours().add_bridge(self.tunnel_index().await?, &mac.0);
                let message = add.destination(*at).flags(NeighbourFlags::Own).message_mut().clone();
                unless_gone(handle.neighbours().del(message).execute().await)
            }
            Step::DeleteAddress(device, net) => {
                let mut add = handle
                    .address()
                    .add(self.index(*device).await?, net.addr(), net.prefix_len());
                let message = add.message_mut().clone();
                unless_gone(handle.address().del(message).execute().await)
            }
            Step::DeleteTunnel => link::delete(handle, TUNNEL).await,
            Step::AddTunnel(t) => {
                let link = LinkVxlan::new(TUNNEL, t.vni).dev(t.over).port(t.port).learning(false);
                let link = match t.local {
                    IpAddr::V4(ip) => link.local(ip),
                    IpAddr::V6(ip) => link.local6(ip),
                };
                let link = link.address(t.mac.0.to_vec()).mtu(t.mtu).up().build();
                let added = handle.link().add(link).execute().await;
                added.context("is the kernel's vxlan module there? another program may also use the port")
            }
            Step::DeleteWireguard => link::delete(handle, WIREGUARD).await,
            Step::AddWireguard => {
                let added = handle.link().add(LinkWireguard::new(WIREGUARD).build()).execute().await;
                added.context("is the kernel's wireguard module there?")
            }
            Step::SetWireguard(device) => self.set_wireguard(device, identity).await,
            Step::SetPeer(key, peer) => self.set_peer(*key, peer),
            Step::DeletePeer(key) => {
                self.said.lock().remove(key);
                Ok(wireguard::change(WIREGUARD, &Change::Remove(*key))?)
            }
            Step::AddFence(range) => Ok(handle.route().add(fence(*range)?).execute().await?),
            Step::RemoveFence(range) => unless_gone(handle.route().del(fence(*range)?).execute().await),
            Step::AddAddress(device, net) => link::add_address(handle, self.index(*device).await?, *net).await,
            Step::AddForwarding(mac, at) => {
                let add = handle.neighbours().add_bridge(self.tunnel_index().await?, &mac.0);
                Ok(add
                    .destination(*at)
                    .flags(NeighbourFlags::Own)
                    .replace()
                    .execute()
                    .await?)
            }
            Step::AddNeighbour(ip, mac) => {
                let add = handle.neighbours().add(self.tunnel_index().await?, *ip);
                Ok(add.link_layer_address(&mac.0).replace().execute().await?)
            }
            Step::AddRoute(range, route) => {
                let message = self.route_message(*range, route).await?;
                Ok(handle.route().add(message).replace().execute().await?)
            }
        }
    }

    async fn route_message(&self, range: IpNet, route: &Route) -> anyhow::Result<RouteMessage> {
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(range.addr(), range.prefix_len())
            .map_err(|e| anyhow!("{e}"))?
            .output_interface(self.index(route.device).await?)
            .protocol(PROTOCOL);
        match route.via {
            Some(via) => builder = builder.gateway(via).map_err(|e| anyhow!("{e}"))?,
            // IPv6 knows no scopes of routes.
            None if range.addr().is_ipv4() => builder = builder.scope(RouteScope::Link),
            None => {}
        }
        if route.device == Device::Tunnel {
            builder = builder.onlink();
        }
        if let Some(source) = route.source {
            if source.is_ipv4() != range.addr().is_ipv4() {
                bail!("{source} can't be the source towards {range}");
            }
            builder = builder.pref_source(source).map_err(|e| anyhow!("{e}"))?;
        }
        Ok(builder.build())
    }
}

fn tunnel(m: &LinkMessage) -> Tunnel {
    let mut found = Tunnel {
        vni: 0,
        port: 0,
        mac: Mac([0; 6]),
        mtu: 0,
        local: Ipv4Addr::UNSPECIFIED.into(),
        over: 0,
        up: m.header.flags.contains(LinkFlags::Up),
    };
    for a in &m.attributes {
        match a {
            LinkAttribute::Address(mac) => found.mac = Mac(mac.as_slice().try_into().unwrap_or_default()),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                let data = infos.iter().find_map(|i| match i {
                    LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
                    _ => None,
                });
                for info in data.into_iter().flatten() {
                    match info {
                        InfoVxlan::Id(id) => found.vni = *id,
                        InfoVxlan::Port(port) => found.port = *port,
                        InfoVxlan::Link(index) => found.over = *index,
                        InfoVxlan::Local(ip) => found.local = (*ip).into(),
                        InfoVxlan::Local6(ip) => found.local = (*ip).into(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    found
}

fn neighbour(plan: &mut Plan, m: &NeighbourMessage) {
    let mac = attribute(&m.attributes, |a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(Mac(mac.as_slice().try_into().ok()?)),
        _ => None,
    });
    let to = attribute(&m.attributes, |a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
        // The destination of a forwarding entry is parsed without knowing its family.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes.as_slice()).ok()?)),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
            _ => None,
        },
        _ => None,
    });
    let (Some(mac), Some(to)) = (mac, to) else { return };
    if m.header.family == AddressFamily::Bridge {
        plan.forwarding.insert(mac, to);
    } else {
        plan.neighbours.insert(to, mac);
    }
}

/// Nothing of the range leaves this node but by a narrower route.
fn fence(range: IpNet) -> anyhow::Result<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(range.addr(), range.prefix_len())
        .map_err(|e| anyhow!("{e}"))?;
    Ok(builder
        .kind(RouteType::Unreachable)
        .priority(FENCE)
        .protocol(PROTOCOL)
        .build())
}

fn destination(m: &RouteMessage) -> Option<IpNet> {
    let to = attribute(&m.attributes, |a| match a {
        RouteAttribute::Destination(ip) => route_ip(ip),
        _ => None,
    })?;
    IpNet::new(to, m.header.destination_prefix_length).ok()
}

fn route(m: &RouteMessage, devices: &BTreeMap<u32, Device>) -> Option<(IpNet, Route)> {
    let pick = |f: fn(&RouteAttribute) -> Option<&RouteAddress>| m.attributes.iter().find_map(f).and_then(route_ip);
    let via = pick(|a| match a {
        RouteAttribute::Gateway(ip) => Some(ip),
        _ => None,
    });
    let source = pick(|a| match a {
        RouteAttribute::PrefSource(ip) => Some(ip),
        _ => None,
    });
    let index = attribute(&m.attributes, |a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    let device = devices.get(&index).copied().unwrap_or(Device::Link(index));
    Some((destination(m)?, Route { via, device, source }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc::{UnboundedSender, unbounded};
    use tokio::time::Instant;

    type Told = (NetlinkMessage<RouteNetlinkMessage>, Port);

    fn tell(to: &UnboundedSender<Told>, message: RouteNetlinkMessage) {
        to.unbounded_send((NetlinkMessage::from(message), Port::new(0, 0)))
            .unwrap();
    }

    fn neighbour() -> RouteNetlinkMessage {
        RouteNetlinkMessage::NewNeighbour(NeighbourMessage::default())
    }

    fn address() -> RouteNetlinkMessage {
        RouteNetlinkMessage::NewAddress(AddressMessage::default())
    }

    /// How long a notice of an address is waited out while `other` is told twice in each quiet time.
    async fn waited(other: fn() -> RouteNetlinkMessage) -> Duration {
        const QUIET: Duration = Duration::from_millis(50);
        let (to, from) = unbounded();
        let busy = to.clone();
        let chatter = tokio::spawn(async move {
            loop {
                tell(&busy, other());
                tokio::time::sleep(QUIET / 2).await;
            }
        });
        tell(&to, address());
        let began = Instant::now();
        let waited = tokio::time::timeout(QUIET * 100, Notices(from).wait(QUIET)).await;
        chatter.abort();
        waited.expect("a look in the end");
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_never_still_hears_of_its_address() {
        // What its pods' links and neighbours do puts nothing off.
        assert!(waited(neighbour).await < Duration::from_millis(100));
        // Nor do others' addresses for ever.
        assert!(waited(address).await <= Duration::from_millis(550));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_skipped_is_not_kept() {
        let (to, from) = unbounded();
        let mut notices = Notices(from);
        tell(&to, address());
        let began = Instant::now();
        notices.skip(Duration::from_secs(3)).await;
        assert_eq!(began.elapsed().as_secs(), 3);
        assert!(to.is_empty());
    }
}
