//! The one thread that writes: takes what has queued, commits it in one go, publishes it, answers. Between groups it gives
//! up compacted versions, a portion at a time.
//!
//! When the disk fails, the engine is closed and opened again: only what is then on disk counts. A group that turns out to
//! be there is a success; one that isn't has not happened. Until it opens, writes are refused and reads fail as unavailable;
//! each write tries again, at most once a second.

use super::group::{Group, Reply, Write};
use super::scrub::Scrub;
use super::tables::Tables;
use super::{Shared, fault};
use crate::{Error, KeyRange, Result, Revision};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What one commit takes at most.
const GROUP_WRITES: usize = 256;
const GROUP_BYTES: usize = 4 << 20;
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// The engine flushes in the background; with so many tables waiting for that, writes wait.
const UNFLUSHED: usize = 3;
const UNMERGED: usize = 18;
const DUE: usize = 256;

pub(super) enum Command {
    Write(Write),
    /// Deletes what is due; answers with the next deadline.
    Expire {
        now_ms: u64,
        reply: Reply<Option<u64>>,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
    Close {
        reply: Reply<()>,
    },
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    scrub: Option<Scrub>,
    failed_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, commands: mpsc::Receiver<Command>, scrub: Option<Scrub>) -> Self {
        Writer {
            shared,
            commands,
            scrub,
            failed_at: None,
        }
    }

    /// Until the store is closed, or nobody holds it any more.
    pub(super) fn run(mut self) {
        let mut held = None;
        let closing = loop {
            let Some(command) = held.take().or_else(|| self.next()) else {
                break None;
            };
            match command {
                Command::Write(write) => held = self.writes(write),
                Command::Expire { now_ms, reply } => drop(reply.send(self.expire(now_ms))),
                Command::Compact { revision, reply } => drop(reply.send(self.compact(revision))),
                Command::Close { reply } => break Some(reply),
            }
        };
        self.shared.hub.close();
        drop(self.shared.tables.write().take());
        if let Some(reply) = closing {
            let _ = reply.send(Ok(()));
        }
    }

    /// The next command; while there is none, compaction goes on.
    fn next(&mut self) -> Option<Command> {
        while let Some(scrub) = self.scrub.take() {
            match self.commands.try_recv() {
                Ok(command) => {
                    self.scrub = Some(scrub);
                    return Some(command);
                }
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => self.scrub_on(scrub),
            }
        }
        self.commands.blocking_recv()
    }

    fn scrub_on(&mut self, scrub: Scrub) {
        let advanced = self.with_tables(|tables| scrub.portion(tables));
        match advanced {
            Ok(left) => self.scrub = left,
            // What is left is known to the tables; the next start, or the next compaction, goes on with it.
            Err(error) => tracing::warn!(%error, "giving up compacted versions stopped"),
        }
    }

