//! The built-in pod network: a veth pair and a /32 route a pod.
//!
//! Invariants: a pod's address is reserved on disk before its link exists and freed after the link is gone; the link's
//! name is a function of the sandbox's id, so that a repeated or half-done call finds what stands.

use crate::{
    Config, Ipam, LocalPod, LocalPods, PodNetwork, PodNetworkRequest, PodNetworkResult, PortMapping, flows, guard,
    link, neighbours, ports,
};
use anyhow::Context;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use keelson_sys::nft::{Family, Monitor, Notice, Op};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a new pod waits for its rules. After that it starts closed, and opens when they are there.
const JUDGEMENT: Duration = Duration::from_secs(5);
/// How long nothing changes before what another program did is mended: it may have more to do.
const QUIET: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(5);

pub struct Routed {
    config: Config,
    local: Arc<LocalPods>,
    ipam: Ipam,
    pod_cidr: Mutex<Option<Ipv4Net>>,
    netlink: tokio::sync::OnceCell<rtnetlink::Handle>,
    records: PathBuf,
    /// Held while host ports and their record come to agree, and while the table is written from the records.
    writing: Mutex<()>,
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
            local: Arc::new(LocalPods::open(&config.state_dir.join("pods"))?),
            config,
            ipam,
            netlink: tokio::sync::OnceCell::new(),
            records,
            writing: Mutex::new(()),
            ready: Mutex::new(Ok(())),
        };
        *this.ready.lock() = this.prepare_host().map_err(|e| format!("{e:#}"));
        Ok(this)
    }

    fn prepare_host(&self) -> anyhow::Result<()> {
        self.switch_forwarding_on()?;
        self.write_table()?;
        neighbours::accept_pods()
    }

    fn switch_forwarding_on(&self) -> anyhow::Result<()> {
        let before = fs::read_to_string(format!("/proc/sys/{FORWARDING}")).context("is forwarding on?")?;
        if before.trim() == "0" {
            // Noted before it is so: a crash between the two leaves a note that is still true.
            fs::write(self.config.state_dir.join(FORWARDING_WAS_OFF), "")?;
        }
        set_sysctl(FORWARDING, "1")
    }

    /// The pods of this node.
    pub fn local_pods(&self) -> Arc<LocalPods> {
        self.local.clone()
    }

    /// Mends what other programs do to the table, and keeps pods accepted in their chains, for ever.
    pub async fn watch(&self) -> anyhow::Result<()> {
        let monitor = Monitor::open().context("the kernel's notices of changed rules")?;
        // What happened before the monitor listened.
        let mut notices = vec![Notice::Overrun];
        let mut wait = QUIET;
        loop {
            let ours = |n: &Notice| match n {
                Notice::Overrun => true,
                Notice::Changed { family, table } => {
                    *family == Family::Ip && [ports::TABLE, neighbours::TABLE].contains(&table.as_str())
                }
            };
            if notices.iter().any(ours) {
                while let Ok(more) = tokio::time::timeout(wait, monitor.next()).await {
                    notices.extend(more?);
                }
                let table = notices
                    .iter()
                    .any(|n| !matches!(n, Notice::Changed { table, .. } if table != ports::TABLE));
                let mended = match table {
                    true => self.write_table(),
                    false => Ok(()),
                };
                wait = QUIET;
                if let Err(error) = mended.and_then(|()| neighbours::accept_pods()) {
                    tracing::error!(error = format!("{error:#}"), "the pod network's rules can't be mended");
                    wait = RETRY;
                    continue;
                }
                let changed = |n: &Notice| matches!(n, Notice::Changed { table, .. } if table == ports::TABLE);
                if notices.iter().any(changed) {
                    tracing::warn!("another program changed the pod network's rules; they are written anew");
                }
            }
            notices = monitor.next().await?;
        }
    }

    /// The whole table, with what the reservations and records say.
    fn write_table(&self) -> anyhow::Result<()> {
        let _alone = self.writing.lock();
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
        let mut ops = ports::initial(self.config.cluster_cidr, &mappings);
        ops.extend(guard::initial());
        ops.extend(
            owners
                .iter()
                .map(|(sandbox, ip)| guard::admit(&link_name(sandbox), *ip)),
        );
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

    /// Lets the link send with this address, and no other do so.
    fn admit(&self, link: &str, pod: Ipv4Addr) -> anyhow::Result<()> {
        keelson_sys::nft::apply(Family::Ip, ports::TABLE, &[guard::admit(link, pod)]).context("the guard of the link")
    }

    fn dismiss(&self, sandbox_id: &str, pod: Ipv4Addr) {
        let op = guard::dismiss(&link_name(sandbox_id), pod);
        if let Err(error) = keelson_sys::nft::apply(Family::Ip, ports::TABLE, &[op]) {
            tracing::debug!(%error, sandbox_id, "the link was already dismissed");
        }
    }

    async fn handle(&self) -> anyhow::Result<&rtnetlink::Handle> {
        self.netlink.get_or_try_init(|| async { Ok(link::here()?.0) }).await
    }

    fn change_ports(&self, ops: Vec<Op>) -> anyhow::Result<()> {
        keelson_sys::nft::apply(Family::Ip, ports::TABLE, &ops).context("host ports")
    }

    fn take_ports(&self, sandbox_id: &str, pod: Ipv4Addr, mappings: &[PortMapping]) -> anyhow::Result<()> {
        let _alone = self.writing.lock();
        self.release_ports(sandbox_id, Some(pod))?;
        // Recorded once they are ours: teardown takes back what is recorded, and a port that was refused is another's.
        self.change_ports(ports::add(pod, mappings))?;
        let record = serde_json::to_vec(mappings).map_err(anyhow::Error::from);
        let record = record.and_then(|r| Ok(fs::write(self.records.join(sandbox_id), r)?));
        if let Err(error) = record {
            self.change_ports(ports::remove(pod, mappings))?;
            return Err(error.context("remember host ports"));
        }
        Ok(())
    }

    /// Which ports the sandbox had.
    fn release_ports(&self, sandbox_id: &str, ip: Option<Ipv4Addr>) -> anyhow::Result<Vec<PortMapping>> {
        let path = self.records.join(sandbox_id);
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(Vec::new());
        };
        // A record cut short by a crash belongs to a sandbox whose setup will be repeated or torn down.
        let mappings = serde_json::from_str::<Vec<PortMapping>>(&text).unwrap_or_default();
        if let Some(ip) = ip {
            for op in ports::remove(ip, &mappings) {
                // One at a time: an element that a crash left out must not keep the others in.
                if let Err(error) = self.change_ports(vec![op]) {
                    tracing::debug!(%error, sandbox_id, "host port was already gone");
                }
            }
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        Ok(mappings)
    }
}

