//! Compaction: removes the versions that nobody can ask for any more.
//!
//! Which those are is known as soon as the compaction's revision is noted; removing them takes its time, in portions between
//! writes. A removal that is cut short goes on from where it was noted to be.

use super::layout;
use super::tables::Tables;
use crate::{Result, Revision};

const PORTION: usize = 128;

pub(super) struct Scrub {
    /// Everything up to here has been dealt with.
    done: Revision,
    to: Revision,
}

impl Scrub {
    /// Notes, on disk, that the past before `to` is given up.
    pub(super) fn begin(tables: &Tables, to: Revision) -> Result<Scrub> {
        let mut batch = tables.batch();
        batch.insert(&tables.meta, "compacted", to.to_be_bytes());
        batch.commit().map_err(|e| tables.fail(e))?;
        Ok(Scrub {
            done: tables.scrubbed()?,
            to,
        })
    }

    /// What an earlier run left to do.
    pub(super) fn resume(tables: &Tables) -> Result<Option<Scrub>> {
        let (done, to) = (tables.scrubbed()?, tables.compacted()?);
        Ok((done < to).then_some(Scrub { done, to }))
    }

    /// Looks at the next changes, and at all of a revision: each makes the versions before it unreachable, and a deletion also itself,
    /// unless it is of the very revision that is compacted to: clients of etcd may watch from there. The next compaction removes that.
    pub(super) fn portion(mut self, tables: &Tables) -> Result<Option<Scrub>> {
        let fail = |e| tables.fail(e);
        // Synced as everything is: of the journal's batches only the last may be in doubt.
        let mut batch = tables.batch();
        let mut seen = 0;
        let mut more = false;
        // With what the last one left of its own revision.
        let bounds = layout::change(self.done, 0)..layout::change(self.to + 1, 0);
        for found in tables.log.range(bounds) {
            let (place, key) = found.into_inner().map_err(fail)?;
            let Some((revision, sub)) = layout::split_change(&place) else {
                continue;
            };
            more = seen >= PORTION && sub == 0;
            if more {
                break;
            }
            for version in tables.data.range(layout::at(&key, revision)..layout::behind(&key)) {
                let (version, record) = version.into_inner().map_err(fail)?;
                let is_this = layout::split(&version).is_some_and(|(_, r)| r == revision);
                if !is_this || (layout::is_deleted(&record) && revision < self.to) {
                    batch.remove(&tables.data, version);
                }
            }
            // The newest stays: it tells the store's revision if nothing follows.
            if revision < self.to {
                batch.remove(&tables.log, place);
            }
            self.done = revision;
            seen += 1;
        }
        if !more {
            self.done = self.to;
        }
        batch.insert(&tables.meta, "scrubbed", self.done.to_be_bytes());
        batch.commit().map_err(fail)?;
        Ok(more.then_some(self))
    }
}
