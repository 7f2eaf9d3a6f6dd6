//! Helm charts as objects, as k3s has them: a job runs helm in k3s' own image, with what that image is told there.
//!
//! Nothing runs before somebody wants it: until a file of add-ons says a chart, or the kinds were defined before, or it is asked for.

pub mod chart;
mod controller;
mod definitions;
pub mod job;
pub mod plan;
pub mod release;
pub mod trouble;

pub use chart::{ChartCondition, HelmChart, HelmChartConfig};
pub use definitions::{charts as chart_definition, configs as config_definition};

use crate::definitions::{find, is_ours, write};
use crate::source::Source;
use chart::{CHARTS, GROUP};
use k8s_openapi::api::core::v1::Secret;
use keelson_client::{Informer, Rest};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The newest of k3s' images that is known here.
pub const IMAGE: &str = "rancher/klipper-helm:v0.13.3-build20260727";

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// From the start, and not only when a file says a chart.
    pub always: bool,
    pub settings: job::Settings,
}

/// After what the API refused.
const AGAIN: Duration = Duration::from_secs(10);

/// Whether the kinds are there, and ours.
pub async fn is_defined(rest: &Rest) -> anyhow::Result<bool> {
    Ok(find(rest, CHARTS).await?.is_some_and(|found| is_ours(&found)))
}

/// Runs charts until `stop`, from when anybody wants it.
pub async fn run(
    rest: &Rest,
    config: &Config,
    told: &Informer<Secret>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let wanted = config.always || is_defined(rest).await?;
    if !wanted && !somebody_says_one(told, stop).await {
        return Ok(());
    }
    loop {
        match define(rest).await {
            Ok(true) => break,
            Ok(false) => {
                tracing::warn!("the kinds of Helm charts are somebody else's, and so are charts: none is run here");
                stop.cancelled().await;
                return Ok(());
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "the kinds of Helm charts can't be written; will retry"
            ),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
    controller::run(rest, config.settings.clone(), stop).await;
    Ok(())
}

/// `false`: they are somebody else's.
async fn define(rest: &Rest) -> anyhow::Result<bool> {
    for definition in [definitions::charts(), definitions::configs()] {
        if !write(rest, &definition).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `false`: `stop` came first.
async fn somebody_says_one(told: &Informer<Secret>, stop: &CancellationToken) -> bool {
    let changed = Arc::new(Notify::new());
    let note = changed.clone();
    told.on_change(move |_| note.notify_one());
    // Of what there was when it was looked last.
    let mut seen: BTreeSet<String> = BTreeSet::new();
    loop {
        let mut now = BTreeSet::new();
        for source in told.store().list().iter().filter_map(|s| Source::of(s)) {
            if now.insert(source.hash.clone()) && !seen.contains(&source.hash) && says_one(&source) {
                return true;
            }
        }
        seen = now;
        tokio::select! {
            () = stop.cancelled() => return false,
            () = changed.notified() => {}
        }
    }
}

fn says_one(source: &Source) -> bool {
    let text = source
        .content
        .text()
        .ok()
        .filter(|text| contains(text, GROUP.as_bytes()));
    let manifests = text.and_then(|text| crate::manifest::read(&text).ok());
    manifests.is_some_and(|all| all.iter().any(|m| m.group() == GROUP))
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part == word)
}
