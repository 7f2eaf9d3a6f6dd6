//! NetworkPolicy on one node: policies, pods and namespaces become nftables rules that every packet between a pod's link
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

pub mod facts;
pub mod judge;
pub mod plan;
mod ranges;

use anyhow::Context;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use keelson_client::key::ObjectKey;
use keelson_client::kind::ApiObject;
use keelson_client::rest::Rest;
use keelson_client::{Change, Informer, InformerOptions};
use keelson_network::{LocalPod, LocalPods};
use keelson_sys::nft::{self, Family, Monitor, Op};
use parking_lot::Mutex;
use plan::{Planner, PodKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The table that this component owns.
pub const TABLE: &str = "keelson-policy";

/// Longest wait before a refused batch is tried again as a whole.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub struct Config {
    pub node_name: String,
}

/// Puts up the closed table unless one stands already: that one has rules of pods that live.
pub fn close() -> anyhow::Result<()> {
    let ours = |c: &nft::FoundChain| c.family == Family::Ip && c.table == TABLE;
    if nft::chains().context("reading the machine's chains")?.iter().any(ours) {
        return Ok(());
    }
    nft::apply(Family::Ip, TABLE, &nft::replace(&plan::closed(Family::Ip))).context("the table of network policies")
}

/// Removes the table: for `keelson uninstall`.
pub fn remove() -> anyhow::Result<()> {
    nft::apply(Family::Ip, TABLE, &[Op::AddTable, Op::DeleteTable])?;
    Ok(())
}

/// What changed and is yet to be looked at. Bounded by the number of objects.
#[derive(Default)]
struct Pending {
    pods: BTreeSet<ObjectKey>,
    namespaces: BTreeSet<String>,
    policies: BTreeSet<ObjectKey>,
}

struct Sources {
    pods: Informer<core::Pod>,
    namespaces: Informer<core::Namespace>,
    policies: Informer<NetworkPolicy>,
    pending: Arc<Mutex<Pending>>,
    changed: Arc<Notify>,
}

impl Sources {
    fn start(rest: &Rest, stop: &CancellationToken) -> Sources {
        let options = InformerOptions {
            transform: facts::strip,
            ..InformerOptions::default()
        };
        let sources = Sources {
            pods: Informer::start(rest, options, stop),
            namespaces: Informer::start(rest, InformerOptions::default(), stop),
            policies: Informer::start(rest, InformerOptions::default(), stop),
            pending: Arc::default(),
            changed: Arc::default(),
        };
        sources.note(&sources.pods, |pending, key| pending.pods.insert(key));
        sources.note(&sources.namespaces, |pending, key| pending.namespaces.insert(key.name));
        sources.note(&sources.policies, |pending, key| pending.policies.insert(key));
        sources
    }

    fn note<K: ApiObject>(&self, informer: &Informer<K>, note: fn(&mut Pending, ObjectKey) -> bool) {
        let (pending, changed) = (self.pending.clone(), self.changed.clone());
        informer.on_change(move |change: &Change<K>| {
            note(&mut pending.lock(), ObjectKey::of(change.object().meta()));
            changed.notify_one();
        });
    }

    async fn synced(&self) {
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.policies.synced().await;
    }
}

/// Keeps the rules in step with the API and the node's pods until `stop` fires.
pub async fn run(
    client: kube::Client,
    config: Config,
    local: Arc<LocalPods>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-policy");
    let sources = Sources::start(&rest, &stop);
    let monitor = Monitor::open().context("the kernel's notices of changed rules")?;
    let mut here = local.follow();
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = sources.synced() => {}
    }
    let mut planner = Planner::new(Family::Ip);
    let mut known: BTreeMap<String, LocalPod> = BTreeMap::new();
    let mut whole = true;
    loop {
        let now = here.borrow_and_update().clone();
        take_in(&mut planner, &sources, &config, &known, &now);
        known = now;
        let ops = match whole {
            true => planner.take_whole(),
            false => planner.take(),
        };
        let retry = match apply(ops).await {
            Ok(0) => false,
            Ok(operations) => {
                tracing::debug!(operations, policies = planner.policies(), "network policies applied");
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
            let open = known.values().filter(|p| planner.is_open(p.address));
            local.judged(open.map(|p| p.sandbox.clone()).collect());
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sources.changed.notified() => {}
            changed = here.changed() => changed.context("the pod network is gone")?,
            changed = monitor.changed(Family::Ip, TABLE) => {
                changed.and_then(|()| monitor.drain()).context("the kernel's notices of changed rules")?;
                tracing::warn!("another program changed the rules of network policies; they are written anew");
                whole = true;
            }
            () = tokio::time::sleep(RETRY), if retry => {}
        }
    }
}

/// Tells the planner all that is new.
fn take_in(
    planner: &mut Planner,
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
        planner.set_namespace(&name, namespace.map(|n| n.metadata.labels.clone().unwrap_or_default()));
    }
    for key in pending.policies {
        let policy = sources.policies.store().get_key(&key);
        planner.set_policy((key.namespace, key.name), policy.and_then(|p| facts::policy(&p)));
    }
    let mut by_name: BTreeMap<(&str, &str), Vec<&LocalPod>> = BTreeMap::new();
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for pod in now.values() {
        by_name.entry((&pod.namespace, &pod.name)).or_default().push(pod);
        taken.insert(pod.address);
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
        for gone in planner.pod_keys(&key.namespace, &key.name) {
            if !wanted.contains_key(&gone) {
                planner.set_pod(gone, None);
            }
        }
        for (key, pod) in wanted {
            planner.set_pod(key, Some(pod));
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
            addresses: vec![local.address],
            ports: Vec::new(),
            local: true,
        };
        found.insert((key.namespace.clone(), key.name.clone(), local.sandbox.clone()), pod);
    }
    found
}

async fn apply(ops: Vec<Op>) -> anyhow::Result<usize> {
    let count = ops.len();
    tokio::task::spawn_blocking(move || nft::apply(Family::Ip, TABLE, &ops))
        .await
        .context("the rule writer died")??;
    Ok(count)
}
