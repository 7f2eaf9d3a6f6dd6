//! The one thread that writes: takes what has queued, commits it in one go, publishes it, answers. Between groups it gives
//! up compacted versions, a portion at a time.
//!
//! When the disk fails in a commit, that commit has not happened, whatever can be read back: after a failed sync the kernel shows
//! pages that it will never write. The engine is closed, its journal is written anew without the commit ([`journal`]), and it
//! is opened again; then the group is told that nothing was written. Until that has succeeded writes are refused, and the group
//! was told that the outcome isn't known. Reads go on from what the engine has in memory, as long as the disk takes nothing at
//! all; each write tries again, at most once a second.

use super::group::{Change, Group, Reply, Together, Write};
use super::picture::Leaving;
use super::scrub::Scrub;
use super::tables::Tables;
use super::{Shared, fault, journal};
use crate::{Error, Result, Revision};
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
    Together(Together),
    /// Deletes what is due; answers with the next deadline.
    Expire {
        now_ms: u64,
        reply: Reply<Option<u64>>,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
    /// Writes something that nobody reads.
    Probe {
        reply: Reply<()>,
    },
    /// Rewrites all tables.
    Defragment {
        reply: Reply<()>,
    },
    Close {
        reply: Reply<()>,
    },
}

/// What one commit is made of.
enum Item {
    Write(Write),
    Together(Together),
}

impl Item {
    fn of(command: Command) -> Result<Item, Command> {
        match command {
            Command::Write(write) => Ok(Item::Write(write)),
            Command::Together(together) => Ok(Item::Together(together)),
            other => Err(other),
        }
    }
    fn bytes(&self) -> usize {
        match self {
            Item::Write(write) => write.bytes(),
            Item::Together(together) => together.bytes,
        }
    }
    /// It has to be the first of its group.
    fn is_first(&self) -> bool {
        matches!(self, Item::Together(together) if together.past)
    }
    fn into_command(self) -> Command {
        match self {
            Item::Write(write) => Command::Write(write),
            Item::Together(together) => Command::Together(together),
        }
    }
    fn refuse(self, error: &Error) {
        match self {
            Item::Write(Write { reply: Some(reply), .. }) => reply.refuse(error.clone()),
            Item::Write(_) => {}
            Item::Together(together) => drop(together.reply.send(Err(error.clone()))),
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    scrub: Option<Scrub>,
    failed_at: Option<Instant>,
    /// The engine's batches of smaller sequence numbers are on disk.
    synced: u64,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, commands: mpsc::Receiver<Command>, scrub: Option<Scrub>) -> Self {
        let synced = shared.tables.read().as_ref().map_or(0, |tables| tables.db.seqno());
        Writer {
            shared,
            commands,
            scrub,
            failed_at: None,
            synced,
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
                Command::Write(write) => held = self.writes(Item::Write(write)),
                Command::Together(together) => held = self.writes(Item::Together(together)),
                Command::Expire { now_ms, reply } => drop(reply.send(self.expire(now_ms))),
                Command::Compact { revision, reply } => drop(reply.send(self.compact(revision))),
                Command::Probe { reply } => drop(reply.send(self.probe())),
                Command::Defragment { reply } => drop(reply.send(self.defragment())),
                Command::Close { reply } => break Some(reply),
            }
        };
        self.shared.hub.close();
        let leaving = Leaving::new(&self.shared.leaving);
        drop(self.shared.tables.write().take());
        drop(leaving);
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
        let advanced = self.durably(|tables| scrub.portion(tables));
        match advanced {
            Ok(left) => {
                self.scrub = left;
                self.tell_settled();
            }
            // What is left is known to the tables; whoever opens them next, or compacts next, goes on with it.
            Err(error) => tracing::warn!(%error, "giving up compacted versions stopped"),
        }
    }

