//! The store on this machine's disk, for one server.
//!
//! * One thread writes. It commits whatever has queued in one transaction and one `fdatasync`; a write is acknowledged, visible
//!   and published only after that. So a kill at any moment loses nothing acknowledged and leaves nothing half done.
//! * Bounds: 1,024 writes, of 64 MiB together, may queue. When the queue is full a caller waits for 5 s, then gets
//!   [`Error::Unavailable`]; a write that isn't answered within 30 s ends as [`Error::Stalled`]. Reads go on meanwhile, each on a
//!   blocking thread, but for the newest versions of what was written lately ([`lately`]).
//! * A disk that fails: a write whose sync failed has not happened, and can't be read, not even after a restart
//!   ([`writer`], [`journal`]). Writes are refused until the store could be brought back to what was acknowledged.
//!   [`Store::health`] tells.
//! * Space: puts are refused ([`Error::NoSpace`]) while less than [`Options::reserve_bytes`] are free on the file system, deletions
//!   only at a quarter of that; the engine itself should never meet a full disk. It works again when there is space.
//! * Memory: no index is held. Tables, their caches and the journal have fixed bounds ([`Options`]), and so has what is kept of the
//!   last writes.
//! * What was acknowledged is noted beside the engine's files ([`mark`]): a directory that lacks some of it is not opened.
//! * One process at a time ([`Error::Locked`] names the other). A directory that can't be trusted is not opened
//!   ([`Error::Corrupt`] says what to do).

mod fault;
mod form;
mod group;
mod health;
mod journal;
mod lately;
mod layout;
mod mark;
mod owner;
mod picture;
mod scrub;
mod space;
mod tables;
mod together;
mod writer;

use crate::expiry::{Clock, Expires, reap};
use crate::follow::{Follow, History};
use crate::hub::Hub;
use crate::lease::Leases;
use crate::{
    Error, Expect, Got, KeyRange, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus, WatchBatch,
    WatchStream,
};
use async_trait::async_trait;
use bytes::Bytes;
pub use form::kept_as;
use group::{Answer, Change, Reply, Write};
use health::Health;
use lately::Lately;
use mark::Mark;
use parking_lot::{Mutex, RwLock};
pub use picture::restore;
use scrub::Scrub;
pub use space::FreeSpace;
pub(crate) use space::refusal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tables::Tables;
pub use tables::{FORMAT, READS};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use writer::{Command, Writer};

const QUEUE: usize = 1024;
const QUEUE_BYTES: usize = 64 << 20;
const QUEUE_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const EXPIRE_AGAIN_MS: u64 = 1000;

#[derive(Clone)]
pub struct Options {
    /// Blocks read from disk that are kept.
    pub cache_bytes: u64,
    /// Written but not yet in a table's file; the largest table's share.
    pub memtable_bytes: u64,
    /// The journal on disk; the engine takes no less than 64 MiB.
    pub journal_bytes: u64,
    /// What must stay free on the file system.
    pub reserve_bytes: u64,
    /// Events that may wait for one watcher.
    pub watch_bound: usize,
    /// Whether what is acknowledged has reached the disk; without, a power failure loses what came last.
    pub sync: bool,
    pub free_space: FreeSpace,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 4 << 20,
            memtable_bytes: 4 << 20,
            journal_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
            watch_bound: 10_000,
            sync: true,
            free_space: FreeSpace::default(),
        }
    }
}

/// An open store. It closes when it is dropped, in the background; [`Embedded::close`] waits for that.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    /// Bytes that may still queue.
    bytes: Arc<Semaphore>,
    /// One snapshot at a time is made to be sent.
    sending: Arc<tokio::sync::Mutex<()>>,
}

pub(crate) struct Shared {
    path: PathBuf,
    options: Options,
    /// `None`: closed, or not to be opened after a failure.
    tables: RwLock<Option<Tables>>,
    hub: Arc<Hub>,
    lately: Lately,
    acknowledged: Mark,
    health: Health,
    compacted: AtomicU64,
    /// How far what compactions gave up is gone.
    settled: watch::Sender<Revision>,
    leases: Mutex<Leases>,
    clock: Clock,
    earlier: Arc<Notify>,
    /// How many wait for those who read the tables.
    leaving: AtomicUsize,
}

