//! The one task that feeds a cache: list, then watch; again from where it was when the watch breaks.
//!
//! Only if the store has compacted what was missed does the cache start anew, and its watchers with it.

use crate::Entry;
use crate::cache::Inner;
use crate::ring::Change;
use crate::snapshot::Snapshot;
use crate::{Error, Result};
use keelson_store::{
    Error as StoreError, EventKind, KeyRange, KeyValue, ListRequest, Revision, WatchBatch, WatchStream,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// So many keys at once when reading everything.
const PAGE: usize = 1000;
const LEAST_PAUSE: Duration = Duration::from_millis(50);
const MOST_PAUSE: Duration = Duration::from_secs(5);

pub(crate) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = feed(&inner) => {}
    }
    inner.end();
}

async fn feed(inner: &Inner) {
    let mut pause = LEAST_PAUSE;
    let mut position: Option<Revision> = None;
    loop {
        let (reached, error) = follow(inner, position).await;
        if reached != position {
            pause = LEAST_PAUSE;
        }
        position = reached;
        match error {
            Error::Store(StoreError::Closed) => return,
            Error::Store(StoreError::Compacted { .. }) => {
                tracing::warn!(
                    resource = inner.resource(),
                    "the watch cache lost track; it reads everything again"
                );
                position = None;
            }
            Error::Store(StoreError::SlowWatcher { .. }) => {}
            error => {
                tracing::warn!(resource = inner.resource(), %error, "the watch cache can't follow the store; trying again");
                inner.stuck(error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MOST_PAUSE);
            }
        }
    }
}

/// Until something goes wrong; tells how far it got.
async fn follow(inner: &Inner, position: Option<Revision>) -> (Option<Revision>, Error) {
    let mut position = match position {
        Some(position) => position,
        None => match read_all(inner).await {
            Ok(snapshot) => {
                let revision = snapshot.revision;
                inner.reset(snapshot);
                revision
            }
            Err(error) => return (None, error),
        },
    };
    let mut watch = match inner.store().watch(inner.range(), position).await {
        Ok(watch) => watch,
        Err(error) => return (Some(position), error.into()),
    };
    // Somebody may have asked the watch before this one.
    watch.request_progress();
    let mut age_at = None;
    loop {
        match next(inner, &mut watch, &mut age_at).await {
            Ok(batch) => match changes(inner, batch.events).await {
                Ok(changes) => {
                    position = batch.synced;
                    let ages_at = inner.apply(changes, position);
                    age_at = age_at.or(ages_at);
                }
                Err(error) => return (Some(position), error),
            },
            Err(error) => return (Some(position), error.into()),
        }
    }
}

/// The next events; meanwhile those that are old are given up, at `age_at`.
async fn next(
    inner: &Inner,
    watch: &mut WatchStream,
    age_at: &mut Option<Instant>,
) -> std::result::Result<WatchBatch, StoreError> {
    loop {
        let aging = tokio::time::sleep_until(age_at.unwrap_or_else(Instant::now));
        tokio::select! {
            biased;
            batch = watch.next() => return batch.unwrap_or(Err(StoreError::Closed)),
            () = inner.progress_wanted.notified() => watch.request_progress(),
            () = aging, if age_at.is_some() => *age_at = inner.age(),
        }
    }
}

async fn read_all(inner: &Inner) -> Result<Snapshot> {
    let mut range: KeyRange = inner.range();
    let mut snapshot: Option<Snapshot> = None;
    loop {
        let mut request = ListRequest::new(range.clone()).limit(PAGE).uncounted();
        request.revision = snapshot.as_ref().map(|s| s.revision);
        let page = inner.store().list(request).await?;
        let snapshot = snapshot.get_or_insert_with(|| Snapshot::empty(page.revision));
        if let Some(last) = page.kvs.last() {
            range = range.after(&last.key);
        }
        for entry in entries(inner, page.kvs).await? {
            snapshot.insert(&entry, inner.indexes());
        }
        if !page.more {
            return Ok(snapshot.clone());
        }
    }
}

pub(crate) async fn entries(inner: &Inner, kvs: Vec<KeyValue>) -> Result<Vec<Arc<Entry>>> {
    let values: Vec<(&[u8], &[u8])> = kvs.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect();
    let attributes = inner.codec().attributes_of(&values).await?;
    let entries = kvs.into_iter().zip(attributes).map(|(kv, attributes)| {
        if let Err(error) = &attributes {
            let key = String::from_utf8_lossy(&kv.key);
            tracing::error!(%key, revision = kv.mod_revision, %error, "a stored object can't be read");
        }
        let prefix = inner.prefix().len();
        Arc::new(Entry::new(kv.key, kv.value, kv.mod_revision, attributes, prefix))
    });
    Ok(entries.collect())
}

/// What was before is taken from the cache, where it is decoded already.
async fn changes(inner: &Inner, events: Vec<keelson_store::Event>) -> Result<Vec<Arc<Change>>> {
    let present = inner.snapshot();
    let put = |event: &&keelson_store::Event| event.kind == EventKind::Put;
    let new = events.iter().filter(put).map(|event| event.kv.clone()).collect();
    let mut new = entries(inner, new).await?.into_iter();
    let mut within: std::collections::HashMap<bytes::Bytes, Option<Arc<Entry>>> = std::collections::HashMap::new();
    let mut changes = Vec::with_capacity(events.len());
    for event in events {
        let revision = event.revision();
        let key = event.kv.key;
        let before = match within.get(&key) {
            Some(before) => before.clone(),
            None => present.get(&key).cloned(),
        };
        let now = match event.kind {
            EventKind::Put => new.next(),
            EventKind::Delete => None,
        };
        within.insert(key, now.clone());
        changes.push(Change::new(revision, now, before));
    }
    Ok(changes)
}

pub(crate) fn now() -> Instant {
    Instant::now()
}
