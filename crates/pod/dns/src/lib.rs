//! Cluster DNS: names of services, endpoints and pods, as the Kubernetes DNS specification 1.1 has them; every other
//! name is forwarded.
//!
//! [`zone`] holds the facts (a pure function of Services and EndpointSlices), [`answer`] makes a response from a query
//! and the facts, `outside` asks others for what is not ours and remembers it, [`resolv`] knows whom, `server` moves
//! bytes. [`publish`] makes the servers reachable at the cluster's DNS address: a Service without selector whose
//! EndpointSlice names every node's. The crate knows no pods, and of nodes only their addresses and where their server is.

pub mod answer;
mod cache;
mod outside;
pub mod publish;
pub mod resolv;
mod server;
mod told;
mod upstream;
pub mod zone;

use anyhow::Context;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::key::ObjectKey;
use keelson_client::kind::ApiObject;
use keelson_client::rest::Rest;
use keelson_client::{Informer, InformerOptions, Telling};
use outside::Outside;
use parking_lot::{Mutex, RwLock};
use server::Shared;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use told::Told;
use zone::Zone;

#[derive(Clone, Debug)]
pub struct Config {
    /// Where queries are answered (UDP and TCP): one address a family.
    pub listen: Vec<SocketAddr>,
    /// `cluster.local`
    pub domain: String,
    /// Names the servers for all other domains; followed when it changes.
    pub resolv_conf: PathBuf,
    /// Ranges of pods, which are answered; so are the cluster's nodes, and nobody else.
    pub clients: Vec<IpNet>,
    /// Set once names are known and queries are answered.
    pub ready: Arc<AtomicBool>,
    /// Where queries and requests are counted.
    pub telling: Telling,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 10053))],
            domain: "cluster.local".into(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            clients: Vec::new(),
            ready: Arc::default(),
            telling: Telling::default(),
        }
    }
}

/// The index of slices by the service that they are of.
const BY_SERVICE: &str = "service";

/// Serves until `stop` fires.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-dns").telling(&config.telling);
    let services: Informer<Service> = Informer::start(&rest, InformerOptions::default(), &stop);
    let slices: Informer<EndpointSlice> = Informer::start(&rest, InformerOptions::default(), &stop);
    let nodes: Informer<Node> = Informer::start(&rest, InformerOptions::default(), &stop);
    slices.store().add_index(BY_SERVICE, |slice| {
        service_of(slice)
            .map(|key| format!("{}/{}", key.namespace, key.name))
            .into_iter()
            .collect()
    });
    let mut sockets = Vec::new();
    for at in &config.listen {
        let bound = server::Sockets::bind(*at).await;
        sockets.push(bound.with_context(|| format!("cluster DNS cannot listen on {at}: is the port taken?"))?);
    }
    let measures = &config.telling.measures;
    let shared = Arc::new(Shared {
        outside: Outside::telling(Arc::new(Told::new(measures))),
        zone: RwLock::new(Zone::empty(&config.domain)),
        clients: server::Clients {
            ranges: config.clients.clone(),
            nodes: RwLock::new(config.listen.iter().map(SocketAddr::ip).collect()),
        },
    });
    let counted = Arc::downgrade(&shared);
    let servers: Vec<String> = config.listen.iter().map(|at| server::called(*at)).collect();
    measures.before(move || {
        let Some(shared) = counted.upgrade() else { return false };
        shared.outside.count(&servers);
        true
    });
    let pending = Pending::default();
    pending.follow(&services, |service| Some(ObjectKey::of(&service.metadata)));
    pending.follow(&slices, service_of);
    let node_changed = Arc::new(Notify::new());
    let note = node_changed.clone();
    nodes.on_change(move |change| {
        let addresses = |node: &Node| node.status.as_ref().and_then(|s| s.addresses.clone());
        if change.is_deleted()
            || change
                .old()
                .is_none_or(|old| addresses(old) != addresses(change.object()))
        {
            note.notify_one();
        }
    });
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { services.synced().await; slices.synced().await; nodes.synced().await } => {}
    }
    let mut resolv = resolv::watch(&config.resolv_conf).inspect_err(unseen).ok();
    let take_in = || pending.take_in(&shared.zone, &services, &slices);
    let take_nodes = || {
        let mut known: BTreeSet<IpAddr> = nodes.store().list().iter().flat_map(|n| node_addresses(n)).collect();
        known.extend(config.listen.iter().map(SocketAddr::ip));
        *shared.clients.nodes.write() = known;
    };
    let take_servers = || {
        let file = resolv::real(&config.resolv_conf);
        let servers = upstreams(&file, &config.listen);
        if servers.is_empty() {
            tracing::warn!(file = %file.display(), "no name server there: names outside the cluster can't be resolved");
        }
        shared.outside.follow(&servers);
    };
    take_in();
    take_nodes();
    take_servers();
    config.ready.store(true, Ordering::Release);
    let mut serving = tokio::task::JoinSet::new();
    for sockets in sockets {
        serving.spawn(server::serve(sockets, shared.clone(), stop.clone()));
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = pending.changed.notified() => take_in(),
            () = node_changed.notified() => take_nodes(),
            changed = async { resolv.as_mut()?.changed().await.inspect_err(unseen).ok() }, if resolv.is_some() => {
                take_servers();
                if changed.is_none() {
                    resolv = None;
                }
            }
        }
    }
    config.ready.store(false, Ordering::Release);
    while let Some(served) = serving.join_next().await {
        served.context("the DNS server died")?;
    }
    Ok(())
}

fn unseen(error: &std::io::Error) {
    tracing::warn!("changes of resolv.conf will be seen at the next start only: {error}");
}

/// Where outside names are asked for. Only our own sockets would be a loop: another server on this address is as good as any.
fn upstreams(resolv_conf: &Path, listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let servers = resolv::servers(resolv_conf)
        .into_iter()
        .map(|ip| SocketAddr::new(ip, 53));
    servers.filter(|s| !listen.contains(s)).collect()
}

fn node_addresses(node: &Node) -> Vec<IpAddr> {
    let listed = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    listed.filter_map(|a| a.address.parse().ok()).collect()
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(zone::SERVICE_NAME)?;
    Some(ObjectKey::new(
        slice.metadata.namespace.as_deref().unwrap_or_default(),
        name,
    ))
}

/// Services whose names may have changed. Bounded by the number of services.
#[derive(Default)]
struct Pending {
    keys: Arc<Mutex<BTreeSet<ObjectKey>>>,
    changed: Arc<Notify>,
}

impl Pending {
    fn follow<K: ApiObject>(&self, informer: &Informer<K>, service: fn(&K) -> Option<ObjectKey>) {
        let (keys, changed) = (self.keys.clone(), self.changed.clone());
        informer.on_change(move |change| {
            // A slice may have been another service's before.
            let old = change.old().and_then(|old| service(old));
            keys.lock().extend(old.into_iter().chain(service(change.object())));
            changed.notify_one();
        });
    }

    fn take_in(&self, zone: &RwLock<Zone>, services: &Informer<Service>, slices: &Informer<EndpointSlice>) {
        let keys = std::mem::take(&mut *self.keys.lock());
        for key in keys {
            let service = services.store().get_key(&key);
            let slices = slices
                .store()
                .by_index(BY_SERVICE, &format!("{}/{}", key.namespace, key.name));
            let slices: Vec<&EndpointSlice> = slices.iter().map(Arc::as_ref).collect();
            // Held for one service at a time: queries come between.
            zone.write().set(&key.namespace, &key.name, service.as_deref(), &slices);
        }
    }
}
