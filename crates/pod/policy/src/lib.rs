//! NetworkPolicy and ClusterNetworkPolicy on one node: policies, pods and namespaces become nftables rules that every packet between a pod's link
//! and the world passes.
//!
//! [`judge`] says of one connection what the rules do with it. [`facts`] reads API objects, [`plan`] keeps the rules as plain data and says what a change costs, [`run`] applies it in
//! one atomic batch. Until that has happened for a pod it is closed: [`close`] puts up the table before the first pod's
//! link can stand, and rules stay when this component ends. Pods of this node are known from the network itself
//! ([`LocalPods`]), so that a pod's rules are in force before its first packet, not when the API has its address.
//!
//! The judgement is upstream's: pods of the host's network are their node; a node always reaches its own pods (that never
//! passes the hook), and pods always reach the node that they run on.
//!
//! The crate knows no services: their addresses have been translated before packets come here.

pub mod cluster;
pub mod denied;
pub mod facts;
pub mod judge;
pub mod plan;
mod ranges;
mod sources;
mod told;

pub use told::Told;

use anyhow::Context;
use denied::Denied;
use k8s_openapi::api::core::v1 as core;
use keelson_client::key::ObjectKey;
use keelson_client::rest::Rest;
use keelson_network::{LocalPod, LocalPods};
use keelson_sys::nft::{self, Family, Monitor, Op};
use plan::{Planner, PodKey};
use sources::Sources;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The table that this component owns, in each family of the cluster.
pub const TABLE: &str = "keelson-policy";

/// Longest wait before a refused batch is tried again as a whole.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
pub struct Config {
    pub node_name: String,
    /// Those that pods have addresses of.
    pub families: Vec<Family>,
    /// Where it is known what counters stand for.
    pub told: Told,
}

/// Puts up the closed tables of these families unless they stand already: those have rules of pods that live.
pub fn close(families: impl IntoIterator<Item = Family>) -> anyhow::Result<()> {
    let chains = nft::chains().context("reading the machine's chains")?;
    for family in families {
        if !chains.iter().any(|c| c.family == family && c.table == TABLE) {
            let closed = nft::replace(&plan::closed(family));
            nft::apply(family, TABLE, &closed).context("the table of network policies")?;
        }
    }
    Ok(())
}

/// Removes the table: for `keelson uninstall`.
pub fn remove() -> anyhow::Result<()> {
    for family in [Family::Ip, Family::Ip6] {
        nft::remove(family, TABLE)?;
    }
    Ok(())
}

/// Keeps the rules in step with the API and the node's pods until `stop` fires.
pub async fn run(
    client: kube::Client,
    config: Config,
    local: Arc<LocalPods>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-policy");
    let mut sources = Sources::start(&rest, &stop);
    let monitor = Monitor::open().context("the kernel's notices of changed rules")?;
    let mut here = local.follow();
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = sources.synced() => {}
    }
    let mut planners: Vec<Planner> = config.families.iter().map(|f| Planner::new(*f)).collect();
    let mut known: BTreeMap<String, LocalPod> = BTreeMap::new();
    let mut denied = Denied::default();
    let mut whole = true;
    if !read_cluster(&mut sources, &stop).await {
        return Ok(());
    }
    loop {
        let settled = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            read = sources.follow_cluster() => read,
        };
        let now = here.borrow_and_update().clone();
        take_in(&mut planners, &mut denied, &sources, &config, &known, &now);
        known = now;
        config.told.know(&mut planners);
        let take = |planner: &mut Planner| {
            let ops = match whole {
                true => planner.take_whole(),
                false => planner.take(),
            };
            (planner.family(), ops)
        };
        let retry = match apply(planners.iter_mut().map(take).collect(), whole).await {
            Ok(0) => false,
            Ok(operations) => {
                let policies = planners.iter().map(Planner::policies).max();
                tracing::debug!(operations, policies, "network policies applied");
                false
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "network policies were refused; replacing the whole table"
                );
                true
            }
        };
        whole = retry;
        if !retry {
            let is_open = |ip: IpAddr| planners.iter().any(|p| p.family() == Family::of(ip) && p.is_open(ip));
            let open = known.values().filter(|p| p.addresses().all(is_open));
            local.judged(open.map(|p| p.sandbox.clone()).collect());
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sources.changed.notified() => {}
                changed = here.changed() => changed.context("the pod network is gone")?,
                changed = monitor.changed_any(|family, table| table == TABLE && config.families.contains(&family)) => {
                    changed.and_then(|()| monitor.drain()).context("the kernel's notices of changed rules")?;
                    tracing::warn!("another program changed the rules of network policies; they are written anew");
                    whole = true;
                }
                () = tokio::time::sleep(RETRY), if retry || !settled => {}
                packets = denied.next() => {
                    denied.write(&packets, &mut planners);
                    continue;
                }
            }
            break;
        }
    }
}

