//! The built-in pod network: a veth pair a pod, and a route to each of its addresses.
//!
//! Invariants: a pod's address is reserved on disk before its link exists and freed after the link is gone; the link's
//! name is a function of the sandbox's id, so that a repeated or half-done call finds what stands.

use crate::{
    Config, Ipam, LocalPod, LocalPods, PodNetwork, PodNetworkRequest, PodNetworkResult, PortMapping, flows, guard,
    link, neighbours, ports, shape, sysctl,
};
use anyhow::{Context, bail};
use async_trait::async_trait;
use ipnet::IpNet;
use keelson_sys::nft::{Family, Monitor, Notice, Op};
use parking_lot::Mutex;
use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
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
    pod_cidrs: Mutex<Vec<IpNet>>,
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
        let remembered = || {
            let known = ranges(&fs::read_to_string(cidr_file).ok()?).ok()?;
            served(&known, &config.cluster_cidrs).ok()
        };
        let pod_cidrs = match config.pod_cidrs.as_slice() {
            [] => remembered().unwrap_or_default(),
            given => given.to_vec(),
        };
        let this = Routed {
            pod_cidrs: Mutex::new(pod_cidrs),
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

    fn families(&self) -> impl Iterator<Item = Family> {
        self.config.cluster_cidrs.iter().map(|range| Family::of(range.addr()))
    }

    fn has_ipv6(&self) -> bool {
        self.families().any(|f| f == Family::Ip6)
    }

    /// Those by which links could bring something. Without addresses of IPv6 they have it switched off; IPv4 can't be.
    fn guarded(&self) -> impl Iterator<Item = Family> {
        let four = self.families().all(|f| f != Family::Ip).then_some(Family::Ip);
        self.families().chain(four)
    }

    fn prepare_host(&self) -> anyhow::Result<()> {
        for family in self.families() {
            sysctl::switch_forwarding_on(&self.config.state_dir, family)?;
        }
        self.write_tables()?;
        neighbours::accept_pods(self.families())
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
                Notice::Changed { family, table } => match table.as_str() {
                    ports::TABLE => self.guarded().any(|f| f == *family),
                    neighbours::TABLE => self.families().any(|f| f == *family),
                    _ => false,
                },
            };
            if notices.iter().any(ours) {
                while let Ok(more) = tokio::time::timeout(wait, monitor.next()).await {
                    notices.extend(more?);
                }
                let table = notices
                    .iter()
                    .any(|n| !matches!(n, Notice::Changed { table, .. } if table != ports::TABLE));
                let mended = match table {
                    true => self.write_tables(),
                    false => Ok(()),
                };
                wait = QUIET;
                if let Err(error) = mended.and_then(|()| neighbours::accept_pods(self.families())) {
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

    /// The whole table of each family, with what the reservations and records say.
    fn write_tables(&self) -> anyhow::Result<()> {
        let _alone = self.writing.lock();
        let reserved = self.ipam.reservations()?;
        let mut mappings = Vec::new();
        for (sandbox, recorded) in self.recorded_ports()? {
            let own = reserved.iter().filter(|(_, owner)| *owner == sandbox);
            mappings.extend(own.map(|(ip, _)| (*ip, recorded.clone())));
        }
        for family in self.guarded() {
            let mut ranges = self.config.cluster_cidrs.iter();
            let mut ops = match ranges.find(|range| Family::of(range.addr()) == family) {
                Some(range) => ports::initial(*range, &mappings),
                None => vec![Op::AddTable, Op::DeleteTable, Op::AddTable],
            };
            ops.extend(guard::initial(family));
            let of_family = reserved.iter().filter(|(ip, _)| Family::of(*ip) == family);
            ops.extend(of_family.map(|(ip, sandbox)| guard::admit(&link_name(sandbox), *ip)));
            keelson_sys::nft::exchange(family, ports::TABLE, &ops)
                .context("the kernel refused the nftables table for host ports (is nf_tables available?)")?;
        }
        Ok(())
    }

    fn recorded_ports(&self) -> anyhow::Result<Vec<(String, Vec<PortMapping>)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.records)? {
            let entry = entry?;
            let text = fs::read_to_string(entry.path())?;
            // A record cut short by a crash belongs to a sandbox whose setup will be repeated or torn down.
            match serde_json::from_str(&text) {
                Ok(mappings) => all.push((entry.file_name().to_string_lossy().into_owned(), mappings)),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "the record of a pod's host ports can't be read");
                }
            }
        }
        Ok(all)
    }

    /// Lets the link send with this address, and no other do so.
    fn admit(&self, link: &str, pod: IpAddr) -> anyhow::Result<()> {
        keelson_sys::nft::apply(Family::of(pod), ports::TABLE, &[guard::admit(link, pod)])
            .context("the guard of the link")
    }

    fn dismiss(&self, sandbox_id: &str, pod: IpAddr) {
        let op = guard::dismiss(&link_name(sandbox_id), pod);
        if let Err(error) = keelson_sys::nft::apply(Family::of(pod), ports::TABLE, &[op]) {
            tracing::debug!(%error, sandbox_id, "the link was already dismissed");
        }
    }

    async fn handle(&self) -> anyhow::Result<&rtnetlink::Handle> {
        self.netlink.get_or_try_init(|| async { Ok(link::here()?.0) }).await
    }

    fn change_ports(&self, family: Family, ops: Vec<Op>) -> anyhow::Result<()> {
        keelson_sys::nft::apply(family, ports::TABLE, &ops).context("host ports")
    }

    fn take_ports(&self, sandbox_id: &str, pods: &[IpAddr], mappings: &[PortMapping]) -> anyhow::Result<()> {
        let _alone = self.writing.lock();
        self.release_ports(sandbox_id, pods)?;
        // Recorded once they are ours: teardown takes back what is recorded, and a port that was refused is another's.
        let mut taken = Vec::new();
        let mut done = Ok(());
        for pod in pods {
            done = self.change_ports(Family::of(*pod), ports::add(*pod, mappings));
            if done.is_err() {
                break;
            }
            taken.push(*pod);
        }
        let record =
            || -> anyhow::Result<()> { Ok(fs::write(self.records.join(sandbox_id), serde_json::to_vec(mappings)?)?) };
        let done = done.and_then(|()| record().context("remember host ports"));
        if done.is_err() {
            for pod in taken {
                self.change_ports(Family::of(pod), ports::remove(pod, mappings))?;
            }
        }
        done
    }

    /// Which ports the sandbox had.
    fn release_ports(&self, sandbox_id: &str, pods: &[IpAddr]) -> anyhow::Result<Vec<PortMapping>> {
        let path = self.records.join(sandbox_id);
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(Vec::new());
        };
        // A record cut short by a crash belongs to a sandbox whose setup will be repeated or torn down.
        let mappings = serde_json::from_str::<Vec<PortMapping>>(&text).unwrap_or_default();
        for pod in pods {
            for op in ports::remove(*pod, &mappings) {
                // One at a time: an element that a crash left out must not keep the others in.
                if let Err(error) = self.change_ports(Family::of(*pod), vec![op]) {
                    tracing::debug!(%error, sandbox_id, "host port was already gone");
                }
            }
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        Ok(mappings)
    }
}

