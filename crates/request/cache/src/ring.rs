//! The recent past of a resource.
//!
//! It has room for as many events as happen in [`FRESH`], within bounds of number and size: a watcher that comes back
//! within that time finds what it missed. At a bound the oldest event goes, and who needs it gets 410. When a resource falls
//! quiet, what is no longer fresh goes too, but for the latest few.

use crate::Entry;
use keelson_store::Revision;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// Upstream's: clients that were away so long find their events.
const FRESH: Duration = Duration::from_secs(75);
const LEAST: usize = 100;
/// Events that age are given up in portions, not one at a time.
const AGING_APART: Duration = Duration::from_secs(15);
const MOST: usize = 10_240;
const MOST_BYTES: usize = 32 << 20;

/// One change.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    /// What is there now; `None`: it is gone.
    pub(crate) now: Option<Arc<Entry>>,
    /// What was there before; `None`: it is new.
    pub(crate) before: Option<Arc<Entry>>,
    gone: OnceLock<Option<Arc<Entry>>>,
}

impl Change {
    pub(crate) fn new(revision: Revision, now: Option<Arc<Entry>>, before: Option<Arc<Entry>>) -> Arc<Change> {
        Arc::new(Change {
            revision,
            now,
            before,
            gone: OnceLock::new(),
        })
    }
    /// What was there before, said to be of this change's revision: for whom the object is gone. One for all watchers.
    pub(crate) fn gone(&self) -> Option<&Arc<Entry>> {
        self.gone
            .get_or_init(|| self.before.as_ref().map(|b| Arc::new(b.at_revision(self.revision))))
            .as_ref()
    }
    fn bytes(&self) -> usize {
        self.before.as_ref().map_or(64, |e| e.bytes())
    }
}

pub(crate) struct Ring {
    changes: VecDeque<(Instant, Arc<Change>)>,
    /// All changes after this revision are here.
    floor: Revision,
    room: usize,
    bytes: usize,
}

impl Ring {
    pub(crate) fn new(floor: Revision) -> Ring {
        Ring {
            changes: VecDeque::new(),
            floor,
            room: LEAST,
            bytes: 0,
        }
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn push(&mut self, change: Arc<Change>, now: Instant) {
        if self.changes.len() >= self.room {
            let oldest_is_fresh = self
                .changes
                .front()
                .is_some_and(|(at, _)| now.duration_since(*at) < FRESH);
            if oldest_is_fresh && self.room < MOST {
                self.room = (self.room * 2).min(MOST);
            } else {
                self.shrink(now);
            }
        }
        self.bytes += change.bytes();
        self.changes.push_back((now, change));
        while self.changes.len() > self.room || (self.bytes > MOST_BYTES && self.changes.len() > 1) {
            self.pop();
        }
    }

    /// When there will be events that are neither fresh nor among the latest.
    pub(crate) fn ages_at(&self, now: Instant) -> Option<Instant> {
        let (oldest, _) = self.changes.front().filter(|_| self.changes.len() > LEAST)?;
        Some((*oldest + FRESH).max(now + AGING_APART))
    }

    /// Gives those up that are that now.
    pub(crate) fn age(&mut self, now: Instant) {
        while self.changes.len() > LEAST && self.changes.front().is_some_and(|(at, _)| *at + FRESH <= now) {
            self.pop();
        }
        self.changes.shrink_to(LEAST);
    }

    /// Room for fewer is enough when a quarter of it holds what is fresh.
    fn shrink(&mut self, now: Instant) {
        let quarter = self.changes.len().saturating_sub(self.room / 4);
        let was_enough = self
            .changes
            .get(quarter)
            .is_some_and(|(at, _)| now.duration_since(*at) > FRESH);
        if was_enough {
            self.room = (self.room / 2).max(LEAST);
        }
    }

    fn pop(&mut self) {
        if let Some((_, change)) = self.changes.pop_front() {
            self.bytes -= change.bytes();
            self.floor = change.revision;
        }
    }

    /// The changes after `revision`, which must not be below the floor; oldest first.
    pub(crate) fn after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Change>> {
        let from = self.changes.partition_point(|(_, c)| c.revision <= revision);
        self.changes.range(from..).map(|(_, c)| c)
    }
}
