//! A group of writes that are committed together: what each of them finds, does and answers.
//!
//! Each sees what those before it in the group did. Nothing is visible, and nobody is answered, before all is on disk.

use super::Shared;
use super::lately::Lately;
use super::layout;
use super::mark::Mark;
use super::tables::{Due, Tables};
use crate::lease::Leases;
use crate::transact::{Below, Staged, Work, changed};
use crate::{
    Error, Event, EventKind, Expect, KeyValue, LeaseId, ListRequest, Listed, Outcome, Result, Revision, Transaction,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// One write, and who waits for its outcome.
pub(super) struct Write {
    pub(super) key: Bytes,
    pub(super) change: Change,
    pub(super) expected: Expect,
    pub(super) reply: Option<Answer>,
    /// Of the bytes that may queue; given back when the write is taken.
    pub(super) _share: OwnedSemaphorePermit,
}

/// Several operations as one, and who waits for it.
pub(super) struct Together {
    pub(super) work: Work,
    pub(super) bytes: usize,
    pub(super) puts: bool,
    /// It comes first in its group, when all that was written before is on disk.
    pub(super) past: bool,
    pub(super) reply: Reply<Revision>,
    pub(super) _share: OwnedSemaphorePermit,
}

pub(super) enum Change {
    Put { value: Bytes, deadline: Option<u64> },
    Delete,
}

/// Who waits for a write's outcome.
pub(super) enum Answer {
    One(Reply<Outcome>),
    /// The key is deleted after the write, if that is done.
    ThenDeleted(Reply<(Outcome, Option<Outcome>)>),
}

impl Answer {
    fn send(self, outcome: Result<(Outcome, Option<Outcome>)>) {
        match self {
            Answer::One(reply) => drop(reply.send(outcome.map(|(outcome, _)| outcome))),
            Answer::ThenDeleted(reply) => drop(reply.send(outcome)),
        }
    }
    pub(super) fn refuse(self, error: Error) {
        self.send(Err(error));
    }
}

impl Change {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Change::Put { value, .. } => value.len(),
            Change::Delete => 0,
        }
    }
}

impl Write {
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.change.bytes()
    }
}

pub(super) struct Group<'a> {
    tables: &'a Tables,
    lately: &'a Lately,
    leases: &'a Mutex<Leases>,
    acknowledged: &'a Mark,
    batch: fjall::OwnedWriteBatch,
    revision: Revision,
    /// What keys stand at after the writes so far.
    present: BTreeMap<Bytes, Option<KeyValue>>,
    /// Leases granted in it, and such that end.
    granted: BTreeMap<LeaseId, Option<u64>>,
    pub(super) events: Vec<Event>,
    replies: Replies,
    pub(super) has_deadlines: bool,
}

#[derive(Default)]
struct Replies {
    writes: Vec<(Option<Answer>, Result<(Outcome, Option<Outcome>)>)>,
    together: Vec<(Reply<Revision>, Result<Revision>)>,
}

impl<'a> Group<'a> {
    pub(super) fn new((tables, shared): (&'a Tables, &'a Shared), revision: Revision) -> Self {
        Group {
            tables,
            lately: &shared.lately,
            leases: &shared.leases,
            acknowledged: &shared.acknowledged,
            batch: tables.batch(),
            revision,
            present: BTreeMap::new(),
            granted: BTreeMap::new(),
            events: Vec::new(),
            replies: Replies::default(),
            has_deadlines: false,
        }
    }

