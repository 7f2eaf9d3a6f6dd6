//! The cache of one resource, as its users see it.

use crate::forms::Forms;
use crate::past::{self, expired};
use crate::ring::Change;
use crate::select::Indexes;
use crate::snapshot::Snapshot;
use crate::state::{State, undo};
use crate::watch::{self, Watch, WatchOptions};
use crate::watchers::Watchers;
use crate::{Codec, Entry, Error, Form, Result, Selection, feed};
use bytes::Bytes;
use keelson_store::{KeyRange, Revision, Store};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch as signal};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a read waits for the cache to be as new as it needs (upstream's).
const FRESH_WITHIN: Duration = Duration::from_secs(3);
/// How often the store is asked again for a revision it hasn't reached.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a bookmark waits for news.
const CATCH_UP_WITHIN: Duration = Duration::from_millis(500);
/// How long a read waits for the cache to be filled for the first time.
const READY_WITHIN: Duration = Duration::from_secs(10);

pub struct Config {
    /// For messages: `pods`, `deployments.apps`.
    pub resource: String,
    /// What all of the resource's keys begin with: `/registry/pods/`.
    pub prefix: Bytes,
    pub codec: Arc<dyn Codec>,
    /// Shared by all caches of a server.
    pub forms: Arc<Forms>,
}

/// How new what is read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// As new as the store is at this moment.
    Consistent,
    /// Whatever the cache has.
    Any,
    NotOlderThan(Revision),
    /// As it stood at this revision (lists only; a get takes it for `NotOlderThan`).
    Exact(Revision),
}

#[derive(Clone)]
pub struct ListQuery {
    pub selection: Selection,
    pub at: At,
    /// 0: all. [`At::Any`] has no pages and ignores it.
    pub limit: usize,
    /// Only what comes after this key.
    pub after: Option<Bytes>,
}

#[derive(Clone, Debug)]
pub struct ListPage {
    /// In key order.
    pub entries: Vec<Arc<Entry>>,
    /// The list's `resourceVersion`.
    pub revision: Revision,
    /// There is more: ask again at this revision, after this key.
    pub next: Option<Bytes>,
    /// How many are left after this page; known only without a selector.
    pub remaining: Option<u64>,
}

/// The cache of one resource. It reads the store when it is used for the first time; clones are the same cache, and it
/// ends with the last of them.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
    feed: Arc<Feed>,
}

struct Feed {
    stop: CancellationToken,
    started: OnceLock<()>,
    _stop_on_drop: DropGuard,
}

pub(crate) struct Inner {
    store: Arc<dyn Store>,
    config: Config,
    indexes: Indexes,
    /// Taken before `state` where both are.
    watchers: Mutex<Watchers>,
    state: Mutex<State>,
    /// The cache's revision once it is ready; 0 before.
    reached: signal::Sender<Revision>,
    pub(crate) progress_wanted: Notify,
    /// Why it doesn't get on, for those who wait for it.
    trouble: Mutex<Option<Error>>,
    /// How often something was changed, and how often it had been when the cache was found to be what the store has.
    pub(crate) changes: AtomicU64,
    pub(crate) compared: AtomicU64,
    /// How often since it was not compared again.
    pub(crate) passed_over: AtomicU32,
}

