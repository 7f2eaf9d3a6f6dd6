//! The store over a store.

use crate::metrics::Metrics;
use crate::provider::{ANY, Opened, Providers, Refusal};
use crate::rules::{GroupResource, Resources, Rules};
use async_trait::async_trait;
use bytes::Bytes;
use keelson_store::{
    Error, Expect, Got, KeyRange, KeyValue, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus,
    WatchBatch, WatchSource, WatchStream, unopened,
};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// After so many values that were opened in one go others get their turn.
const TURN: usize = 64;

pub struct Sealed {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) seal: Arc<Seal>,
}

/// What seals and opens.
pub(crate) struct Seal {
    rules: RwLock<Arc<Rules>>,
    pub(crate) resources: Resources,
    /// Grows with every change of the rules.
    generation: watch::Sender<u64>,
    /// Resources of which a value was handed on unopened, and the generation it was told to watchers in. No more than there
    /// are resources.
    unopened: Mutex<HashMap<Arc<GroupResource>, u64>>,
    metrics: Arc<Metrics>,
}

impl Seal {
    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.rules.read().clone()
    }

    /// By what values of a key are sealed. While the token is held the rules are in use.
    fn writing(&self, key: &[u8]) -> Option<(Arc<GroupResource>, Arc<Providers>, TaskTrackerToken)> {
        let resource = (self.resources)(key)?;
        let rules = self.rules.read();
        let providers = rules.providers(&resource)?.clone();
        Some((resource, providers, rules.writers.token()))
    }

    fn reading(&self, key: &[u8]) -> Option<(Arc<GroupResource>, Arc<Providers>)> {
        let resource = (self.resources)(key)?;
        let providers = self.rules.read().providers(&resource)?.clone();
        Some((resource, providers))
    }

    pub(crate) fn sealed(
        &self,
        resource: &GroupResource,
        providers: &Providers,
        key: &[u8],
        value: Bytes,
    ) -> Result<Bytes> {
        let began = Instant::now();
        let sealed = providers.seal(&value, key);
        let stored = match &sealed {
            Ok(Some(sealed)) => sealed,
            _ => &[][..],
        };
        let prefix = match &sealed {
            Err(_) => "unknown",
            Ok(_) => providers.prefix_of(stored),
        };
        let (ok, took) = (sealed.is_ok(), began.elapsed());
        self.metrics
            .transformed(&resource.shown(), "to_storage", prefix, ok, took);
        match sealed {
            Ok(None) => Ok(value),
            Ok(Some(sealed)) => Ok(sealed.into()),
            Err(refusal) => Err(Error::Invalid { what: refusal.why }),
        }
    }

    /// `None`: it isn't for any provider.
    pub(crate) async fn open(&self, kv: &KeyValue) -> Option<std::result::Result<Opened, Refusal>> {
        // An event of a deletion has no value, and nothing that is sealed is empty.
        if kv.value.is_empty() {
            return None;
        }
        let Some((resource, providers)) = self.reading(&kv.key) else {
            let sealed = kv.value.starts_with(ANY);
            return sealed.then(|| Err("identity transformer tried to read encrypted data".into()));
        };
        let began = Instant::now();
        let opened = providers.open(&kv.value, &kv.key).await;
        let (prefix, ok) = (providers.prefix_of(&kv.value), opened.is_ok());
        let took = began.elapsed();
        self.metrics
            .transformed(&resource.shown(), "from_storage", prefix, ok, took);
        Some(opened)
    }

    /// With the value opened, or a mark in its place, and whether it is to be sealed anew. An error says that it can't be told
    /// now.
    pub(crate) async fn opened(&self, mut kv: KeyValue) -> Result<(KeyValue, bool)> {
        let mut is_stale = false;
        match self.open(&kv).await {
            None => {}
            Some(Ok(opened)) => (kv.value, is_stale) = (opened.value, opened.stale),
            Some(Err(refusal)) if refusal.later => {
                let what = format!(
                    "unable to transform key {:?}: {}",
                    String::from_utf8_lossy(&kv.key),
                    refusal.why
                );
                return Err(Error::Unavailable { what });
            }
            Some(Err(refusal)) => self.put_mark(&mut kv, &refusal),
        }
        Ok((kv, is_stale))
    }

    fn put_mark(&self, kv: &mut KeyValue, refusal: &Refusal) {
        if let Some(resource) = (self.resources)(&kv.key) {
            let generation = *self.generation.borrow();
            self.unopened.lock().entry(resource).or_insert(generation);
        }
        kv.value = unopened::mark(&refusal.why);
    }

    /// Of an answer to a write, which stands whatever comes of this.
    async fn answered(&self, kv: Option<KeyValue>) -> Option<KeyValue> {
        let mut kv = kv?;
        match self.open(&kv).await {
            None => {}
            Some(Ok(opened)) => kv.value = opened.value,
            Some(Err(refusal)) => self.put_mark(&mut kv, &refusal),
        }
        Some(kv)
    }

    async fn outcome(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done { revision, prev } => Outcome::Done {
                revision,
                prev: self.answered(prev).await,
            },
            Outcome::Conflict { revision, current } => Outcome::Conflict {
                revision,
                current: self.answered(current).await,
            },
        }
    }
}

