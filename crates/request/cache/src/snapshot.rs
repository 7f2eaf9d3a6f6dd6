//! The present of a resource, in key order, that can be copied in no time and then never changes.

use crate::select::Indexes;
use crate::{Entry, IndexValue, Scope, Selection};
use bytes::Bytes;
use keelson_store::{KeyRange, Revision};
use rpds::{HashTrieMapSync, RedBlackTreeSetSync};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

type Entries = RedBlackTreeSetSync<ByKey>;

#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    entries: Entries,
    /// Of all values together.
    bytes: usize,
    indexed: HashTrieMapSync<IndexValue, Entries>,
}

impl Snapshot {
    pub(crate) fn empty(revision: Revision) -> Snapshot {
        Snapshot {
            revision,
            entries: Entries::new_sync(),
            bytes: 0,
            indexed: HashTrieMapSync::new_sync(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.size()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
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
            let mut set = self.indexed.get(&value).cloned().unwrap_or_else(Entries::new_sync);
            set.insert_mut(ByKey(entry.clone()));
            self.indexed.insert_mut(value, set);
        }
        old
    }

    pub(crate) fn remove(&mut self, key: &[u8], indexes: &Indexes) -> Option<Arc<Entry>> {
        let old = self.get(key)?.clone();
        self.bytes -= old.value().len();
        self.entries.remove_mut(key);
        for value in indexes.values(&old) {
            let Some(mut set) = self.indexed.get(&value).cloned() else {
                continue;
            };
            set.remove_mut(key);
            match set.is_empty() {
                true => self.indexed.remove_mut(&value),
                false => {
                    self.indexed.insert_mut(value, set);
                    true
                }
            };
        }
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
            None => Some(&self.entries),
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
            .filter(|e| selection.matches(e))
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
struct ByKey(Arc<Entry>);

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
