//! What only etcd's API asks of the store: transactions, leases, sums, snapshots to hand out.

use super::group::Together;
use super::tables::Tables;
use super::writer::Command;
use super::{Embedded, blocking, fault, layout};
use crate::digest::Summer;
use crate::transact::Request;
use crate::{Digest, Error, Event, KeyRange, LeaseId, LeaseStanding, Result, Revision, Transact};
use async_trait::async_trait;
use bytes::Bytes;
use fjall::{Readable, Snapshot};
use std::fs::File;
use std::path::Path;

#[async_trait]
impl Transact for Embedded {
    async fn transact(&self, request: Request) -> Result<Revision> {
        let Request {
            work,
            bytes,
            puts,
            past,
        } = request;
        let share = self.share(bytes).await?;
        self.submit(|reply| {
            Command::Together(Together {
                work,
                bytes,
                puts,
                past,
                reply,
                _share: share,
            })
        })
        .await
    }

    async fn renew(&self, lease: LeaseId) -> Result<Option<u64>> {
        Ok(self.shared.leases.lock().renew(lease, self.shared.clock.now_ms()))
    }

    async fn leases(&self) -> Result<Vec<LeaseStanding>> {
        Ok(self.shared.leases.lock().standings(self.shared.clock.now_ms()))
    }

    async fn attached(&self, lease: LeaseId) -> Result<Vec<Bytes>> {
        self.read(move |_, tables| tables.attached(lease)).await
    }

    async fn changes(&self, range: KeyRange, revision: Revision) -> Result<Vec<Event>> {
        self.read(move |shared, tables| {
            let snapshot = tables.snapshot();
            shared.readable(Some(revision), shared.hub.published())?;
            tables.changes(&snapshot, &range, revision)
        })
        .await
    }

    async fn settled(&self, revision: Revision) -> Result<()> {
        let mut settled = self.shared.settled.subscribe();
        // The sender is this store's.
        let _ = settled.wait_for(|done| *done >= revision).await;
        Ok(())
    }

    async fn digest(&self, revision: Option<Revision>) -> Result<Digest> {
        self.read(move |shared, tables| {
            let current = shared.hub.published();
            let snapshot = tables.snapshot();
            let to = shared.readable(revision, current)?;
            let compacted = shared.compacted();
            Ok(Digest {
                sum: tables.sum(&snapshot, compacted, to)?,
                revision: to,
                compacted,
                current,
            })
        })
        .await
    }

    async fn defragment(&self) -> Result<()> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let sent = self.commands.send(Command::Defragment { reply }).await;
        sent.map_err(|_| crate::Error::Closed)?;
        answer.await.unwrap_or(Err(crate::Error::Closed))
    }

    async fn snapshot(&self) -> Result<File> {
        let (one, shared) = (self.sending.clone().lock_owned().await, self.shared.clone());
        blocking(move || {
            // It is made to its end even if nobody waits for it any more, and the next one would have the same name.
            let _one = one;
            let path = beside(&shared.path);
            shared.save(&path)?;
            let opened = File::open(&path);
            std::fs::remove_file(&path)
                .and(opened)
                .map_err(|e| fault::io(&path, &e))
        })
        .await
    }

    fn place(&self) -> Option<&Path> {
        Some(&self.shared.path)
    }
}

/// Where a snapshot is made that somebody is sent: beside the store, whose directory is the engine's.
fn beside(store: &Path) -> std::path::PathBuf {
    let mut path = store.as_os_str().to_os_string();
    path.push(".sending");
    path.into()
}

impl Tables {
    /// See [`crate::digest`].
    fn sum(&self, snapshot: &Snapshot, compacted: Revision, to: Revision) -> Result<u32> {
        let mut summer = Summer::new();
        let mut kept = self.subs(snapshot, to, compacted)?;
        if kept.is_empty() && self.subs(snapshot, to, Revision::MAX)?.is_empty() {
            // Where nothing is left etcd counts what the compaction kept.
            kept = self.subs(snapshot, compacted, Revision::MAX)?;
        }
        for (revision, sub, key) in kept {
            if let Some(kv) = self.get(snapshot, &key, revision)? {
                summer.version(sub, kv);
            }
        }
        for found in snapshot.range(&self.log, layout::change(compacted + 1, 0)..layout::change(to + 1, 0)) {
            let (place, key) = found.into_inner().map_err(|e| self.fail(e))?;
            let (revision, sub) = self.change(&place)?;
            summer.event(sub, self.event(snapshot, &key, revision)?);
        }
        Ok(summer.sum())
    }

    fn changes(&self, snapshot: &Snapshot, range: &KeyRange, revision: Revision) -> Result<Vec<Event>> {
        let mut changes = Vec::new();
        for found in snapshot.range(&self.log, layout::change(revision, 0)..layout::change(revision + 1, 0)) {
            let (_, key) = found.into_inner().map_err(|e| self.fail(e))?;
            if !range.contains(&key) {
                continue;
            }
            // A deletion that a former program's compaction removed can't be told any more.
            let there = snapshot
                .get(&self.data, layout::at(&key, revision))
                .map_err(|e| self.fail(e))?;
            if there.is_none() {
                let compact_revision = revision + 1;
                return Err(Error::Compacted { compact_revision });
            }
            changes.push(Event {
                prev: None,
                ..self.event(snapshot, &key, revision)?
            });
        }
        Ok(changes)
    }

    /// What stands at a revision and was written up to another, in the order in which it was.
    fn subs(&self, snapshot: &Snapshot, at: Revision, up_to: Revision) -> Result<Vec<(Revision, u32, Bytes)>> {
        let mut found = Vec::new();
        self.each(snapshot, &KeyRange::all(), at, |key, revision, record| {
            if revision <= up_to {
                found.push((revision, layout::sub(record), layout::key(key)));
            }
            Ok(true)
        })?;
        found.sort_unstable();
        Ok(found)
    }
}