/// One range, or one of each family, with commas between them.
pub(crate) fn ranges(text: &str) -> anyhow::Result<Vec<IpNet>> {
    let parse = |part: &str| {
        part.trim()
            .parse()
            .with_context(|| format!("{part:?} is no address range"))
    };
    text.split(',').map(parse).collect()
}

/// Those of the cluster's families, which alone have rules; an error if that is none, or two of one family.
fn served(ranges: &[IpNet], cluster: &[IpNet]) -> anyhow::Result<Vec<IpNet>> {
    let mut served: Vec<IpNet> = Vec::new();
    for range in ranges {
        let same = |other: &IpNet| Family::of(other.addr()) == Family::of(range.addr());
        if let Some(other) = served.iter().find(|other| same(other)) {
            bail!("the node's pod ranges {other} and {range} are of one family");
        }
        match cluster.iter().any(same) {
            true => served.push(*range),
            false => tracing::warn!("the node's pod range {range} is of a family that the cluster's pods don't have"),
        }
    }
    if served.is_empty() {
        bail!("no pod range of the node is of a family that the cluster's pods have");
    }
    Ok(served)
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

#[async_trait]
impl PodNetwork for Routed {
    async fn setup(&self, request: &PodNetworkRequest) -> anyhow::Result<PodNetworkResult> {
        let ranges = self.pod_cidrs.lock().clone();
        let mut pairs = Vec::new();
        for range in &ranges {
            pairs.push(link::Pair {
                gateway: Ipam::gateway(*range),
                pod: self.ipam.reserve(*range, &request.sandbox_id)?,
            });
        }
        let primary = *pairs.first().context("the node has no pod range yet (spec.podCIDR)")?;
        let pods: Vec<IpAddr> = pairs.iter().map(|p| p.pod).collect();
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
            address: primary.pod,
            second: pods.get(1).copied(),
        })?;
        link::veth(handle, &host, &netns, self.config.mtu).await?;
        for pod in &pods {
            self.admit(&host, *pod)?;
        }
        sysctl::host_link(&host, self.has_ipv6())?;
        shape::apply(handle, &host, request).await?;
        link::host_side(handle, &host, &pairs).await?;
        link::in_namespace(request.netns.clone(), move |h| link::pod_side(h, pairs)).await?;
        let mappings: Vec<PortMapping> = request
            .port_mappings
            .iter()
            .filter(|m| pods.iter().any(|pod| ports::applies(m, *pod)))
            .cloned()
            .collect();
        if !mappings.is_empty() {
            if pods.iter().any(IpAddr::is_ipv4) {
                sysctl::set(&format!("net/ipv4/conf/{host}/route_localnet"), "1")?;
            }
            self.take_ports(&request.sandbox_id, &pods, &mappings)?;
            for pod in &pods {
                flows::begun(*pod, &mappings).await;
            }
        }
        if !self.local.wait(&request.sandbox_id, JUDGEMENT).await {
            tracing::warn!(
                namespace = request.namespace,
                pod = request.name,
                "no rules for the pod after {JUDGEMENT:?}; it is closed until they are in force"
            );
        }
        Ok(PodNetworkResult {
            ips: pods,
            gateway: Some(primary.gateway),
        })
    }

    async fn teardown(&self, sandbox_id: &str) -> anyhow::Result<()> {
        let reserved = self.ipam.reservations()?.into_iter();
        let pods: Vec<IpAddr> = reserved.filter(|(_, o)| o == sandbox_id).map(|(ip, _)| ip).collect();
        let had = {
            let _alone = self.writing.lock();
            self.release_ports(sandbox_id, &pods)?
        };
        for pod in &pods {
            flows::over(*pod, &had).await;
        }
        let (handle, host) = (self.handle().await?, link_name(sandbox_id));
        link::delete(handle, &host).await?;
        shape::remove(handle, &host).await?;
        self.local.retain(|sandbox| sandbox != sandbox_id)?;
        self.ipam.release_unless(|owner| owner != sandbox_id)?;
        pods.iter().for_each(|pod| self.dismiss(sandbox_id, *pod));
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
        shape::keep(handle, &keep).await?;
        self.local.retain(live)?;
        let reserved = self.ipam.reservations()?;
        self.ipam.release_unless(live)?;
        for (ip, owner) in reserved.into_iter().filter(|(_, owner)| !live(owner)) {
            self.dismiss(&owner, ip);
        }
        Ok(())
    }

    async fn set_pod_cidr(&self, cidr: &str) -> anyhow::Result<()> {
        let ranges = served(&ranges(cidr)?, &self.config.cluster_cidrs)?;
        fs::write(self.config.state_dir.join("pod-cidr"), cidr)?;
        *self.pod_cidrs.lock() = ranges;
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        self.ready.lock().clone()?;
        match self.pod_cidrs.lock().is_empty() {
            false => Ok(()),
            true => Err("the node has no pod range yet (spec.podCIDR)".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_ranges_are_of_the_clusters_families_one_of_each() {
        let of = |node: &str, cluster: &str| {
            let served = served(&ranges(node).unwrap(), &ranges(cluster).unwrap()).ok()?;
            Some(served.iter().map(IpNet::to_string).collect::<Vec<_>>().join(","))
        };
        let (four, six) = ("10.244.0.0/16", "fd00::/48");
        assert_eq!(of("10.244.1.0/24", four).as_deref(), Some("10.244.1.0/24"));
        assert_eq!(
            of("fd00:0:0:1::/64,10.244.1.0/24", four).as_deref(),
            Some("10.244.1.0/24")
        );
        assert_eq!(of("fd00:0:0:1::/64", four), None);
        assert_eq!(of("10.244.1.0/24", six), None);
        assert_eq!(of("10.244.1.0/24,10.244.2.0/24", four), None);
    }
}
