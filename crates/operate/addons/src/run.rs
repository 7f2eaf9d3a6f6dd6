//! Who does what: each server tells what its directories say; one of them, the leader, makes objects of it, and runs charts.
//!
//! Until any server has a file nothing is followed but the (absent) sources: a cluster without add-ons has one idle watch of them a server.

use crate::addon::DEFINITION;
use crate::helm;
use crate::source::publish::{Publisher, options};
use crate::{MANAGER, apply, definitions};
use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use keelson_client::leader::{Election, acquire};
use keelson_client::{Informer, Objects, Rest};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug)]
pub struct Config {
    /// This server's name.
    pub server: String,
    pub directories: Vec<PathBuf>,
    /// Who this one is among those of other servers; `None`: there are no others.
    pub leader_election: Option<String>,
    /// `None`: charts aren't run.
    pub helm: Option<helm::Config>,
}

/// Runs until `stop`. The client may do everything: files say anything.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, MANAGER);
    let told: Informer<Secret> = Informer::start(&rest, options(), &stop);
    let publisher = Publisher {
        server: config.server.clone(),
        directories: config.directories.clone(),
        secrets: Objects::new(&rest),
        told: told.clone(),
    };
    let end = stop.child_token();
    let (publishing, ends) = (publisher.run(&end), end.clone().drop_guard());
    let leading = lead_always(&rest, &config, &told, &end);
    tokio::pin!(publishing, leading);
    tokio::select! {
        () = &mut publishing => leading.await?,
        done = &mut leading => {
            drop(ends);
            publishing.await;
            done?;
        }
    }
    Ok(())
}

async fn lead_always(
    rest: &Rest,
    config: &Config,
    told: &Informer<Secret>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if !needed(rest, config, told, stop).await? {
        return Ok(());
    }
    let Some(identity) = &config.leader_election else {
        return lead(rest, config, told, stop).await;
    };
    while !stop.is_cancelled() {
        let Some(leading) = acquire(rest, Election::new(MANAGER, identity), stop).await else {
            break;
        };
        let done = lead(rest, config, told, leading.token()).await;
        leading.finish().await;
        done?;
    }
    Ok(())
}

/// Waits until there is anything to do; `false`: `stop` came first.
async fn needed(
    rest: &Rest,
    config: &Config,
    told: &Informer<Secret>,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let changed = Arc::new(Notify::new());
    let note = changed.clone();
    told.on_change(move |_| note.notify_one());
    tokio::select! {
        () = stop.cancelled() => return Ok(false),
        () = told.synced() => {}
    }
    // From before: objects of add-ons, or charts.
    let has_been = definitions::find(rest, DEFINITION).await?.is_some();
    let charts = config.helm.as_ref();
    let charts = match charts {
        Some(charts) => charts.always || helm::is_defined(rest).await?,
        None => false,
    };
    while !has_been && !charts && told.store().is_empty() {
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = changed.notified() => {}
        }
    }
    Ok(true)
}

async fn lead(rest: &Rest, config: &Config, told: &Informer<Secret>, stop: &CancellationToken) -> anyhow::Result<()> {
    let ours = definitions::write(rest, &definitions::addon())
        .await
        .context("the kind of add-ons")?;
    anyhow::ensure!(
        ours,
        "{DEFINITION} is there and isn't this program's: delete it, or label it {}={}",
        definitions::MANAGED_BY,
        definitions::US
    );
    // Its own for each term: who is told of changes ends with it.
    let sources: Informer<Secret> = Informer::start(rest, options(), stop);
    let applying = apply::run(rest, sources, stop);
    match &config.helm {
        None => applying.await,
        // Where one fails both begin anew: charts that nobody runs would be noticed by nobody.
        Some(charts) => tokio::try_join!(applying, helm::run(rest, charts, told, stop)).map(drop),
    }
}
