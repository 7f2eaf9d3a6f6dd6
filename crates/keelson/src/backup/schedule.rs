//! Backups that a server makes by itself.

use super::create::{Making, lacking};
use super::picture::{Picture, Pictures};
use super::{Target, Turn};
use crate::store::snapshot::schedule::Plan;
use crate::told::Told;
use jiff::Timestamp;
use keelson_backup::manifest;
use keelson_backup::repository::Repository;
use keelson_client::Rest;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After a start, or a failure.
const SOON: Duration = Duration::from_secs(60);

pub struct Schedule {
    pub target: Target,
    pub plan: Plan,
    pub data_dir: PathBuf,
    pub rest: Rest,
    pub pictures: Arc<Pictures>,
    pub told: Told,
}

impl Schedule {
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        // A start has other things to do.
        let mut wait = SOON;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            wait = match self.turn(&stop).await {
                Ok(true) => Duration::from_secs(1),
                Ok(false) => return Ok(()),
                Err(error) => {
                    self.told.ended(false);
                    let error = format!("{error:#}");
                    tracing::error!(error, "no backup could be made; trying again");
                    SOON
                }
            };
            crate::process::let_go();
        }
    }

    /// False: the server stops, or the time never comes.
    async fn turn(&self, stop: &CancellationToken) -> anyhow::Result<bool> {
        let newest = self.newest().await?;
        let Some(due) = self.plan.due(newest, Timestamp::now()) else {
            return Ok(false);
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = keelson_clock::sleep_until(due) => {}
        }
        // Somebody set the clock: what is due is asked anew.
        if keelson_clock::now() < due {
            return Ok(true);
        }
        let turn = Turn::take(&self.data_dir)?;
        let making = Making::begin(&turn, &self.target, &self.data_dir, Some(self.plan.kept())).await?;
        let made = making.finish(self.picture().await).await?;
        self.told.ended(true);
        let (gone, pieces) = made.given_up;
        tracing::info!(
            backup = made.name,
            repository = self.target.told(),
            revision = made.manifest.revision,
            volumes = made.manifest.volumes.len(),
            bytes = made.sent.bytes,
            given_up = gone,
            pieces_given_up = pieces,
            lacking = made.manifest.lacking.len(),
            "made a backup"
        );
        Ok(true)
    }

    async fn picture(&self) -> anyhow::Result<(Picture, Vec<String>)> {
        let picture = self.pictures.take().await?;
        let lacking = lacking(&self.rest, &picture).await?;
        Ok((picture, lacking))
    }

    /// When the schedule's last one was made. There may be no repository yet.
    async fn newest(&self) -> anyhow::Result<Option<Timestamp>> {
        let repository = Repository::open_or_make(self.target.place()?, &self.target.secret()?).await?;
        let names = manifest::names(&repository).await?;
        Ok(names
            .iter()
            .rev()
            .find(|name| manifest::is_scheduled(name))
            .and_then(|name| manifest::moment(name)))
    }
}
