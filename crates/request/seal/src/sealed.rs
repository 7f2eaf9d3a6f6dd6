//! The store over a store.

use crate::provider::{ANY, Opened, Refusal};
use crate::rules::{Resources, Rules};
use async_trait::async_trait;
use bytes::Bytes;
use keelson_store::{
    Error, Expect, Got, KeyRange, KeyValue, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus,
    WatchBatch, WatchSource, WatchStream,
};
use parking_lot::RwLock;
use std::sync::Arc;
use std::time::Duration;

/// After so many values that were opened in one go others get their turn.
const TURN: usize = 64;

pub struct Sealed {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) seal: Arc<Seal>,
}

/// What seals and opens.
pub(crate) struct Seal {
    rules: RwLock<Arc<Rules>>,
    resources: Resources,
}

impl Seal {
    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.rules.read().clone()
    }

    pub(crate) fn sealed(&self, key: &[u8], value: Bytes) -> Result<Bytes> {
        let rules = self.rules();
        let Some(providers) = (self.resources)(key).and_then(|resource| rules.providers(&resource).cloned()) else {
            return Ok(value);
        };
        match providers.seal(&value, key) {
            Ok(None) => Ok(value),
            Ok(Some(sealed)) => Ok(sealed.into()),
            Err(error) => Err(Error::Unavailable {
                what: format!("unable to transform key {:?}: {error}", String::from_utf8_lossy(key)),
            }),
        }
    }

    /// `None`: it isn't for any provider.
    pub(crate) fn open(&self, kv: &KeyValue) -> Option<std::result::Result<Opened, Refusal>> {
        // An event of a deletion has no value, and nothing that is sealed is empty.
        if kv.value.is_empty() {
            return None;
        }
        let rules = self.rules();
        match (self.resources)(&kv.key).and_then(|resource| rules.providers(&resource).cloned()) {
            Some(providers) => Some(providers.open(&kv.value, &kv.key)),
            None if kv.value.starts_with(ANY) => Some(Err("identity transformer tried to read encrypted data".into())),
            None => None,
        }
    }

    fn opened(&self, mut kv: KeyValue) -> KeyValue {
        match self.open(&kv) {
            Some(Ok(opened)) => kv.value = opened.value,
            Some(Err(error)) => {
                tracing::warn!(key = %String::from_utf8_lossy(&kv.key), %error, "a stored value can't be opened");
            }
            None => {}
        }
        kv
    }

    fn opened_if(&self, kv: Option<KeyValue>) -> Option<KeyValue> {
        kv.map(|kv| self.opened(kv))
    }

    fn outcome(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done { revision, prev } => Outcome::Done {
                revision,
                prev: self.opened_if(prev),
            },
            Outcome::Conflict { revision, current } => Outcome::Conflict {
                revision,
                current: self.opened_if(current),
            },
        }
    }
}

impl Sealed {
    pub fn new(inner: Arc<dyn Store>, rules: Rules, resources: Resources) -> Arc<Sealed> {
        let rules = RwLock::new(Arc::new(rules));
        let seal = Arc::new(Seal { rules, resources });
        Arc::new(Sealed { inner, seal })
    }

    /// From now on values are sealed and opened by these.
    pub fn set(&self, rules: Rules) {
        *self.seal.rules.write() = Arc::new(rules);
    }

    pub fn rules(&self) -> Arc<Rules> {
        self.seal.rules()
    }
}

#[async_trait]
impl Store for Sealed {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        let got = self.inner.get(key, revision).await?;
        Ok(Got {
            kv: self.seal.opened_if(got.kv),
            ..got
        })
    }

    async fn list(&self, request: ListRequest) -> Result<Listed> {
        let mut listed = self.inner.list(request).await?;
        for (at, kv) in listed.kvs.iter_mut().enumerate() {
            *kv = self.seal.opened(kv.clone());
            if at % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(listed)
    }

    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        let value = self.seal.sealed(&key, value)?;
        let outcome = self.inner.put(key, value, expected, ttl).await?;
        Ok(self.seal.outcome(outcome))
    }

    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        let outcome = self.inner.delete(key, expected).await?;
        Ok(self.seal.outcome(outcome))
    }

    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        let inner = self.inner.watch(range, after).await?;
        let seal = self.seal.clone();
        Ok(Box::new(Opening { inner, seal }))
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
}

#[async_trait]
impl WatchSource for Opening {
    async fn next(&mut self) -> Option<Result<WatchBatch>> {
        // Nothing is awaited after this: dropping the future loses no batch.
        let batch = self.inner.next().await?;
        Some(batch.map(|mut batch| {
            for event in &mut batch.events {
                event.kv = self.seal.opened(event.kv.clone());
                event.prev = self.seal.opened_if(event.prev.take());
            }
            batch
        }))
    }

    fn request_progress(&mut self) {
        self.inner.request_progress();
    }
}
