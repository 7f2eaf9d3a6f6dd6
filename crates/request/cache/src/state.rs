//! Present, recent past and watchers of a resource: everything that changes together, without I/O.

use crate::queue::Queue;
use crate::ring::{Change, Ring};
use crate::select::Indexes;
use crate::snapshot::Snapshot;
use crate::{Error, IndexValue, Result, Scope, Selection, WatchEvent};
use bytes::Bytes;
use keelson_store::Revision;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use tokio::time::Instant;

pub(crate) struct State {
    pub(crate) snapshot: Snapshot,
    pub(crate) ring: Ring,
    pub(crate) ready: bool,
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

impl State {
    pub(crate) fn new() -> State {
        State {
            snapshot: Snapshot::empty(0),
            ring: Ring::new(0),
            ready: false,
            closed: false,
            watchers: BTreeMap::new(),
            triggers: HashMap::new(),
            next_id: 0,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.snapshot.revision
    }

    pub(crate) fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// Starts anew from a list. Watchers end: what happened in between is not known.
    pub(crate) fn reset(&mut self, snapshot: Snapshot) {
        let revision = snapshot.revision;
        self.ring = Ring::new(revision);
        self.snapshot = snapshot;
        self.ready = true;
        self.end_watchers(Error::Restarted { revision });
    }

    /// Ends all watches, after what they have been told, and lets none begin.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.end_watchers(Error::Ended);
    }

    fn end_watchers(&mut self, why: Error) {
        self.triggers.clear();
        for watcher in std::mem::take(&mut self.watchers).into_values() {
            watcher.queue.end(why.clone());
        }
    }

    /// Applies changes in order and offers them to watchers. All changes up to `synced` are known then.
    pub(crate) fn apply(&mut self, changes: Vec<Arc<Change>>, synced: Revision, indexes: &Indexes, now: Instant) {
        for change in changes {
            match (&change.now, &change.before) {
                (Some(entry), _) => drop(self.snapshot.insert(entry, indexes)),
                (None, Some(before)) => drop(self.snapshot.remove(before.key(), indexes)),
                (None, None) => continue,
            }
            self.dispatch(&change, indexes);
            self.ring.push(change, now);
        }
        self.snapshot.revision = self.snapshot.revision.max(synced);
    }

    fn dispatch(&mut self, change: &Arc<Change>, indexes: &Indexes) {
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
            self.remove_watcher(id);
        }
    }

    /// From now on the queue gets all events that are selected.
    pub(crate) fn add_watcher(&mut self, selection: Selection, queue: Arc<Queue>) -> u64 {
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

    pub(crate) fn remove_watcher(&mut self, id: u64) {
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

    /// What happened after `revision`, oldest first.
    pub(crate) fn changes_after(&self, revision: Revision) -> Result<VecDeque<Arc<Change>>> {
        let oldest = self.ring.floor();
        if revision < oldest {
            return Err(Error::TooOld {
                asked: revision,
                oldest,
            });
        }
        Ok(self.ring.after(revision).cloned().collect())
    }
}

/// The resource as it stood before these changes.
pub(crate) fn undo(
    mut snapshot: Snapshot,
    changes: &VecDeque<Arc<Change>>,
    revision: Revision,
    indexes: &Indexes,
) -> Snapshot {
    for change in changes.iter().rev() {
        match (&change.before, &change.now) {
            (Some(before), _) => drop(snapshot.insert(before, indexes)),
            (None, Some(now)) => drop(snapshot.remove(now.key(), indexes)),
            (None, None) => {}
        }
    }
    snapshot.revision = revision;
    snapshot
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
