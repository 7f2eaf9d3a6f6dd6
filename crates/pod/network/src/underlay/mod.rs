//! How pods of different nodes reach each other: what lies under the pod network.
//!
//! Facts (this node, its uplink, its peers) → [`plan`] (pure, golden-tested) → difference to what the kernel has
//! ([`kernel`] reads it in the same terms) → steps, applied one by one, additions last. The kernel's own notices start a
//! new round, so that a route that somebody removed, or an uplink that came back, is mended at once. Nothing polls.
//!
//! Everything made here can be told from what others made, without a record of its own: the tunnel by its name, routes
//! by their protocol number. So a restart carries on with what stands, and [`remove`] finds all of it.
//!
//! The module knows nodes by addresses, ranges and keys only; who they are, and which key this one has, is the caller's to
//! find out. Packets leave this node encrypted by [`Mode::Wireguard`] alone ([`secure`]).

mod kernel;
pub mod plan;
pub mod secure;
pub mod step;

pub use keelson_sys::wireguard::{PrivateKey, PublicKey, public_key};
pub use plan::{Here, Mac, Peer, Plan, Uplink};
use step::Step;

use anyhow::{Context, bail};
use ipnet::IpNet;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The device that tunnels to other nodes.
pub const TUNNEL: &str = "keelson.1";
/// Network identifier and UDP port of the tunnel: flannel's, for firewalls that know them.
pub const VNI: u32 = 1;
pub const PORT: u16 = 8472;
/// WireGuard's device, and its UDP port: flannel's, too.
pub const WIREGUARD: &str = "keelson.wg";
pub const WIREGUARD_PORT: u16 = 51820;

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
    /// Encrypted in UDP between the nodes, wherever they are.
    Wireguard,
    /// Somebody else's matter.
    None,
    /// CNI plug-ins' matter, as are the pods' links.
    Cni,
}

impl FromStr for Mode {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Mode> {
        Ok(match text {
            "vxlan" => Mode::Vxlan,
            "vxlan-direct" => Mode::VxlanDirect,
            "host-gw" => Mode::HostGateway,
            "wireguard" => Mode::Wireguard,
            "none" => Mode::None,
            "cni" => Mode::Cni,
            other => bail!("--network {other}: known are vxlan, vxlan-direct, host-gw, wireguard, none and cni"),
        })
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Vxlan => "vxlan",
            Mode::VxlanDirect => "vxlan-direct",
            Mode::HostGateway => "host-gw",
            Mode::Wireguard => "wireguard",
            Mode::None => "none",
            Mode::Cni => "cni",
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
            // WireGuard 32, UDP 8, and the outer IP header.
            (Mode::Wireguard, IpAddr::V4(_)) => 60,
            (Mode::Wireguard, IpAddr::V6(_)) => 80,
            (Mode::HostGateway | Mode::None | Mode::Cni, _) => 0,
        };
        // A loopback has more than a pod's link can.
        uplink.mtu.min(MOST).saturating_sub(around)
    }

    /// The UDP port of the nodes that it takes.
    pub fn port(self) -> Option<u16> {
        match self {
            Mode::Vxlan | Mode::VxlanDirect => Some(PORT),
            Mode::Wireguard => Some(WIREGUARD_PORT),
            Mode::HostGateway | Mode::None | Mode::Cni => None,
        }
    }
}

/// By which this node is known in WireGuard.
pub struct Identity {
    pub private: PrivateKey,
    pub public: PublicKey,
}

/// What is known of nodes (this one among them, the oldest first) and of this one's key.
#[derive(Clone, Default)]
pub struct Known {
    pub nodes: Vec<Peer>,
    pub identity: Option<Arc<Identity>>,
}

