//! What is done to a store whose disk fails, and what must be so afterwards.
//!
//! Every write has a value of its own. It ends as done, as refused (nothing was written), or as unknown; a store that was opened
//! again, or found after a power failure, has all that were done at their revisions, and none that was refused.

use bytes::Bytes;
use keelson_store::embedded::{Embedded, Options};
use keelson_store::{Error, Expect, KeyRange, Outcome, Revision, Store};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const STEPS: u64 = 24;
/// A store is healthy again so long after its disk is.
const MENDED_WITHIN: Duration = Duration::from_secs(20);

/// Small, so that the engine flushes and merges all the time.
pub fn options() -> Options {
    Options {
        cache_bytes: 1 << 20,
        memtable_bytes: 24 << 10,
        reserve_bytes: 0,
        ..Options::default()
    }
}

#[derive(Default)]
pub struct Ledger {
    /// By revision.
    done: HashMap<Revision, (Bytes, Bytes)>,
    refused: HashSet<Bytes>,
    unknown: HashSet<Bytes>,
    conflicts: Vec<Bytes>,
    compacted: Revision,
    numbers: u64,
    is_disturbed: bool,
}

impl Ledger {
    fn value(&mut self) -> Bytes {
        self.numbers += 1;
        let mut value = format!("{} ", self.numbers).into_bytes();
        value.resize(
            if self.numbers.is_multiple_of(5) { 9000 } else { 1200 },
            self.numbers as u8,
        );
        value.into()
    }

    fn note(&mut self, key: &Bytes, value: Bytes, outcome: keelson_store::Result<Outcome>) {
        match outcome {
            Ok(Outcome::Done { revision, .. }) => {
                let before = self.done.insert(revision, (key.clone(), value));
                assert!(before.is_none(), "revision {revision} was acknowledged twice");
            }
            Ok(Outcome::Conflict { current, .. }) => {
                self.refused.insert(value);
                self.conflicts.extend(current.map(|kv| kv.value));
            }
            Err(Error::Unavailable { .. } | Error::NoSpace { .. } | Error::Corrupt { .. } | Error::Denied { .. }) => {
                self.is_disturbed = true;
                self.refused.insert(value);
            }
            Err(Error::Stalled { .. }) => {
                self.is_disturbed = true;
                self.unknown.insert(value);
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// No write met a failure.
    pub fn is_undisturbed(&self) -> bool {
        !self.is_disturbed
    }
    pub fn acknowledged(&self) -> usize {
        self.done.len()
    }

    /// What the store tells of its past is what was acknowledged.
    pub async fn check(&self, store: &dyn Store, what: &str) {
        // Nobody was told of something that didn't happen.
        for value in &self.conflicts {
            assert!(
                !self.refused.contains(value),
                "{what}: a conflict with what was never written"
            );
        }
        let status = store.status().await.unwrap();
        let newest = self.done.keys().copied().max().unwrap_or(1);
        assert!(
            status.revision >= newest,
            "{what}: {newest} was acknowledged, it stands at {}",
            status.revision
        );
        let from = status.compact_revision.max(1);
        assert!(from <= self.compacted.max(1), "{what}: nobody compacted to {from}");
        let mut watch = store.watch(KeyRange::all(), from).await.unwrap();
        let mut position = from;
        watch.request_progress();
        while position < status.revision {
            let batch = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
            for event in batch.expect("the past ends").unwrap().unwrap().events {
                position += 1;
                assert_eq!(event.revision(), position, "{what}");
                let told = (event.kv.key.clone(), event.kv.value.clone());
                assert!(
                    !self.refused.contains(&told.1),
                    "{what}: {position} holds what was refused"
                );
                match self.done.get(&position) {
                    Some(wanted) => assert!(*wanted == told, "{what}: {position} is not what was acknowledged"),
                    None => assert!(self.unknown.contains(&told.1), "{what}: nobody wrote {position}"),
                }
            }
        }
    }
}

/// Writes of all kinds, alone and against each other.
pub async fn work(store: &Arc<Embedded>, ledger: &mut Ledger) {
    for step in 0..STEPS {
        let contested = Bytes::from(format!("/contested/{}", step % 3));
        let own: [Bytes; 2] = [Bytes::from_static(b"/own/1"), format!("/own/{step}").into()];
        let now = store.get(&contested, None).await.ok().and_then(|got| got.kv);
        let expected = now.map_or(Expect::Absent, |kv| Expect::ModRevision(kv.mod_revision));
        let values: Vec<Bytes> = (0..4).map(|_| ledger.value()).collect();
        let ttl = Some(Duration::from_secs(3600));
        let (first, second, third, fourth) = tokio::join!(
            store.put(contested.clone(), values[0].clone(), expected, None),
            store.put(contested.clone(), values[1].clone(), expected, None),
            store.put(own[0].clone(), values[2].clone(), Expect::Any, None),
            store.put(own[1].clone(), values[3].clone(), Expect::Any, ttl),
        );
        for (outcome, (key, value)) in [first, second, third, fourth]
            .into_iter()
            .zip([&contested, &contested, &own[0], &own[1]].into_iter().zip(values))
        {
            ledger.note(key, value, outcome);
        }
        let current = store.current_revision().await.unwrap();
        if step == STEPS / 2 && current > 20 {
            let to = current - 10;
            ledger.compacted = to;
            if let Err(error) = store.compact(to).await {
                assert!(error.is_transient(), "{error}");
            }
        }
    }
}

/// A store that was dropped closes in the background: its directory may still be taken.
pub async fn open(path: &Path) -> Arc<Embedded> {
    let begun = Instant::now();
    loop {
        match Embedded::open(path, options()).await {
            Ok(store) => return store,
            Err(Error::Locked { .. }) if begun.elapsed() < MENDED_WITHIN => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("it doesn't open: {error}"),
        }
    }
}

/// Until the store says that it is well; then it has to be.
pub async fn mended(store: &Arc<Embedded>, ledger: &mut Ledger) {
    let begun = Instant::now();
    for told in 1.. {
        while let Err(error) = store.health().await {
            assert!(begun.elapsed() < MENDED_WITHIN, "it isn't mended: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (key, value) = (Bytes::from_static(b"/afterwards"), ledger.value());
        let outcome = store.put(key.clone(), value.clone(), Expect::Any, None).await;
        let fails = outcome.as_ref().err().map(ToString::to_string);
        ledger.note(&key, value, outcome);
        let Some(fails) = fails else { return };
        // The engine can meet the fault by itself, after the last write that stands for the next one: that is known from this on.
        assert!(told < 2, "it says that it is well: {fails}");
    }
}
