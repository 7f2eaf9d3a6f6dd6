//! Links, addresses and routes by rtnetlink.

use anyhow::{Context, anyhow};
use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// Runs `work` with a netlink handle of the namespace at `netns`. The socket is opened in a thread that entered it.
pub async fn in_namespace<T, F, Fut>(netns: PathBuf, work: F) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let (tx, rx) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let run = || {
            keelson_sys::net::enter_network_namespace(&netns)
                .with_context(|| format!("cannot enter the network namespace {}", netns.display()))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                let driver = tokio::spawn(connection);
                let result = work(handle).await;
                driver.abort();
                result
            })
        };
        // The receiver is gone only when the caller was cancelled.
        let _ = tx.send(run());
    })?;
    rx.await.map_err(|_| anyhow!("the namespace thread died"))?
}

/// A netlink handle of the server's own namespace, and the task that drives it.
pub fn here() -> anyhow::Result<(Handle, tokio::task::JoinHandle<()>)> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    Ok((handle, tokio::spawn(connection)))
}

/// The index of a link, `None` when there is none of that name.
pub async fn index_of(handle: &Handle, name: &str) -> anyhow::Result<Option<u32>> {
    match handle
        .link()
        .get()
        .match_name(name.to_string())
        .execute()
        .try_next()
        .await
    {
        Ok(found) => Ok(found.map(|m| m.header.index)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix_enodev() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

const fn nix_enodev() -> i32 {
    19
}

pub async fn must_index(handle: &Handle, name: &str) -> anyhow::Result<u32> {
    index_of(handle, name).await?.with_context(|| format!("no link {name}"))
}

pub async fn loopback_up(handle: &Handle) -> anyhow::Result<()> {
    let lo = must_index(handle, "lo").await?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(lo).up().build())
        .execute()
        .await
        .context("lo up")
}

/// Names of all links that begin with `prefix`.
pub async fn names_with_prefix(handle: &Handle, prefix: &str) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        names.extend(link.attributes.into_iter().filter_map(|a| match a {
            LinkAttribute::IfName(n) if n.starts_with(prefix) => Some(n),
            _ => None,
        }));
    }
    Ok(names)
}

/// Bridges and ends of cables that have an address.
pub async fn plugged(handle: &Handle) -> anyhow::Result<Vec<String>> {
    let mut addressed = BTreeSet::new();
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await? {
        // Every link has one of its own link.
        if address.header.scope != AddressScope::Link {
            addressed.insert(address.header.index);
        }
    }
    let mut names = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let is = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Bridge | InfoKind::Veth));
        let plugged = |a: &LinkAttribute| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(is));
        if addressed.contains(&link.header.index) && link.attributes.iter().any(plugged) {
            names.extend(link.attributes.into_iter().filter_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            }));
        }
    }
    Ok(names)
}

/// What somebody wrote on a link. `None`: there is no such link.
pub async fn alias(handle: &Handle, name: &str) -> anyhow::Result<Option<String>> {
    let Some(index) = index_of(handle, name).await? else {
        return Ok(None);
    };
    let found = handle.link().get().match_index(index).execute().try_next().await?;
    let alias = found
        .into_iter()
        .flat_map(|link| link.attributes)
        .find_map(|a| match a {
            LinkAttribute::IfAlias(alias) => Some(alias),
            _ => None,
        });
    Ok(Some(alias.unwrap_or_default()))
}

/// Where this machine's routes of IPv4 lead, but for the default one.
pub async fn routes(handle: &Handle) -> anyhow::Result<Vec<Ipv4Net>> {
    let mut found = Vec::new();
    let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = handle.route().get(query).execute();
    while let Some(route) = routes.try_next().await? {
        let prefix = route.header.destination_prefix_length;
        found.extend(route.attributes.into_iter().filter_map(|a| match a {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) if prefix > 0 => Ipv4Net::new(ip, prefix).ok(),
            _ => None,
        }));
    }
    Ok(found)
}

pub async fn delete(handle: &Handle, name: &str) -> anyhow::Result<()> {
    if let Some(index) = index_of(handle, name).await? {
        match handle.link().del(index).execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix_enodev() => {}
            other => other.with_context(|| format!("delete link {name}"))?,
        }
    }
    Ok(())
}

