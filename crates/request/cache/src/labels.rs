//! Labels by which lists select again and again have an index, as long as that is so: going through all objects for a few of them
//! is what such a list costs otherwise. An index that nobody asks for would cost every write.
//!
//! It is made from a snapshot, beside the lists, without the lock, and what happened meanwhile is done in it before it is put in place.

use crate::Entry;
use crate::cache::Inner;
use crate::ring::Change;
use crate::snapshot::{Entries, Snapshot, put, take};
use crate::state::State;
use keelson_api::Str;
use rpds::HashTrieMapSync;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How long a label counts as one that is asked for.
const KEPT: Duration = Duration::from_secs(30);
/// Labels of one resource that have an index at a time.
const MOST: usize = 4;
/// Among fewer objects matching each costs little.
const LEAST_OBJECTS: usize = 256;
/// So many objects go into an index at once: a millisecond's work.
const AT_ONCE: usize = 512;

/// The entries that have a label, by its value.
#[derive(Clone)]
pub(crate) struct Labelled {
    pub(crate) name: Str,
    entries: HashTrieMapSync<Str, Entries>,
}

impl Labelled {
    fn new(name: Str) -> Labelled {
        let entries = HashTrieMapSync::new_sync();
        Labelled { name, entries }
    }

    pub(crate) fn get(&self, value: &Str) -> Option<&Entries> {
        self.entries.get(value)
    }

    pub(crate) fn insert(&mut self, entry: &Arc<Entry>) {
        if let Some(value) = entry.attributes().label(&self.name) {
            put(&mut self.entries, value.into(), entry);
        }
    }

    pub(crate) fn remove(&mut self, entry: &Entry) {
        if let Some(value) = entry.attributes().label(&self.name) {
            take(&mut self.entries, &value.into(), entry.key());
        }
    }

    fn apply(&mut self, change: &Change) {
        if let Some(before) = &change.before {
            self.remove(before);
        }
        if let Some(now) = &change.now {
            self.insert(now);
        }
    }
}

/// Which labels are asked for.
#[derive(Default)]
pub(crate) struct Asked(Vec<Label>);

struct Label {
    name: Str,
    last: Instant,
    has_index: bool,
}

impl Asked {
    /// Somebody asks for a label. True: it is to have an index, which isn't there yet.
    fn note(&mut self, name: &Str, now: Instant) -> bool {
        self.0
            .retain(|label| label.has_index || now.duration_since(label.last) <= KEPT);
        if let Some(label) = self.0.iter_mut().find(|label| label.name == *name) {
            label.last = now;
            return !std::mem::replace(&mut label.has_index, true);
        }
        if self.0.len() < MOST {
            self.0.push(Label {
                name: name.clone(),
                last: now,
                has_index: false,
            });
        }
        false
    }

    fn forget(&mut self, name: &Str) {
        self.0.retain(|label| label.name != *name);
    }

    fn knows(&self, name: &Str) -> bool {
        self.0.iter().any(|label| label.name == *name)
    }
}

impl Inner {
    /// A list is about to select by this label.
    pub(crate) fn asked_for(self: &Arc<Self>, name: &Str) {
        let (snapshot, generation) = {
            let mut state = self.state().lock();
            if state.snapshot.len() < LEAST_OBJECTS || !state.asked.note(name, Instant::now()) {
                return;
            }
            (state.snapshot.clone(), state.generation)
        };
        let (inner, name) = (Arc::downgrade(self), name.clone());
        tokio::spawn(async move {
            let labelled = index(&snapshot, name.clone()).await;
            if inner
                .upgrade()
                .is_some_and(|inner| inner.put_in_place(labelled, snapshot.revision, generation))
            {
                drop(snapshot);
                tend(inner, name).await;
            }
        });
    }

    /// Whether it is there now: not if what happened since it was begun is no longer known, or nobody asks any more.
    fn put_in_place(&self, mut labelled: Labelled, revision: u64, generation: u64) -> bool {
        let mut state = self.state().lock();
        match state.changes_after(revision) {
            Ok(missed) if state.generation == generation && state.asked.knows(&labelled.name) => {
                missed.iter().for_each(|change| labelled.apply(change));
                state.snapshot.labelled.push(labelled);
                true
            }
            _ => {
                state.asked.forget(&labelled.name);
                false
            }
        }
    }

    /// Gives up what isn't asked for any more. Whether this one still is.
    fn tend(&self, name: &Str) -> bool {
        let now = Instant::now();
        let mut state = self.state().lock();
        let State { asked, snapshot, .. } = &mut *state;
        asked.0.retain(|label| now.duration_since(label.last) <= KEPT);
        snapshot.labelled.retain(|labelled| asked.knows(&labelled.name));
        asked.knows(name)
    }
}

/// Bit by bit: other tasks have their turns.
async fn index(snapshot: &Snapshot, name: Str) -> Labelled {
    let mut labelled = Labelled::new(name);
    for (done, entry) in snapshot.all().enumerate() {
        labelled.insert(entry);
        if done % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    labelled
}

async fn tend(inner: Weak<Inner>, name: Str) {
    loop {
        tokio::time::sleep(KEPT).await;
        if !inner.upgrade().is_some_and(|inner| inner.tend(&name)) {
            return;
        }
    }
}