const FORWARDING: &str = "net/ipv4/ip_forward";
/// The file that says that forwarding was off when the network came.
const FORWARDING_WAS_OFF: &str = "forwarding-was-off";

pub fn restore_forwarding(state_dir: &Path) -> anyhow::Result<()> {
    let note = state_dir.join(FORWARDING_WAS_OFF);
    if note.exists() {
        set_sysctl(FORWARDING, "0")?;
        fs::remove_file(&note)?;
    }
    Ok(())
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

/// Pods have IPv4 addresses; what comes by IPv6 over their links (a router advertisement would become the host's default
/// route) is not for this host.
fn no_ipv6(link: &str) -> anyhow::Result<()> {
    let dir = format!("net/ipv6/conf/{link}");
    if !Path::new("/proc/sys").join(&dir).exists() {
        return Ok(());
    }
    set_sysctl(&format!("{dir}/accept_ra"), "0")?;
    set_sysctl(&format!("{dir}/disable_ipv6"), "1")
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
        self.local.put(LocalPod {
            sandbox: request.sandbox_id.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            uid: request.uid.clone(),
            address: pod.into(),
        })?;
        link::veth(handle, &host, &netns, self.config.mtu).await?;
        self.admit(&host, pod)?;
        no_ipv6(&host)?;
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
            self.take_ports(&request.sandbox_id, pod, &mappings)?;
            flows::begun(pod, &mappings).await;
        }
        if !self.local.wait(&request.sandbox_id, JUDGEMENT).await {
            tracing::warn!(
                namespace = request.namespace,
                pod = request.name,
                "no rules for the pod after {JUDGEMENT:?}; it is closed until they are in force"
            );
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
        let had = {
            let _alone = self.writing.lock();
            self.release_ports(sandbox_id, ip)?
        };
        if let Some(ip) = ip {
            flows::over(ip, &had).await;
        }
        link::delete(self.handle().await?, &link_name(sandbox_id)).await?;
        self.local.retain(|sandbox| sandbox != sandbox_id)?;
        self.ipam.release_unless(|owner| owner != sandbox_id)?;
        if let Some(ip) = ip {
            self.dismiss(sandbox_id, ip);
        }
        Ok(())
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
        self.local.retain(live)?;
        let reserved = self.ipam.reservations()?;
        self.ipam.release_unless(live)?;
        for (ip, owner) in reserved.into_iter().filter(|(_, owner)| !live(owner)) {
            self.dismiss(&owner, ip);
        }
        Ok(())
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
