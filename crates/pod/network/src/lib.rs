//! The pod network of one node: addresses, links, routes, host ports.
//!
//! [`PodNetwork`] is what the container runtime asks for. [`Routed`] is the built-in implementation: one veth pair a
//! pod, a route to each of its addresses on the host, no bridge. Every packet of a pod passes the host's IP layer, so service
//! translation and connection tracking see both directions without the `br_netfilter` module.
//! [`cni`] asks plug-ins instead, [`HostOnly`] gives pods a loopback and nothing else. [`underlay`] connects the pods of different nodes.
//!
//! [`Routed::watch`] mends what other programs do to its rules, and has pods accepted beside other firewalls.
//! The crate knows sandboxes and addresses; it knows no pod object, no service and no API. [`LocalPods`] tells who is here
//! to those who do.

mod bridge;
pub mod cni;
mod config;
mod flows;
mod guard;
mod ipam;
mod link;
mod local;
mod neighbours;
mod ports;
mod routed;
mod shape;
mod sysctl;
pub mod underlay;

pub use bridge::Bridge;
pub use config::Config;
pub use ipam::Ipam;
pub use local::{LocalPod, LocalPods};
pub use ports::LINK_PREFIX;
pub use routed::Routed;

use async_trait::async_trait;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What the runtime asks for a new sandbox.
#[derive(Clone, Debug, Default)]
pub struct PodNetworkRequest {
    pub sandbox_id: String,
    /// A path that keeps the sandbox's network namespace: a bind mount or `/proc/<pid>/ns/net`.
    pub netns: PathBuf,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub port_mappings: Vec<PortMapping>,
    /// Bits per second; 0: not limited.
    pub ingress_bandwidth: u64,
    /// Bits per second; 0: not limited.
    pub egress_bandwidth: u64,
}

/// A `hostPort`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// `None`: every address of the host.
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// What a sandbox got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetworkResult {
    /// The primary address first.
    pub ips: Vec<IpAddr>,
    pub gateway: Option<IpAddr>,
}

/// The pod network as the container runtime sees it. Calls are idempotent: the runtime repeats them after a crash.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Gives the namespace a loopback, an address and a way out.
    async fn setup(&self, request: &PodNetworkRequest) -> anyhow::Result<PodNetworkResult>;
    /// Takes back everything `setup` gave, also when it failed half way or the namespace is gone.
    async fn teardown(&self, sandbox_id: &str) -> anyhow::Result<()>;
    /// Gives up what belongs to none of these sandboxes.
    async fn gc(&self, live_sandboxes: &[String]) -> anyhow::Result<()>;
    /// The node's pod range was assigned or changed; with a comma between them, those of both families. Existing pods keep their addresses.
    async fn set_pod_cidr(&self, cidr: &str) -> anyhow::Result<()>;
    /// `Err` says what is missing; becomes the runtime condition `NetworkReady`.
    async fn ready(&self) -> Result<(), String>;
}

/// Takes back what the network changed on the machine, for a node that goes away: its table, its rules in other programs'
/// chains, and forwarding, if that was off before.
pub fn remove(state_dir: &Path) -> anyhow::Result<()> {
    use keelson_sys::nft::Family;
    neighbours::remove()?;
    for family in [Family::Ip, Family::Ip6] {
        keelson_sys::nft::remove(family, ports::TABLE)?;
    }
    sysctl::restore_forwarding(state_dir)
}

/// A network in which pods reach only themselves.
#[derive(Debug, Default)]
pub struct HostOnly;

#[async_trait]
impl PodNetwork for HostOnly {
    async fn setup(&self, request: &PodNetworkRequest) -> anyhow::Result<PodNetworkResult> {
        let netns = request.netns.clone();
        link::in_namespace(netns, |handle| async move { link::loopback_up(&handle).await }).await?;
        Ok(PodNetworkResult {
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            gateway: None,
        })
    }
    async fn teardown(&self, _sandbox_id: &str) -> anyhow::Result<()> {
        Ok(())
    }
    async fn gc(&self, _live_sandboxes: &[String]) -> anyhow::Result<()> {
        Ok(())
    }
    async fn set_pod_cidr(&self, _cidr: &str) -> anyhow::Result<()> {
        Ok(())
    }
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
