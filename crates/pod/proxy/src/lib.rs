//! The service proxy of one node: Services and EndpointSlices become nftables rules.
//!
//! [`model`] reads API objects into plain facts, [`rules`] turns facts into a [`nft::Ruleset`] of plain data, [`nft::between`]
//! finds the operations that lead from one rule set to the next, and [`run`] applies them in one atomic batch whenever
//! something changed. The first batch replaces the whole table, so a restart needs no knowledge of the past and leaves
//! no moment without rules; so does the one after another program changed the table, of which the kernel tells. Flows that go on past changed rules are [`conntrack`]'s
//! matter, load balancers' questions [`health`]'s.
//!
//! The crate knows nothing of pods, of how they are linked, or of nodes other than its own.

pub mod conntrack;
pub mod health;
pub mod model;
pub mod rules;

pub use keelson_sys::nft::names;

use anyhow::Context;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::rest::Rest;
use keelson_client::{Informer, InformerOptions};
use keelson_sys::nft::{self, Family, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The table that this component owns.
pub const TABLE: &str = "keelson-proxy";

#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, to tell local endpoints.
    pub node_name: String,
    /// The range of all pods: traffic to services from elsewhere is masqueraded.
    pub cluster_cidr: Ipv4Net,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node_name: String::new(),
            cluster_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16),
        }
    }
}

/// Longest wait before a refused batch is tried again as a whole.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the rules in step with the API until `stop` fires. Rules stay when it returns: connections go on.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-proxy");
    let changed = Arc::new(Notify::new());
    let services: Informer<Service> = Informer::start(&rest, InformerOptions::default(), &stop);
    let slices: Informer<EndpointSlice> = Informer::start(&rest, InformerOptions::default(), &stop);
    let note = changed.clone();
    services.on_change(move |_| note.notify_one());
    let note = changed.clone();
    slices.on_change(move |_| note.notify_one());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { services.synced().await; slices.synced().await } => {}
    }
    let monitor = nft::Monitor::open().context("the kernel's notices of changed rules")?;
    let mut applied: Option<nft::Ruleset> = None;
    let mut health = health::Health::default();
    let mut flows = Flows::new(|frontends| conntrack::table::delete(|flow| frontends.stale(flow)));
    loop {
        let facts = model::read(&services.store().list(), &slices.store().list(), &config.node_name);
        let wanted = rules::build(&facts, config.cluster_cidr);
        let ops = match &applied {
            Some(old) => nft::between(old, &wanted),
            None => nft::replace(&wanted),
        };
        let retry = match apply(ops).await {
            Ok(count) => {
                if count > 0 {
                    tracing::debug!(operations = count, services = facts.len(), "service rules applied");
                }
                applied = Some(wanted);
                health.follow(checks(&facts));
                flows.follow(conntrack::Frontends::of(&facts)).await;
                false
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "service rules were refused; replacing the whole table"
                );
                applied = None;
                true
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changed.notified() => {}
            interfered = monitor.changed(Family::Ip, TABLE) => {
                interfered.context("the kernel's notices of changed rules")?;
                tracing::warn!("another program changed the rules of services; they are written anew");
                applied = None;
            }
            () = tokio::time::sleep(RETRY), if retry => {}
        }
    }
}

/// Which services' health is asked for, and what their endpoints here are: pods, each once however many ports it serves.
fn checks(facts: &[model::ServicePort]) -> BTreeMap<u16, health::Check> {
    let mut found: BTreeMap<u16, (health::Check, BTreeSet<Ipv4Addr>)> = BTreeMap::new();
    for s in facts {
        let Some(port) = s.health_port else { continue };
        let mut names = s.identity.split('/').map(String::from);
        let (namespace, name) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let (check, local) = found.entry(port).or_insert_with(|| {
            let check = health::Check {
                namespace,
                name,
                local: 0,
            };
            (check, BTreeSet::new())
        });
        local.extend(s.local_endpoints.iter().map(|(ip, _)| *ip));
        check.local = local.len();
    }
    found.into_iter().map(|(port, (check, _))| (port, check)).collect()
}

async fn apply(ops: Vec<Op>) -> anyhow::Result<usize> {
    let count = ops.len();
    tokio::task::spawn_blocking(move || nft::apply(Family::Ip, TABLE, &ops))
        .await
        .context("the rule writer died")??;
    Ok(count)
}

/// Which frontends the kernel's table of flows agrees with.
struct Flows {
    delete: fn(&conntrack::Frontends) -> std::io::Result<usize>,
    agreed: Option<Arc<conntrack::Frontends>>,
    warned: bool,
}

impl Flows {
    fn new(delete: fn(&conntrack::Frontends) -> std::io::Result<usize>) -> Flows {
        Flows {
            delete,
            agreed: None,
            warned: false,
        }
    }

    /// Ends the flows that the rules now in force would not have begun. A kernel that can't do this costs UDP clients their
    /// time-out, nothing else: said once, and tried again at the next change.
    async fn follow(&mut self, frontends: conntrack::Frontends) {
        if !frontends.changed(self.agreed.as_deref()) {
            return;
        }
        let frontends = Arc::new(frontends);
        self.agreed = Some(frontends.clone());
        let delete = self.delete;
        let deleted = tokio::task::spawn_blocking(move || delete(&frontends)).await;
        match deleted.map_err(std::io::Error::other).flatten() {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "stale UDP flows ended"),
            Err(error) if !self.warned => {
                self.warned = true;
                tracing::warn!(
                    %error,
                    "stale UDP flows can't be ended (is nf_conntrack_netlink there?): clients that keep sending may miss changed endpoints"
                );
            }
            Err(error) => tracing::debug!(%error, "stale UDP flows can't be ended"),
        }
    }
}

/// Removes the table: for `keelson uninstall`.
pub fn remove() -> anyhow::Result<()> {
    nft::apply(Family::Ip, TABLE, &[Op::AddTable, Op::DeleteTable])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn frontends(serving: &str) -> conntrack::Frontends {
        let ip = std::net::Ipv4Addr::new(10, 96, 0, 10);
        conntrack::Frontends::of(&[model::ServicePort {
            identity: "kube-system/kube-dns/dns/udp".into(),
            protocol: conntrack::UDP,
            port: 53,
            cluster_ip: ip,
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            node_port: None,
            affinity: None,
            internal_local: false,
            external_local: false,
            health_port: None,
            endpoints: Default::default(),
            local_endpoints: Default::default(),
            serving: [(serving.parse().unwrap(), 53)].into(),
        }])
    }

    #[tokio::test]
    async fn a_kernel_without_a_table_of_flows_is_asked_once_a_change_and_nothing_fails() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let mut flows = Flows::new(|_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            Err(std::io::Error::from_raw_os_error(22))
        });
        for serving in ["10.244.0.5", "10.244.0.5", "10.244.0.6"] {
            flows.follow(frontends(serving)).await;
        }
        assert!(flows.warned);
        assert_eq!(ASKED.load(Ordering::SeqCst), 2);
    }
}
