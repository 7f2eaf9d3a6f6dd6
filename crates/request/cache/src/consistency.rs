//! Whether a cache has what the store has: keys and revisions, at one revision of both. It is asked now and then; a cache to which nothing has
//! happened since it was found right is passed over most of the time, so an idle server compares little; not always, for it may be that
//! something has happened of which it wasn't told.

use crate::{Cache, Error, Result};
use bytes::Bytes;
use keelson_store::{KeyValue, ListRequest, Revision};
use std::sync::atomic::Ordering;

/// So many keys of the store are in memory at a time, with their values.
const PAGE: usize = 500;
/// So often in a row a cache that hasn't changed is passed over.
const PASSED_OVER: u32 = 11;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Nothing has changed since it was compared, which is not long ago.
    Unchanged,
    Same,
    /// The first difference, in key order.
    Different(String),
}

impl Cache {
    /// Compares the cache with the store. Fails where the store doesn't have that revision any more.
    pub async fn compare(&self) -> Result<Consistency> {
        let inner = self.inner();
        if !self.is_ready() {
            return Err(Error::NotReady);
        }
        let is_unchanged = inner.compared.load(Ordering::Acquire) == inner.changes.load(Ordering::Acquire);
        if is_unchanged && inner.passed_over.fetch_add(1, Ordering::AcqRel) < PASSED_OVER {
            return Ok(Consistency::Unchanged);
        }
        // Where nothing happens it may be of a revision that the store has given up.
        inner.catch_up().await;
        let changes = inner.changes.load(Ordering::Acquire);
        let snapshot = inner.snapshot();
        let everything = crate::Selection::all();
        let cached = snapshot.select(inner.prefix(), &everything, None);
        let mut comparison = Comparison(cached.map(|entry| (entry.key().clone(), entry.revision())));
        let mut range = inner.range();
        loop {
            let page = ListRequest::new(range.clone()).limit(PAGE).uncounted();
            let listed = inner.store().list(page.at(snapshot.revision)).await?;
            if let Some(difference) = listed.kvs.iter().find_map(|kv| comparison.stored(kv)) {
                return Ok(Consistency::Different(difference));
            }
            match listed.kvs.last().filter(|_| listed.more) {
                Some(last) => range = range.after(&last.key),
                None => break,
            }
        }
        Ok(match comparison.rest() {
            Some(difference) => Consistency::Different(difference),
            None => {
                inner.compared.store(changes, Ordering::Release);
                inner.passed_over.store(0, Ordering::Release);
                Consistency::Same
            }
        })
    }
}

/// What the cache has and the store was not yet seen to have.
struct Comparison<I>(I);

impl<I: Iterator<Item = (Bytes, Revision)>> Comparison<I> {
    /// The next of the store's keys, and what is wrong about it.
    fn stored(&mut self, kv: &KeyValue) -> Option<String> {
        let stored = (&kv.key, kv.mod_revision);
        match self.0.next() {
            Some((key, revision)) if (&key, revision) == stored => None,
            cached => Some(told(cached.as_ref().map(|(k, r)| (k, *r)), Some(stored))),
        }
    }

    /// What the store doesn't have.
    fn rest(mut self) -> Option<String> {
        let cached = self.0.next()?;
        Some(told(Some((&cached.0, cached.1)), None))
    }
}

fn told(cached: Option<(&Bytes, Revision)>, stored: Option<(&Bytes, Revision)>) -> String {
    let one = |found: Option<(&Bytes, Revision)>| match found {
        Some((key, revision)) => format!("{} of revision {revision}", String::from_utf8_lossy(key)),
        None => "nothing more".into(),
    };
    format!("the cache has {}, the store {}", one(cached), one(stored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Codec, Config, Form, Forms};
    use keelson_api::ApiError;
    use keelson_store::{Expect, Memory, Store};
    use std::sync::Arc;

    struct Plain;

    impl Codec for Plain {
        fn attributes(&self, _: &[u8], _: &[u8]) -> Result<Attributes, ApiError> {
            Ok(Attributes::new(Default::default(), Default::default()))
        }
        fn encode(&self, value: &[u8], _: Revision, _: Form) -> Result<Bytes, ApiError> {
            Ok(Bytes::copy_from_slice(value))
        }
    }

    async fn put(store: &Memory, key: String) {
        store.put(key.into(), "v".into(), Expect::Any, None).await.unwrap();
    }

    async fn filled(keys: usize) -> (Arc<Memory>, Cache) {
        let store = Memory::new();
        for i in 0..keys {
            put(&store, format!("/texts/{i:05}")).await;
        }
        put(&store, "/textures/1".into()).await;
        let config = Config {
            resource: "texts".into(),
            prefix: "/texts/".into(),
            codec: Arc::new(Plain),
            forms: Forms::new(1 << 20),
        };
        let cache = Cache::new(store.clone(), config);
        cache.ready().await;
        (store, cache)
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_that_is_right_is_compared_once_until_something_happens() {
        let (store, cache) = filled(PAGE + 7).await;
        assert_eq!(cache.compare().await.unwrap(), Consistency::Same);
        assert_eq!(cache.compare().await.unwrap(), Consistency::Unchanged);
        put(&store, "/elsewhere".into()).await;
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert_eq!(cache.compare().await.unwrap(), Consistency::Unchanged);
        put(&store, "/texts/00003".into()).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(cache.compare().await.unwrap(), Consistency::Same);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_cache_was_not_told_is_found_in_the_end() {
        let (_store, cache) = filled(3).await;
        let inner = cache.inner();
        assert_eq!(cache.compare().await.unwrap(), Consistency::Same);
        inner.state().lock().snapshot.remove(b"/texts/00001", inner.indexes());
        for _ in 0..PASSED_OVER {
            assert_eq!(cache.compare().await.unwrap(), Consistency::Unchanged);
        }
        assert!(matches!(cache.compare().await.unwrap(), Consistency::Different(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_cache_is_compared_though_its_past_is_given_up() {
        let (store, cache) = filled(3).await;
        for i in 0..9 {
            put(&store, format!("/elsewhere/{i}")).await;
        }
        store.compact(store.current_revision().await.unwrap()).await.unwrap();
        assert_eq!(cache.compare().await.unwrap(), Consistency::Same);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_superfluous_or_old_is_found_by_its_key() {
        let (store, cache) = filled(PAGE + 7).await;
        let inner = cache.inner();
        let last = format!("/texts/{:05}", PAGE + 6);
        let lost = inner.state().lock().snapshot.remove(last.as_bytes(), inner.indexes());
        let found = cache.compare().await.unwrap();
        let wanted = format!("the cache has nothing more, the store {last} of revision ");
        assert!(
            matches!(&found, Consistency::Different(told) if told.starts_with(&wanted)),
            "{found:?}"
        );
        inner.state().lock().snapshot.insert(&lost.unwrap(), inner.indexes());
        assert_eq!(cache.compare().await.unwrap(), Consistency::Same);
        // The store forgets a key, and nobody is told.
        let old = inner.snapshot().get(b"/texts/00000").cloned().unwrap();
        store.delete("/texts/00000".into(), Expect::Any).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        inner.state().lock().snapshot.insert(&old, inner.indexes());
        let found = cache.compare().await.unwrap();
        let wanted = "the cache has /texts/00000 of revision 1, the store /texts/00001";
        assert!(
            matches!(&found, Consistency::Different(told) if told.starts_with("the cache has /texts/00000 of ")),
            "{found:?} isn't {wanted}"
        );
        assert!(
            matches!(cache.compare().await.unwrap(), Consistency::Different(_)),
            "it stays to be told"
        );
    }
}