    /// Commits the write and all writes that wait behind it; gives back a command of another kind that ended the group.
    fn writes(&mut self, first: Item) -> Option<Command> {
        let mut bytes = first.bytes();
        let mut items = vec![first];
        let mut held = None;
        while items.len() < GROUP_WRITES && bytes < GROUP_BYTES {
            let Ok(command) = self.commands.try_recv() else {
                break;
            };
            match Item::of(command) {
                Ok(item) if item.is_first() => held = Some(item.into_command()),
                Ok(item) => {
                    bytes += item.bytes();
                    items.push(item);
                    continue;
                }
                Err(other) => held = Some(other),
            }
            break;
        }
        if let Err(error) = self.usable() {
            items.into_iter().for_each(|item| item.refuse(&error));
            return held;
        }
        let room = self.shared.room(bytes as u64);
        let committed = self.commit(|group| {
            for item in items {
                match item {
                    Item::Write(write) => match room.refusal(matches!(write.change, Change::Put { .. })) {
                        None => group.add(write),
                        Some(error) => group.refuse(write, error),
                    },
                    Item::Together(together) => match room.refusal(together.puts) {
                        None => group.add_together(together),
                        Some(error) => group.refuse_together(together, error),
                    },
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
        let over = self.shared.leases.lock().due(now_ms, DUE);
        if !due.is_empty() || !over.is_empty() {
            let mut read = Ok(());
            self.commit(|group| {
                due.into_iter().for_each(|due| group.expire(due));
                read = over.into_iter().try_for_each(|lease| group.end_lease(lease));
            })?;
            read?;
        }
        let lease = self.shared.leases.lock().next();
        Ok(next.into_iter().chain(lease).min())
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
        let scrub = self.durably(|tables| Scrub::begin(tables, to))?;
        // Readers that take their snapshot from now on check this after it: no reader misses what is being given up.
        self.shared.set_compacted(to);
        self.scrub = Some(scrub);
        Ok(())
    }

    fn tell_settled(&self) {
        if let Ok(scrubbed) = self.with_tables(Tables::scrubbed) {
            self.shared.settled.send_replace(scrubbed);
        }
    }

    fn defragment(&mut self) -> Result<()> {
        self.usable()?;
        self.with_tables(|tables| {
            tables.all().try_for_each(|table| {
                table.rotate_memtable_and_wait().map_err(|e| tables.fail(e))?;
                table.major_compact().map_err(|e| tables.fail(e))
            })
        })
    }

    fn probe(&mut self) -> Result<()> {
        self.usable()?;
        self.durably(Tables::probe)
    }

    /// Fills a group, writes it, publishes it and answers.
    fn commit(&mut self, fill: impl FnOnce(&mut Group<'_>)) -> Result<()> {
        let shared = self.shared.clone();
        let before = shared.hub.published();
        let guard = shared.tables.read();
        let Some(tables) = guard.as_ref() else {
            return Err(closed());
        };
        let mut group = Group::new((tables, &*shared), before);
        fill(&mut group);
        if group.is_empty() {
            group.abandon().answer();
            return Ok(());
        }
        shared.health.begins();
        let (result, committed) = match wait_for_flushes(tables) {
            Ok(()) => group.commit(),
            Err(error) => (Err(error), group.abandon()),
        };
        drop(guard);
        let settled = self.settle(result, committed.revision);
        if let Err(error) = settled {
            committed.answer_failed(&error);
            return Err(error);
        }
        if committed.revision > before {
            let publish = || shared.hub.publish(&committed.events, committed.revision);
            shared.lately.publish(&committed.events, publish);
        }
        if !committed.granted.is_empty() {
            let (mut leases, now) = (shared.leases.lock(), shared.clock.now_ms());
            for (id, seconds) in &committed.granted {
                match seconds {
                    Some(seconds) => leases.grant(*id, *seconds, now),
                    None => leases.end(*id),
                }
            }
        }
        if committed.has_deadlines || !committed.granted.is_empty() {
            shared.earlier.notify_one();
        }
        committed.answer();
        Ok(())
    }

    /// Writes something other than changes.
    fn durably<T>(&mut self, write: impl FnOnce(&Tables) -> Result<T>) -> Result<T> {
        let shared = self.shared.clone();
        shared.health.begins();
        shared.acknowledged.doubt();
        let written = self.with_tables(write);
        let (value, result) = match written {
            Ok(value) => (Some(value), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.settle(result, shared.hub.published())?;
        value.ok_or_else(closed)
    }

    /// Takes note of how writing went. After a failure the store is as it was before, or nothing can be told of it.
    fn settle(&mut self, result: Result<()>, revision: Revision) -> Result<()> {
        let settled = match result {
            Ok(()) => {
                self.synced = self.with_tables(|tables| Ok(tables.db.seqno()))?;
                self.shared.acknowledged.set(revision);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the store's disk failed: what was being written did not happen");
                match self.mend() {
                    Ok(()) => Err(error),
                    Err(mending) => {
                        tracing::error!(error = %mending, "the store can't be mended yet; it takes no writes");
                        Err(Error::Stalled {
                            what: format!("{error}; whether it was written isn't known"),
                        })
                    }
                }
            }
        };
        self.shared.health.ends(&settled);
        settled
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
        self.shared.health.begins();
        let mended = self.mend();
        self.shared.health.ends(&mended);
        mended
    }

    /// Brings the store back to what was acknowledged: all of that is on disk then, and nothing else.
    fn mend(&mut self) -> Result<()> {
        self.failed_at = Some(Instant::now());
        let shared = self.shared.clone();
        // While the disk takes nothing the engine is left alone: it can still be read.
        journal::try_disk(&shared.path)?;
        let leaving = Leaving::new(&shared.leaving);
        let mut slot = shared.tables.write();
        drop(leaving);
        drop(slot.take());
        journal::renew(&shared.path, Some(self.synced))?;
        let tables = Tables::open(&shared.path, &shared.options)?;
        let (revision, published) = (tables.revision()?, shared.hub.published());
        if revision != published {
            let what = format!("it stands at revision {revision}, but {published} was acknowledged");
            return Err(fault::corrupt(&shared.path, what));
        }
        self.scrub = Scrub::resume(&tables)?;
        self.synced = tables.db.seqno();
        *slot = Some(tables);
        shared.acknowledged.set(revision);
        self.failed_at = None;
        tracing::warn!(revision, "the store was opened again after a failure");
        Ok(())
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
        tables
            .all()
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
