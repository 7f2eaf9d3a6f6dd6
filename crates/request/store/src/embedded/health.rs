//! How the store is, told from what happened to its last writes.
//!
//! A disk that has failed, or hangs, is known from the writer, which notes here what it does. When nothing has been written for
//! a while, nothing is known: then whoever asks causes a small write.

use crate::{Error, Result};
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// What upstream's readiness check gives etcd.
pub(super) const WITHIN: Duration = Duration::from_secs(2);
/// So long a write that succeeded stands for the next one.
const FRESH: Duration = Duration::from_secs(10);

pub(super) struct Health(Mutex<State>);

struct State {
    /// Why writes fail, since the last one did.
    trouble: Option<Error>,
    /// When the disk was last given something to do that it hasn't finished.
    busy_since: Option<Instant>,
    succeeded: Instant,
}

impl Health {
    /// The store was opened just now.
    pub(super) fn new() -> Health {
        Health(Mutex::new(State {
            trouble: None,
            busy_since: None,
            succeeded: Instant::now(),
        }))
    }

    pub(super) fn begins(&self) {
        self.0.lock().busy_since = Some(Instant::now());
    }

    pub(super) fn ends(&self, outcome: &Result<()>) {
        let mut state = self.0.lock();
        state.busy_since = None;
        state.trouble = outcome.as_ref().err().cloned();
        if outcome.is_ok() {
            state.succeeded = Instant::now();
        }
    }

    /// `None`: only a write can tell.
    pub(super) fn known(&self) -> Option<Result<()>> {
        let state = self.0.lock();
        if let Some(since) = state.busy_since
            && since.elapsed() > WITHIN
        {
            return Some(Err(Error::Stalled {
                what: format!("its disk has been busy with one write for {:.0?}", since.elapsed()),
            }));
        }
        match &state.trouble {
            // A write may have mended it since; the writer tries at most once a second.
            Some(_) => None,
            None => (state.succeeded.elapsed() < FRESH).then_some(Ok(())),
        }
    }
}