/// Waits until it is known what the cluster's own policies say: until then pods are closed. `false`: it was stopped.
async fn read_cluster(sources: &mut Sources, stop: &CancellationToken) -> bool {
    loop {
        tokio::select! {
            () = stop.cancelled() => return false,
            read = sources.follow_cluster() => if read || sources.is_unserved() {
                return true;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Tells the planners, one a family, all that is new.
fn take_in(
    planners: &mut [Planner],
    denied: &mut Denied,
    sources: &Sources,
    config: &Config,
    before: &BTreeMap<String, LocalPod>,
    now: &BTreeMap<String, LocalPod>,
) {
    let mut pending = std::mem::take(&mut *sources.pending.lock());
    for pod in before.values().chain(now.values()) {
        if before.get(&pod.sandbox) != now.get(&pod.sandbox) {
            pending.pods.insert(ObjectKey::new(&pod.namespace, &pod.name));
        }
    }
    for name in pending.namespaces {
        let namespace = sources.namespaces.store().get("", &name);
        let labels = namespace
            .as_ref()
            .map(|n| n.metadata.labels.clone().unwrap_or_default());
        planners.iter_mut().for_each(|p| p.set_namespace(&name, labels.clone()));
        let asked = namespace.is_some_and(|n| denied::is_asked(n.metadata.annotations.as_ref()));
        let logged = denied.ask((name.clone(), String::new()), asked);
        planners.iter_mut().for_each(|p| p.set_logged(&name, logged));
    }
    for name in pending.nodes {
        let node = sources.nodes.store().get("", &name).map(|n| cluster::node(&n));
        planners.iter_mut().for_each(|p| p.set_node(&name, node.clone()));
    }
    for name in pending.cluster {
        let mut facts = sources.cluster_policy(&name).and_then(|p| cluster::policy(&p));
        let logged = denied.ask((String::new(), name.clone()), facts.as_ref().is_some_and(|f| f.logged));
        facts.iter_mut().for_each(|f| f.logged = logged);
        planners
            .iter_mut()
            .for_each(|p| p.set_cluster_policy(&name, facts.clone()));
    }
    for key in pending.policies {
        let policy = sources.policies.store().get_key(&key);
        let (key, facts) = ((key.namespace, key.name), policy.and_then(|p| facts::policy(&p)));
        planners
            .iter_mut()
            .for_each(|p| p.set_policy(key.clone(), facts.clone()));
    }
    let mut by_name: BTreeMap<(&str, &str), Vec<&LocalPod>> = BTreeMap::new();
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for pod in now.values() {
        by_name.entry((&pod.namespace, &pod.name)).or_default().push(pod);
        taken.extend(pod.addresses());
    }
    for key in pending.pods {
        let here = by_name.get(&(key.namespace.as_str(), key.name.as_str()));
        let here = here.map(Vec::as_slice).unwrap_or_default();
        let wanted = pod_facts(
            sources.pods.store().get_key(&key).as_deref(),
            here,
            &key,
            config,
            &taken,
        );
        for planner in planners.iter_mut() {
            for gone in planner.pod_keys(&key.namespace, &key.name) {
                if !wanted.contains_key(&gone) {
                    planner.set_pod(gone, None);
                }
            }
            for (key, pod) in &wanted {
                planner.set_pod(key.clone(), Some(pod.clone()));
            }
        }
    }
}

/// The pod that the API knows by this name, and the sandboxes here that are not its.
fn pod_facts(
    api: Option<&core::Pod>,
    here: &[&LocalPod],
    key: &ObjectKey,
    config: &Config,
    taken: &BTreeSet<IpAddr>,
) -> BTreeMap<PodKey, facts::Pod> {
    let (own, strange): (Vec<&LocalPod>, Vec<&LocalPod>) = here
        .iter()
        .copied()
        .partition(|local| api.is_some_and(|pod| facts::is_of(local, pod)));
    let mut found = BTreeMap::new();
    let pod = api.and_then(|pod| facts::pod(pod, &own, &config.node_name, |ip| taken.contains(&ip)));
    if let Some(pod) = pod {
        found.insert((key.namespace.clone(), key.name.clone(), String::new()), pod);
    }
    for local in strange {
        let pod = facts::Pod {
            namespace: key.namespace.clone(),
            labels: None,
            addresses: local.addresses().collect(),
            ports: Vec::new(),
            local: true,
        };
        found.insert((key.namespace.clone(), key.name.clone(), local.sandbox.clone()), pod);
    }
    found
}

/// Each family's operations in one batch; all are tried.
async fn apply(batches: Vec<(Family, Vec<Op>)>, whole: bool) -> anyhow::Result<usize> {
    let work = move || {
        let (mut count, mut refused) = (0, Ok(()));
        for (family, ops) in &batches {
            count += ops.len();
            refused = refused.and(match whole {
                true => nft::exchange(*family, TABLE, ops),
                false => nft::apply(*family, TABLE, ops),
            });
        }
        refused.map(|()| count)
    };
    Ok(tokio::task::spawn_blocking(work)
        .await
        .context("the rule writer died")??)
}
