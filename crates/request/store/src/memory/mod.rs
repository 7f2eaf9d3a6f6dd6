//! A store in memory, for tests and simulations: the whole contract, no thread, no disk, virtual time.
//!
//! Every operation happens at once, under one lock, so that a run is the same each time. Nothing survives it.

mod state;
mod together;

use crate::expiry::{Clock, Expires, reap};
use crate::follow::{Follow, History};
use crate::hub::Hub;
use crate::lease::Leases;
use crate::{
    Error, Event, Expect, Got, KeyRange, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus,
    WatchBatch, WatchStream,
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use state::State;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Events that may wait for one watcher.
const WATCH_BOUND: usize = 10_000;

pub struct Memory {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Locked after the state.
    leases: Mutex<Leases>,
    hub: Arc<Hub>,
    clock: Clock,
    earlier: Arc<Notify>,
}

impl Memory {
    /// An empty store. Keys with a time to live need a tokio runtime around it.
    pub fn new() -> Arc<Memory> {
        let state = State::new();
        let hub = Hub::new(state.revision(), WATCH_BOUND);
        let earlier = Arc::new(Notify::new());
        let inner = Arc::new(Inner {
            state: Mutex::new(state),
            leases: Mutex::default(),
            hub,
            clock: Clock::start(),
            earlier: earlier.clone(),
        });
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(reap(Arc::downgrade(&inner), inner.clock, earlier));
        }
        Arc::new(Memory { inner })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.inner.hub.close();
        self.inner.earlier.notify_one();
    }
}

impl Inner {
    /// Applies a change and publishes it before the lock is given up: watchers see changes in order.
    fn change(&self, apply: impl FnOnce(&mut State) -> (Outcome, Option<Event>)) -> Outcome {
        let mut state = self.state.lock();
        let (outcome, event) = apply(&mut state);
        if let Some(event) = event {
            let revision = event.revision();
            self.hub.publish(&[event], revision);
        }
        outcome
    }
}

impl History for Inner {
    const BLOCKS: bool = false;
    fn read(&self, range: &KeyRange, after: Revision, max: usize) -> Result<WatchBatch> {
        self.state.lock().history(range, after, max)
    }
}

#[async_trait]
impl Expires for Inner {
    async fn expire(&self, now_ms: u64) -> Option<u64> {
        loop {
            let next = self.state.lock().next_deadline();
            let lease = self.leases.lock().next();
            match next {
                Some((deadline, revision, key)) if deadline <= now_ms => {
                    self.change(|state| state.expire(deadline, revision, &key));
                }
                _ if lease.is_some_and(|end| end <= now_ms) => self.end_leases(now_ms),
                next => return next.map(|(deadline, ..)| deadline).into_iter().chain(lease).min(),
            }
        }
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        self.inner.state.lock().get(key, revision)
    }

    async fn list(&self, request: ListRequest) -> Result<Listed> {
        self.inner.state.lock().list(&request)
    }

    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        crate::check_key(&key)?;
        let deadline = ttl.map(|ttl| self.inner.clock.deadline_ms(ttl));
        let outcome = self.inner.change(|state| state.put(key, value, expected, deadline));
        if deadline.is_some() {
            self.inner.earlier.notify_one();
        }
        Ok(outcome)
    }

    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        crate::check_key(&key)?;
        Ok(self.inner.change(|state| state.delete(&key, expected)))
    }

    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        let state = self.inner.state.lock();
        if after < state.compacted() {
            return Err(Error::Compacted {
                compact_revision: state.compacted(),
            });
        }
        if after > state.revision() {
            return Err(Error::FutureRevision {
                asked: after,
                current: state.revision(),
            });
        }
        Ok(Box::new(Follow::new(
            self.inner.clone(),
            self.inner.hub.clone(),
            range,
            after,
        )))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.state.lock().compact(revision)
    }

    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.inner.state.lock().revision())
    }

    async fn status(&self) -> Result<StoreStatus> {
        let state = self.inner.state.lock();
        Ok(StoreStatus {
            revision: state.revision(),
            compact_revision: state.compacted(),
            bytes: state.bytes(),
            watchers: self.inner.hub.watchers(),
        })
    }

    /// Memory takes every write.
    async fn health(&self) -> Result<()> {
        Ok(())
    }
}
