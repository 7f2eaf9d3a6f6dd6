//! Follows the file of a configuration: what changes in it is in force at once.
//!
//! A file that can't be read, isn't valid, or names a plug-in that isn't well leaves what is in force as it is; it is said once
//! for each change, and tried again.

use crate::config::{build, read};
use crate::keep::Sealing;
use anyhow::Context;
use notify::{RecursiveMode, Watcher};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Upstream looks so often; here only where the kernel doesn't tell (file systems of networks).
const EVERY: Duration = Duration::from_secs(60);
const EVERY_WHEN_REFUSED: Duration = Duration::from_secs(5);
/// Whoever writes a file in several goes may do so.
const SETTLING: Duration = Duration::from_millis(100);
/// How long plug-ins of a new configuration may take to be well.
const WELL_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn follow(sealing: &Sealing, file: &Path) {
    let changed = Arc::new(Notify::new());
    let watcher = watch(file, changed.clone());
    if let Err(error) = &watcher {
        tracing::warn!(%error, "changes of the encryption configuration are seen once a minute only");
    }
    let mut told = String::new();
    loop {
        let taken = take(sealing, file).await;
        let refused = taken.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
        if refused != told && !refused.is_empty() {
            tracing::error!(
                error = refused,
                "the encryption configuration can't be taken; the one before stays in force"
            );
        }
        match &taken {
            Ok(false) => {}
            taken => sealing.metrics.reloaded(taken.is_ok()),
        }
        told = refused;
        let pause = if taken.is_err() { EVERY_WHEN_REFUSED } else { EVERY };
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(SETTLING).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Tells whether there was anything new.
async fn take(sealing: &Sealing, file: &Path) -> anyhow::Result<bool> {
    let (config, hash) = read(file)?;
    if hash == sealing.sealed().rules().hash() {
        return Ok(false);
    }
    let rules = build(&config, hash.clone(), &sealing.metrics).await?;
    let well = async {
        while let Err(error) = rules.check().await {
            tracing::debug!(error, "a plug-in of the new configuration isn't well yet");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    if tokio::time::timeout(WELL_WITHIN, well).await.is_err() {
        let error = rules.check().await.err().unwrap_or_default();
        anyhow::bail!("health check for new transformers failed: {error}");
    }
    sealing.sealed().set(rules).await;
    sealing.metrics.config(&hash);
    tracing::info!(hash, "the encryption configuration has changed and is in force");
    Ok(true)
}

/// The directory is watched: files are replaced rather than written, and links are set to others.
fn watch(file: &Path, changed: Arc<Notify>) -> anyhow::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading it is an event too, and would be answered by reading.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed.notify_one();
        }
    })?;
    let directory = file.parent().context("a file stands in a directory")?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
