//! History: what objects were, who changed them, and how they come back. The server keeps it ([`options`], [`keelson_past`]); the commands ask
//! for it by the API, each as whoever its kubeconfig names.

/// How a moment is said.
macro_rules! moments {
    () => {
        "Moments: a revision (812, an object's resourceVersion), an age (10m, 1h30m, 2d) or a date (2026-03-01T12:00:00Z)."
    };
}

mod ask;
mod blame;
mod changes;
mod diff;
mod get;
pub mod logs;
mod options;
pub mod plain;
pub mod table;
mod undelete;
mod volumes;

pub use options::{Kept, Logs};

use crate::config::Config;
use anyhow::Context;
use ask::{Asking, Named};
use clap::Args;
use keelson_apiserver::handlers::past::WITHOUT;
use keelson_past::{History, Settings};
use keelson_store::{Store, compactor};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What was noted is written after so long at most.
const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// Follows the store from here on, if history is kept. If not, what was kept goes: it has values that were replaced, which nobody would expect
/// to be there still.
pub async fn open(config: &Config, store: Arc<dyn Store>) -> anyhow::Result<Option<Arc<History>>> {
    let directory = config.data_dir.join("history");
    let Some(keep) = config.history else {
        let removed = tokio::task::spawn_blocking(move || keelson_past::log::remove(&directory)).await?;
        if let Err(error) = removed {
            tracing::warn!(%error, "history that was kept can't be removed");
        }
        return Ok(None);
    };
    let root = config.store.root();
    // A crash loses what isn't written; the store has to know it still.
    let interval = config.compaction.unwrap_or(compactor::INTERVAL);
    let settings = Settings {
        directory,
        keep,
        prefix: format!("{root}/"),
        without: WITHOUT.map(|without| format!("{root}{without}")).to_vec(),
        write_within: WRITE_WITHIN.min(interval / 4),
    };
    let history = History::open(store, settings).await;
    history
        .map(Some)
        .context("the history of objects (--history-age 0 does without)")
}

/// Which cluster is asked, as whom, and about which namespace.
#[derive(Args)]
pub struct Target {
    /// The object's namespace [default: the kubeconfig's]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long)]
    pub context: Option<String>,
}

/// Which object a command is about.
#[derive(Args)]
pub struct Meant {
    /// KIND/NAME, also of an object that is deleted
    #[arg(value_name = "KIND/NAME")]
    object: String,
    #[command(flatten)]
    target: Target,
}

impl Meant {
    /// Whom to ask for it; `agent` is the command's name for itself.
    async fn asked(&self, agent: &str) -> anyhow::Result<(Asking, Named)> {
        let asking = Asking::of(&self.target, agent).await?;
        let named = asking.named(&self.object)?;
        Ok((asking, named))
    }
}

pub use blame::{AFTER_HELP as BLAME_HELP, Options as Blame, main as blame};
pub use changes::{Options as Changes, main as changes};
pub use diff::{AFTER_HELP as DIFF_HELP, Options as Diff, main as diff};
pub use get::{Options as Get, main as get};
pub use undelete::{AFTER_HELP as UNDELETE_HELP, Options as Undelete, main as undelete};

pub const MOMENTS: &str = moments!();
