//! The engine's tables, and what can be read from them.
//!
//! Every read goes by one snapshot, and looks at versions up to a given revision only; what is written meanwhile, or given
//! up by a compaction that began meanwhile, doesn't touch it.

use super::{Options, fault, form, journal, layout, mark, owner};
use crate::{Error, Event, EventKind, KeyRange, KeyValue, LeaseId, ListRequest, Listed, Result, Revision, WatchBatch};
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, Readable, Snapshot};
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The layouts ([`layout`]): a store is of the first until something is written that only the second can say.
pub const FORMAT: &str = "keelson-store-1";
const FORMAT_2: &str = "keelson-store-2";
/// Those that this program reads.
pub const READS: [&str; 2] = [FORMAT, FORMAT_2];

pub(super) struct Tables {
    pub(super) path: PathBuf,
    pub(super) db: Database,
    pub(super) data: Keyspace,
    pub(super) log: Keyspace,
    pub(super) expiry: Keyspace,
    pub(super) meta: Keyspace,
    /// There in layout 2.
    leases: OnceLock<Keyspace>,
    lease_memory: u64,
    /// How a batch reaches the disk.
    durability: fjall::PersistMode,
}

impl Tables {
    pub(super) fn open(path: &Path, options: &Options) -> Result<Tables> {
        owner::prepare(path)?;
        let is_in_doubt = mark::is_in_doubt(path)?;
        if is_in_doubt {
            owner::with_lock(path, || journal::renew(path, None))?;
        }
        let opened = match Self::open_engine(path, options) {
            // It may be the end of a write that the power failed in: to the engine any damage is the same.
            Some(Err(fjall::Error::JournalRecovery(_))) if !is_in_doubt => {
                owner::with_lock(path, || journal::renew(path, None))?;
                Self::open_engine(path, options)
            }
            opened => opened,
        };
        let tables = opened
            .ok_or_else(|| fault::corrupt(path, "its files contradict each other"))?
            .map_err(|e| fault::engine(path, e))?;
        owner::claim(path);
        tables.check_format()?;
        Ok(tables)
    }

