//! Keys, revisions and events, as etcd has them: what the API server keeps its objects in.
//!
//! * One global [`Revision`] counts every change. An empty store stands at revision 1; the first change is revision 2.
//! * A key's [`KeyValue`] carries the revision of its creation, of its last change, and how often it was changed since.
//! * Writes are compare-and-set ([`Expect`]). A compare that fails is not an error: it answers with what is there
//!   ([`Outcome::Conflict`]), so that a caller can decide again without a second read.
//! * The past stays readable, and watchable, until [`Store::compact`] gives it up.
//! * A watch yields every change of its range exactly once and in order, or ends with an error that says why.
//!   No writer ever waits for a watcher: one that doesn't keep up is cut ([`Error::SlowWatcher`]), or reads the past later.
//!
//! The store knows bytes only: no kinds, no namespaces, no objects. What a key or a value means is the registry's business.
//!
//! Implementations: [`embedded`] (one machine; on disk), [`etcd`] (a client of it), [`memory`] (tests and simulations);
//! [`Rooted`] shows any of them with its keys below another root. Each passes [`contract`].
//!
//! What etcd's API asks for beyond that, transactions of several keys and leases, is [`Transact`]'s: the two that can serve it
//! ([`serve`]) have it, and the API server's way knows nothing of it.

mod bolt;
pub mod compactor;
pub mod contract;
mod digest;
pub mod embedded;
mod error;
pub mod etcd;
mod expiry;
mod follow;
mod hub;
mod lease;
pub mod memory;
mod range;
mod rooted;
pub mod serve;
pub mod snapshot;
mod transact;
pub mod unopened;
mod watch;

pub use digest::Digest;
pub use embedded::Embedded;
pub use error::{Error, Result};
pub use etcd::Etcd;
pub use lease::{LeaseId, Standing as LeaseStanding};
pub use memory::Memory;
pub use range::KeyRange;
pub use rooted::Rooted;
pub use transact::{Request as TransactRequest, Transact, Transaction, Work};
pub use watch::{Event, EventKind, WatchBatch, WatchSource, WatchStream};

use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;

/// Counts the changes of a store. What the API calls `resourceVersion`.
pub type Revision = u64;

/// A key as it stood at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// When the key came into being (again, after a deletion).
    pub create_revision: Revision,
    /// When it got this value.
    pub mod_revision: Revision,
    /// 1 at creation, one more with every change.
    pub version: u64,
    /// With which lease of etcd's API it goes; 0: none.
    pub lease: LeaseId,
}

impl KeyValue {
    /// What an event says of a key that was deleted.
    pub(crate) fn gone(key: Bytes, revision: Revision) -> KeyValue {
        KeyValue {
            key,
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: revision,
            version: 0,
            lease: 0,
        }
    }
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key doesn't exist.
    Absent,
    /// The key exists and its last change is of this revision.
    ModRevision(Revision),
    /// Nothing is expected.
    Any,
}

impl Expect {
    /// Whether the write may go ahead, given what is there.
    pub fn holds(self, current: Option<Revision>) -> bool {
        match self {
            Expect::Absent => current.is_none(),
            Expect::ModRevision(expected) => current == Some(expected),
            Expect::Any => true,
        }
    }
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is on disk. `revision` is the change's own, `prev` what it replaced or removed.
    Done { revision: Revision, prev: Option<KeyValue> },
    /// The compare failed, or there was nothing to delete: nothing changed. `current` is what stands there now.
    Conflict {
        revision: Revision,
        current: Option<KeyValue>,
    },
}

impl Outcome {
    /// The revision of the change, unless the compare failed.
    pub fn done(&self) -> Option<Revision> {
        match self {
            Outcome::Done { revision, .. } => Some(*revision),
            Outcome::Conflict { .. } => None,
        }
    }
}

/// A key's state, and the store's revision when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub kv: Option<KeyValue>,
    pub revision: Revision,
    /// The value would be kept otherwise if it were written now, by another key for instance.
    pub is_stale: bool,
}

