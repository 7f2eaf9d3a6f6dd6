//! The store's content to a file while it goes on, and from a file to a directory that has no store yet.

use super::{Embedded, Options, Shared, blocking, fault, layout, mark::Mark, tables::Tables};
use crate::snapshot::{Content, Entry, Saver, Sum, Summary, directory};
use crate::{Error, Result, Revision};
use bytes::Bytes;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a restored store's engine is given at a time, unsynced.
const BATCH_BYTES: usize = 4 << 20;

impl Embedded {
    /// Writes what is there now to a file, as etcd's snapshots are. Others read and write meanwhile; of what they write nothing is in
    /// it. Names of all keys are in memory for as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] if less than the store's reserve would be left on the file's disk.
    pub async fn save(&self, to: &Path) -> Result<Summary> {
        let (shared, to) = (self.shared.clone(), to.to_path_buf());
        blocking(move || shared.save(&to)).await
    }
}

impl Shared {
    pub(super) fn save(&self, to: &Path) -> Result<Summary> {
        // Whoever waits to write to the tables (their disk failed, or the store closes) doesn't wait for this.
        let goes_on = || match self.leaving.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Error::Closed),
        };
        let unsealed = self.read(|tables| {
            let revision = self.hub.published();
            let snapshot = tables.snapshot();
            let used = tables.db.disk_space().map_err(|e| tables.fail(e))?;
            // The file has no past, and is hardly larger than the store.
            if let Some(full) = self.refusal(directory(to), self.options.reserve_bytes.saturating_add(used)) {
                return Err(full);
            }
            let ends = tables.deadlines(&snapshot)?;
            let now = now_ms();
            let mut places = tables.newest(&snapshot, revision, goes_on)?;
            places.sort_unstable();
            let leases = self.leases.lock().standings(self.clock.now_ms());
            let entries = places.into_iter().map(|(at, sub, key)| {
                goes_on()?;
                let kv = tables.get(&snapshot, &key, at)?;
                let kv =
                    kv.ok_or_else(|| fault::corrupt(&tables.path, format!("what revision {at} wrote is missing")))?;
                let seconds = ends
                    .get(&at)
                    .map(|deadline| deadline.saturating_sub(now).div_ceil(1000));
                Ok(Entry { kv, sub, seconds })
            });
            Saver::new(to).write(revision, &leases, entries)
        })?;
        unsealed.seal()
    }
}

/// Says, as long as it lives, that somebody waits for those who read.
pub(super) struct Leaving<'a>(&'a AtomicUsize);

impl<'a> Leaving<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Leaving<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Leaving(count)
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64
}

impl Tables {
    /// Each key that is there at `revision`, and when it got what it is.
    fn newest(
        &self,
        snapshot: &fjall::Snapshot,
        revision: Revision,
        goes_on: impl Fn() -> Result<()>,
    ) -> Result<Vec<(Revision, u32, Bytes)>> {
        let mut found = Vec::new();
        self.each(snapshot, &crate::KeyRange::all(), revision, |key, at, record| {
            goes_on()?;
            found.push((at, layout::sub(record), layout::key(key)));
            Ok(true)
        })?;
        Ok(found)
    }

    /// By the revision of what ends.
    fn deadlines(&self, snapshot: &fjall::Snapshot) -> Result<HashMap<Revision, u64>> {
        use fjall::Readable;
        let ends = snapshot.iter(&self.expiry).map(|found| {
            let (place, _) = found.into_inner().map_err(|e| self.fail(e))?;
            let ends = layout::split_expiry(&place).map(|(deadline, revision)| (revision, deadline));
            ends.ok_or_else(|| fault::corrupt(&self.path, "a deadline is malformed"))
        });
        ends.collect()
    }
}

/// Makes a store of a snapshot, ours or etcd's, in a directory that has none. `ahead`: by how much its revision is set forward, so that
/// it is beyond all that anybody has seen of the store that was; the past is given up, so that watches from before end, and clients list
/// anew, as after etcdutl's `--bump-revision --mark-compacted`. Blocks.
///
/// # Errors
///
/// [`Error::Corrupt`] if the file is damaged, [`Error::Denied`] if there is something in the directory. What was begun is removed.
pub fn restore(from: &Path, to: &Path, ahead: Revision, sum: Sum) -> Result<Summary> {
    let content = Content::open(from, sum)?;
    let has_something = std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some());
    if has_something {
        return Err(Error::Denied {
            path: to.into(),
            what: "there is something in it".into(),
            fix: "Move it away first".into(),
        });
    }
    // What is there under the store's name is whole.
    let mut fresh = to.as_os_str().to_os_string();
    fresh.push(".part");
    let fresh = Path::new(&fresh);
    let _ = std::fs::remove_dir_all(fresh);
    let made = fill(&content, fresh, ahead).and_then(|summary| {
        let _ = std::fs::remove_dir(to);
        std::fs::rename(fresh, to).map_err(|e| fault::io(to, &e))?;
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty());
        let synced = parent.map_or(Ok(()), |p| std::fs::File::open(p).and_then(|d| d.sync_all()));
        synced.map_err(|e| fault::io(to, &e))?;
        Ok(summary)
    });
    if made.is_err() {
        let _ = std::fs::remove_dir_all(fresh);
    }
    made
}

fn fill(content: &Content, to: &Path, ahead: Revision) -> Result<Summary> {
    let tables = Tables::open(to, &Options::default())?;
    let revision = content.revision().saturating_add(ahead);
    let now = now_ms();
    let mut batch = tables.db.batch();
    let (mut keys, mut waiting) = (0, 0);
    let commit = |batch: fjall::OwnedWriteBatch| batch.commit().map_err(|e| tables.fail(e));
    content.each(|entry| {
        let Entry { kv, sub, seconds } = entry;
        crate::check_key(&kv.key)?;
        let record = layout::put(&kv, sub);
        if sub > 0 || kv.lease != 0 {
            let leases = tables.upgrade()?;
            if kv.lease != 0 {
                batch.insert(leases, layout::attached(kv.lease, &kv.key), "");
            }
        }
        waiting += kv.key.len() + record.len();
        batch.insert(&tables.data, layout::at(&kv.key, kv.mod_revision), record);
        if let Some(seconds) = seconds {
            let deadline = now.saturating_add(seconds.saturating_mul(1000));
            batch.insert(&tables.expiry, layout::expiry(deadline, kv.mod_revision), &kv.key[..]);
        }
        keys += 1;
        if waiting >= BATCH_BYTES {
            waiting = 0;
            commit(std::mem::replace(&mut batch, tables.db.batch()))?;
        }
        Ok(())
    })?;
    for (id, seconds) in content.leases() {
        batch.insert(tables.upgrade()?, id.to_be_bytes(), seconds.to_be_bytes());
    }
    // The log's end tells the store's revision; what it changed is past.
    batch.insert(&tables.log, revision.to_be_bytes(), "");
    for name in ["compacted", "scrubbed"] {
        batch.insert(&tables.meta, name, revision.to_be_bytes());
    }
    commit(batch)?;
    tables
        .db
        .persist(fjall::PersistMode::SyncAll)
        .map_err(|e| tables.fail(e))?;
    Mark::open(to, revision)?;
    let bytes = tables.db.disk_space().map_err(|e| tables.fail(e))?;
    Ok(Summary { revision, keys, bytes })
}
