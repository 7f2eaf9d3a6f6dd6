//! Snapshots of the store, in a directory on this machine, and in a bucket too where one is given: taken when somebody asks, and by a
//! schedule, of which so many are kept.

pub mod bucket;
pub mod command;
pub mod schedule;

use super::Opened;
use crate::told::Told;
use anyhow::{Context, bail};
use bucket::Bucket;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use keelson_apiserver::snapshots::Take;
use keelson_measure::Measures;
use keelson_store::snapshot::Summary;
use keelson_store::{Embedded, Etcd};
use schedule::Settings;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

const ENDING: &str = ".db";
const PART: &str = ".part";
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// Why a snapshot was taken. Only those of the schedule are removed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Asked,
    Scheduled,
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Why::Asked => "manual",
            Why::Scheduled => "scheduled",
        }
    }
}

/// A snapshot's file; its name says why and when it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: PathBuf,
    pub why: Why,
    pub at: Timestamp,
    pub bytes: u64,
}

/// What was taken.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Taken {
    pub path: PathBuf,
    pub revision: u64,
    pub keys: u64,
    pub bytes: u64,
    /// Where it is as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
    /// Why it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsent: Option<String>,
}

/// Where snapshots come from.
#[derive(Clone)]
pub enum Source {
    Embedded(Arc<Embedded>),
    Etcd(Arc<Etcd>),
}

impl Source {
    pub fn of(opened: &Opened) -> Source {
        match opened {
            Opened::Embedded(store) => Source::Embedded(store.clone()),
            Opened::Etcd(store) => Source::Etcd(store.clone()),
        }
    }

    pub async fn save(&self, to: &Path) -> keelson_store::Result<Summary> {
        match self {
            Source::Embedded(store) => store.save(to).await,
            Source::Etcd(store) => store.save(to).await,
        }
    }
}

/// Takes snapshots, one at a time.
pub struct Snapshots {
    source: Source,
    directory: PathBuf,
    bucket: Option<Bucket>,
    /// How many of the schedule's the bucket keeps.
    kept: usize,
    told: Told,
    busy: Mutex<()>,
}

impl Snapshots {
    pub fn new(source: Source, settings: &Settings, measures: &Measures) -> Arc<Snapshots> {
        Arc::new(Snapshots {
            source,
            directory: settings.directory.clone(),
            bucket: settings.bucket.clone(),
            kept: settings.kept,
            told: Told::new(measures, "store_snapshot", "snapshot of the store"),
            busy: Mutex::default(),
        })
    }

    /// # Errors
    ///
    /// If another one is being taken, the disk is full, or the store can't be read. Nothing is left of it then. That a bucket didn't get it
    /// is told with it.
    pub async fn take(&self, why: Why) -> anyhow::Result<Taken> {
        let taken = self.take_one(why).await;
        self.told
            .ended(taken.as_ref().is_ok_and(|taken| taken.unsent.is_none()));
        taken
    }

    async fn take_one(&self, why: Why) -> anyhow::Result<Taken> {
        let Ok(_busy) = self.busy.try_lock() else {
            bail!("another snapshot is being taken");
        };
        prepare(&self.directory)?;
        let path = name(&self.directory, why, Timestamp::now());
        let Summary { revision, keys, bytes } = self
            .source
            .save(&path)
            .await
            .context("taking a snapshot of the store")?;
        tracing::info!(path = %path.display(), revision, keys, bytes, "took a snapshot of the store");
        let (mut sent, mut unsent) = (None, None);
        if let Some(bucket) = &self.bucket {
            match bucket
                .follow(&list(&self.directory)?, self.kept, Timestamp::now())
                .await
            {
                Ok(()) => sent = Some(bucket.told().to_string()),
                Err(error) => unsent = Some(format!("{error:#}")),
            }
        }
        Ok(Taken {
            path,
            revision,
            keys,
            bytes,
            sent,
            unsent,
        })
    }

    /// For who asks the server.
    pub fn taker(self: &Arc<Self>) -> Take {
        let snapshots = self.clone();
        Arc::new(move || {
            let snapshots = snapshots.clone();
            Box::pin(async move { Ok(serde_json::to_value(snapshots.take(Why::Asked).await?)?) })
        })
    }

    /// Removes the oldest of the schedule's snapshots until there are so many.
    fn keep(&self, newest: usize, taken: &Path, now: Timestamp) -> anyhow::Result<()> {
        let mut found = list(&self.directory)?;
        // The one just taken is the newest, whatever the others say.
        found.retain(|found| found.path != taken);
        for old in superfluous(found, newest.saturating_sub(1), now) {
            std::fs::remove_file(&old.path).with_context(|| format!("cannot remove {}", old.path.display()))?;
            tracing::info!(path = %old.path.display(), "removed an old snapshot of the store");
        }
        Ok(())
    }
}

/// The schedule's that go so that so many are left. Those that a clock which was ahead has dated are older than any of today's.
fn superfluous(mut found: Vec<Found>, kept: usize, now: Timestamp) -> Vec<Found> {
    found.retain(|found| found.why == Why::Scheduled);
    found.sort_by_key(|found| (found.at <= now, found.at));
    found.truncate(found.len().saturating_sub(kept));
    found
}

/// Snapshots are as secret as what is in them. What a server that was killed had begun is removed.
fn prepare(directory: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("cannot create the directory of snapshots {}", directory.display()))?;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let begun = path.to_str().and_then(|p| p.strip_suffix(PART));
        if begun.is_some_and(|whole| parse(Path::new(whole)).is_some()) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// One that isn't there yet, a second later if need be.
fn name(directory: &Path, why: Why, at: Timestamp) -> PathBuf {
    let names = (0..).map(|later| {
        let at = at.saturating_add(jiff::SignedDuration::from_secs(later)).unwrap_or(at);
        let at = at.to_zoned(TimeZone::UTC).strftime(TIME);
        directory.join(format!("{}-{at}{ENDING}", why.name()))
    });
    let mut free = names.take(60).skip_while(|path| path.exists());
    free.next()
        .unwrap_or_else(|| directory.join(format!("{}{ENDING}", why.name())))
}

fn parse(path: &Path) -> Option<(Why, Timestamp)> {
    let (why, at) = path.file_name()?.to_str()?.strip_suffix(ENDING)?.split_once('-')?;
    let why = [Why::Asked, Why::Scheduled]
        .into_iter()
        .find(|known| known.name() == why)?;
    let at = jiff::civil::DateTime::strptime(TIME, at)
        .ok()?
        .to_zoned(TimeZone::UTC)
        .ok()?;
    Some((why, at.timestamp()))
}

/// What is there, the oldest first. Other files in the directory are passed over.
pub fn list(directory: &Path) -> anyhow::Result<Vec<Found>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if let Some((why, at)) = parse(&entry.path()).filter(|_| metadata.is_file()) {
            found.push(Found {
                path: entry.path(),
                why,
                at,
                bytes: metadata.len(),
            });
        }
    }
    found.sort_by(|a, b| (a.at, &a.path).cmp(&(b.at, &b.path)));
    Ok(found)
}

#[cfg(test)]
mod tests;
