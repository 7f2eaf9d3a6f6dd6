//! Cluster DNS: names of services, endpoints and pods, as the Kubernetes DNS specification 1.1 has them; every other
//! name is forwarded.
//!
//! [`zone`] holds the facts (a pure function of Services and EndpointSlices), [`answer`] makes a response from a query
//! and the facts, [`server`] moves bytes. [`publish`] makes the servers reachable at the cluster's DNS address: a Service
//! without selector whose EndpointSlice names every node's. The crate knows no pods, and of nodes where their server is.

pub mod answer;
mod forward;
pub mod publish;
mod server;
pub mod zone;

pub use forward::upstreams;

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::rest::Rest;
use keelson_client::{Informer, InformerOptions};
use parking_lot::RwLock;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use zone::Zone;

#[derive(Clone, Debug)]
pub struct Config {
    /// Where queries are answered (UDP and TCP).
    pub listen: SocketAddr,
    /// `cluster.local`
    pub domain: String,
    /// Names the servers for all other domains; read once, at start.
    pub resolv_conf: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 10053)),
            domain: "cluster.local".into(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}

/// Serves until `stop` fires, from a complete picture.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-dns");
    let services: Informer<Service> = Informer::start(&rest, InformerOptions::default(), &stop);
    let slices: Informer<EndpointSlice> = Informer::start(&rest, InformerOptions::default(), &stop);
    let sockets = server::Sockets::bind(config.listen)
        .await
        .with_context(|| format!("cluster DNS cannot listen on {}: is the port taken?", config.listen))?;
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { services.synced().await; slices.synced().await } => {}
    }
    let changed = Arc::new(Notify::new());
    let note = changed.clone();
    services.on_change(move |_| note.notify_one());
    let note = changed.clone();
    slices.on_change(move |_| note.notify_one());
    let read = || Zone::build(&config.domain, &services.store().list(), &slices.store().list());
    let zone = Arc::new(RwLock::new(Arc::new(read())));
    let upstreams = forward::upstreams(&config.resolv_conf, config.listen.ip());
    let serving = tokio::spawn(server::serve(sockets, zone.clone(), upstreams, stop.clone()));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = changed.notified() => {
                let next = Arc::new(read());
                *zone.write() = next;
            }
        }
    }
    serving.await.context("the DNS server died")?;
    Ok(())
}
