//! Who wrote what: the server that serves a write knows its user and, when the store has answered, its revision.

use crate::block::Who;
use async_trait::async_trait;
use bytes::Bytes;
use keelson_store::{
    Expect, Got, KeyRange, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus, WatchStream,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

tokio::task_local! {
    static WRITER: Arc<Who>;
}

/// What this future writes, by a store that [notes](Noting) it, was written by them.
pub async fn written_by<T>(who: Who, writing: impl Future<Output = T>) -> T {
    WRITER.scope(Arc::new(who.cut()), writing).await
}

/// So many writes may be known that the follower hasn't seen yet.
const MOST: usize = 16 * 1024;

/// By revision, until the change has been written down.
#[derive(Default)]
pub(crate) struct Writers(Mutex<BTreeMap<Revision, Arc<Who>>>);

impl Writers {
    fn note(&self, revision: Revision) {
        let Ok(who) = WRITER.try_with(Arc::clone) else { return };
        let mut known = self.0.lock();
        known.insert(revision, who);
        if known.len() > MOST {
            known.pop_first();
        }
    }

    pub(crate) fn of(&self, revision: Revision) -> Option<Who> {
        self.0.lock().get(&revision).map(|who| Who::clone(who))
    }

    pub(crate) fn forget(&self, to: Revision) {
        let mut known = self.0.lock();
        *known = known.split_off(&(to + 1));
    }
}

/// A store over a store, whose writes are noted.
pub struct Noting {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) writers: Arc<Writers>,
}

impl Noting {
    fn noted(&self, outcome: Result<Outcome>) -> Result<Outcome> {
        if let Ok(Outcome::Done { revision, .. }) = &outcome {
            self.writers.note(*revision);
        }
        outcome
    }
}

#[async_trait]
impl Store for Noting {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        self.inner.get(key, revision).await
    }
    async fn list(&self, request: ListRequest) -> Result<Listed> {
        self.inner.list(request).await
    }
    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        self.noted(self.inner.put(key, value, expected, ttl).await)
    }
    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        self.noted(self.inner.delete(key, expected).await)
    }
    async fn put_then_delete(&self, key: Bytes, value: Bytes, expected: Expect) -> Result<(Outcome, Option<Outcome>)> {
        let (put, deleted) = self.inner.put_then_delete(key, value, expected).await?;
        let deleted = deleted.map(|deleted| self.noted(Ok(deleted))).transpose()?;
        Ok((self.noted(Ok(put))?, deleted))
    }
    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        self.inner.watch(range, after).await
    }
    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }
    async fn current_revision(&self) -> Result<Revision> {
        self.inner.current_revision().await
    }
    async fn status(&self) -> Result<StoreStatus> {
        self.inner.status().await
    }
    async fn health(&self) -> Result<()> {
        self.inner.health().await
    }
}
