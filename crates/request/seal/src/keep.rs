//! Keeps a store sealed as it is wanted, for as long as a server runs: takes the configuration, follows its file, seals what was
//! stored before there was a key, and gives up keys that nothing is sealed by any more.
//!
//! * The user's own configuration ([`Source::File`]): what is stored is written anew when the user says so, as upstream.
//! * Ours ([`Source::Own`]): a pass at each start, and after each rotation, writes anew what isn't sealed by the newest key. A
//!   pass that was cut short is made again by the next start. Keys older than the one a pass began with stay until it has found
//!   nothing that needs them, and the store has given up the revisions before it: then nothing anywhere is sealed by them. A
//!   rotation meanwhile leaves it all to its own pass.
//! * None ([`Source::Plain`]): what our own key had sealed is opened, and written plainly again.
//!
//! A key is never made for a store that holds sealed values: the one that opens them would be thought to be lost for ever.

use crate::config::{build, read};
use crate::metrics::Metrics;
use crate::own::{FILE, Own};
use crate::provider::ANY;
use crate::reseal::Tally;
use crate::rules::{Resources, Rules};
use crate::sealed::Sealed;
use anyhow::{Context, bail};
use keelson_store::{KeyRange, KeyValue, ListRequest, Revision, Store, compactor};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A pass, or a wait for the store, that failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);
const PAGE: usize = 1000;

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File { path: PathBuf, reload: bool },
    Own,
    Plain,
}

/// What the keys of the store mean, and where ours are kept.
pub struct Place {
    pub resources: Resources,
    /// All objects.
    pub all: KeyRange,
    /// Those that our own key seals.
    pub secrets: KeyRange,
    /// The directory of the cluster's keys.
    pub keys: PathBuf,
}

/// What is asked for from outside.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The file the keys are in; none: values are stored as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether the keys in it are ours to rotate.
    pub own: bool,
    /// What resources are written by, in the order of the configuration.
    pub writes_by: Vec<(String, String)>,
    /// Names of our own keys, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// What stands in the store.
    pub stored: Tally,
    /// Values are being written anew.
    pub under_way: bool,
    /// Why the last pass failed; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What a pass has made sure of: from the revision on everything is sealed by the key, or by newer ones.
struct Passed {
    at: Revision,
    key: String,
}

#[derive(Default)]
struct Progress {
    /// How many passes were asked for, and which of these the last one that is over has answered.
    asked: u64,
    done: u64,
    trouble: Option<String>,
}

pub struct Sealing {
    sealed: Arc<Sealed>,
    pub(crate) metrics: Arc<Metrics>,
    source: Source,
    place: Place,
    own: tokio::sync::Mutex<Option<Own>>,
    asked: Notify,
    progress: Mutex<Progress>,
}

impl Sealing {
    pub async fn open(store: Arc<dyn Store>, source: Source, place: Place) -> anyhow::Result<Arc<Sealing>> {
        let metrics = Arc::new(Metrics::default());
        let (rules, own) = match &source {
            Source::File { path, .. } => {
                let (config, hash) = read(path)?;
                metrics.config(&hash);
                (build(&config, hash, &metrics).await?, None)
            }
            Source::Own | Source::Plain => {
                let mut own = Own::open(&place.keys)?;
                if own.is_none() && source == Source::Own {
                    refuse_sealed(&*store, &place).await?;
                    own = Some(Own::make(&place.keys)?);
                }
                (rules_of(own.as_ref(), &source, &metrics).await?, own)
            }
        };
        // The pass at each start.
        let asked = u64::from(!matches!(source, Source::File { .. }));
        let sealed = Sealed::new(store, rules, place.resources.clone(), metrics.clone());
        Ok(Arc::new(Sealing {
            sealed,
            metrics,
            source,
            place,
            own: tokio::sync::Mutex::new(own),
            asked: Notify::new(),
            progress: Mutex::new(Progress {
                asked,
                ..Progress::default()
            }),
        }))
    }