impl Embedded {
    /// Opens the store in this directory, or makes one there. Needs a tokio runtime.
    pub async fn open(path: impl AsRef<Path>, options: Options) -> Result<Arc<Embedded>> {
        let path = path.as_ref().to_path_buf();
        let clock = Clock::start();
        let (shared, scrub) = blocking(move || Shared::open(path, options, clock)).await?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(shared);
        let writer = Writer::new(shared.clone(), queue, scrub);
        let thread = std::thread::Builder::new().name("store-writer".into());
        thread.spawn(move || writer.run()).map_err(|e| Error::Unavailable {
            what: format!("no thread: {e}"),
        })?;
        let store = Arc::new(Embedded {
            shared: shared.clone(),
            commands,
            bytes: Arc::new(Semaphore::new(QUEUE_BYTES)),
            sending: Arc::default(),
        });
        tokio::spawn(reap(Arc::downgrade(&store), clock, shared.earlier.clone()));
        Ok(store)
    }

    /// Waits until everything that was queued is done and the directory is free for another. Watches end.
    pub async fn close(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        match self.commands.send(Command::Close { reply }).await {
            Ok(()) => answer.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    async fn submit<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        match tokio::time::timeout(QUEUE_WITHIN, self.commands.reserve()).await {
            Ok(Ok(place)) => place.send(command(reply)),
            Ok(Err(_)) => return Err(Error::Closed),
            Err(_) => return Err(too_many()),
        }
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Stalled {
                what: format!("its disk took more than {ANSWER_WITHIN:?}"),
            }),
        }
    }

    async fn write<T>(
        &self,
        key: Bytes,
        change: Change,
        expected: Expect,
        answer: fn(Reply<T>) -> Answer,
    ) -> Result<T> {
        crate::check_key(&key)?;
        let share = self.share(key.len() + change.bytes()).await?;
        self.submit(|reply| {
            Command::Write(Write {
                key,
                change,
                expected,
                reply: Some(answer(reply)),
                _share: share,
            })
        })
        .await
    }

    /// Of the bytes that may queue. Who asks for more than the bound takes all of it.
    async fn share(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let share = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        match tokio::time::timeout(QUEUE_WITHIN, self.bytes.clone().acquire_many_owned(share)).await {
            Ok(Ok(share)) => Ok(share),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(too_many()),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Shared, &Tables) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        blocking(move || shared.read(|tables| f(&shared, tables))).await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.earlier.notify_one();
    }
}

impl Shared {
    fn open(path: PathBuf, options: Options, clock: Clock) -> Result<(Shared, Option<Scrub>)> {
        let tables = Tables::open(&path, &options)?;
        let revision = tables.revision()?;
        let acknowledged = Mark::open(&path, revision)?;
        let hub = Hub::new(revision, options.watch_bound);
        let compacted = AtomicU64::new(tables.compacted()?);
        let scrub = Scrub::resume(&tables)?;
        let settled = watch::Sender::new(tables.scrubbed()?);
        let mut leases = Leases::default();
        for (id, seconds) in tables.granted()? {
            leases.grant(id, seconds, clock.now_ms());
        }
        let (tables, earlier) = (RwLock::new(Some(tables)), Arc::new(Notify::new()));
        Ok((
            Shared {
                path,
                options,
                tables,
                hub,
                lately: Lately::default(),
                acknowledged,
                health: Health::new(),
                compacted,
                settled,
                leases: Mutex::new(leases),
                clock,
                earlier,
                leaving: AtomicUsize::new(0),
            },
            scrub,
        ))
    }

    fn compacted(&self) -> Revision {
        self.compacted.load(Ordering::SeqCst)
    }
    fn set_compacted(&self, revision: Revision) {
        self.compacted.store(revision, Ordering::SeqCst);
    }

    fn read<T>(&self, f: impl FnOnce(&Tables) -> Result<T>) -> Result<T> {
        match self.tables.read().as_ref() {
            Some(tables) => f(tables),
            None => Err(Error::Unavailable {
                what: "it is closed, or its disk failed".into(),
            }),
        }
    }