impl Sealed {
    pub fn new(inner: Arc<dyn Store>, rules: Rules, resources: Resources, metrics: Arc<Metrics>) -> Arc<Sealed> {
        let seal = Arc::new(Seal {
            rules: RwLock::new(Arc::new(rules)),
            resources,
            generation: watch::Sender::new(0),
            unopened: Mutex::default(),
            metrics,
        });
        Arc::new(Sealed { inner, seal })
    }

    /// From now on values are sealed and opened by these. Returns when no write is under way any more that was sealed by the
    /// rules before. Who watches a resource of which something couldn't be opened has to list it again.
    pub async fn set(&self, rules: Rules) {
        let before = std::mem::replace(&mut *self.seal.rules.write(), Arc::new(rules));
        self.seal.generation.send_modify(|generation| *generation += 1);
        before.writers.close();
        before.writers.wait().await;
    }

    pub fn rules(&self) -> Arc<Rules> {
        self.seal.rules()
    }
}

#[async_trait]
impl Store for Sealed {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        let mut got = self.inner.get(key, revision).await?;
        if let Some(kv) = got.kv.take() {
            let (kv, is_stale) = self.seal.opened(kv).await?;
            got = Got {
                kv: Some(kv),
                is_stale,
                ..got
            };
        }
        Ok(got)
    }

    async fn list(&self, request: ListRequest) -> Result<Listed> {
        let mut listed = self.inner.list(request).await?;
        for (at, kv) in listed.kvs.iter_mut().enumerate() {
            (*kv, _) = self.seal.opened(kv.clone()).await?;
            if at % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(listed)
    }

    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        let Some((resource, providers, token)) = self.seal.writing(&key) else {
            let outcome = self.inner.put(key, value, expected, ttl).await?;
            return Ok(self.seal.outcome(outcome).await);
        };
        let value = self.seal.sealed(&resource, &providers, &key, value)?;
        // Goes on when nobody waits for it any more: a write that may still come counts as under way.
        let inner = self.inner.clone();
        let put = tokio::spawn(async move {
            let _token = token;
            inner.put(key, value, expected, ttl).await
        });
        let outcome = put.await.map_err(|e| Error::Unavailable {
            what: format!("the write was given up: {e}"),
        })??;
        Ok(self.seal.outcome(outcome).await)
    }

    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        let outcome = self.inner.delete(key, expected).await?;
        Ok(self.seal.outcome(outcome).await)
    }

    async fn put_then_delete(&self, key: Bytes, value: Bytes, expected: Expect) -> Result<(Outcome, Option<Outcome>)> {
        if self.seal.writing(&key).is_none() {
            let (put, deleted) = self.inner.put_then_delete(key, value, expected).await?;
            let deleted = match deleted {
                Some(deleted) => Some(self.seal.outcome(deleted).await),
                None => None,
            };
            return Ok((self.seal.outcome(put).await, deleted));
        }
        keelson_store::in_two_writes(self, key, value, expected).await
    }

    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        let generation = self.seal.generation.subscribe();
        let resource = (self.seal.resources)(&range.start);
        let inner = self.inner.watch(range, after).await?;
        Ok(Box::new(Opening {
            inner,
            seal: self.seal.clone(),
            resource,
            generation,
            batch: None,
            done: 0,
        }))
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

/// A watch whose values are opened on their way.
struct Opening {
    inner: WatchStream,
    seal: Arc<Seal>,
    /// Whose keys it watches, if they are of one.
    resource: Option<Arc<GroupResource>>,
    generation: watch::Receiver<u64>,
    /// Taken from the store and not handed out yet: waiting may be given up at any moment, and loses nothing.
    batch: Option<WatchBatch>,
    /// So many of its events are opened.
    done: usize,
}

impl Opening {
    /// What was handed on unopened, to whoever listed before this watch, or by it, may be opened now: so he has to list again.
    fn has_to_list_again(&mut self) -> bool {
        let generation = *self.generation.borrow_and_update();
        let Some(resource) = &self.resource else {
            return false;
        };
        let mut unopened = self.seal.unopened.lock();
        match unopened.get_mut(resource) {
            Some(told) if *told < generation => {
                *told = generation;
                true
            }
            _ => false,
        }
    }
}

#[async_trait]
impl WatchSource for Opening {
    async fn next(&mut self) -> Option<Result<WatchBatch>> {
        while self.batch.is_none() {
            if self.has_to_list_again() {
                return Some(Err(Error::Compacted { compact_revision: 0 }));
            }
            let batch = tokio::select! {
                biased;
                // The sender lives in `seal`.
                _ = self.generation.changed() => continue,
                batch = self.inner.next() => batch,
            };
            match batch? {
                Ok(batch) => (self.batch, self.done) = (Some(batch), 0),
                Err(error) => return Some(Err(error)),
            }
        }
        while let Some(event) = self.batch.as_mut().and_then(|batch| batch.events.get_mut(self.done)) {
            match self.seal.opened(event.kv.clone()).await {
                Ok((kv, _)) => event.kv = kv,
                Err(error) => return Some(Err(error)),
            }
            event.prev = self.seal.answered(event.prev.take()).await;
            self.done += 1;
        }
        self.batch.take().map(Ok)
    }

    fn request_progress(&mut self) {
        self.inner.request_progress();
    }
}
