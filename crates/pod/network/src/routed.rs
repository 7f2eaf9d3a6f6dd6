//! The built-in pod network: a veth pair and a /32 route a pod.
//!
//! Invariants: a pod's address is reserved on disk before its link exists and freed after the link is gone; the link's
//! name is a function of the sandbox's id, so that a repeated or half-done call finds what stands.

use crate::{Config, Ipam, PodNetwork, PodNetworkRequest, PodNetworkResult, PortMapping, link, ports};
use anyhow::Context;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use keelson_sys::nft::{Family, Op};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub struct Routed {
    config: Config,
    ipam: Ipam,
    pod_cidr: Mutex<Option<Ipv4Net>>,
    netlink: tokio::sync::OnceCell<rtnetlink::Handle>,
    records: PathBuf,
    ready: Mutex<Result<(), String>>,
}

impl Routed {
    /// Opens the reservations and sets up the host: forwarding and the table of host ports.
    pub fn new(config: Config) -> anyhow::Result<Routed> {
        let ipam = Ipam::open(&config.state_dir.join("addresses"))?;
        let records = config.state_dir.join("ports");
        fs::create_dir_all(&records)?;
        let cidr_file = config.state_dir.join("pod-cidr");
        let remembered = fs::read_to_string(cidr_file).ok().and_then(|s| s.trim().parse().ok());
        let this = Routed {
            pod_cidr: Mutex::new(config.pod_cidr.or(remembered)),
            config,
            ipam,
            netlink: tokio::sync::OnceCell::new(),
            records,
            ready: Mutex::new(Ok(())),
        };
        *this.ready.lock() = this.prepare_host().map_err(|e| format!("{e:#}"));
        Ok(this)
    }

    fn prepare_host(&self) -> anyhow::Result<()> {
        set_sysctl("net/ipv4/ip_forward", "1")?;
        let mut mappings = Vec::new();
        let owners: HashMap<String, Ipv4Addr> = self
            .ipam
            .reservations()?
            .into_iter()
            .map(|(ip, owner)| (owner, ip))
            .collect();
        for (sandbox, recorded) in self.recorded_ports()? {
            if let Some(ip) = owners.get(&sandbox) {
                mappings.push((*ip, recorded));
            }
        }
        let ops = ports::initial(self.config.cluster_cidr, &mappings);
        keelson_sys::nft::apply(Family::Ip, ports::TABLE, &ops)
            .context("the kernel refused the nftables table for host ports (is nf_tables available?)")
    }

    fn recorded_ports(&self) -> anyhow::Result<Vec<(String, Vec<PortMapping>)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.records)? {
            let entry = entry?;
            let text = fs::read_to_string(entry.path())?;
            // A record cut short by a crash belongs to a sandbox whose setup will be repeated or torn down.
            if let Ok(mappings) = serde_json::from_str(&text) {
                all.push((entry.file_name().to_string_lossy().into_owned(), mappings));
            }
        }
        Ok(all)
    }

    async fn handle(&self) -> anyhow::Result<&rtnetlink::Handle> {
        self.netlink.get_or_try_init(|| async { Ok(link::here()?.0) }).await
    }

    fn change_ports(&self, ops: Vec<Op>) -> anyhow::Result<()> {
        keelson_sys::nft::apply(Family::Ip, ports::TABLE, &ops).context("host ports")
    }

    fn release_ports(&self, sandbox_id: &str, ip: Option<Ipv4Addr>) -> anyhow::Result<()> {
        let path = self.records.join(sandbox_id);
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(());
        };
        if let (Some(ip), Ok(mappings)) = (ip, serde_json::from_str::<Vec<PortMapping>>(&text)) {
            for op in ports::remove(ip, &mappings) {
                // One at a time: an element that a crash left out must not keep the others in.
                if let Err(error) = self.change_ports(vec![op]) {
                    tracing::debug!(%error, sandbox_id, "host port was already gone");
                }
            }
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// The host's end of a pod's link: 15 characters at most.
fn link_name(sandbox_id: &str) -> String {
    let short: String = sandbox_id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(12)
        .collect();
    format!("{}{short}", ports::LINK_PREFIX)
}

fn set_sysctl(key: &str, value: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/{key}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).with_context(|| format!("cannot set {path} to {value}"))
}

