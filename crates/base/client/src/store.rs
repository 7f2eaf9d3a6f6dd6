//! A local copy of a collection, with indexes. Readers share the objects; only an informer writes.

use crate::key::ObjectKey;
use crate::kind::ApiObject;
use parking_lot::RwLock;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::watch;

/// The values under which an index finds an object.
pub type IndexFn<K> = fn(&K) -> Vec<String>;

/// The name of the index by the uid of the controlling owner.
pub const BY_CONTROLLER: &str = "controller-uid";

struct Index<K> {
    values: IndexFn<K>,
    /// With the objects: who asks for thousands doesn't look each up.
    entries: HashMap<String, BTreeMap<ObjectKey, Arc<K>>>,
}

impl<K> Index<K> {
    fn put(&mut self, key: &ObjectKey, object: &Arc<K>) {
        for value in (self.values)(object) {
            let entry = self.entries.entry(value).or_default();
            entry.insert(key.clone(), object.clone());
        }
    }
    /// Most changes are of the status, and leave an object in its places.
    fn replace(&mut self, key: &ObjectKey, old: &K, new: &Arc<K>) {
        let (had, has) = ((self.values)(old), (self.values)(new));
        if had != has {
            self.take(key, old);
            return self.put(key, new);
        }
        for value in has {
            if let Some(place) = self.entries.get_mut(&value).and_then(|entry| entry.get_mut(key)) {
                *place = new.clone();
            }
        }
    }
    fn take(&mut self, key: &ObjectKey, object: &K) {
        for value in (self.values)(object) {
            if let Some(keys) = self.entries.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.entries.remove(&value);
                }
            }
        }
    }
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

pub struct Store<K> {
    state: RwLock<State<K>>,
    /// The revision up to which the store is known to be complete.
    revision: watch::Sender<u64>,
}

impl<K: ApiObject> Default for Store<K> {
    fn default() -> Self {
        Store {
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                indexes: HashMap::new(),
            }),
            revision: watch::Sender::new(0),
        }
    }
}

impl<K: ApiObject> Store<K> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        look(self.state.read().objects.values()).cloned().collect()
    }

    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = ObjectKey::new(namespace, "");
        let state = self.state.read();
        let range = state.objects.range(first..);
        look(range.take_while(|(key, _)| key.namespace == namespace))
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub fn filter(&self, mut keep: impl FnMut(&K) -> bool) -> Vec<Arc<K>> {
        look(self.state.read().objects.values())
            .filter(|object| keep(object))
            .cloned()
            .collect()
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.state.read().objects.keys().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects an index holds under `value`. An index nobody added holds nothing, and says so in debug builds.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        debug_assert!(state.indexes.contains_key(index), "no index {index}");
        let found = state.indexes.get(index).and_then(|index| index.entries.get(value));
        look(found.into_iter().flat_map(BTreeMap::values)).cloned().collect()
    }

    /// Of the objects that an index holds under all of these values, those to keep. Only the fewest under one of them are looked at.
    pub(crate) fn by_rarest(&self, index: &str, values: &[String], keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let state = self.state.read();
        debug_assert!(state.indexes.contains_key(index), "no index {index}");
        let Some(index) = state.indexes.get(index) else {
            return Vec::new();
        };
        let mut fewest: Option<&BTreeMap<ObjectKey, Arc<K>>> = None;
        for value in values {
            let Some(entry) = index.entries.get(value) else {
                return Vec::new();
            };
            if fewest.is_none_or(|few| entry.len() < few.len()) {
                fewest = Some(entry);
            }
        }
        let found = look(fewest.into_iter().flat_map(BTreeMap::values));
        found.filter(|object| keep(object)).cloned().collect()
    }

    /// How many objects an index holds under `value`.
    pub fn count(&self, index: &str, value: &str) -> usize {
        let state = self.state.read();
        debug_assert!(state.indexes.contains_key(index), "no index {index}");
        let found = state.indexes.get(index).and_then(|index| index.entries.get(value));
        found.map_or(0, BTreeMap::len)
    }

    /// The objects whose controlling owner has this uid. Needs [`Store::index_controllers`].
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.by_index(BY_CONTROLLER, uid)
    }

    /// How many these are.
    pub fn count_controlled_by(&self, uid: &str) -> usize {
        self.count(BY_CONTROLLER, uid)
    }

    pub fn index_controllers(&self) {
        self.add_index(BY_CONTROLLER, controller_uid);
    }

    /// Adds an index, over what is there and all that comes. A second of the same name changes nothing.
    pub fn add_index(&self, name: &'static str, values: IndexFn<K>) {
        let mut state = self.state.write();
        if state.indexes.contains_key(name) {
            return;
        }
        let mut index = Index {
            values,
            entries: HashMap::new(),
        };
        for (key, object) in &state.objects {
            index.put(key, object);
        }
        state.indexes.insert(name, index);
    }

    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Waits until the store is complete up to `revision`.
    pub async fn reached(&self, revision: u64) {
        // The sender lives as long as self, so this can only end by reaching the revision.
        let _ = self.revision.subscribe().wait_for(|seen| *seen >= revision).await;
    }

    /// Tells of every change of the store, by its revision.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub(crate) fn advance(&self, revision: &str) {
        let revision = parse_revision(revision);
        self.revision.send_modify(|seen| *seen = revision.max(*seen));
    }

    /// A state read anew may be of a server that began again: its revision counts, even if it is lower.
    pub(crate) fn restart(&self, revision: &str) {
        self.revision.send_replace(parse_revision(revision));
    }

    pub(crate) fn put(&self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let mut guard = self.state.write();
        let state = &mut *guard;
        let old = state.objects.get(&key).cloned();
        for index in state.indexes.values_mut() {
            match &old {
                Some(old) => index.replace(&key, old, &object),
                None => index.put(&key, &object),
            }
        }
        state.objects.insert(key, object);
        old
    }

    pub(crate) fn remove(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let mut guard = self.state.write();
        let state = &mut *guard;
        let old = state.objects.remove(key)?;
        for index in state.indexes.values_mut() {
            index.take(key, &old);
        }
        Some(old)
    }
}

thread_local! {
    static LOOKED_AT: Cell<u64> = const { Cell::new(0) };
}

/// How many objects of stores have been looked at on this thread, where more than one was asked for: by how it grows tests, which
/// run in one thread, tell whether an event costs more the more there is.
pub fn looked_at() -> u64 {
    LOOKED_AT.get()
}

fn look<T>(objects: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    objects.inspect(|_| LOOKED_AT.set(LOOKED_AT.get().wrapping_add(1)))
}

/// Revisions are numbers; what isn't one counts as the beginning.
pub fn parse_revision(revision: &str) -> u64 {
    revision.parse().unwrap_or(0)
}

pub fn controller_uid<K: ApiObject>(object: &K) -> Vec<String> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners
        .iter()
        .filter(|o| o.controller == Some(true))
        .map(|o| o.uid.clone())
        .collect()
}
