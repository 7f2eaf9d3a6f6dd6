//! How much history a server keeps, and a node of its pods' logs.

use crate::config::fill;
use crate::store::duration;
use anyhow::ensure;
use clap::Args;
use keelson_kubelet::Attic;
use keelson_past::Keep;
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

const AGE: Duration = Duration::from_secs(24 * 60 * 60);
const MEGABYTES: u64 = 256;
const LOG_MEGABYTES: u64 = 128;
/// What is noted is on disk after a quarter of the interval; less than this, and a server that starts again would find its store's past gone.
const LEAST_INTERVAL: Duration = Duration::from_secs(20);

/// The server's options.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Kept {
    /// How long it is kept what objects were, and who changed them; 0: it isn't [default: 24h]
    #[arg(long, env = "KEELSON_HISTORY_AGE", value_name = "DURATION")]
    pub history_age: Option<String>,
    /// Megabytes that this may take in DATA_DIR/history; the oldest goes first [default: 256]
    #[arg(long, env = "KEELSON_HISTORY_SIZE", value_name = "N")]
    pub history_size: Option<u64>,
}

impl Kept {
    /// Takes over from another list what this one leaves open.
    pub fn fill(&mut self, other: Kept) {
        fill!(self from other: history_age, history_size);
    }

    /// `None`: nothing is kept. `compaction`: how often this server gives the store's past up, if it does.
    pub fn resolve(&self, compaction: Option<Duration>) -> anyhow::Result<Option<Keep>> {
        let age = duration("--history-age", self.history_age.as_deref())?.unwrap_or(AGE);
        if age.is_zero() {
            ensure!(
                self.history_size.is_none(),
                "--history-size says how much is kept, and --history-age 0 that nothing is: leave one out"
            );
            return Ok(None);
        }
        let megabytes = self.history_size.unwrap_or(MEGABYTES);
        ensure!(
            megabytes > 0,
            "--history-size 0: a history that may take nothing holds nothing; --history-age 0 keeps none"
        );
        ensure!(
            compaction.is_none_or(|interval| interval >= LEAST_INTERVAL),
            "--etcd-compaction-interval: history follows the store, which has to keep its past for {LEAST_INTERVAL:?} at least; --history-age 0 keeps none"
        );
        Ok(Some(Keep {
            age,
            bytes: megabytes.saturating_mul(1 << 20),
        }))
    }
}

/// A node's options.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Logs {
    /// How long logs of deleted pods are kept on this node; 0: they go with their pods [default: 24h]
    #[arg(long, env = "KEELSON_HISTORY_LOG_AGE", value_name = "DURATION")]
    pub history_log_age: Option<String>,
    /// Megabytes that these may take in DATA_DIR/logs/deleted; the oldest go first, and all when the disk is full [default: 128]
    #[arg(long, env = "KEELSON_HISTORY_LOG_SIZE", value_name = "N")]
    pub history_log_size: Option<u64>,
}

impl Logs {
    /// Takes over from another list what this one leaves open.
    pub fn fill(&mut self, other: Logs) {
        fill!(self from other: history_log_age, history_log_size);
    }

    /// `None`: none are kept.
    pub fn resolve(&self, data_dir: &Path) -> anyhow::Result<Option<Attic>> {
        let age = duration("--history-log-age", self.history_log_age.as_deref())?.unwrap_or(AGE);
        let megabytes = self.history_log_size.unwrap_or(LOG_MEGABYTES);
        if age.is_zero() {
            ensure!(
                self.history_log_size.is_none(),
                "--history-log-size says how much is kept, and --history-log-age 0 that nothing is: leave one out"
            );
            return Ok(None);
        }
        ensure!(
            megabytes > 0,
            "--history-log-size 0: logs that may take nothing aren't kept; --history-log-age 0 says so"
        );
        Ok(Some(Attic {
            directory: data_dir.join("logs/deleted"),
            age,
            bytes: megabytes.saturating_mul(1 << 20),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_kept_is_refused() {
        let kept = |age: Option<&str>, size| Kept {
            history_age: age.map(Into::into),
            history_size: size,
        };
        let resolve = |kept: Kept| kept.resolve(Some(Duration::from_secs(300)));
        let keep = resolve(kept(None, None)).unwrap().unwrap();
        assert_eq!((keep.age, keep.bytes), (AGE, 256 << 20));
        let keep = resolve(kept(Some("2h"), Some(10))).unwrap().unwrap();
        assert_eq!((keep.age, keep.bytes), (Duration::from_secs(7200), 10 << 20));
        assert_eq!(resolve(kept(Some("0"), None)).unwrap(), None);
        for wrong in [kept(Some("0"), Some(10)), kept(None, Some(0)), kept(Some("soon"), None)] {
            assert!(resolve(wrong).is_err());
        }
        assert!(kept(None, None).resolve(Some(Duration::from_secs(5))).is_err());
        assert!(kept(Some("0"), None).resolve(Some(Duration::from_secs(5))).is_ok());
        assert!(kept(None, None).resolve(None).is_ok());
        let logs = |age: Option<&str>, size| Logs {
            history_log_age: age.map(Into::into),
            history_log_size: size,
        };
        let resolve = |logs: Logs| logs.resolve(Path::new("/data"));
        let attic = resolve(logs(None, Some(1))).unwrap().unwrap();
        assert_eq!((attic.age, attic.bytes), (AGE, 1 << 20));
        assert_eq!(resolve(logs(Some("0"), None)).unwrap(), None);
        assert!(resolve(logs(Some("0"), Some(1))).is_err() && resolve(logs(None, Some(0))).is_err());
    }
}
