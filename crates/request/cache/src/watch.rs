//! A watch: what was missed or what is there, then what happens, and bookmarks in between.

use crate::cache::{At, Cache, Inner};
use crate::queue::Queue;
use crate::ring::Change;
use crate::snapshot::Snapshot;
use crate::watchers::seen_by;
use crate::{Entry, Error, Result, Selection};
use bytes::Bytes;
use keelson_store::Revision;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Upstream's: a bookmark a minute, and one shortly before the watch times out.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// So many initial objects are taken from the snapshot at once.
const PORTION: usize = 256;

/// Where a watch begins. The crate's documentation says which API options mean which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// What there is, as ADDED, then what happens.
    State(At),
    /// What happened after this revision, then what happens.
    After(Revision),
    /// What happens from now on.
    Now(At),
}

#[derive(Clone)]
pub struct WatchOptions {
    pub selection: Selection,
    pub start: Start,
    /// After the initial state comes a bookmark that says so (`k8s.io/initial-events-end`).
    pub end_bookmark: bool,
    /// `allowWatchBookmarks`
    pub bookmarks: bool,
    /// When the caller will end the watch: one bookmark comes shortly before.
    pub timeout: Option<Duration>,
}

impl WatchOptions {
    pub fn new(selection: Selection, start: Start) -> Self {
        WatchOptions {
            selection,
            start,
            end_bookmark: false,
            bookmarks: false,
            timeout: None,
        }
    }
}

#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Arc<Entry>),
    Modified(Arc<Entry>),
    /// What was there last; its revision is that of the deletion.
    Deleted(Arc<Entry>),
    /// Everything up to this revision has been sent.
    Bookmark {
        revision: Revision,
        initial_events_end: bool,
    },
}

impl WatchEvent {
    pub fn revision(&self) -> Revision {
        match self {
            WatchEvent::Added(e) | WatchEvent::Modified(e) | WatchEvent::Deleted(e) => e.revision(),
            WatchEvent::Bookmark { revision, .. } => *revision,
        }
    }
    pub fn entry(&self) -> Option<&Arc<Entry>> {
        match self {
            WatchEvent::Added(e) | WatchEvent::Modified(e) | WatchEvent::Deleted(e) => Some(e),
            WatchEvent::Bookmark { .. } => None,
        }
    }
}

/// A watch under way; dropping it ends it.
pub struct Watch {
    cache: Cache,
    id: u64,
    queue: Arc<Queue>,
    /// Events up to this revision are not for this watcher, even if they are still to come.
    after: Revision,
    selection: Selection,
    /// What happened before the watch began, as far as it isn't told yet.
    missed: VecDeque<Arc<Change>>,
    /// What comes before the queue.
    first: VecDeque<WatchEvent>,
    initial: Option<Initial>,
    bookmarks: Option<Bookmarks>,
    over: bool,
}

/// The initial state, of which a portion at a time is taken.
struct Initial {
    snapshot: Snapshot,
    selection: Selection,
    after: Option<Bytes>,
    end_bookmark: bool,
}

struct Bookmarks {
    before_end: Option<Instant>,
    /// Set to when one is due: once a bookmark, not once an event.
    timer: Pin<Box<Sleep>>,
}

pub(crate) async fn open(cache: &Cache, options: WatchOptions) -> Result<Watch> {
    match options.start {
        Start::State(at) | Start::Now(at) => cache.fresh(at).await?,
        Start::After(_) => cache.fresh(At::Any).await?,
    }
    let inner = cache.inner();
    let selection = inner.checked(&options.selection);
    let queue = Arc::new(Queue::default());
    let mut first = VecDeque::new();
    let mut missed = VecDeque::new();
    let mut initial = None;
    let mut watchers = inner.watchers().lock();
    if watchers.closed {
        return Err(Error::Ended);
    }
    let state = inner.state().lock();
    match options.start {
        Start::State(_) => {
            let (snapshot, selection) = (state.snapshot.clone(), selection.clone());
            initial = Some(Initial {
                snapshot,
                selection,
                after: None,
                end_bookmark: options.end_bookmark,
            });
        }
        Start::After(revision) => missed = state.changes_after(revision)?,
        Start::Now(_) if options.end_bookmark => {
            first.push_back(WatchEvent::Bookmark {
                revision: state.revision(),
                initial_events_end: true,
            });
        }
        Start::Now(_) => {}
    }
    drop(state);
    let id = watchers.add(selection.clone(), queue.clone());
    drop(watchers);
    let bookmarks = options.bookmarks.then(|| Bookmarks::new(options.timeout));
    let after = if let Start::After(revision) = options.start {
        revision
    } else {
        0
    };
    Ok(Watch {
        cache: cache.clone(),
        id,
        queue,
        after,
        selection,
        missed,
        first,
        initial,
        bookmarks,
        over: false,
    })
}

