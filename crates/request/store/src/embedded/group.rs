//! A group of writes that are committed together: what each of them finds, does and answers.
//!
//! Each sees what those before it in the group did. Nothing is visible, and nobody is answered, before all is on disk.

use super::layout;
use super::mark::Mark;
use super::tables::{Due, Tables, gone};
use crate::{Error, Event, EventKind, Expect, KeyValue, Outcome, Result, Revision};
use bytes::Bytes;
use std::collections::HashMap;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// One write, and who waits for its outcome.
pub(super) struct Write {
    pub(super) key: Bytes,
    pub(super) change: Change,
    pub(super) expected: Expect,
    pub(super) reply: Option<Reply<Outcome>>,
    /// Of the bytes that may queue; given back when the write is taken.
    pub(super) _share: OwnedSemaphorePermit,
}

pub(super) enum Change {
    Put { value: Bytes, deadline: Option<u64> },
    Delete,
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
    batch: fjall::OwnedWriteBatch,
    revision: Revision,
    /// What keys stand at after the writes so far.
    present: HashMap<Bytes, Option<KeyValue>>,
    pub(super) events: Vec<Event>,
    replies: Vec<(Option<Reply<Outcome>>, Result<Outcome>)>,
    pub(super) has_deadlines: bool,
}

impl<'a> Group<'a> {
    pub(super) fn new(tables: &'a Tables, revision: Revision) -> Self {
        Group {
            tables,
            batch: tables.db.batch().durability(Some(fjall::PersistMode::SyncData)),
            revision,
            present: HashMap::new(),
            events: Vec::new(),
            replies: Vec::new(),
            has_deadlines: false,
        }
    }

    /// Nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub(super) fn add(&mut self, write: Write) {
        let reply = write.reply;
        let outcome = self.decide(write.key, write.change, write.expected);
        self.replies.push((reply, outcome));
    }

    pub(super) fn refuse(&mut self, write: Write, error: Error) {
        self.replies.push((write.reply, Err(error)));
    }

    /// Deletes a key whose time has come, unless it was written again since.
    pub(super) fn expire(&mut self, due: Due) {
        self.batch
            .remove(&self.tables.expiry, layout::expiry(due.deadline, due.revision));
        let outcome = self.decide(due.key, Change::Delete, Expect::ModRevision(due.revision));
        self.replies.push((None, outcome));
    }

    fn decide(&mut self, key: Bytes, change: Change, expected: Expect) -> Result<Outcome> {
        let prev = match self.present.get(&key) {
            Some(present) => present.clone(),
            None => self.tables.get(&self.tables.snapshot(), &key, Revision::MAX)?,
        };
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
        self.batch.insert(&self.tables.log, revision.to_be_bytes(), &key[..]);
        let event = match change {
            Change::Put { value, deadline } => self.put(key.clone(), value, deadline, prev.clone()),
            Change::Delete => {
                self.batch
                    .insert(&self.tables.data, layout::at(&key, revision), layout::deleted());
                Event {
                    kind: EventKind::Delete,
                    kv: gone(key.clone(), revision),
                    prev: prev.clone(),
                }
            }
        };
        let stands = (event.kind == EventKind::Put).then(|| event.kv.clone());
        self.present.insert(key, stands);
        self.events.push(event);
        Ok(Outcome::Done { revision, prev })
    }

    fn put(&mut self, key: Bytes, value: Bytes, deadline: Option<u64>, prev: Option<KeyValue>) -> Event {
        let revision = self.revision;
        let (create, version) = prev
            .as_ref()
            .map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let record = layout::put(create, version, &value);
        self.batch.insert(&self.tables.data, layout::at(&key, revision), record);
        if let Some(deadline) = deadline {
            self.batch
                .insert(&self.tables.expiry, layout::expiry(deadline, revision), &key[..]);
            self.has_deadlines = true;
        }
        let kv = KeyValue {
            key,
            value,
            create_revision: create,
            mod_revision: revision,
            version,
        };
        Event {
            kind: EventKind::Put,
            kv,
            prev,
        }
    }

    /// To disk. What is left can be published and answered, once it is known how this went.
    pub(super) fn commit(self, acknowledged: &Mark) -> (Result<()>, Committed) {
        let (tables, batch) = (self.tables, self.batch);
        let committed = Committed {
            events: self.events,
            revision: self.revision,
            replies: self.replies,
            has_deadlines: self.has_deadlines,
        };
        acknowledged.doubt();
        (batch.commit().map_err(|e| tables.fail(e)), committed)
    }

    /// Not to disk: there is nothing to write, or no way to it.
    pub(super) fn abandon(self) -> Committed {
        Committed {
            events: self.events,
            revision: self.revision,
            replies: self.replies,
            has_deadlines: self.has_deadlines,
        }
    }
}

pub(super) struct Committed {
    pub(super) events: Vec<Event>,
    pub(super) revision: Revision,
    pub(super) has_deadlines: bool,
    replies: Vec<(Option<Reply<Outcome>>, Result<Outcome>)>,
}

impl Committed {
    /// Whoever no longer waits for the answer doesn't get it.
    pub(super) fn answer(self) {
        for (reply, outcome) in self.replies {
            if let Some(reply) = reply {
                let _ = reply.send(outcome);
            }
        }
    }
    /// None of the group's changes happened. A compare that failed may have met one of them: it decides nothing either.
    pub(super) fn answer_failed(self, error: &Error) {
        for (reply, outcome) in self.replies {
            let Some(reply) = reply else { continue };
            let _ = reply.send(Err(outcome.err().unwrap_or_else(|| error.clone())));
        }
    }
}
