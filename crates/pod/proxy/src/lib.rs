//! The service proxy of one node: Services and EndpointSlices become nftables rules.
//!
//! [`model`] reads API objects into plain facts, [`rules`] turns facts into a [`rules::Ruleset`] of plain data, [`delta`]
//! finds the operations that lead from one rule set to the next, and [`run`] applies them in one atomic batch whenever
//! something changed. The first batch replaces the whole table, so a restart needs no knowledge of the past and leaves
//! no moment without rules.
//!
//! The crate knows nothing of pods, of how they are linked, or of nodes other than its own.

pub mod delta;
pub mod model;
pub mod names;
pub mod rules;

use anyhow::Context;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::rest::Rest;
use keelson_client::{Informer, InformerOptions};
use keelson_sys::nft::{Family, Op};
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
    let mut applied: Option<rules::Ruleset> = None;
    loop {
        let facts = model::read(&services.store().list(), &slices.store().list(), &config.node_name);
        let wanted = rules::build(&facts, config.cluster_cidr);
        let ops = match &applied {
            Some(old) => delta::between(old, &wanted),
            None => delta::replace(&wanted),
        };
        let retry = match apply(ops).await {
            Ok(count) => {
                if count > 0 {
                    tracing::debug!(operations = count, services = facts.len(), "service rules applied");
                }
                applied = Some(wanted);
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
            () = tokio::time::sleep(RETRY), if retry => {}
        }
    }
}

async fn apply(ops: Vec<Op>) -> anyhow::Result<usize> {
    let count = ops.len();
    tokio::task::spawn_blocking(move || keelson_sys::nft::apply(Family::Ip, TABLE, &ops))
        .await
        .context("the rule writer died")??;
    Ok(count)
}

/// Removes the table: for `keelson uninstall`.
pub fn remove() -> anyhow::Result<()> {
    keelson_sys::nft::apply(Family::Ip, TABLE, &[Op::AddTable, Op::DeleteTable])?;
    Ok(())
}