impl Watch {
    /// Whether what it begins with hasn't all been handed out.
    pub fn is_beginning(&self) -> bool {
        self.initial.is_some() || !self.first.is_empty() || !self.missed.is_empty()
    }

    /// The next event; `None` when the cache was closed. After an error the watch is over. Dropping the future before it is done loses nothing.
    pub async fn next(&mut self) -> Option<Result<WatchEvent>> {
        if self.over {
            return None;
        }
        let event = self.step().await;
        self.over = event.is_err();
        match event {
            Err(Error::Ended) => None,
            event => Some(event),
        }
    }

    /// The next event, if it is there already.
    pub fn next_ready(&mut self) -> Option<Result<WatchEvent>> {
        if self.over {
            return None;
        }
        match self.ready()? {
            // It stays where it is, for `next`.
            Err(Error::Ended) => None,
            event => {
                self.over = event.is_err();
                Some(event)
            }
        }
    }

    fn ready(&mut self) -> Option<Result<WatchEvent>> {
        loop {
            self.fill();
            if let Some(event) = self.first.pop_front() {
                return Some(Ok(event));
            }
            match self.queue.take() {
                Some(Ok(event)) if event.revision() <= self.after => continue,
                event => return event,
            }
        }
    }

    async fn step(&mut self) -> Result<WatchEvent> {
        loop {
            if let Some(event) = self.ready() {
                return event;
            }
            match &mut self.bookmarks {
                None => self.queue.changed().await,
                Some(bookmarks) => {
                    tokio::select! {
                        () = self.queue.changed() => {}
                        () = &mut bookmarks.timer => {
                            if let Some(event) = bookmark(self.cache.inner(), &self.queue).await {
                                bookmarks.sent();
                                return Ok(event);
                            }
                        }
                    }
                }
            }
        }
    }

    fn fill(&mut self) {
        while self.first.is_empty()
            && let Some(change) = self.missed.pop_front()
        {
            self.first.extend(seen_by(&change, &self.selection));
        }
        if !self.first.is_empty() {
            return;
        }
        let Some(initial) = &mut self.initial else { return };
        let prefix = self.cache.inner().prefix();
        let found = initial
            .snapshot
            .select(prefix, &initial.selection, initial.after.as_deref());
        self.first
            .extend(found.take(PORTION).map(|entry| WatchEvent::Added(entry.clone())));
        initial.after = self.first.back().and_then(WatchEvent::entry).map(|e| e.key().clone());
        if self.first.len() < PORTION {
            let (revision, initial_events_end) = (initial.snapshot.revision, true);
            if initial.end_bookmark {
                self.first.push_back(WatchEvent::Bookmark {
                    revision,
                    initial_events_end,
                });
            }
            self.initial = None;
        }
    }
}

/// As new as the store, if that can be told soon. Events that wait go first: then there is no bookmark yet.
async fn bookmark(inner: &Inner, queue: &Queue) -> Option<WatchEvent> {
    inner.catch_up().await;
    // Nobody is told of anything meanwhile.
    let _watchers = inner.watchers().lock();
    let revision = inner.state().lock().revision();
    queue.is_empty().then_some(WatchEvent::Bookmark {
        revision,
        initial_events_end: false,
    })
}

impl Bookmarks {
    fn new(timeout: Option<Duration>) -> Self {
        let now = Instant::now();
        let before_end = timeout
            .and_then(|t| t.checked_sub(BOOKMARK_BEFORE_END))
            .map(|t| now + t);
        Bookmarks {
            before_end,
            timer: Box::pin(sleep_until(due(now, before_end))),
        }
    }
    fn sent(&mut self) {
        let now = Instant::now();
        self.before_end = self.before_end.filter(|at| *at > now);
        self.timer.as_mut().reset(due(now, self.before_end));
    }
}

fn due(now: Instant, before_end: Option<Instant>) -> Instant {
    let next = now + BOOKMARK_EVERY;
    before_end.map_or(next, |before_end| before_end.min(next))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cache.inner().watchers().lock().remove(self.id);
    }
}
