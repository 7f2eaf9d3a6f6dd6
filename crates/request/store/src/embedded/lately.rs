//! The newest versions of the keys that were written last.
//!
//! What is written is mostly read, and written, again soon. Whoever does finds the version here: without a thread that may wait for the
//! disk, without looking through the tables, and as the very bytes that were written and that watchers were given, so that
//! whoever knows something of those bytes still knows it. That a key is gone is a version, too.
//!
//! Invariant: under the lock, what is known of a key is its newest version up to what the hub has published.

use super::Shared;
use crate::{Event, EventKind, Got, KeyValue, Revision};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};

/// At the bound what was written first goes. The watch caches hold most of these bytes anyway.
const MOST_BYTES: usize = 4 << 20;
const MOST_WRITES: usize = 4096;

#[derive(Default)]
pub(super) struct Lately(Mutex<Versions>);

#[derive(Default)]
struct Versions {
    /// `None`: the key is gone.
    known: HashMap<Bytes, Version>,
    /// Oldest first.
    order: VecDeque<(Bytes, Revision)>,
    bytes: usize,
}

struct Version {
    revision: Revision,
    stands: Option<KeyValue>,
}

impl Version {
    fn bytes(&self) -> usize {
        self.stands.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len())
    }
}

impl Lately {
    /// Takes note of a commit that is on disk, together with its publication.
    pub(super) fn publish(&self, events: &[Event], publish: impl FnOnce()) {
        let mut versions = self.0.lock();
        events.iter().for_each(|event| versions.note(event));
        publish();
        let _forgotten = versions.forget();
        drop(versions);
    }

    /// What the key stands at, if that is known here: for the one who writes.
    pub(super) fn stands(&self, key: &[u8]) -> Option<Option<KeyValue>> {
        let versions = self.0.lock();
        versions.known.get(key).map(|version| version.stands.clone())
    }

    /// The same, and the revision of which it is true.
    fn get(&self, key: &[u8], published: impl FnOnce() -> Revision) -> Option<Got> {
        let versions = self.0.lock();
        let kv = versions.known.get(key)?.stands.clone();
        Some(Got {
            kv,
            revision: published(),
            is_stale: false,
        })
    }
}

impl Versions {
    fn note(&mut self, event: &Event) {
        let (key, revision) = (event.kv.key.clone(), event.kv.mod_revision);
        let version = Version {
            revision,
            stands: (event.kind == EventKind::Put).then(|| event.kv.clone()),
        };
        self.bytes += version.bytes();
        self.order.push_back((key.clone(), revision));
        if let Some(before) = self.known.insert(key, version) {
            self.bytes -= before.bytes();
        }
    }

    fn forget(&mut self) -> Vec<Version> {
        let mut forgotten = Vec::new();
        while self.bytes > MOST_BYTES || self.order.len() > MOST_WRITES {
            let Some((key, revision)) = self.order.pop_front() else {
                break;
            };
            // It may have been written again since.
            if self.known.get(&key).is_some_and(|version| version.revision == revision)
                && let Some(version) = self.known.remove(&key)
            {
                self.bytes -= version.bytes();
                forgotten.push(version);
            }
        }
        forgotten
    }
}

impl Shared {
    /// The newest version of a key, without waiting for anything. `None`: it has to be read.
    pub(super) fn at_hand(&self, key: &[u8]) -> Option<Got> {
        // What can't be read from a store that is closed, or being mended, can't be read here.
        self.tables.try_read()?.as_ref()?;
        self.lately.get(key, || self.hub.published())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str, value: Option<usize>, revision: Revision) -> Event {
        let kv = match value {
            Some(length) => KeyValue {
                value: vec![0; length].into(),
                create_revision: revision,
                version: 1,
                ..KeyValue::gone(key.to_owned().into(), revision)
            },
            None => KeyValue::gone(key.to_owned().into(), revision),
        };
        Event {
            kind: if value.is_some() {
                EventKind::Put
            } else {
                EventKind::Delete
            },
            kv,
            prev: None,
        }
    }

    fn note(lately: &Lately, key: &str, value: Option<usize>, revision: Revision) {
        lately.publish(&[event(key, value, revision)], || {});
    }

    #[test]
    fn the_newest_version_is_known_and_that_a_key_is_gone() {
        let lately = Lately::default();
        assert_eq!(lately.stands(b"a"), None);
        note(&lately, "a", Some(1), 2);
        note(&lately, "a", Some(2), 3);
        let stands = lately
            .stands(b"a")
            .flatten()
            .map(|kv| (kv.mod_revision, kv.value.len()));
        assert_eq!(stands, Some((3, 2)));
        note(&lately, "a", None, 4);
        assert_eq!(lately.stands(b"a"), Some(None));
        assert_eq!(lately.0.lock().bytes, 0);
    }

    #[test]
    fn at_the_bounds_the_oldest_go() {
        let (lately, mut revision) = (Lately::default(), 1);
        let mut put = |key: &str, length: usize| {
            revision += 1;
            note(&lately, key, Some(length), revision);
        };
        put("first", 1);
        put("large", MOST_BYTES - 12);
        put("first", 2);
        assert!(lately.stands(b"large").is_some());
        put("another", 1);
        assert!(lately.stands(b"large").is_none() && lately.stands(b"first").is_some());
        for n in 0..MOST_WRITES {
            put(&format!("{}", n % 10), 1);
        }
        let versions = lately.0.lock();
        assert_eq!((versions.known.len(), versions.order.len()), (10, MOST_WRITES));
        assert_eq!(versions.bytes, 20);
    }
}