    /// Nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub(super) fn add(&mut self, write: Write) {
        let then_deleted = matches!(write.reply, Some(Answer::ThenDeleted(_))).then(|| write.key.clone());
        let outcome = self.decide(write.key, write.change, write.expected);
        let done = outcome.as_ref().ok().and_then(Outcome::done);
        if let (Some(key), Some(revision)) = (then_deleted, done) {
            let deleted = self.decide(key, Change::Delete, Expect::ModRevision(revision));
            let both = outcome.and_then(|put| Ok((put, Some(deleted?))));
            self.replies.writes.push((write.reply, both));
            return;
        }
        self.replies
            .writes
            .push((write.reply, outcome.map(|outcome| (outcome, None))));
    }

    pub(super) fn refuse(&mut self, write: Write, error: Error) {
        self.replies.writes.push((write.reply, Err(error)));
    }

    /// All of it, or nothing.
    pub(super) fn add_together(&mut self, together: Together) {
        let ran = self.run(together.work);
        self.replies.together.push((together.reply, ran));
    }

    pub(super) fn refuse_together(&mut self, together: Together, error: Error) {
        self.replies.together.push((together.reply, Err(error)));
    }

    /// Ends a lease whose time is over, with its keys.
    pub(super) fn end_lease(&mut self, id: LeaseId) -> Result<()> {
        self.run(Box::new(move |transaction| transaction.revoke(id).map(drop)))?;
        Ok(())
    }

    fn run(&mut self, work: Work) -> Result<Revision> {
        let mut transaction = Transaction::new(&*self);
        work(&mut transaction)?;
        let staged = transaction.end();
        if !staged.is_empty() {
            self.take(staged)?;
        }
        Ok(self.revision)
    }

    /// Writes what a transaction made.
    fn take(&mut self, staged: Staged) -> Result<()> {
        let needs_more = staged.events.len() > 1 || staged.events.iter().any(|e| e.kv.lease != 0);
        if (needs_more || !staged.leases.is_empty()) && self.tables.leases().is_none() {
            // That it has layout 2 is written before the group is.
            self.acknowledged.doubt();
            self.tables.upgrade()?;
        }
        self.revision += Revision::from(!staged.events.is_empty());
        for (sub, event) in staged.events.into_iter().enumerate() {
            let sub = u32::try_from(sub).unwrap_or(u32::MAX);
            self.write(sub, event);
        }
        if let Some(table) = self.tables.leases() {
            for (id, seconds) in &staged.leases {
                match seconds {
                    Some(seconds) => self.batch.insert(table, id.to_be_bytes(), seconds.to_be_bytes()),
                    None => self.batch.remove(table, id.to_be_bytes()),
                }
            }
        }
        self.granted.extend(staged.leases);
        Ok(())
    }

    /// One change of the newest revision.
    fn write(&mut self, sub: u32, event: Event) {
        let (key, revision) = (event.kv.key.clone(), self.revision);
        let record = match event.kind {
            EventKind::Put => layout::put(&event.kv, sub),
            EventKind::Delete => layout::deleted(),
        };
        self.batch
            .insert(&self.tables.log, layout::change(revision, sub), &key[..]);
        self.batch.insert(&self.tables.data, layout::at(&key, revision), record);
        let had = event.prev.as_ref().map_or(0, |kv| kv.lease);
        if (had, event.kv.lease) != (0, 0)
            && let Some(table) = self.tables.leases()
        {
            if had != 0 && had != event.kv.lease {
                self.batch.remove(table, layout::attached(had, &key));
            }
            if event.kv.lease != 0 {
                self.batch.insert(table, layout::attached(event.kv.lease, &key), "");
            }
        }
        let stands = (event.kind == EventKind::Put).then(|| event.kv.clone());
        self.present.insert(key, stands);
        self.events.push(event);
    }

    /// Deletes a key whose time has come, unless it was written again since.
    pub(super) fn expire(&mut self, due: Due) {
        self.batch
            .remove(&self.tables.expiry, layout::expiry(due.deadline, due.revision));
        let outcome = self.decide(due.key, Change::Delete, Expect::ModRevision(due.revision));
        self.replies.writes.push((None, outcome.map(|outcome| (outcome, None))));
    }

    fn decide(&mut self, key: Bytes, change: Change, expected: Expect) -> Result<Outcome> {
        let prev = self.present(&key)?;
        let found = prev.as_ref().map(|kv| kv.mod_revision);
        let nothing_to_delete = found.is_none() && matches!(change, Change::Delete);
        if nothing_to_delete || !expected.holds(found) {
            return Ok(Outcome::Conflict {
                revision: self.revision,
                current: prev,
            });
        }
        self.revision += 1;
        let revision = self.revision;
        let (kind, kv) = match change {
            Change::Put { value, deadline } => {
                if let Some(deadline) = deadline {
                    self.batch
                        .insert(&self.tables.expiry, layout::expiry(deadline, revision), &key[..]);
                    self.has_deadlines = true;
                }
                let (create_revision, version) = prev
                    .as_ref()
                    .map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
                let kv = KeyValue {
                    key,
                    value,
                    create_revision,
                    mod_revision: revision,
                    version,
                    lease: 0,
                };
                (EventKind::Put, kv)
            }
            Change::Delete => (EventKind::Delete, KeyValue::gone(key, revision)),
        };
        let event = Event {
            kind,
            kv,
            prev: prev.clone(),
        };
        self.write(0, event);
        Ok(Outcome::Done { revision, prev })
    }

    fn present(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        match self.present.get(key) {
            Some(present) => Ok(present.clone()),
            None => match self.lately.stands(key) {
                Some(stands) => Ok(stands),
                None => self.tables.get(&self.tables.snapshot(), key, Revision::MAX),
            },
        }
    }

    /// To disk. What is left can be published and answered, once it is known how this went.
    pub(super) fn commit(self) -> (Result<()>, Committed) {
        let (tables, batch) = (self.tables, self.batch);
        let committed = Committed {
            events: self.events,
            revision: self.revision,
            replies: self.replies,
            granted: self.granted,
            has_deadlines: self.has_deadlines,
        };
        self.acknowledged.doubt();
        (batch.commit().map_err(|e| tables.fail(e)), committed)
    }

    /// Not to disk: there is nothing to write, or no way to it.
    pub(super) fn abandon(self) -> Committed {
        Committed {
            events: self.events,
            revision: self.revision,
            replies: self.replies,
            granted: self.granted,
            has_deadlines: self.has_deadlines,
        }
    }
}