impl PartialEq for Known {
    fn eq(&self, other: &Known) -> bool {
        let key = |known: &Known| known.identity.as_ref().map(|i| i.public);
        self.nodes == other.nodes && key(self) == key(other)
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

/// Whether this kernel can do what the mode needs. `Err` names what is missing.
pub fn supported(mode: Mode) -> anyhow::Result<()> {
    if mode != Mode::Wireguard {
        return Ok(());
    }
    keelson_sys::wireguard::available().context(
        "--network wireguard: this kernel has no WireGuard. Load it (modprobe wireguard, and add it to /etc/modules), run a kernel that has it \
         (CONFIG_WIREGUARD, since Linux 5.6), or choose another network for the whole cluster",
    )
}

/// The link that carries `address`, and what is known of it.
pub async fn uplink(address: IpAddr) -> anyhow::Result<Uplink> {
    kernel::Kernel::open()?.uplink(address).await
}

/// What the kernel tells of this machine's links, addresses and routes, but for those of pods.
pub struct Changes {
    notices: kernel::Notices,
    // It drives the socket.
    _kernel: kernel::Kernel,
}

impl Changes {
    pub fn listen() -> anyhow::Result<Changes> {
        let (_kernel, notices) = kernel::Kernel::listen()?;
        Ok(Changes { notices, _kernel })
    }

    /// Until something has changed, and nothing has for `quiet`.
    pub async fn wait(&mut self, quiet: Duration) {
        self.notices.wait(quiet).await;
    }

    /// Lets `time` pass, whatever changes meanwhile.
    pub async fn skip(&mut self, time: Duration) {
        self.notices.skip(time).await;
    }
}

/// Keeps this node connected with all nodes that are `known` until `stop` fires. What was made stays: pods go on.
/// `in_force` is told which key the kernel has.
pub async fn run(
    settings: Settings,
    mut known: watch::Receiver<Known>,
    in_force: watch::Sender<Option<PublicKey>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (kernel, mut notices) = kernel::Kernel::listen()?;
    let mut memory = Memory {
        warned: Vec::new(),
        holders: secure::Holders::new(),
        in_force,
    };
    loop {
        let now = known.borrow_and_update().clone();
        let round = round(&settings, &kernel, now, &mut memory).await;
        if let Err(error) = &round {
            tracing::warn!(
                error = format!("{error:#}"),
                "other nodes' pods can't all be reached yet"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = known.changed() => changed.context("nobody tells of nodes any more")?,
            () = notices.wait(QUIET) => {}
            () = tokio::time::sleep(RETRY), if round.is_err() => {}
        }
    }
}

/// What a round leaves to the next one.
struct Memory {
    warned: Vec<String>,
    holders: secure::Holders,
    in_force: watch::Sender<Option<PublicKey>>,
}

async fn round(
    settings: &Settings,
    kernel: &kernel::Kernel,
    mut known: Known,
    memory: &mut Memory,
) -> anyhow::Result<()> {
    let mut warned = match settings.mode {
        Mode::Wireguard => secure::held(&mut memory.holders, &mut known.nodes),
        _ => Vec::new(),
    };
    let (own, peers): (Vec<Peer>, Vec<Peer>) = known.nodes.into_iter().partition(|n| n.name == settings.node_name);
    let here = Here {
        uplink: kernel.uplink(settings.node_ip).await?,
        ranges: own.into_iter().flat_map(|n| n.ranges).collect(),
        cluster: settings.cluster.clone(),
        key: known.identity.as_ref().map(|identity| identity.public),
    };
    let wanted = plan::plan(settings.mode, &here, &peers);
    warned.extend(wanted.unreachable.iter().cloned());
    if memory.warned != warned {
        for why in &warned {
            tracing::warn!("{why}");
        }
        memory.warned = warned;
    }
    let (done, keyed) = apply(kernel, &wanted, known.identity.as_deref()).await?;
    if keyed {
        memory
            .in_force
            .send_if_modified(|now| std::mem::replace(now, here.key) != here.key);
    }
    done
}

/// Every step is tried: one that the kernel refuses keeps no other node's pods from being reached. What came of them, and whether
/// the node's own key is in force.
async fn apply(
    kernel: &kernel::Kernel,
    wanted: &Plan,
    identity: Option<&Identity>,
) -> anyhow::Result<(anyhow::Result<()>, bool)> {
    let steps = step::difference(&kernel.read().await?, wanted);
    let (mut refused, mut keyed) = (Ok(()), true);
    for step in &steps {
        tracing::debug!(%step, "underlay");
        let done = kernel.apply(step, identity).await.with_context(|| step.to_string());
        keyed &= done.is_ok() || !matches!(step, Step::AddWireguard | Step::SetWireguard(_));
        refused = refused.and(done);
    }
    Ok((refused, keyed))
}

/// Takes back everything: for a node that goes away.
pub async fn remove() -> anyhow::Result<()> {
    apply(&kernel::Kernel::open()?, &Plan::default(), None).await?.0
}
