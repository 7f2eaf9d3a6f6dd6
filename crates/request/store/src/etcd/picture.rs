//! A member's snapshot of itself, to a file.

use super::Etcd;
use super::call;
use super::wire::etcdserverpb::{SnapshotRequest, maintenance_client::MaintenanceClient};
use crate::snapshot::{self, Summary};
use crate::{Error, Result, embedded};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// Between two pieces.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// Bytes between two looks at what is free.
const JUDGED_EVERY: u64 = 16 << 20;

impl Etcd {
    /// Writes one member's snapshot to a file, as `etcdctl snapshot save` does, and checks it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] if less than an embedded store's reserve would be left on the file's disk, [`Error::Stalled`] if nothing comes for 30 s. The file has its name only if it is whole.
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
        let mut file = tokio::fs::File::from_std(snapshot::begin(part).map_err(fail)?);
        let mut unjudged = u64::MAX;
        while let Some(piece) = timeout(PIECE_WITHIN, pieces.message())
            .await
            .map_err(late)?
            .map_err(refused)?
        {
            // How large it becomes nobody says.
            unjudged = unjudged.saturating_add(piece.blob.len() as u64);
            if unjudged >= JUDGED_EVERY {
                room(&embedded::Options::default(), part)?;
                unjudged = 0;
            }
            file.write_all(&piece.blob).await.map_err(fail)?;
        }
        file.sync_all().await.map_err(fail)
    }
}

/// For what comes until it is asked again.
fn room(options: &embedded::Options, part: &Path) -> Result<()> {
    let needed = options.reserve_bytes.saturating_add(JUDGED_EVERY);
    embedded::refusal(options, snapshot::directory(part), needed).map_or(Ok(()), Err)
}

async fn finish(part: &Path, to: &Path) -> Result<Summary> {
    let (part, to) = (part.to_path_buf(), to.to_path_buf());
    let checked = move || {
        let summary = snapshot::check(&part, snapshot::Sum::Wanted)?;
        snapshot::name(&part, &to).map_err(|e| snapshot::io(&to, &e))?;
        Ok(summary)
    };
    let done = tokio::task::spawn_blocking(checked).await;
    done.unwrap_or_else(|e| Err(crate::not_read(&e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_of_its_disk_stays_free() {
        let judged = |free: u64| {
            let free_space = embedded::FreeSpace(std::sync::Arc::new(move |_| Ok(free)));
            let options = embedded::Options {
                free_space,
                ..embedded::Options::default()
            };
            room(&options, Path::new("file.part"))
        };
        assert!(matches!(judged(64 << 20), Err(Error::NoSpace { .. })));
        assert!(judged(80 << 20).is_ok());
    }
}