impl Below for Group<'_> {
    fn revision(&self) -> Revision {
        self.revision
    }
    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        self.present(key)
    }
    fn list(&self, request: &ListRequest) -> Result<Listed> {
        let snapshot = self.tables.snapshot();
        let stored = |request: &ListRequest| self.tables.list(&snapshot, request, Revision::MAX);
        let was = |key: &[u8]| self.tables.get(&snapshot, key, Revision::MAX);
        changed(request, &self.present, stored, was)
    }
    /// What a transaction that comes first finds ([`Together::past`]).
    fn past(&self, request: &ListRequest) -> Result<Listed> {
        let (asked, compact_revision) = (request.revision.unwrap_or(self.revision), self.tables.compacted()?);
        if asked > self.revision {
            let current = self.revision;
            return Err(Error::FutureRevision { asked, current });
        }
        if asked < compact_revision {
            return Err(Error::Compacted { compact_revision });
        }
        self.tables.list(&self.tables.snapshot(), request, asked)
    }
    fn lease(&self, id: LeaseId) -> Option<u64> {
        match self.granted.get(&id) {
            Some(changed) => *changed,
            None => self.leases.lock().seconds(id),
        }
    }
    fn attached(&self, id: LeaseId) -> Result<Vec<Bytes>> {
        let mut keys = self.tables.attached(id)?;
        // What this group has written isn't in the table yet.
        keys.retain(|key| !self.present.contains_key(key));
        let written = self
            .present
            .iter()
            .filter(|(_, kv)| kv.as_ref().is_some_and(|kv| kv.lease == id));
        keys.extend(written.map(|(key, _)| key.clone()));
        keys.sort_unstable();
        Ok(keys)
    }
}

pub(super) struct Committed {
    pub(super) events: Vec<Event>,
    pub(super) revision: Revision,
    pub(super) has_deadlines: bool,
    pub(super) granted: BTreeMap<LeaseId, Option<u64>>,
    replies: Replies,
}

impl Committed {
    /// Whoever no longer waits for the answer doesn't get it.
    pub(super) fn answer(self) {
        for (reply, outcome) in self.replies.writes {
            if let Some(reply) = reply {
                reply.send(outcome);
            }
        }
        for (reply, ran) in self.replies.together {
            let _ = reply.send(ran);
        }
    }
    /// None of the group's changes happened. A compare that failed may have met one of them: it decides nothing either.
    pub(super) fn answer_failed(self, error: &Error) {
        for (reply, outcome) in self.replies.writes {
            let Some(reply) = reply else { continue };
            reply.refuse(outcome.err().unwrap_or_else(|| error.clone()));
        }
        for (reply, ran) in self.replies.together {
            let _ = reply.send(Err(ran.err().unwrap_or_else(|| error.clone())));
        }
    }
}
