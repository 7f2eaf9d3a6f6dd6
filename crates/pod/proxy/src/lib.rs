//! The service proxy of one node: Services and EndpointSlices become nftables rules.
//!
//! [`model`] reads API objects into plain facts, [`rules`] says what the rules of one service are, [`plan`] keeps the facts
//! and finds the operations that lead from one state of a service to the next, and [`run`] applies them in one atomic batch
//! whenever something changed: at once, and together with all that changed while the last batch was on its way. The first
//! batch replaces the whole table, so a restart needs no knowledge of the past and leaves no moment without rules; so does
//! the one after another program changed the table, of which the kernel tells. Flows that go on past changed rules are
//! [`conntrack`]'s matter, load balancers' questions [`health`]'s.
//!
//! A change costs what its service has, not what all have. The crate knows nothing of pods, of how they are linked, or of
//! nodes other than its own.

pub mod conntrack;
pub mod health;
pub mod limits;
pub mod model;
pub mod plan;
pub mod rules;
mod sources;
mod told;

pub use keelson_sys::nft::names;

use anyhow::Context;
use conntrack::Frontends;
use ipnet::IpNet;
use keelson_client::rest::Rest;
use keelson_client::{ObjectKey, Telling};
use keelson_sys::nft::{self, Family, Op};
use limits::Limits;
use parking_lot::RwLock;
use plan::Planner;
use sources::Sources;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use told::Told;

/// The table that this component owns, in each family of the cluster.
pub const TABLE: &str = "keelson-proxy";

#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, to tell local endpoints.
    pub node_name: String,
    /// The ranges of all pods, one a family: traffic to services from elsewhere is masqueraded. Services are served in these
    /// families.
    pub cluster_cidrs: Vec<IpNet>,
    /// Of the connection table, and where it is noted what it had before.
    pub limits: Limits,
    pub note: Option<PathBuf>,
    /// Where rules and requests are counted.
    pub telling: Telling,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node_name: String::new(),
            cluster_cidrs: vec![IpNet::new_assert([10, 244, 0, 0].into(), 16)],
            limits: Limits::default(),
            note: None,
            telling: Telling::default(),
        }
    }
}

/// Longest wait before a refused batch is tried again as a whole.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the rules in step with the API until `stop` fires. Rules stay when it returns: connections go on.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-proxy").telling(&config.telling);
    let told = Told::new(&config.telling.measures);
    let mut sources = Sources::start(&rest, &config.node_name, &told, &stop);
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = sources.synced() => {}
    }
    let monitor = nft::Monitor::open().context("the kernel's notices of changed rules")?;
    let mut planners: Vec<Planner> = config.cluster_cidrs.iter().map(|range| Planner::new(*range)).collect();
    let mut health = health::Health::default();
    let mut flows = Flows::new(|frontends| keelson_sys::conntrack::delete(|flow| frontends.stale(flow)));
    let mut whole = true;
    let mut limited = false;
    // Whose rules have changed and are not in force yet.
    let mut pending: BTreeSet<ObjectKey> = BTreeSet::new();
    loop {
        let begin = Instant::now();
        pending.extend(sources.take_in(&mut planners));
        let take = |planner: &mut Planner| {
            let began = Instant::now();
            let ops = match whole {
                true => planner.take_whole(),
                false => planner.take(),
            };
            Batch {
                family: planner.family(),
                ops,
                whole,
                planned: began.elapsed(),
            }
        };
        whole = match apply(planners.iter_mut().map(take).collect(), told.clone()).await {
            Ok(operations) => {
                if operations > 0 {
                    let services = planners.iter().map(Planner::services).max();
                    let micros = begin.elapsed().as_micros();
                    tracing::debug!(
                        operations,
                        changed = pending.len(),
                        services,
                        micros,
                        "service rules applied"
                    );
                }
                let mut changed = false;
                for service in std::mem::take(&mut pending) {
                    let of = |planner: &Planner| planner.facts(&service).to_vec();
                    let facts: Vec<model::ServicePort> = planners.iter().flat_map(of).collect();
                    health.follow(&service, health::Check::of(&service, &facts));
                    changed |= flows.frontends.write().set(&service, &facts);
                }
                flows.follow(changed).await;
                // The first rules have made the kernel have a table.
                if !std::mem::replace(&mut limited, true) {
                    limit(&config).await;
                }
                false
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "service rules were refused; replacing the whole table"
                );
                true
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sources.changed() => planners.iter().for_each(|planner| told.queued(planner.family())),
            interfered = changed(&monitor, &planners) => {
                interfered.and_then(|()| monitor.drain()).context("the kernel's notices of changed rules")?;
                tracing::warn!("another program changed the rules of services; they are written anew");
                whole = true;
            }
            () = tokio::time::sleep(RETRY), if whole => {}
        }
    }
}

