//! How pods of different nodes reach each other: what lies under the pod network.
//!
//! Facts (this node, its uplink, its peers) → [`plan`] (pure, golden-tested) → difference to what the kernel has
//! ([`kernel`] reads it in the same terms) → steps, applied one by one, additions last. The kernel's own notices start a
//! new round, so that a route that somebody removed, or an uplink that came back, is mended at once. Nothing polls.
//!
//! Everything made here can be told from what others made, without a record of its own: the tunnel by its name, routes
//! by their protocol number. So a restart carries on with what stands, and [`remove`] finds all of it.
//!
//! The module knows nodes by addresses and ranges only; who they are is the caller's to find out. Packets leave this
//! node unencrypted, as with flannel's vxlan and host-gw.

mod kernel;
pub mod plan;

pub use plan::{Here, Mac, Peer, Plan, Uplink};

use anyhow::{Context, bail};
use ipnet::IpNet;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The device that tunnels to other nodes.
pub const TUNNEL: &str = "keelson.1";
/// Network identifier and UDP port of the tunnel: flannel's, for firewalls that know them.
pub const VNI: u32 = 1;
pub const PORT: u16 = 8472;

/// The largest MTU that a pod's link takes.
const MOST: u32 = 65_535;

/// How packets get to the pods of another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In UDP between the nodes, wherever they are.
    #[default]
    Vxlan,
    /// The same, but directly where the other node is on the same link.
    VxlanDirect,
    /// By a route over the other node, which has to be on the same link.
    HostGateway,
    /// Somebody else's matter.
    None,
}

impl FromStr for Mode {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Mode> {
        Ok(match text {
            "vxlan" => Mode::Vxlan,
            "vxlan-direct" => Mode::VxlanDirect,
            "host-gw" => Mode::HostGateway,
            "none" => Mode::None,
            other => bail!("--network {other}: known are vxlan, vxlan-direct, host-gw and none"),
        })
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Vxlan => "vxlan",
            Mode::VxlanDirect => "vxlan-direct",
            Mode::HostGateway => "host-gw",
            Mode::None => "none",
        })
    }
}

impl Mode {
    /// What a packet of a pod may measure, so that it fits the uplink with all that is put around it.
    pub fn mtu(self, uplink: &Uplink) -> u32 {
        let around = match (self, uplink.address) {
            // Ethernet 14, VXLAN 8, UDP 8, and the outer IP header.
            (Mode::Vxlan | Mode::VxlanDirect, IpAddr::V4(_)) => 50,
            (Mode::Vxlan | Mode::VxlanDirect, IpAddr::V6(_)) => 70,
            (Mode::HostGateway | Mode::None, _) => 0,
        };
        // A loopback has more than a pod's link can.
        uplink.mtu.min(MOST).saturating_sub(around)
    }
}

/// Of which node this is, and how it reaches the others.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node_name: String,
    pub node_ip: IpAddr,
    pub mode: Mode,
    /// Of all pods of the cluster.
    pub cluster: Vec<IpNet>,
}

/// A refused step is tried again after this, in a new round.
const RETRY: Duration = Duration::from_secs(5);
/// Notices come in bursts: a round begins when none came for so long.
const QUIET: Duration = Duration::from_millis(50);

/// The link that carries `address`, and what is known of it.
pub async fn uplink(address: IpAddr) -> anyhow::Result<Uplink> {
    kernel::Kernel::open()?.uplink(address).await
}

/// Keeps this node connected with `nodes` (itself among them) until `stop` fires. What was made stays: pods go on.
pub async fn run(
    settings: Settings,
    mut nodes: watch::Receiver<Vec<Peer>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (kernel, mut notices) = kernel::Kernel::listen()?;
    let mut warned = Vec::new();
    loop {
        let all = nodes.borrow_and_update().clone();
        let round = round(&settings, &kernel, all, &mut warned).await;
        if let Err(error) = &round {
            tracing::warn!(
                error = format!("{error:#}"),
                "other nodes' pods can't all be reached yet"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = nodes.changed() => changed.context("nobody tells of nodes any more")?,
            () = notices.wait(QUIET) => {}
            () = tokio::time::sleep(RETRY), if round.is_err() => {}
        }
    }
}

async fn round(
    settings: &Settings,
    kernel: &kernel::Kernel,
    nodes: Vec<Peer>,
    warned: &mut Vec<String>,
) -> anyhow::Result<()> {
    let (own, peers): (Vec<Peer>, Vec<Peer>) = nodes.into_iter().partition(|n| n.name == settings.node_name);
    let here = Here {
        uplink: kernel.uplink(settings.node_ip).await?,
        ranges: own.into_iter().flat_map(|n| n.ranges).collect(),
        cluster: settings.cluster.clone(),
    };
    let wanted = plan::plan(settings.mode, &here, &peers);
    if *warned != wanted.unreachable {
        for why in &wanted.unreachable {
            tracing::warn!("{why}");
        }
        *warned = wanted.unreachable.clone();
    }
    apply(kernel, &wanted).await
}

/// Every step is tried: one that the kernel refuses keeps no other node's pods from being reached.
async fn apply(kernel: &kernel::Kernel, wanted: &Plan) -> anyhow::Result<()> {
    let steps = plan::difference(&kernel.read().await?, wanted);
    let mut refused = Ok(());
    for step in &steps {
        tracing::debug!(%step, "underlay");
        let done = kernel.apply(step).await.with_context(|| step.to_string());
        refused = refused.and(done);
    }
    refused
}

/// Takes back everything: for a node that goes away.
pub async fn remove() -> anyhow::Result<()> {
    apply(&kernel::Kernel::open()?, &Plan::default()).await
}
