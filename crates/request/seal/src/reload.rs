//! Follows the file of a configuration: what changes in it is in force within a few seconds.
//!
//! A file that can't be read, or isn't valid, leaves what is in force as it is; it is said once for each change.

use crate::config::{build, read};
use crate::reseal::Tally;
use crate::sealed::Sealed;
use keelson_store::KeyRange;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Upstream looks once a minute; a rotation that somebody waits for should not take so long.
const EVERY: Duration = Duration::from_secs(5);
/// A pass that failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// What is written beside the file of our own: how far the last pass came.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Of the file it is about.
    pub hash: String,
    pub writes_by: String,
    pub current: u64,
    pub rewritten: u64,
    pub unreadable: u64,
}

pub fn report_path(config: &Path) -> PathBuf {
    config.with_file_name("status.yaml")
}

/// What to do besides following the file.
#[derive(Clone)]
pub enum Then {
    /// The user's configuration: when to write anew what is stored is the user's to say, as with upstream.
    Nothing,
    /// Our own: writes anew what these ranges hold, and reports.
    Reseal(Vec<KeyRange>),
}

/// Until `stop`.
pub async fn follow(sealed: Arc<Sealed>, file: PathBuf, reload: bool, then: Then, stop: CancellationToken) {
    let mut told = String::new();
    let mut done = None;
    loop {
        if reload && let Err(error) = take(&sealed, &file).await {
            let text = format!("{error:#}");
            if text != told {
                tracing::error!(
                    error = text,
                    "the encryption configuration can't be taken; the one before stays in force"
                );
                told = text;
            }
        }
        let mut pause = EVERY;
        let hash = sealed.rules().hash().to_owned();
        if let Then::Reseal(ranges) = &then
            && done.as_ref() != Some(&hash)
        {
            match pass(&sealed, &file, ranges, &hash).await {
                Ok(()) => done = Some(hash),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "what is stored couldn't be sealed anew; trying again"
                    );
                    pause = AGAIN;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn take(sealed: &Sealed, file: &Path) -> anyhow::Result<()> {
    let (config, hash) = read(file)?;
    if hash == sealed.rules().hash() {
        return Ok(());
    }
    let rules = build(&config, hash.clone())?;
    sealed.set(rules);
    tracing::info!(hash, "the encryption configuration has changed and is in force");
    Ok(())
}

async fn pass(sealed: &Sealed, file: &Path, ranges: &[KeyRange], hash: &str) -> anyhow::Result<()> {
    let Tally {
        current,
        rewritten,
        unreadable,
    } = sealed.reseal(ranges).await?;
    if rewritten + unreadable > 0 {
        tracing::info!(current, rewritten, unreadable, "what is stored was sealed anew");
    }
    let report = Report {
        hash: hash.into(),
        writes_by: sealed.writes_by("secrets"),
        current,
        rewritten,
        unreadable,
    };
    let path = report_path(file);
    let fresh = path.with_extension("fresh");
    tokio::fs::write(&fresh, serde_saphyr::to_string(&report)?).await?;
    tokio::fs::rename(&fresh, &path).await?;
    Ok(())
}
