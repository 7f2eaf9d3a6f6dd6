//! Links, addresses and routes by rtnetlink.

use anyhow::{Context, anyhow};
use futures::TryStreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::future::Future;
use std::net::Ipv4Addr;
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

async fn must_index(handle: &Handle, name: &str) -> anyhow::Result<u32> {
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

/// The host's end of a pod link: the gateway address on it, up, and the way to the pod.
pub async fn host_side(handle: &Handle, host: &str, gateway: Ipv4Addr, pod: Ipv4Addr) -> anyhow::Result<()> {
    let index = must_index(handle, host).await?;
    handle
        .address()
        .add(index, gateway.into(), 32)
        .replace()
        .execute()
        .await
        .context("gateway address")?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .with_context(|| format!("{host} up"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(pod, 32)
        .output_interface(index)
        .pref_source(gateway)
        .scope(RouteScope::Link)
        .build();
    handle
        .route()
        .add(route)
        .replace()
        .execute()
        .await
        .with_context(|| format!("route to {pod}"))
}

/// The pod's end: its address, the gateway on the link, everything else by the gateway.
pub async fn pod_side(handle: Handle, gateway: Ipv4Addr, pod: Ipv4Addr) -> anyhow::Result<()> {
    loopback_up(&handle).await?;
    let index = must_index(&handle, "eth0").await?;
    handle
        .address()
        .add(index, pod.into(), 32)
        .replace()
        .execute()
        .await
        .context("pod address")?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .context("eth0 up")?;
    let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(gateway, 32)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    handle
        .route()
        .add(to_gateway)
        .replace()
        .execute()
        .await
        .context("route to the gateway")?;
    let default = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(gateway)
        .output_interface(index)
        .build();
    handle
        .route()
        .add(default)
        .replace()
        .execute()
        .await
        .context("default route")
}