impl Cache {
    pub fn new(store: Arc<dyn Store>, config: Config) -> Cache {
        let indexes = Indexes::of(&*config.codec);
        let (state, reached) = (Mutex::new(State::new()), signal::Sender::new(0));
        let inner = Arc::new(Inner {
            store,
            config,
            indexes,
            watchers: Mutex::default(),
            state,
            reached,
            progress_wanted: Notify::new(),
            trouble: Mutex::default(),
            changes: AtomicU64::new(1),
            compared: AtomicU64::new(0),
            passed_over: AtomicU32::new(0),
        });
        let stop = CancellationToken::new();
        let feed = Feed {
            started: OnceLock::new(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        };
        Cache {
            inner,
            feed: Arc::new(feed),
        }
    }

    /// Begins to read the store, if that hasn't happened yet. Needs a tokio runtime.
    pub fn start(&self) {
        self.feed
            .started
            .get_or_init(|| drop(tokio::spawn(feed::run(self.inner.clone(), self.feed.stop.clone()))));
    }

    pub fn is_begun(&self) -> bool {
        self.feed.started.get().is_some()
    }

    pub fn is_ready(&self) -> bool {
        self.inner.state.lock().ready
    }

    /// Waits until the cache can be read from, for any time.
    pub async fn ready(&self) {
        self.start();
        let mut reached = self.inner.reached.subscribe();
        // The sender lives in `inner`, so waiting can't fail.
        let _ = reached.wait_for(|revision| *revision > 0).await;
    }

    /// One object, by the store's key, and the revision the answer is of.
    pub async fn get(&self, key: &[u8], at: At) -> Result<(Option<Arc<Entry>>, Revision)> {
        self.fresh(at).await?;
        let state = self.inner.state.lock();
        Ok((state.snapshot.get(key).cloned(), state.revision()))
    }

    /// One object as the cache has it at this moment, if it is in use.
    pub fn peek(&self, key: &[u8]) -> Option<Arc<Entry>> {
        self.inner.state.lock().snapshot.get(key).cloned()
    }

    pub async fn list(&self, query: ListQuery) -> Result<ListPage> {
        self.fresh(query.at).await?;
        if let Some((name, _)) = &query.selection.label
            && query.selection.index.is_none()
        {
            self.inner.asked_for(name);
        }
        let snapshot = match query.at {
            At::Exact(revision) => match self.at(revision).await? {
                Some(snapshot) => snapshot,
                None => return past::list(&self.inner, &query, revision).await,
            },
            _ => self.inner.snapshot(),
        };
        Ok(self.page(&snapshot, &query))
    }

    fn page(&self, snapshot: &Snapshot, query: &ListQuery) -> ListPage {
        let selection = self.inner.checked(&query.selection);
        let limit = if query.at == At::Any { 0 } else { query.limit };
        let mut found = snapshot.select(self.inner.prefix(), &selection, query.after.as_deref());
        let revision = snapshot.revision;
        if limit == 0 {
            return ListPage {
                entries: found.cloned().collect(),
                revision,
                next: None,
                remaining: None,
            };
        }
        let entries: Vec<_> = found.by_ref().take(limit).cloned().collect();
        let left = match selection.predicate.is_some() {
            true => found.next().map_or(0, |_| 1),
            false => found.count() as u64,
        };
        let next = entries.last().filter(|_| left > 0).map(|e| e.key().clone());
        let remaining = (left > 0 && selection.predicate.is_none()).then_some(left);
        ListPage {
            entries,
            revision,
            next,
            remaining,
        }
    }

    pub async fn watch(&self, options: WatchOptions) -> Result<Watch> {
        watch::open(self, options).await
    }

    /// The resource is gone, or is another now: watches end, without an error, and none begins. Reads under way go on.
    pub fn close(&self) {
        self.inner.watchers.lock().close();
    }

    /// The entry's bytes in `form`, for many readers: encoded once.
    pub fn encoded(&self, entry: &Arc<Entry>, form: Form) -> Result<Bytes> {
        let Config { forms, codec, .. } = &self.inner.config;
        Ok(forms.encoded(entry, form, &**codec)?)
    }

    /// Appends the entry's bytes in `form`, for one reader; after an error `out` is as it was.
    pub fn append(&self, entry: &Arc<Entry>, form: Form, out: &mut Vec<u8>) -> Result<()> {
        let Config { forms, codec, .. } = &self.inner.config;
        Ok(forms.append(entry, form, &**codec, out)?)
    }

    /// How many bytes the entry has in `form`.
    pub fn length(&self, entry: &Entry, form: Form) -> Result<usize> {
        if let Some(error) = entry.unreadable() {
            return Err(error.clone().into());
        }
        let codec = &self.inner.config.codec;
        Ok(codec.length(entry.value(), entry.revision(), form)?)
    }

    /// How many objects there are, as far as the cache knows.
    pub fn len(&self) -> usize {
        self.inner.state.lock().snapshot.len()
    }
    /// How many bytes all their values have.
    pub fn bytes(&self) -> usize {
        self.inner.state.lock().snapshot.bytes()
    }
    /// How many watchers would be told of a change of this key, as far as that can be told before.
    pub fn interested(&self, namespace: &str, key: &Bytes) -> usize {
        self.inner.watchers.lock().interested(namespace, key)
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn watchers(&self) -> usize {
        self.inner.watchers.lock().count()
    }
    /// All events up to it are applied.
    pub fn revision(&self) -> Revision {
        self.inner.state.lock().revision()
    }
    pub fn codec(&self) -> &Arc<dyn Codec> {
        &self.inner.config.codec
    }
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Waits until the cache is ready, and as new as `at` asks for.
    pub(crate) async fn fresh(&self, at: At) -> Result<()> {
        self.start();
        if !self.is_ready() && tokio::time::timeout(READY_WITHIN, self.ready()).await.is_err() {
            return Err(self.inner.trouble().unwrap_or(Error::NotReady));
        }
        let needed = match at {
            At::Any => return Ok(()),
            At::Consistent => self.inner.store.current_revision().await?,
            At::NotOlderThan(revision) | At::Exact(revision) => revision,
        };
        self.inner.reach(needed).await
    }

    /// The past, if the ring has it; whether the past still exists is for the store to say.
    async fn at(&self, revision: Revision) -> Result<Option<Snapshot>> {
        self.inner
            .store
            .get(self.inner.prefix(), Some(revision))
            .await
            .map_err(|e| expired(e, revision))?;
        let (snapshot, changes) = {
            let state = self.inner.state.lock();
            if revision > state.revision() {
                return Ok(None);
            }
            let Ok(changes) = state.changes_after(revision) else {
                return Ok(None);
            };
            (state.snapshot.clone(), changes)
        };
        Ok(Some(undo(snapshot, &changes, revision, &self.inner.indexes)))
    }
}

impl Inner {
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }
    pub(crate) fn codec(&self) -> &dyn Codec {
        &*self.config.codec
    }
    pub(crate) fn resource(&self) -> &str {
        &self.config.resource
    }
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.config.prefix
    }
    pub(crate) fn range(&self) -> KeyRange {
        KeyRange::prefix(self.config.prefix.clone())
    }
    pub(crate) fn indexes(&self) -> &Indexes {
        &self.indexes
    }
    pub(crate) fn state(&self) -> &Mutex<State> {
        &self.state
    }
    pub(crate) fn watchers(&self) -> &Mutex<Watchers> {
        &self.watchers
    }
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.state.lock().snapshot.clone()
    }

    /// A hint for an index that doesn't exist is no hint.
    pub(crate) fn checked(&self, selection: &Selection) -> Selection {
        let mut selection = selection.clone();
        selection.index = selection.index.filter(|i| self.indexes.has(i.index));
        selection
    }

    /// The feed failed, and tries again.
    pub(crate) fn stuck(&self, error: Error) {
        *self.trouble.lock() = Some(error);
    }
    fn trouble(&self) -> Option<Error> {
        self.trouble.lock().clone()
    }

    pub(crate) fn reset(&self, snapshot: Snapshot) {
        let revision = snapshot.revision;
        *self.trouble.lock() = None;
        let mut watchers = self.watchers.lock();
        self.state.lock().reset(snapshot);
        self.changes.fetch_add(1, Ordering::AcqRel);
        // What happened in between is not known.
        watchers.end(Error::Restarted { revision });
        drop(watchers);
        self.reached.send_replace(revision);
    }

    /// Tells when there will be events to give up.
    pub(crate) fn apply(&self, changes: Vec<Arc<Change>>, synced: Revision) -> Option<Instant> {
        *self.trouble.lock() = None;
        let now = feed::now();
        let mut watchers = self.watchers.lock();
        let ages_at = {
            let mut state = self.state.lock();
            state.apply(&changes, synced, &self.indexes, now);
            if !changes.is_empty() {
                self.changes.fetch_add(1, Ordering::AcqRel);
            }
            state.ring.ages_at(now)
        };
        // Reads need not wait until everybody has been told.
        self.reached.send_replace(synced);
        changes.iter().for_each(|change| watchers.tell(change, &self.indexes));
        ages_at
    }

    /// Gives up old events; tells when there will be more of them.
    pub(crate) fn age(&self) -> Option<Instant> {
        let (mut state, now) = (self.state.lock(), feed::now());
        state.ring.age(now);
        state.ring.ages_at(now)
    }

    /// No more events come.
    pub(crate) fn end(&self) {
        let mut watchers = self.watchers.lock();
        let mut state = self.state.lock();
        let snapshot = state.snapshot.clone();
        let revision = snapshot.revision;
        state.reset(snapshot);
        watchers.end(Error::Restarted { revision });
    }

    /// Comes as close to the store's revision as it gets in a moment; for bookmarks, which have to be true but not new.
    pub(crate) async fn catch_up(&self) {
        if let Ok(Ok(current)) = tokio::time::timeout(CATCH_UP_WITHIN, self.store.current_revision()).await {
            let _ = tokio::time::timeout(CATCH_UP_WITHIN, self.reach(current)).await;
        }
    }

    async fn reach(&self, needed: Revision) -> Result<()> {
        let mut reached = self.reached.subscribe();
        if *reached.borrow() >= needed {
            return Ok(());
        }
        let arrived = async {
            loop {
                self.progress_wanted.notify_one();
                // A report that comes after this request is as new as the store. If that isn't enough, time has to pass.
                let enough = reached.wait_for(|reached| *reached >= needed);
                if tokio::time::timeout(ASK_AGAIN, enough).await.is_ok() {
                    return;
                }
            }
        };
        match tokio::time::timeout(FRESH_WITHIN, arrived).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.trouble().unwrap_or_else(|| Error::TooLarge {
                asked: needed,
                current: self.state.lock().revision(),
            })),
        }
    }
}
