//! Present and recent past of a resource: what reads look at, without I/O.

use crate::labels::Asked;
use crate::ring::{Change, Ring};
use crate::select::Indexes;
use crate::snapshot::Snapshot;
use crate::{Error, Result};
use keelson_store::Revision;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::Instant;

pub(crate) struct State {
    pub(crate) snapshot: Snapshot,
    pub(crate) ring: Ring,
    pub(crate) ready: bool,
    /// How often it has started anew.
    pub(crate) generation: u64,
    pub(crate) asked: Asked,
}

impl State {
    pub(crate) fn new() -> State {
        State {
            snapshot: Snapshot::empty(0),
            ring: Ring::new(0),
            ready: false,
            generation: 0,
            asked: Asked::default(),
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.snapshot.revision
    }

    /// Starts anew from a list.
    pub(crate) fn reset(&mut self, snapshot: Snapshot) {
        self.ring = Ring::new(snapshot.revision);
        self.snapshot = snapshot;
        self.snapshot.labelled.clear();
        self.generation += 1;
        self.asked = Asked::default();
        self.ready = true;
    }

    /// Applies changes in order. All changes up to `synced` are known then.
    pub(crate) fn apply(&mut self, changes: &[Arc<Change>], synced: Revision, indexes: &Indexes, now: Instant) {
        for change in changes {
            match (&change.now, &change.before) {
                (Some(entry), _) => drop(self.snapshot.insert(entry, indexes)),
                (None, Some(before)) => drop(self.snapshot.remove(before.key(), indexes)),
                (None, None) => continue,
            }
            self.ring.push(change.clone(), now);
        }
        self.snapshot.revision = self.snapshot.revision.max(synced);
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
