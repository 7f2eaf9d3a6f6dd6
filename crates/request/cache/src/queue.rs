//! What waits for one watcher.

use crate::{Error, WatchEvent};
use parking_lot::Mutex;
use std::collections::VecDeque;
use tokio::sync::Notify;

/// Each is two words: the bound is about the memory of old versions that a sleeping watcher holds on to.
pub(crate) const BOUND: usize = 8192;

#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<WatchEvent>,
    end: Option<Error>,
}

impl Queue {
    /// False: it was full, and the watcher is cut.
    pub(crate) fn offer(&self, event: WatchEvent) -> bool {
        let mut waiting = self.waiting.lock();
        let full = waiting.events.len() >= BOUND;
        if full {
            waiting.events = VecDeque::new();
            waiting.end = Some(Error::Slow { bound: BOUND });
        } else {
            waiting.events.push_back(event);
        }
        drop(waiting);
        self.changed.notify_one();
        !full
    }

    /// No more events come; the watcher gets those that wait, then the error.
    pub(crate) fn end(&self, error: Error) {
        self.waiting.lock().end.get_or_insert(error);
        self.changed.notify_one();
    }

    /// `Some(Err)`: the watch is over.
    pub(crate) fn take(&self) -> Option<Result<WatchEvent, Error>> {
        let mut waiting = self.waiting.lock();
        match waiting.events.pop_front() {
            Some(event) => Some(Ok(event)),
            None => waiting.end.clone().map(Err),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.lock().events.is_empty()
    }

    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