    /// `None`: the engine checks some of what it reads by assertions. A directory it can't stand must not end the process.
    fn open_engine(path: &Path, options: &Options) -> Option<Result<Tables, fjall::Error>> {
        let open = || {
            let db = Database::builder(path)
                .cache_size(options.cache_bytes)
                .max_journaling_size(options.journal_bytes)
                .worker_threads(1)
                .manual_journal_persist(true)
                .open()?;
            let table = |name: &str, memory: u64| {
                db.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(memory))
            };
            Ok(Tables {
                path: path.into(),
                data: table("data", options.memtable_bytes)?,
                log: table("log", options.memtable_bytes / 4)?,
                expiry: table("expiry", options.memtable_bytes / 8)?,
                meta: table("meta", options.memtable_bytes / 8)?,
                leases: OnceLock::new(),
                lease_memory: options.memtable_bytes / 8,
                durability: match options.sync {
                    true => fjall::PersistMode::SyncData,
                    false => fjall::PersistMode::Buffer,
                },
                db,
            })
        };
        std::panic::catch_unwind(AssertUnwindSafe(open)).ok()
    }

    fn check_format(&self) -> Result<()> {
        match self.meta.get("format").map_err(|e| self.fail(e))? {
            Some(format) if &*format == FORMAT.as_bytes() => self.check_end(),
            Some(format) if &*format == FORMAT_2.as_bytes() => {
                if form::kept_as(&self.path)? != FORMAT_2 {
                    form::note(&self.path, FORMAT_2)?;
                }
                self.lease_table()?;
                self.check_end()
            }
            Some(format) => {
                let format = String::from_utf8_lossy(&format);
                Err(fault::corrupt(
                    &self.path,
                    format!("its format is {format:?}, this program's are {FORMAT:?} and {FORMAT_2:?}"),
                ))
            }
            None if self.last_revision()?.is_some() => Err(fault::corrupt(&self.path, "it doesn't tell its format")),
            None => {
                self.meta.insert("format", FORMAT).map_err(|e| self.fail(e))?;
                self.db.persist(fjall::PersistMode::SyncAll).map_err(|e| self.fail(e))
            }
        }
    }

    /// Makes the store one of layout 2, durably, unless it is: whoever writes what layout 1 doesn't have calls this before.
    pub(super) fn upgrade(&self) -> Result<&Keyspace> {
        if let Some(leases) = self.leases.get() {
            return Ok(leases);
        }
        form::note(&self.path, FORMAT_2)?;
        self.meta.insert("format", FORMAT_2).map_err(|e| self.fail(e))?;
        self.db.persist(fjall::PersistMode::SyncAll).map_err(|e| self.fail(e))?;
        tracing::info!(path = %self.path.display(), "the store has layout 2 from now on: former programs don't read it");
        self.lease_table()
    }

    fn lease_table(&self) -> Result<&Keyspace> {
        let memory = self.lease_memory;
        let opened = self
            .db
            .keyspace("leases", || KeyspaceCreateOptions::default().max_memtable_size(memory));
        let opened = opened.map_err(|e| self.fail(e))?;
        Ok(self.leases.get_or_init(|| opened))
    }

    /// Where leases and their keys are; a store of layout 1 has none.
    pub(super) fn leases(&self) -> Option<&Keyspace> {
        self.leases.get()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Keyspace> {
        [&self.data, &self.log, &self.expiry]
            .into_iter()
            .chain(self.leases.get())
    }

    /// The keys of a lease, in order.
    pub(super) fn attached(&self, lease: LeaseId) -> Result<Vec<Bytes>> {
        let Some(table) = self.leases() else {
            return Ok(Vec::new());
        };
        let mut keys = Vec::new();
        for found in table.prefix(lease.to_be_bytes()) {
            let (place, _) = found.into_inner().map_err(|e| self.fail(e))?;
            let (_, key) = layout::split_attached(&place).ok_or_else(|| self.corrupt("a lease is malformed"))?;
            if !key.is_empty() {
                keys.push(Bytes::copy_from_slice(key));
            }
        }
        Ok(keys)
    }

    /// Each lease that was granted, and for how many seconds.
    pub(super) fn granted(&self) -> Result<Vec<(LeaseId, u64)>> {
        let Some(table) = self.leases() else {
            return Ok(Vec::new());
        };
        let mut granted = Vec::new();
        for found in table.iter() {
            let (place, seconds) = found.into_inner().map_err(|e| self.fail(e))?;
            if let Some((id, [])) = layout::split_attached(&place) {
                let seconds = layout::number(&seconds).ok_or_else(|| self.corrupt("a lease is malformed"))?;
                granted.push((id, seconds));
            }
        }
        Ok(granted)
    }

    /// To be on disk when it has been committed.
    pub(super) fn batch(&self) -> fjall::OwnedWriteBatch {
        self.db.batch().durability(Some(self.durability))
    }

    /// The newest revision and the version it made are written together: one without the other can't be.
    fn check_end(&self) -> Result<()> {
        let Some((revision, key)) = self.last_revision()? else {
            return Ok(());
        };
        let found = self.data.get(layout::at(&key, revision)).map_err(|e| self.fail(e))?;
        match found {
            Some(_) => Ok(()),
            None if self.compacted()? == revision => Ok(()),
            None => Err(fault::corrupt(
                &self.path,
                format!("what revision {revision} wrote is missing"),
            )),
        }
    }

    /// Writes something that nobody reads.
    pub(super) fn probe(&self) -> Result<()> {
        let mut batch = self.batch();
        batch.insert(&self.meta, "probe", "");
        batch.commit().map_err(|e| self.fail(e))
    }

    /// The engine takes no more writes after one has failed, be it in the background.
    pub(super) fn is_sound(&self) -> Result<()> {
        self.db.persist(fjall::PersistMode::Buffer).map_err(|e| self.fail(e))
    }

    pub(super) fn fail(&self, error: fjall::Error) -> Error {
        fault::engine(&self.path, error)
    }
    fn corrupt(&self, what: &str) -> Error {
        fault::corrupt(&self.path, what)
    }

    fn last_revision(&self) -> Result<Option<(Revision, Bytes)>> {
        let Some(last) = self.log.last_key_value() else {
            return Ok(None);
        };
        let (revision, key) = last.into_inner().map_err(|e| self.fail(e))?;
        let (revision, _) = self.change(&revision)?;
        Ok(Some((revision, Bytes::copy_from_slice(&key))))
    }

    pub(super) fn change(&self, place: &[u8]) -> Result<(Revision, u32)> {
        layout::split_change(place).ok_or_else(|| self.corrupt("a revision in its log is malformed"))
    }

    /// 1 for an empty store.
    pub(super) fn revision(&self) -> Result<Revision> {
        Ok(self.last_revision()?.map_or(1, |(revision, _)| revision))
    }
    /// Everything before it is given up.
    pub(super) fn compacted(&self) -> Result<Revision> {
        self.number("compacted")
    }
    /// How far giving up has come.
    pub(super) fn scrubbed(&self) -> Result<Revision> {
        self.number("scrubbed")
    }
    pub(super) fn number(&self, name: &str) -> Result<u64> {
        let found = self.meta.get(name).map_err(|e| self.fail(e))?;
        Ok(found.and_then(|n| layout::number(&n)).unwrap_or(0))
    }

    /// The key's newest version up to `at`.
    pub(super) fn get(&self, snapshot: &Snapshot, key: &[u8], at: Revision) -> Result<Option<KeyValue>> {
        let mut versions = snapshot.range(&self.data, layout::at(key, at)..layout::behind(key));
        let Some(newest) = versions.next() else { return Ok(None) };
        let (place, record) = newest.into_inner().map_err(|e| self.fail(e))?;
        self.version(&place, &record)
    }

    fn version(&self, place: &[u8], record: &[u8]) -> Result<Option<KeyValue>> {
        let (key, revision) = self.split(place)?;
        layout::version(key, revision, record).ok_or_else(|| self.corrupt("a version is malformed"))
    }
    fn split<'a>(&self, place: &'a [u8]) -> Result<(&'a [u8], Revision)> {
        layout::split(place).ok_or_else(|| self.corrupt("a key is malformed"))
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.db.snapshot()
    }

    pub(super) fn list(&self, snapshot: &Snapshot, request: &ListRequest, at: Revision) -> Result<Listed> {
        let (range, limit) = (&request.range, request.limit);
        let mut listed = Listed {
            kvs: Vec::new(),
            more: false,
            count: 0,
            revision: at,
        };
        self.each(snapshot, range, at, |key, revision, record| {
            listed.count += 1;
            if limit != 0 && listed.kvs.len() == limit {
                listed.more = true;
                return Ok(!request.uncounted);
            }
            let version =
                layout::version(key, revision, record).ok_or_else(|| self.corrupt("a version is malformed"))?;
            listed.kvs.extend(version);
            Ok(true)
        })?;
        Ok(listed)
    }

    /// What each key of the range is at `at`: the key as it is written, when it got that, and the record; until `f` says that it is enough.
    pub(super) fn each(
        &self,
        snapshot: &Snapshot,
        range: &KeyRange,
        at: Revision,
        mut f: impl FnMut(&[u8], Revision, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let end = if range.end.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(layout::before(&range.end))
        };
        let bounds = (Bound::Included(layout::before(&range.start)), end);
        // As it is written: the key whose newest version in question has been seen.
        let mut done: Vec<u8> = Vec::new();
        for found in snapshot.range(&self.data, bounds) {
            let (place, record) = found.into_inner().map_err(|e| self.fail(e))?;
            let (key, revision) = self.split(&place)?;
            if revision > at || key == done {
                continue;
            }
            done.clear();
            done.extend_from_slice(key);
            if !layout::is_deleted(&record) && !f(key, revision, &record)? {
                break;
            }
        }
        Ok(())
    }

    /// Changes of `range` after `after` and up to `to`; looks at no more than `max` changes and those of the same revision.
    pub(super) fn history(
        &self,
        snapshot: &Snapshot,
        range: &KeyRange,
        after: Revision,
        to: Revision,
        max: usize,
    ) -> Result<WatchBatch> {
        let mut batch = WatchBatch {
            events: Vec::new(),
            synced: to,
        };
        let bounds = layout::change(after + 1, 0)..layout::change(to + 1, 0);
        for (seen, found) in snapshot.range(&self.log, bounds).enumerate() {
            let (place, key) = found.into_inner().map_err(|e| self.fail(e))?;
            let (revision, sub) = self.change(&place)?;
            if seen >= max && sub == 0 {
                batch.synced = revision - 1;
                break;
            }
            if range.contains(&key) {
                batch.events.push(self.event(snapshot, &key, revision)?);
            }
        }
        Ok(batch)
    }

    pub(super) fn event(&self, snapshot: &Snapshot, key: &[u8], revision: Revision) -> Result<Event> {
        let mut versions = snapshot.range(&self.data, layout::at(key, revision)..layout::behind(key));
        let mut next = || -> Result<Option<(Revision, Option<KeyValue>)>> {
            let Some(found) = versions.next() else { return Ok(None) };
            let (place, record) = found.into_inner().map_err(|e| self.fail(e))?;
            Ok(Some((self.split(&place)?.1, self.version(&place, &record)?)))
        };
        match next()? {
            Some((found, now)) if found == revision => {
                let prev = next()?.and_then(|(_, kv)| kv);
                Ok(match now {
                    Some(kv) => Event {
                        kind: EventKind::Put,
                        kv,
                        prev,
                    },
                    None => Event {
                        kind: EventKind::Delete,
                        kv: KeyValue::gone(Bytes::copy_from_slice(key), revision),
                        prev,
                    },
                })
            }
            _ => Err(fault::corrupt(
                &self.path,
                format!("what revision {revision} wrote is missing"),
            )),
        }
    }

    /// What is due by `now_ms` (at most `max`), and the first deadline after that.
    pub(super) fn due(&self, now_ms: u64, max: usize) -> Result<(Vec<Due>, Option<u64>)> {
        let mut due = Vec::new();
        for found in self.expiry.iter() {
            let (place, key) = found.into_inner().map_err(|e| self.fail(e))?;
            let (deadline, revision) =
                layout::split_expiry(&place).ok_or_else(|| self.corrupt("a deadline is malformed"))?;
            if deadline > now_ms || due.len() == max {
                return Ok((due, Some(deadline)));
            }
            due.push(Due {
                deadline,
                revision,
                key: Bytes::copy_from_slice(&key),
            });
        }
        Ok((due, None))
    }
}

pub(super) struct Due {
    pub(super) deadline: u64,
    pub(super) revision: Revision,
    pub(super) key: Bytes,
}
