//! Requests to the store, for whoever counts them.

use super::Engine;
use async_trait::async_trait;
use bytes::Bytes;
use keelson_api::GroupResource;
use keelson_store::{
    Expect, Got, KeyRange, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus, WatchStream,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Is told of each request to the store: for what, which, how long it took, whether it was answered.
pub trait Observer: Send + Sync {
    fn asked(&self, of: &GroupResource, operation: &'static str, took: Duration, good: bool);
}

/// Nobody counts.
pub(super) struct Nobody;

impl Observer for Nobody {
    fn asked(&self, _: &GroupResource, _: &'static str, _: Duration, _: bool) {}
}

async fn timed<T>(
    observer: &dyn Observer,
    of: &GroupResource,
    operation: &'static str,
    request: impl Future<Output = Result<T>>,
) -> Result<T> {
    let span = keelson_trace::child("Store");
    span.tell("db.operation.name", || operation);
    span.tell("db.collection.name", || of.to_string());
    let began = Instant::now();
    let answer = span.told(request.await);
    observer.asked(of, operation, began.elapsed(), answer.is_ok());
    answer
}

impl Engine {
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    pub(super) async fn asked<T>(
        &self,
        of: &GroupResource,
        operation: &'static str,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        timed(&*self.observer, of, operation, request).await
    }

    /// The store as a resource's cache reads it.
    pub(super) fn observed(&self, of: GroupResource) -> Arc<dyn Store> {
        Arc::new(Observed {
            inner: self.store.clone(),
            observer: self.observer.clone(),
            of,
        })
    }
}

struct Observed {
    inner: Arc<dyn Store>,
    observer: Arc<dyn Observer>,
    of: GroupResource,
}

#[async_trait]
impl Store for Observed {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        timed(&*self.observer, &self.of, "get", self.inner.get(key, revision)).await
    }
    async fn list(&self, request: ListRequest) -> Result<Listed> {
        timed(&*self.observer, &self.of, "list", self.inner.list(request)).await
    }
    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        self.inner.put(key, value, expected, ttl).await
    }
    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        self.inner.delete(key, expected).await
    }
    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        self.inner.watch(range, after).await
    }
    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }
    async fn current_revision(&self) -> Result<Revision> {
        let asked = self.inner.current_revision();
        timed(&*self.observer, &self.of, "getCurrentResourceVersion", asked).await
    }
    async fn status(&self) -> Result<StoreStatus> {
        self.inner.status().await
    }
    async fn health(&self) -> Result<()> {
        self.inner.health().await
    }
}
