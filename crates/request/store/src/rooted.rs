//! A store seen with its keys below another root: what is `/registry/pods/a` above it is `/other/pods/a` below.
//!
//! For `--etcd-prefix`: everything above knows one root only, and pays nothing where the root is the usual one, since this
//! isn't there then. Keys that are not below the root don't exist here.

use crate::{
    Error, Event, Expect, Got, KeyRange, KeyValue, ListRequest, Listed, Outcome, Result, Revision, Store, StoreStatus,
    WatchBatch, WatchSource, WatchStream, check_key,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

pub struct Rooted {
    inner: Arc<dyn Store>,
    roots: Roots,
}

/// Both without a slash at their end.
#[derive(Clone)]
struct Roots {
    seen: Bytes,
    real: Bytes,
}

impl Rooted {
    /// What is below `seen` here is below `real` in `inner`.
    pub fn new(inner: Arc<dyn Store>, seen: impl Into<Bytes>, real: impl Into<Bytes>) -> Arc<Rooted> {
        let (seen, real) = (seen.into(), real.into());
        Arc::new(Rooted {
            inner,
            roots: Roots { seen, real },
        })
    }
}

impl Roots {
    fn down(&self, key: &[u8]) -> Result<Bytes> {
        check_key(key)?;
        match key.strip_prefix(&self.seen[..]) {
            Some(rest) => Ok([&self.real[..], rest].concat().into()),
            None => Err(Error::Invalid {
                what: format!("the key {} is not below the store's root", key.escape_ascii()),
            }),
        }
    }

    fn range_down(&self, range: &KeyRange) -> KeyRange {
        let (seen, real) = (KeyRange::prefix(self.seen.clone()), KeyRange::prefix(self.real.clone()));
        let moved = |rest: &[u8]| Bytes::from([&self.real[..], rest].concat());
        let start = match range.start.strip_prefix(&self.seen[..]) {
            Some(rest) => moved(rest),
            None if range.start <= self.seen => real.start.clone(),
            // Behind all that is below the root: nothing.
            None => return KeyRange::new(self.real.clone(), self.real.clone()),
        };
        let end = match range.end.strip_prefix(&self.seen[..]) {
            Some(rest) if !range.end.is_empty() => moved(rest),
            _ if range.end.is_empty() || (!seen.end.is_empty() && range.end >= seen.end) => real.end,
            _ => start.clone(),
        };
        KeyRange { start, end }
    }

    fn up(&self, mut kv: KeyValue) -> KeyValue {
        let rest = kv.key.strip_prefix(&self.real[..]).unwrap_or(&kv.key);
        kv.key = match self.seen.is_empty() {
            true => kv.key.slice(kv.key.len() - rest.len()..),
            false => [&self.seen[..], rest].concat().into(),
        };
        kv
    }

    fn event_up(&self, event: Event) -> Event {
        Event {
            kind: event.kind,
            kv: self.up(event.kv),
            prev: event.prev.map(|kv| self.up(kv)),
        }
    }

    fn outcome_up(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Done { revision, prev } => Outcome::Done {
                revision,
                prev: prev.map(|kv| self.up(kv)),
            },
            Outcome::Conflict { revision, current } => Outcome::Conflict {
                revision,
                current: current.map(|kv| self.up(kv)),
            },
        }
    }
}

#[async_trait]
impl Store for Rooted {
    async fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        let got = self.inner.get(&self.roots.down(key)?, revision).await?;
        Ok(Got {
            kv: got.kv.map(|kv| self.roots.up(kv)),
            ..got
        })
    }

    async fn list(&self, request: ListRequest) -> Result<Listed> {
        let range = self.roots.range_down(&request.range);
        let mut listed = self.inner.list(ListRequest { range, ..request }).await?;
        listed.kvs = listed.kvs.into_iter().map(|kv| self.roots.up(kv)).collect();
        Ok(listed)
    }

    async fn put(&self, key: Bytes, value: Bytes, expected: Expect, ttl: Option<Duration>) -> Result<Outcome> {
        let outcome = self.inner.put(self.roots.down(&key)?, value, expected, ttl).await?;
        Ok(self.roots.outcome_up(outcome))
    }

    async fn delete(&self, key: Bytes, expected: Expect) -> Result<Outcome> {
        let outcome = self.inner.delete(self.roots.down(&key)?, expected).await?;
        Ok(self.roots.outcome_up(outcome))
    }

    async fn watch(&self, range: KeyRange, after: Revision) -> Result<WatchStream> {
        let watch = self.inner.watch(self.roots.range_down(&range), after).await?;
        Ok(Box::new(RootedWatch {
            watch,
            roots: self.roots.clone(),
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

struct RootedWatch {
    watch: WatchStream,
    roots: Roots,
}

#[async_trait]
impl WatchSource for RootedWatch {
    async fn next(&mut self) -> Option<Result<WatchBatch>> {
        let batch = match self.watch.next().await? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let events = batch.events.into_iter().map(|event| self.roots.event_up(event));
        Some(Ok(WatchBatch {
            events: events.collect(),
            synced: batch.synced,
        }))
    }

    fn request_progress(&mut self) {
        self.watch.request_progress();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    #[tokio::test]
    async fn what_is_elsewhere_is_neither_seen_nor_touched() {
        let memory = Memory::new();
        let put = |key: &'static str| memory.put(key.into(), "x".into(), Expect::Any, None);
        for key in ["/registry/pods/a", "/other/pods/b", "/other0", "/otherwise/pods/c", "z"] {
            put(key).await.unwrap();
        }
        let store = Rooted::new(memory.clone(), "/registry", "/other");
        let listed = |range: KeyRange| async {
            let listed = store.list(ListRequest::new(range)).await.unwrap();
            let keys = listed
                .kvs
                .iter()
                .map(|kv| String::from_utf8_lossy(&kv.key).into_owned());
            keys.collect::<Vec<_>>()
        };
        assert_eq!(listed(KeyRange::prefix("/registry/")).await, ["/registry/pods/b"]);
        assert_eq!(listed(KeyRange::prefix("/registry/pods/")).await, ["/registry/pods/b"]);
        assert!(listed(KeyRange::prefix("/registry/nodes/")).await.is_empty());
        assert!(listed(KeyRange::prefix("/a")).await.is_empty() && listed(KeyRange::prefix("/z")).await.is_empty());
        assert!(store.get(b"/other/pods/b", None).await.is_err());
        let created = store
            .put("/registry/pods/a".into(), "y".into(), Expect::Absent, None)
            .await;
        assert!(created.unwrap().done().is_some());
        assert_eq!(
            &memory.get(b"/registry/pods/a", None).await.unwrap().kv.unwrap().value[..],
            b"x"
        );
        assert_eq!(
            &memory.get(b"/other/pods/a", None).await.unwrap().kv.unwrap().value[..],
            b"y"
        );

        // A root of nothing: keys begin with what is otherwise below it.
        let bare = Rooted::new(memory.clone(), "/registry", "");
        bare.put("/registry/pods/a".into(), "z".into(), Expect::Absent, None)
            .await
            .unwrap();
        let listed = bare
            .list(ListRequest::new(KeyRange::prefix("/registry/pods/")))
            .await
            .unwrap();
        assert_eq!(&listed.kvs[0].key[..], b"/registry/pods/a");
        assert_eq!(&memory.get(b"/pods/a", None).await.unwrap().kv.unwrap().value[..], b"z");
    }
}