/// What to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    pub range: KeyRange,
    /// At most so many; 0: all.
    pub limit: usize,
    /// As it stood then; `None`: now.
    pub revision: Option<Revision>,
    /// Nobody looks at [`Listed::count`]: a page needs not to look at the whole range.
    pub uncounted: bool,
}

impl ListRequest {
    pub fn new(range: KeyRange) -> Self {
        ListRequest {
            range,
            limit: 0,
            revision: None,
            uncounted: false,
        }
    }
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
    pub fn uncounted(mut self) -> Self {
        self.uncounted = true;
        self
    }
    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = Some(revision);
        self
    }
}

/// A part of a range in key order, all of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub kvs: Vec<KeyValue>,
    /// Keys of the range follow after the last of `kvs`.
    pub more: bool,
    /// How many keys the whole range has, `limit` or not; if uncounted, at least those of `kvs`.
    pub count: u64,
    /// The revision the list is of.
    pub revision: Revision,
}

/// For metrics and health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    pub revision: Revision,
    pub compact_revision: Revision,
    /// On disk (or in memory, if that is where it is).
    pub bytes: u64,
    pub watchers: usize,
}

/// A store of revisions. See the crate's documentation for what every implementation promises; [`contract`] checks it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key, now or as it stood at a past revision.
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got>;

    /// A range of keys, in order, of one revision.
    async fn list(&self, request: ListRequest) -> Result<Listed>;

    /// Writes a key if `expected` holds. With `ttl` the key is deleted (by an ordinary delete event) when so much time
    /// has passed, or a little later; without, it stays, even if an earlier write of the key had one.
    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome>;

    /// Removes a key if `expected` holds. A key that isn't there is a [`Outcome::Conflict`] with nothing in it.
    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome>;

    /// A put and, if it was done, the key's deletion: two changes, each of its revision, of which nothing comes in between where the
    /// store can do both in one commit. The second outcome is the deletion's.
    async fn put_then_delete(&self, key: Bytes, value: Bytes, expected: Expect) -> Result<(Outcome, Option<Outcome>)> {
        in_two_writes(self, key, value, expected).await
    }

    /// Every change of the range later than revision `after`, past ones first, then as they happen.
    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream>;

    /// Gives up the past before `revision`: reads at earlier revisions, and watches from them, fail with
    /// [`Error::Compacted`] from now on.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// The revision of the last change. Its event is under way to every watcher: a progress report asked for from now on
    /// ([`WatchSource::request_progress`]) comes after it and is not below it, unless a member of etcd that lags behind the
    /// others makes it; one asked for later is, then.
    async fn current_revision(&self) -> Result<Revision>;

    async fn status(&self) -> Result<StoreStatus>;

    /// Whether a write would be carried out now, by what is so: `Ok`, or why it wouldn't. With [`Error::NoSpace`] reads and
    /// deletions may still work. Answers within about two seconds.
    async fn health(&self) -> Result<()>;
}

/// Longer keys fit in no engine's index; the registry's are far shorter.
pub const MAX_KEY: usize = 16 * 1024;

fn check_key(key: &[u8]) -> Result<()> {
    match key.len() {
        0 => Err(Error::Invalid {
            what: "the key is empty".into(),
        }),
        n if n > MAX_KEY => Err(Error::Invalid {
            what: format!("the key has {n} bytes; at most {MAX_KEY} are possible"),
        }),
        _ => Ok(()),
    }
}

/// A task that was to read didn't come to its end.
fn not_read(error: &tokio::task::JoinError) -> Error {
    match error.is_cancelled() {
        // The runtime is going down.
        true => Error::Closed,
        false => Error::Unavailable {
            what: format!("reading failed: {error}"),
        },
    }
}

/// A put and the key's deletion after it, one by one: what [`Store::put_then_delete`] is where a store has nothing better.
pub async fn in_two_writes<S: Store + ?Sized>(
    store: &S,
    key: Bytes,
    value: Bytes,
    expected: Expect,
) -> Result<(Outcome, Option<Outcome>)> {
    let put = store.put(key.clone(), value, expected, None).await?;
    let Some(revision) = put.done() else {
        return Ok((put, None));
    };
    let deleted = store.delete(key, Expect::ModRevision(revision)).await?;
    Ok((put, Some(deleted)))
}