#[async_trait]
impl PodNetwork for Routed {
    async fn setup(&self, request: &PodNetworkRequest) -> anyhow::Result<PodNetworkResult> {
        let range = (*self.pod_cidr.lock()).context("the node has no pod range yet (spec.podCIDR)")?;
        let pod = self.ipam.reserve(range, &request.sandbox_id)?;
        let gateway = Ipam::gateway(range);
        let handle = self.handle().await?;
        let host = link_name(&request.sandbox_id);
        link::delete(handle, &host).await?;
        let netns: OwnedFd = fs::File::open(&request.netns)
            .with_context(|| format!("the network namespace {} is gone", request.netns.display()))?
            .into();
        link::veth(handle, &host, &netns, self.config.mtu).await?;
        link::host_side(handle, &host, gateway, pod).await?;
        link::in_namespace(request.netns.clone(), move |h| link::pod_side(h, gateway, pod)).await?;
        let mappings: Vec<PortMapping> = request
            .port_mappings
            .iter()
            .filter(|m| ports::supported(m))
            .cloned()
            .collect();
        if !mappings.is_empty() {
            set_sysctl(&format!("net/ipv4/conf/{host}/route_localnet"), "1")?;
            self.release_ports(&request.sandbox_id, Some(pod))?;
            // Recorded once they are ours: teardown takes back what is recorded, and a port that was refused is another's.
            self.change_ports(ports::add(pod, &mappings))?;
            let record = serde_json::to_vec(&mappings).map_err(anyhow::Error::from);
            let record = record.and_then(|r| Ok(fs::write(self.records.join(&request.sandbox_id), r)?));
            if let Err(error) = record {
                self.change_ports(ports::remove(pod, &mappings))?;
                return Err(error.context("remember host ports"));
            }
        }
        Ok(PodNetworkResult {
            ips: vec![pod.into()],
            gateway: Some(gateway.into()),
        })
    }

    async fn teardown(&self, sandbox_id: &str) -> anyhow::Result<()> {
        let ip = self
            .ipam
            .reservations()?
            .into_iter()
            .find(|(_, o)| o == sandbox_id)
            .map(|(ip, _)| ip);
        self.release_ports(sandbox_id, ip)?;
        link::delete(self.handle().await?, &link_name(sandbox_id)).await?;
        self.ipam.release_unless(|owner| owner != sandbox_id)
    }

    async fn gc(&self, live_sandboxes: &[String]) -> anyhow::Result<()> {
        let live = |id: &str| live_sandboxes.iter().any(|s| s == id);
        for (sandbox, _) in self.recorded_ports()? {
            if !live(&sandbox) {
                self.teardown(&sandbox).await?;
            }
        }
        let handle = self.handle().await?;
        let keep: Vec<String> = live_sandboxes.iter().map(|id| link_name(id)).collect();
        for name in link::names_with_prefix(handle, ports::LINK_PREFIX).await? {
            if !keep.contains(&name) {
                link::delete(handle, &name).await?;
            }
        }
        self.ipam.release_unless(live)
    }

    async fn set_pod_cidr(&self, cidr: &str) -> anyhow::Result<()> {
        let range: Ipv4Net = cidr.parse().with_context(|| format!("{cidr:?} is no IPv4 range"))?;
        fs::write(self.config.state_dir.join("pod-cidr"), cidr)?;
        *self.pod_cidr.lock() = Some(range);
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        self.ready.lock().clone()?;
        match *self.pod_cidr.lock() {
            Some(_) => Ok(()),
            None => Err("the node has no pod range yet (spec.podCIDR)".into()),
        }
    }
}