    /// What everything else reads and writes.
    pub fn store(&self) -> Arc<dyn Store> {
        self.sealed.clone()
    }

    /// A value that stood in the store below once, opened as a read of it would open it.
    pub async fn opened(&self, kv: KeyValue) -> keelson_store::Result<KeyValue> {
        let (kv, _) = self.sealed.seal.opened(kv).await?;
        Ok(kv)
    }

    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    pub(crate) fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    /// Whether the file is followed.
    pub fn reloads(&self) -> bool {
        matches!(self.source, Source::File { reload: true, .. })
    }

    /// Whether there is a check of plug-ins: upstream has it when there are any, or may be after a reload.
    pub fn has_check(&self) -> bool {
        self.reloads() || self.sealed.rules().has_plugins()
    }

    /// Whether the plug-ins of key management are well.
    pub async fn check(&self) -> Result<(), String> {
        self.sealed.rules().check().await
    }

    /// Until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let following = async {
            if let Source::File { path, reload: true } = &self.source {
                crate::reload::follow(self, path).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = async { tokio::join!(following, self.passes()) } => {}
        }
    }

    /// Everything that is to be done, once: for a store that no server has open.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let passed = self.pass().await?;
        {
            let mut progress = self.progress.lock();
            progress.done = progress.asked;
        }
        if let Some(passed) = passed
            && self.has_older(&passed).await
        {
            self.sealed.inner.compact(passed.at).await?;
            self.forget_older(&passed).await?;
        }
        Ok(())
    }

    /// Asks for a pass over everything that the configuration names.
    pub fn rewrite(&self) {
        self.progress.lock().asked += 1;
        self.asked.notify_one();
    }

    /// A new key of our own, by which everything is written from now on; and asks for a pass. Tells the key's name.
    pub async fn rotate(&self) -> anyhow::Result<String> {
        match &self.source {
            Source::Own => {}
            Source::File { path, .. } => bail!(
                "the keys are in {}, a file of yours: put a new key in front of the others there (with the server restarted, or following the file), then write everything anew by keelson secrets rewrite, then take the old key out",
                path.display()
            ),
            Source::Plain => bail!("--encryption-provider-config none: secrets are stored as they are"),
        }
        let mut own = self.own.lock().await;
        let keys = own.as_mut().context("there is no key")?;
        keys.rotate()?;
        let name = keys.names().first().cloned().unwrap_or_default();
        self.sealed
            .set(rules_of(own.as_ref(), &self.source, &self.metrics).await?)
            .await;
        tracing::info!(key = name, "secrets are sealed by a new key");
        self.rewrite();
        Ok(name)
    }

    pub async fn report(&self) -> anyhow::Result<Report> {
        let stored = self.sealed.tally(&self.ranges(), false).await?;
        let own = self.own.lock().await;
        let progress = self.progress.lock();
        let file = match &self.source {
            Source::File { path, .. } => Some(path.as_path()),
            Source::Own | Source::Plain => own.as_ref().map(Own::path),
        };
        Ok(Report {
            file: file.map(|f| f.display().to_string()),
            own: self.source == Source::Own,
            writes_by: self.sealed.rules().writes_by(),
            keys: own.as_ref().map(Own::names).unwrap_or_default(),
            stored,
            under_way: progress.done < progress.asked,
            trouble: progress.trouble.clone(),
        })
    }

    fn ranges(&self) -> Vec<KeyRange> {
        match self.source {
            Source::File { .. } => vec![self.place.all.clone()],
            Source::Own | Source::Plain => vec![self.place.secrets.clone()],
        }
    }

    async fn passes(&self) {
        if self.progress.lock().asked > 0 {
            self.asked.notify_one();
        }
        loop {
            self.asked.notified().await;
            let passed = self.passed().await;
            tokio::select! {
                // Leaves the note where it is, for the round that follows.
                () = self.asked.notified() => self.asked.notify_one(),
                () = self.until_given_up(passed) => {}
            }
        }
    }

    /// A pass, made again until none fails.
    async fn passed(&self) -> Option<Passed> {
        loop {
            let asked = self.progress.lock().asked;
            let passed = self.pass().await;
            let trouble = passed.as_ref().err().map(|error| format!("{error:#}"));
            if let Some(error) = &trouble {
                tracing::warn!(error, "what is stored couldn't be sealed anew; trying again");
            }
            self.progress.lock().trouble = trouble;
            if let Ok(passed) = passed {
                self.progress.lock().done = asked;
                return passed;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Writes anew what is stale. None if there is something that can't be opened, or if it isn't a key of ours that seals.
    async fn pass(&self) -> anyhow::Result<Option<Passed>> {
        // Before anything is looked at: what a rotation meanwhile leaves behind is sealed by this one.
        let key = self.in_force();
        let tally = self.sealed.tally(&self.ranges(), true).await?;
        if tally.rewritten > 0 {
            tracing::info!(rewritten = tally.rewritten, "what is stored was sealed anew");
        }
        if tally.unreadable > 0 {
            tracing::error!(
                unreadable = tally.unreadable,
                first = tally.unreadable_keys.first().map_or("", String::as_str),
                "stored values can't be opened: no key fits (keelson secrets status)"
            );
            // Whatever it is that they lack: nothing is given up meanwhile.
            return Ok(None);
        }
        let Some(key) = key else { return Ok(None) };
        let at = self.sealed.inner.current_revision().await?;
        Ok(Some(Passed { at, key }))
    }

    /// The name of the key of ours by which values are sealed now.
    fn in_force(&self) -> Option<String> {
        if self.source != Source::Own {
            return None;
        }
        let writes_by = self.sealed.rules().writes_by();
        let (_, by) = writes_by.first()?;
        by.strip_prefix("secretbox/").map(str::to_owned)
    }

    async fn has_older(&self, passed: &Passed) -> bool {
        self.own
            .lock()
            .await
            .as_ref()
            .is_some_and(|own| own.has_older(&passed.key))
    }

    /// Gives up the keys before the pass's, if there are any, when the store has given up the revisions before it. Ends without
    /// where another pass is asked for: that one sees to it.
    async fn until_given_up(&self, passed: Option<Passed>) {
        let Some(passed) = passed else { return };
        while self.has_older(&passed).await && !self.another_is_asked() {
            let given_up = async {
                let store = &self.sealed.inner;
                // A compaction begins by a write of this key, and is over by the next one.
                let key = KeyRange::key(compactor::KEY.as_bytes().to_vec());
                let mut watch = store.watch(key, store.current_revision().await?).await?;
                while store.status().await?.compact_revision < passed.at {
                    watch.next().await.context("the store is closed")??;
                }
                self.forget_older(&passed).await
            };
            if let Err(error) = given_up.await {
                tracing::warn!(error = format!("{error:#}"), "older keys are kept for now");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    fn another_is_asked(&self) -> bool {
        let progress = self.progress.lock();
        progress.done < progress.asked
    }

    async fn forget_older(&self, passed: &Passed) -> anyhow::Result<()> {
        let mut own = self.own.lock().await;
        // Rotations hold the same lock: what is in front now stays there until the end.
        if self.another_is_asked() {
            return Ok(());
        }
        if let Some(keys) = own.as_mut() {
            keys.forget_older(&passed.key)?;
            tracing::info!(keys = ?keys.names(), "older keys are given up: nothing is sealed by them any more");
        }
        self.sealed
            .set(rules_of(own.as_ref(), &self.source, &self.metrics).await?)
            .await;
        Ok(())
    }
}

async fn rules_of(own: Option<&Own>, source: &Source, metrics: &Arc<Metrics>) -> anyhow::Result<Rules> {
    match own {
        None => Ok(Rules::default()),
        Some(own) => build(&own.config(*source == Source::Plain), String::new(), metrics).await,
    }
}

/// Refuses if anything in the store is sealed.
async fn refuse_sealed(store: &dyn Store, place: &Place) -> anyhow::Result<()> {
    let mut rest = place.all.clone();
    loop {
        let listed = store
            .list(ListRequest::new(rest.clone()).limit(PAGE).uncounted())
            .await?;
        if let Some(kv) = listed.kvs.iter().find(|kv| kv.value.starts_with(ANY)) {
            let (file, directory) = (place.keys.join(FILE), &place.keys);
            bail!(lost(&kv.key, &kv.value, &file, directory));
        }
        match listed.kvs.last() {
            Some(last) if listed.more => rest = rest.after(&last.key),
            _ => return Ok(()),
        }
    }
}

fn lost(key: &[u8], value: &[u8], file: &Path, directory: &Path) -> String {
    // `k8s:enc:PROVIDER:VERSION:KEY:`
    let colons = value.iter().enumerate().filter(|(_, b)| **b == b':').map(|(at, _)| at);
    let head = colons.take(5).last().map_or(&[][..], |at| &value[..at]);
    format!(
        "the store holds sealed values ({} by {}) and there is no {} with the key that opens them. Put the file back from a backup of {}. If they were sealed by a configuration of yours, name it by --encryption-provider-config. If the key is lost for good, start with --encryption-provider-config none: everything but these values works then, keelson secrets status names them, and when they are deleted a start without the option makes a new key",
        String::from_utf8_lossy(key),
        String::from_utf8_lossy(head),
        file.display(),
        directory.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::GroupResource;
    use keelson_store::{Expect, Memory};

    /// A first rotation's pass is over and waits for the store to give up the past; then comes a second rotation, and only
    /// then what was waited for.
    #[tokio::test]
    async fn a_key_that_still_seals_everything_outlives_a_rotation_while_older_ones_are_given_up() {
        let keys = tempfile::tempdir().unwrap();
        let beneath: Arc<dyn Store> = Memory::new();
        let secrets = Arc::new(GroupResource::parse("secrets"));
        let place = Place {
            resources: Arc::new(move |_| Some(secrets.clone())),
            all: KeyRange::all(),
            secrets: KeyRange::all(),
            keys: keys.path().into(),
        };
        let sealing = Sealing::open(beneath.clone(), Source::Own, place).await.unwrap();
        let store = sealing.store();
        store
            .put(b"/a".to_vec().into(), b"one".to_vec().into(), Expect::Any, None)
            .await
            .unwrap();
        sealing.rotate().await.unwrap();
        let first = sealing.passed().await;
        let at = first.as_ref().unwrap().at;

        sealing.rotate().await.unwrap();
        beneath.compact(at).await.unwrap();
        sealing.until_given_up(first).await;
        let named = |sealing: Arc<Sealing>| async move { sealing.report().await.unwrap().keys };
        assert_eq!(named(sealing.clone()).await, ["key3", "key2", "key1"]);
        assert_eq!(store.get(b"/a", None).await.unwrap().kv.unwrap().value, "one");

        // And with the lock alone: the first pass's waiting may be over before it hears of the second rotation.
        {
            let mut progress = sealing.progress.lock();
            progress.done = progress.asked;
        }
        let first = Passed { at, key: "key2".into() };
        sealing.forget_older(&first).await.unwrap();
        assert_eq!(named(sealing.clone()).await, ["key3", "key2"]);
        assert_eq!(store.get(b"/a", None).await.unwrap().kv.unwrap().value, "one");

        sealing.rewrite();
        sealing.settle().await.unwrap();
        assert_eq!(named(sealing.clone()).await, ["key3"]);
        assert_eq!(store.get(b"/a", None).await.unwrap().kv.unwrap().value, "one");
    }
}
