//! A member's snapshot of itself, to a file.

use super::Etcd;
use super::call;
use super::wire::etcdserverpb::{SnapshotRequest, maintenance_client::MaintenanceClient};
use crate::snapshot::{self, Summary};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// Between two pieces.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

impl Etcd {
    /// Writes one member's snapshot to a file, as `etcdctl snapshot save` does, and checks it.
    ///
    /// # Errors
    ///
    /// [`Error::Stalled`] if nothing comes for 30 s. The file has its name only if it is whole.
    pub async fn save(&self, to: &Path) -> Result<Summary> {
        let mut part = to.as_os_str().to_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let made = match self.fetch(&part).await {
            Ok(()) => finish(&part, to).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            let _ = tokio::fs::remove_file(&part).await;
        }
        made
    }

    async fn fetch(&self, part: &Path) -> Result<()> {
        let fail = |e: std::io::Error| snapshot::io(part, &e);
        let late = |_| Error::Stalled {
            what: "etcd's snapshot stands still".into(),
        };
        let picked = self.members.pick(Instant::now() + BEGIN_WITHIN).await?;
        let refused = |status: tonic::Status| call::meaning(&picked, &status).plain();
        let mut client = MaintenanceClient::new(picked.channel.clone());
        let begun = timeout(PIECE_WITHIN, client.snapshot(SnapshotRequest {}))
            .await
            .map_err(late)?;
        let mut pieces = begun.map_err(refused)?.into_inner();
        let mut options = tokio::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(part).await.map_err(fail)?;
        while let Some(piece) = timeout(PIECE_WITHIN, pieces.message())
            .await
            .map_err(late)?
            .map_err(refused)?
        {
            file.write_all(&piece.blob).await.map_err(fail)?;
        }
        file.sync_all().await.map_err(fail)
    }
}

async fn finish(part: &Path, to: &Path) -> Result<Summary> {
    let (part, to) = (part.to_path_buf(), to.to_path_buf());
    let checked = move || {
        let summary = snapshot::check(&part, snapshot::Sum::Wanted)?;
        std::fs::rename(&part, &to).map_err(|e| snapshot::io(&to, &e))?;
        Ok(summary)
    };
    let done = tokio::task::spawn_blocking(checked).await;
    done.unwrap_or_else(|e| Err(crate::not_read(&e)))
}