/// Makes a veth pair: `host` here, still down, and `eth0` in the namespace that `netns` refers to.
pub async fn veth(handle: &Handle, host: &str, netns: &OwnedFd, mtu: u32) -> anyhow::Result<()> {
    // The peer is named at once in its own namespace: no moment in which an `eth0` stands on the host.
    let mut peer = LinkUnspec::new_with_name("eth0").setns_by_fd(netns.as_raw_fd());
    let mut link = LinkVeth::new(host, "eth0");
    if mtu > 0 {
        peer = peer.mtu(mtu);
        link = link.mtu(mtu);
    }
    let link = link.set_info_data(rtnetlink::packet_route::link::InfoData::Veth(
        rtnetlink::packet_route::link::InfoVeth::Peer(peer.build()),
    ));
    handle
        .link()
        .add(link.build())
        .execute()
        .await
        .with_context(|| format!("create the veth pair {host}"))
}

/// Addresses of one family: of the host's end of a pod link, and of the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub gateway: IpAddr,
    pub pod: IpAddr,
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// Where a default route leads, in an address's family.
fn anywhere(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Nobody else can have it: an IPv6 address is used at once, not when it has been asked for in vain.
pub async fn add_address(handle: &Handle, index: u32, net: IpNet) -> anyhow::Result<()> {
    let mut request = handle.address().add(index, net.addr(), net.prefix_len()).replace();
    if net.addr().is_ipv6() {
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await.with_context(|| format!("address {net}"))
}

fn single(to: IpAddr, index: u32, source: Option<IpAddr>) -> anyhow::Result<RouteMessage> {
    let mut route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, width(to))
        .map_err(|e| anyhow!("{e}"))?
        .output_interface(index);
    // IPv6 knows no scopes of routes.
    if to.is_ipv4() {
        route = route.scope(RouteScope::Link);
    }
    if let Some(source) = source {
        route = route.pref_source(source).map_err(|e| anyhow!("{e}"))?;
    }
    Ok(route.build())
}

pub async fn up(handle: &Handle, index: u32) -> anyhow::Result<()> {
    Ok(handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await?)
}

/// The host's end of a pod link: the gateways' addresses on it, up, and the way to the pod.
pub async fn host_side(handle: &Handle, host: &str, pairs: &[Pair]) -> anyhow::Result<()> {
    let index = must_index(handle, host).await?;
    for pair in pairs {
        add_address(handle, index, pair.gateway.into()).await?;
    }
    up(handle, index).await.with_context(|| format!("{host} up"))?;
    for pair in pairs {
        let route = single(pair.pod, index, Some(pair.gateway))?;
        let added = handle.route().add(route).replace().execute().await;
        added.with_context(|| format!("route to {}", pair.pod))?;
    }
    Ok(())
}

/// The pod's end: its addresses, the gateways on the link, everything else by the gateways.
pub async fn pod_side(handle: Handle, pairs: Vec<Pair>) -> anyhow::Result<()> {
    if pairs.iter().any(|p| p.pod.is_ipv6()) {
        // This thread is in the pod's namespace. It takes addresses and routes from nobody on its link.
        for (link, key, value) in [
            ("all", "disable_ipv6", "0"),
            ("lo", "disable_ipv6", "0"),
            ("eth0", "disable_ipv6", "0"),
            ("eth0", "accept_ra", "0"),
            ("eth0", "accept_redirects", "0"),
            ("eth0", "accept_dad", "0"),
        ] {
            crate::sysctl::set(&format!("net/ipv6/conf/{link}/{key}"), value)?;
        }
    }
    loopback_up(&handle).await?;
    let index = must_index(&handle, "eth0").await?;
    for pair in &pairs {
        add_address(&handle, index, pair.pod.into())
            .await
            .context("of the pod")?;
    }
    up(&handle, index).await.context("eth0 up")?;
    for pair in &pairs {
        let to_gateway = single(pair.gateway, index, None)?;
        let added = handle.route().add(to_gateway).replace().execute().await;
        added.context("route to the gateway")?;
        let default = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(anywhere(pair.gateway), 0)
            .map_err(|e| anyhow!("{e}"))?
            .gateway(pair.gateway)
            .map_err(|e| anyhow!("{e}"))?
            .output_interface(index)
            .build();
        let added = handle.route().add(default).replace().execute().await;
        added.context("default route")?;
    }
    Ok(())
}
