//! The present of a resource, in key order, that can be copied in no time and then never changes.

use crate::labels::Labelled;
use crate::select::Indexes;
use crate::{Entry, IndexValue, Scope, Selection};
use bytes::Bytes;
use keelson_store::{KeyRange, Revision};
use rpds::{HashTrieMapSync, RedBlackTreeSetSync};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::Hash;
use std::ops::Bound;
use std::sync::Arc;

pub(crate) type Entries = RedBlackTreeSetSync<ByKey>;

#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    entries: Entries,
    /// Of all values together.
    bytes: usize,
    indexed: HashTrieMapSync<IndexValue, Entries>,
    /// By labels that are asked for.
    pub(crate) labelled: Vec<Labelled>,
}

impl Snapshot {
    pub(crate) fn empty(revision: Revision) -> Snapshot {
        Snapshot {
            revision,
            entries: Entries::new_sync(),
            bytes: 0,
            indexed: HashTrieMapSync::new_sync(),
            labelled: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.size()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// In key order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().map(|found| &found.0)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<Entry>> {
        self.entries.get(key).map(|found| &found.0)
    }

    /// Puts an entry in the place of the one with its key, if there is one, and returns that one.
    pub(crate) fn insert(&mut self, entry: &Arc<Entry>, indexes: &Indexes) -> Option<Arc<Entry>> {
        let old = self.remove(entry.key(), indexes);
        self.bytes += entry.value().len();
        self.entries.insert_mut(ByKey(entry.clone()));
        for value in indexes.values(entry) {
            put(&mut self.indexed, value, entry);
        }
        self.labelled.iter_mut().for_each(|labelled| labelled.insert(entry));
        old
    }

    pub(crate) fn remove(&mut self, key: &[u8], indexes: &Indexes) -> Option<Arc<Entry>> {
        let old = self.get(key)?.clone();
        self.bytes -= old.value().len();
        self.entries.remove_mut(key);
        for value in indexes.values(&old) {
            take(&mut self.indexed, &value, key);
        }
        self.labelled.iter_mut().for_each(|labelled| labelled.remove(&old));
        Some(old)
    }

    /// What is selected, in key order, from after `after` on.
    pub(crate) fn select<'a>(
        &'a self,
        prefix: &[u8],
        selection: &'a Selection,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> + 'a {
        let mut range = scope_range(prefix, &selection.scope);
        if let Some(after) = after {
            let next = range.after(after);
            if next.start > range.start {
                range = next;
            }
        }
        let set = match &selection.index {
            Some(value) => self.indexed.get(value),
            None => self.by_label(selection),
        };
        let end = if range.end.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(range.end.clone())
        };
        let bounds = (Bound::Included(range.start.clone()), end);
        let within = set.filter(|_| !range.is_empty());
        within
            .into_iter()
            .flat_map(move |set| set.range(bounds.clone()))
            .map(|found| &found.0)
            .filter(|e| selection.admits(e))
    }

    /// All entries, or those with a label that the selection says they have.
    fn by_label(&self, selection: &Selection) -> Option<&Entries> {
        let known = selection.label.as_ref().and_then(|(name, value)| {
            let labelled = self.labelled.iter().find(|labelled| labelled.name == *name)?;
            Some(labelled.get(value))
        });
        known.unwrap_or(Some(&self.entries))
    }
}

/// Puts an entry into one of an index's sets.
pub(crate) fn put<V: Eq + Hash>(index: &mut HashTrieMapSync<V, Entries>, value: V, entry: &Arc<Entry>) {
    let mut set = index.get(&value).cloned().unwrap_or_else(Entries::new_sync);
    set.insert_mut(ByKey(entry.clone()));
    index.insert_mut(value, set);
}

/// Takes an entry out of one of an index's sets.
pub(crate) fn take<V: Eq + Hash + Clone>(index: &mut HashTrieMapSync<V, Entries>, value: &V, key: &[u8]) {
    let Some(mut set) = index.get(value).cloned() else {
        return;
    };
    set.remove_mut(key);
    if set.is_empty() {
        index.remove_mut(value);
    } else {
        index.insert_mut(value.clone(), set);
    }
}

/// The store's keys that a scope covers.
pub(crate) fn scope_range(prefix: &[u8], scope: &Scope) -> KeyRange {
    match scope {
        Scope::All => KeyRange::prefix(Bytes::copy_from_slice(prefix)),
        Scope::Namespace(namespace) => KeyRange::prefix([prefix, namespace.as_bytes(), b"/"].concat()),
        Scope::Key(key) => KeyRange::key(key.clone()),
    }
}

/// An entry that is ordered by, and found by, its key.
#[derive(Clone)]
pub(crate) struct ByKey(Arc<Entry>);

impl Borrow<[u8]> for ByKey {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}
impl Borrow<Bytes> for ByKey {
    fn borrow(&self) -> &Bytes {
        self.0.key()
    }
}
impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}
impl Eq for ByKey {}
impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key().cmp(other.0.key())
    }
}