/// Waits until another program changed one of the tables, or may have.
async fn changed(monitor: &nft::Monitor, planners: &[Planner]) -> std::io::Result<()> {
    let ours = |family: Family| planners.iter().any(|planner| planner.family() == family);
    monitor
        .changed_any(|family, table| table == TABLE && ours(family))
        .await
}

/// What is written of a family's rules at once.
struct Batch {
    family: Family,
    ops: Vec<Op>,
    whole: bool,
    /// How long it took to know them.
    planned: Duration,
}

/// Each family's operations in one batch; all are tried.
async fn apply(batches: Vec<Batch>, told: Arc<Told>) -> anyhow::Result<usize> {
    let one = |batch: &Batch| match batch.whole {
        true => nft::exchange(batch.family, TABLE, &batch.ops),
        false => nft::apply(batch.family, TABLE, &batch.ops),
    };
    let work = move || write(&batches, &told, one);
    Ok(tokio::task::spawn_blocking(work)
        .await
        .context("the rule writer died")??)
}

/// What each took is its own time: a family doesn't wait for another in what is told.
fn write<E>(batches: &[Batch], told: &Told, apply: impl Fn(&Batch) -> Result<(), E>) -> Result<usize, E> {
    let (mut count, mut refused) = (0, Ok(()));
    for batch in batches {
        count += batch.ops.len();
        let began = Instant::now();
        let applied = apply(batch);
        if !batch.ops.is_empty() {
            let took = batch.planned + began.elapsed();
            told.synced(batch.family, batch.whole, took, applied.is_ok());
        }
        refused = refused.and(applied);
    }
    refused.map(|()| count)
}

/// Whether the kernel's table of flows agrees with what serves.
struct Flows {
    delete: fn(&Frontends) -> std::io::Result<usize>,
    frontends: Arc<RwLock<Frontends>>,
    warned: bool,
}

impl Flows {
    fn new(delete: fn(&Frontends) -> std::io::Result<usize>) -> Flows {
        Flows {
            delete,
            frontends: Arc::default(),
            warned: false,
        }
    }

    /// Ends the flows that the rules now in force would not have begun. A kernel that can't do this costs UDP clients their
    /// time-out, nothing else: said once, and tried again at the next change.
    async fn follow(&mut self, changed: bool) {
        if !changed {
            return;
        }
        let (frontends, delete) = (self.frontends.clone(), self.delete);
        let deleted = tokio::task::spawn_blocking(move || delete(&frontends.read())).await;
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

/// Sets what is wanted of the connection table.
async fn limit(config: &Config) {
    let (limits, note) = (config.limits.clone(), config.note.clone());
    let set = tokio::task::spawn_blocking(move || limits::apply(&limits, &limits::Real, note.as_deref()));
    for failed in set.await.unwrap_or_default() {
        tracing::warn!("the connection table stays as it is: {failed}");
    }
}

/// Removes the table: for `keelson uninstall`.
pub fn remove() -> anyhow::Result<()> {
    for family in [Family::Ip, Family::Ip6] {
        nft::remove(family, TABLE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn dns(serving: &str) -> Vec<model::ServicePort> {
        vec![model::ServicePort {
            protocol: conntrack::UDP,
            port: 53,
            serving: [(serving.parse().unwrap(), 53)].into(),
            ..model::ServicePort::at("kube-system/kube-dns/dns/udp", "10.96.0.10".parse().unwrap())
        }]
    }

    #[test]
    fn a_family_is_told_its_own_time() {
        let measures = keelson_measure::Measures::default();
        let told = Told::new(&measures);
        let batches = [(Family::Ip, 200), (Family::Ip6, 0)].map(|(family, planned)| Batch {
            family,
            ops: vec![Op::AddTable],
            whole: true,
            planned: Duration::from_millis(planned),
        });
        let written = write(&batches, &told, |batch| {
            if batch.family == Family::Ip {
                std::thread::sleep(Duration::from_millis(400));
            }
            Ok::<(), ()>(())
        });
        assert_eq!(written, Ok(2));
        let page = measures.page();
        let seconds = |family: &str| -> f64 {
            let line = format!("kubeproxy_sync_proxy_rules_duration_seconds_sum{{ip_family=\"{family}\"}} ");
            page.lines().find_map(|l| l.strip_prefix(&line)?.parse().ok()).unwrap()
        };
        assert!(seconds("IPv4") >= 0.6, "to know them and to write them");
        assert!(seconds("IPv6") < 0.3, "{}", seconds("IPv6"));
    }

    #[tokio::test]
    async fn a_kernel_without_a_table_of_flows_is_asked_once_a_change_and_nothing_fails() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let mut flows = Flows::new(|_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            Err(std::io::Error::from_raw_os_error(22))
        });
        let service = ObjectKey::new("kube-system", "kube-dns");
        for serving in ["10.244.0.5", "10.244.0.5", "10.244.0.6"] {
            let changed = flows.frontends.write().set(&service, &dns(serving));
            flows.follow(changed).await;
        }
        assert!(flows.warned);
        assert_eq!(ASKED.load(Ordering::SeqCst), 2);
    }
}
