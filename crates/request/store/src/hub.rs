//! Live watches: who watches what, and one bounded queue for each.
//!
//! A writer publishes under one short lock and never waits: a queue that is full is cut, and its watcher told so.
//! What a queue holds is merged into one batch, so a watcher that is behind takes it in one go.
//!
//! Invariant: under the lock, every queue has got all events of its range up to `published`, and none later.

use crate::{Error, Event, KeyRange, Result, Revision, WatchBatch};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

pub(crate) struct Hub {
    state: Mutex<State>,
    /// How many events may wait for one watcher.
    bound: usize,
}

struct State {
    published: Revision,
    next_id: u64,
    watchers: BTreeMap<u64, Watcher>,
    closed: bool,
}

struct Watcher {
    range: KeyRange,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    events: Vec<Event>,
    synced: Revision,
    progress: bool,
    end: Option<Error>,
}

/// Why a watch can't go live.
pub(crate) enum NotLive {
    /// It has to read the past first: the hub stands later.
    Behind,
    Closed,
}

impl Hub {
    pub(crate) fn new(published: Revision, bound: usize) -> Arc<Hub> {
        let state = State {
            published,
            next_id: 0,
            watchers: BTreeMap::new(),
            closed: false,
        };
        Arc::new(Hub {
            state: Mutex::new(state),
            bound,
        })
    }

    pub(crate) fn published(&self) -> Revision {
        self.state.lock().published
    }

    pub(crate) fn watchers(&self) -> usize {
        self.state.lock().watchers.len()
    }

    /// Hands on the changes of one commit. `events` are in revision order, the last of them of `revision`.
    pub(crate) fn publish(&self, events: &[Event], revision: Revision) {
        let mut state = self.state.lock();
        state.published = revision;
        let bound = self.bound;
        state
            .watchers
            .retain(|_, watcher| watcher.offer(events, revision, bound));
    }

    /// A live watch that begins after `at`, which must be what was published last.
    pub(crate) fn subscribe(self: &Arc<Self>, range: &KeyRange, at: Revision) -> Result<Subscription, NotLive> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(NotLive::Closed);
        }
        if state.published != at {
            return Err(NotLive::Behind);
        }
        let id = state.next_id;
        state.next_id += 1;
        let queue = Arc::new(Queue::default());
        queue.waiting.lock().synced = at;
        state.watchers.insert(
            id,
            Watcher {
                range: range.clone(),
                queue: queue.clone(),
            },
        );
        Ok(Subscription {
            hub: self.clone(),
            id,
            queue,
        })
    }

    /// Ends every watch; no new one begins.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for watcher in std::mem::take(&mut state.watchers).into_values() {
            watcher.queue.cut(Error::Closed, false);
        }
    }
}

impl Watcher {
    /// False: the watcher is cut and to be forgotten.
    fn offer(&self, events: &[Event], revision: Revision, bound: usize) -> bool {
        let mut matching = events.iter().filter(|e| self.range.contains(&e.kv.key)).peekable();
        let mut waiting = self.queue.waiting.lock();
        waiting.synced = revision;
        if matching.peek().is_none() {
            return true;
        }
        waiting.events.extend(matching.cloned());
        let full = waiting.events.len() > bound;
        drop(waiting);
        if full {
            self.queue.cut(Error::SlowWatcher { bound }, true);
        } else {
            self.queue.changed.notify_one();
        }
        !full
    }
}

impl Queue {
    /// `discard`: what still waits is dropped, it would be an incomplete end.
    fn cut(&self, error: Error, discard: bool) {
        let mut waiting = self.waiting.lock();
        if discard {
            waiting.events = Vec::new();
        }
        waiting.end = Some(error);
        drop(waiting);
        self.changed.notify_one();
    }
}

/// A live watch; dropping it takes it off the hub.
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    queue: Arc<Queue>,
}

impl Subscription {
    pub(crate) async fn next(&mut self) -> Result<WatchBatch> {
        loop {
            if let Some(taken) = self.take() {
                return taken;
            }
            self.queue.changed.notified().await;
        }
    }

    fn take(&self) -> Option<Result<WatchBatch>> {
        let mut waiting = self.queue.waiting.lock();
        if !waiting.events.is_empty() || waiting.progress {
            waiting.progress = false;
            let events = std::mem::take(&mut waiting.events);
            return Some(Ok(WatchBatch {
                events,
                synced: waiting.synced,
            }));
        }
        waiting.end.clone().map(Err)
    }

    pub(crate) fn request_progress(&self) {
        self.queue.waiting.lock().progress = true;
        self.queue.changed.notify_one();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.state.lock().watchers.remove(&self.id);
    }
}
