//! Who watches a resource, and who of them is told of a change.
//!
//! Whoever changes the state holds this lock from before the change until all watchers have been told, and a watch begins
//! under it: so none misses a change or gets one twice. Reads don't take it: telling many takes time.

use crate::queue::Queue;
use crate::ring::Change;
use crate::select::Indexes;
use crate::{Error, IndexValue, Scope, Selection, WatchEvent};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

#[derive(Default)]
pub(crate) struct Watchers {
    /// No watch begins any more.
    pub(crate) closed: bool,
    watchers: BTreeMap<u64, Watcher>,
    /// Who is to be offered an event, by the one thing that all events he wants have in common.
    triggers: HashMap<Trigger, BTreeSet<u64>>,
    next_id: u64,
}

struct Watcher {
    selection: Selection,
    trigger: Trigger,
    queue: Arc<Queue>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trigger {
    Scope(Scope),
    Index(IndexValue),
}

impl Watchers {
    pub(crate) fn count(&self) -> usize {
        self.watchers.len()
    }

    /// Ends all watches, after what they have been told, and lets none begin.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.end(Error::Ended);
    }

    pub(crate) fn end(&mut self, why: Error) {
        self.triggers.clear();
        for watcher in std::mem::take(&mut self.watchers).into_values() {
            watcher.queue.end(why.clone());
        }
    }

    /// Offers a change to those who want it.
    pub(crate) fn tell(&mut self, change: &Arc<Change>, indexes: &Indexes) {
        if self.watchers.is_empty() {
            return;
        }
        let mut slow = Vec::new();
        for trigger in triggers_of(change, indexes) {
            for id in self.triggers.get(&trigger).into_iter().flatten() {
                let Some(watcher) = self.watchers.get(id) else { continue };
                let Some(event) = seen_by(change, &watcher.selection) else {
                    continue;
                };
                if !watcher.queue.offer(event) {
                    slow.push(*id);
                }
            }
        }
        for id in slow {
            self.remove(id);
        }
    }

    /// From now on the queue gets all events that are selected.
    pub(crate) fn add(&mut self, selection: Selection, queue: Arc<Queue>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let trigger = match (&selection.index, &selection.scope) {
            (_, Scope::Key(_)) | (None, _) => Trigger::Scope(selection.scope.clone()),
            (Some(index), _) => Trigger::Index(index.clone()),
        };
        self.triggers.entry(trigger.clone()).or_default().insert(id);
        self.watchers.insert(
            id,
            Watcher {
                selection,
                trigger,
                queue,
            },
        );
        id
    }

    /// How many watchers would be told of a change of this key; those that follow an index are not known before.
    pub(crate) fn interested(&self, namespace: &str, key: &Bytes) -> usize {
        let scopes = [Scope::All, Scope::Namespace(namespace.into()), Scope::Key(key.clone())];
        let of = |scope| self.triggers.get(&Trigger::Scope(scope)).map_or(0, BTreeSet::len);
        scopes.into_iter().map(of).sum()
    }

    pub(crate) fn remove(&mut self, id: u64) {
        let Some(watcher) = self.watchers.remove(&id) else {
            return;
        };
        if let Some(ids) = self.triggers.get_mut(&watcher.trigger) {
            ids.remove(&id);
            if ids.is_empty() {
                self.triggers.remove(&watcher.trigger);
            }
        }
    }
}

/// What a change is to someone who selects: an object that begins to be selected is new, one that ceases is gone.
pub(crate) fn seen_by(change: &Change, selection: &Selection) -> Option<WatchEvent> {
    let was = change.before.as_ref().is_some_and(|e| selection.matches(e));
    let now = change.now.as_ref().filter(|e| selection.matches(e));
    match (was, now) {
        (false, Some(now)) => Some(WatchEvent::Added(now.clone())),
        (true, Some(now)) => Some(WatchEvent::Modified(now.clone())),
        (true, None) => change.gone().map(|gone| WatchEvent::Deleted(gone.clone())),
        (false, None) => None,
    }
}

/// Each once: a watcher has one trigger, so it is offered a change once.
fn triggers_of(change: &Change, indexes: &Indexes) -> Vec<Trigger> {
    let mut triggers = vec![Trigger::Scope(Scope::All)];
    let (now, before) = (change.now.as_deref(), change.before.as_deref());
    if let Some(entry) = now.or(before) {
        triggers.push(Trigger::Scope(Scope::Namespace(entry.namespace().into())));
        triggers.push(Trigger::Scope(Scope::Key(entry.key().clone())));
    }
    for entry in [now, before].into_iter().flatten() {
        for value in indexes.values(entry) {
            let trigger = Trigger::Index(value);
            if !triggers.contains(&trigger) {
                triggers.push(trigger);
            }
        }
    }
    triggers
}