    /// Commits the write and all writes that wait behind it; gives back a command of another kind that ended the group.
    fn writes(&mut self, first: Write) -> Option<Command> {
        let mut writes = vec![first];
        let mut bytes = writes[0].bytes();
        let mut held = None;
        while writes.len() < GROUP_WRITES && bytes < GROUP_BYTES {
            match self.commands.try_recv() {
                Ok(Command::Write(write)) => {
                    bytes += write.bytes();
                    writes.push(write);
                }
                Ok(other) => {
                    held = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        if let Err(error) = self.usable() {
            for reply in writes.into_iter().filter_map(|w| w.reply) {
                let _ = reply.send(Err(error.clone()));
            }
            return held;
        }
        let room = self.shared.room(bytes as u64);
        let committed = self.commit(|group| {
            for write in writes {
                match room.refusal(&write.change) {
                    None => group.add(write),
                    Some(error) => group.refuse(write, error),
                }
            }
        });
        if let Err(error) = committed {
            tracing::error!(%error, "writing to the store failed");
        }
        held
    }

    fn expire(&mut self, now_ms: u64) -> Result<Option<u64>> {
        self.usable()?;
        let (due, next) = self.with_tables(|tables| tables.due(now_ms, DUE))?;
        if due.is_empty() {
            return Ok(next);
        }
        self.commit(|group| due.into_iter().for_each(|due| group.expire(due)))?;
        Ok(next)
    }

    fn compact(&mut self, to: Revision) -> Result<()> {
        self.usable()?;
        let (current, compacted) = (self.shared.hub.published(), self.shared.compacted());
        if to <= compacted {
            return Err(Error::Compacted {
                compact_revision: compacted,
            });
        }
        if to > current {
            return Err(Error::FutureRevision { asked: to, current });
        }
        let scrub = self.with_tables(|tables| Scrub::begin(tables, to))?;
        // Readers that take their snapshot from now on check this after it: no reader misses what is being given up.
        self.shared.set_compacted(to);
        self.scrub = Some(scrub);
        Ok(())
    }

    /// Fills a group, writes it, publishes it and answers.
    fn commit(&mut self, fill: impl FnOnce(&mut Group<'_>)) -> Result<()> {
        let shared = self.shared.clone();
        let before = shared.hub.published();
        let guard = shared.tables.read();
        let Some(tables) = guard.as_ref() else {
            return Err(closed());
        };
        let mut group = Group::new(tables, before);
        fill(&mut group);
        let wanted = group.revision();
        let (result, committed) = match wait_for_flushes(tables) {
            Ok(()) => group.commit(),
            Err(error) => (Err(error), group.abandon()),
        };
        drop(guard);
        let error = match result {
            Ok(()) => None,
            Err(error) => match self.reopen() {
                Ok(revision) if revision >= wanted => None,
                Ok(_) => Some(error),
                Err(reopening) => {
                    tracing::error!(%error, %reopening, "the store failed, and can't be opened again");
                    Some(Error::Stalled {
                        what: format!("{error}; whether it was written isn't known"),
                    })
                }
            },
        };
        match error {
            None => {
                if committed.revision > before {
                    shared.acknowledged.set(committed.revision);
                }
                // After a reopening these have been published already.
                if committed.revision > shared.hub.published() {
                    shared.hub.publish(&committed.events, committed.revision);
                }
                if committed.has_deadlines {
                    shared.earlier.notify_one();
                }
                committed.answer();
                Ok(())
            }
            Some(error) => {
                committed.answer_failed(&error);
                Err(error)
            }
        }
    }

    fn with_tables<T>(&self, f: impl FnOnce(&Tables) -> Result<T>) -> Result<T> {
        self.shared.tables.read().as_ref().map_or_else(|| Err(closed()), f)
    }

    /// The engine is open, or can be opened again.
    fn usable(&mut self) -> Result<()> {
        if self.with_tables(Tables::is_sound).is_ok() {
            return Ok(());
        }
        if self.failed_at.is_some_and(|at| at.elapsed() < REOPEN_EVERY) {
            return Err(closed());
        }
        self.reopen().map(drop)
    }

    /// Only what is on disk counts: what got there unnoticed is published now. Tells the newest revision.
    fn reopen(&mut self) -> Result<Revision> {
        let mut slot = self.shared.tables.write();
        drop(slot.take());
        self.failed_at = Some(Instant::now());
        let tables = Tables::open(&self.shared.path, &self.shared.options)?;
        let revision = tables.revision()?;
        let mut position = self.shared.hub.published();
        if revision < position {
            let what = format!("it stands at revision {revision}, but {position} was acknowledged");
            return Err(fault::corrupt(&self.shared.path, what));
        }
        while position < revision {
            let batch = tables.history(&tables.snapshot(), &KeyRange::all(), position, revision, GROUP_WRITES)?;
            self.shared.hub.publish(&batch.events, batch.synced);
            position = batch.synced;
        }
        *slot = Some(tables);
        self.failed_at = None;
        tracing::warn!(revision, "the store was opened again after a failure");
        Ok(revision)
    }
}

fn closed() -> Error {
    Error::Unavailable {
        what: "its disk failed, and it couldn't be opened again yet".into(),
    }
}

/// The engine would wait without end for a background thread that has died; this notices.
fn wait_for_flushes(tables: &Tables) -> Result<()> {
    let behind = || {
        [&tables.data, &tables.log, &tables.expiry]
            .iter()
            .any(|t| t.sealed_memtable_count() >= UNFLUSHED || t.l0_table_count() >= UNMERGED)
    };
    while behind() {
        tables
            .db
            .persist(fjall::PersistMode::Buffer)
            .map_err(|e| tables.fail(e))?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
