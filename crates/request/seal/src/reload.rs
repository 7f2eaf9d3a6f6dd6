//! Follows the file of a configuration: what changes in it is in force at once.
//!
//! A file that can't be read, isn't valid, or names a plug-in that isn't well leaves what is in force as it is; it is said once
//! for each change, and tried again.

use crate::config::{LONGEST, build, parse};
use crate::keep::Sealing;
use keelson_follow::Contents;
use std::path::Path;
use std::time::Duration;

const AGAIN_WHEN_REFUSED: Duration = Duration::from_secs(5);
/// How long plug-ins of a new configuration may take to be well.
const WELL_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn follow(sealing: &Sealing, file: &Path) {
    let mut contents = Contents::of([file.to_path_buf()], LONGEST);
    let mut told = String::new();
    loop {
        let taken = match contents.changed().await {
            Ok(found) => take(sealing, file, &found.concat()).await,
            Err(error) => Err(error.into()),
        };
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
        if taken.is_err() {
            contents.again(AGAIN_WHEN_REFUSED);
        }
        told = refused;
    }
}

/// Tells whether there was anything new.
async fn take(sealing: &Sealing, file: &Path, content: &[u8]) -> anyhow::Result<bool> {
    let (config, hash) = parse(file, content)?;
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