    /// To be called with a snapshot in hand: what a later compaction gives up, the snapshot still has.
    fn readable(&self, revision: Option<Revision>, current: Revision) -> Result<Revision> {
        let compact_revision = self.compacted();
        match revision {
            None => Ok(current),
            Some(asked) if asked < compact_revision => Err(Error::Compacted { compact_revision }),
            Some(asked) if asked > current => Err(Error::FutureRevision { asked, current }),
            Some(asked) => Ok(asked),
        }
    }
}

fn too_many() -> Error {
    Error::Unavailable {
        what: "too many writes wait: its disk doesn't keep up".into(),
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f)
        .await
        .unwrap_or_else(|e| Err(crate::not_read(&e)))
}

impl History for Shared {
    const BLOCKS: bool = true;
    fn read(&self, range: &KeyRange, after: Revision, max: usize) -> Result<WatchBatch> {
        self.read(|tables| {
            let to = self.hub.published();
            let snapshot = tables.snapshot();
            self.readable(Some(after), to)?;
            tables.history(&snapshot, range, after, to, max)
        })
    }
}

#[async_trait]
impl Expires for Embedded {
    async fn expire(&self, now_ms: u64) -> Option<u64> {
        match self.submit(|reply| Command::Expire { now_ms, reply }).await {
            Ok(next) => next,
            Err(Error::Closed) => None,
            Err(error) => {
                tracing::warn!(%error, "what has expired couldn't be removed; trying again");
                Some(now_ms + EXPIRE_AGAIN_MS)
            }
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        if revision.is_none()
            && let Some(got) = self.shared.at_hand(key)
        {
            return Ok(got);
        }
        let key = key.to_vec();
        self.read(move |shared, tables| {
            let current = shared.hub.published();
            let snapshot = tables.snapshot();
            let at = shared.readable(revision, current)?;
            Ok(Got {
                kv: tables.get(&snapshot, &key, at)?,
                revision: current,
                is_stale: false,
            })
        })
        .await
    }

    async fn list(&self, request: ListRequest) -> Result<Listed> {
        self.read(move |shared, tables| {
            let current = shared.hub.published();
            let snapshot = tables.snapshot();
            let at = shared.readable(request.revision, current)?;
            tables.list(&snapshot, &request, at)
        })
        .await
    }

    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        let deadline = ttl.map(|ttl| self.shared.clock.deadline_ms(ttl));
        self.write(key, Change::Put { value, deadline }, expected, Answer::One)
            .await
    }

    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        self.write(key, Change::Delete, expected, Answer::One).await
    }

    async fn put_then_delete(&self, key: Bytes, value: Bytes, expected: Expect) -> Result<(Outcome, Option<Outcome>)> {
        let change = Change::Put { value, deadline: None };
        self.write(key, change, expected, Answer::ThenDeleted).await
    }

    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        self.shared.readable(Some(after), self.shared.hub.published())?;
        Ok(Box::new(Follow::new(
            self.shared.clone(),
            self.shared.hub.clone(),
            range,
            after,
        )))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.submit(|reply| Command::Compact { revision, reply }).await
    }

    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.shared.hub.published())
    }

    async fn health(&self) -> Result<()> {
        let wanted = 1 + self.shared.options.reserve_bytes;
        if let Some(error) = self.shared.refusal(&self.shared.path, wanted) {
            return Err(error);
        }
        if let Some(known) = self.shared.health.known() {
            return known;
        }
        let probe = self.submit(|reply| Command::Probe { reply });
        let late = |_| Error::Stalled {
            what: format!("its disk took more than {:?} for a small write", health::WITHIN),
        };
        tokio::time::timeout(health::WITHIN, probe).await.map_err(late)?
    }

    async fn status(&self) -> Result<StoreStatus> {
        self.read(|shared, tables| {
            Ok(StoreStatus {
                revision: shared.hub.published(),
                compact_revision: shared.compacted(),
                bytes: tables.db.disk_space().map_err(|e| tables.fail(e))?,
                watchers: shared.hub.watchers(),
            })
        })
        .await
    }
}
