//! The follower: what the store tells, noted and written.

use crate::Error as Failed;
use crate::block::{Before, Record};
use crate::history::{History, now_ms};
use crate::log::Point;
use keelson_store::{Error, Event, EventKind, KeyRange, Revision, WatchBatch};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// So much waits in memory until it is written, soon; and never more than that.
const SOON: usize = 256 << 10;
const MOST: usize = 8 << 20;
/// Who wrote something is known a moment after the store has told of it.
const MOMENT: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(1);
const TOLD_AGAIN: Duration = Duration::from_secs(60);

impl History {
    /// Until `stop`; what has been noted is on disk then.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut told = None;
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = self.follow() => ended,
            };
            match ended {
                Error::Closed => break,
                Error::Compacted { compact_revision } => {
                    let from = self.log.synced().revision;
                    tracing::warn!(
                        from,
                        compact_revision,
                        "the store has given up what happened while nobody noted it: history begins anew"
                    );
                    self.begin(compact_revision).await;
                }
                error => {
                    if told.is_none_or(|at: Instant| at.elapsed() > TOLD_AGAIN) {
                        tracing::warn!(%error, "the store can't be followed for its history; trying again");
                        told = Some(Instant::now());
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        self.write().await;
    }

    /// Ends with the watch.
    async fn follow(&self) -> Error {
        let start = match self.store.current_revision().await {
            Ok(start) => start,
            Err(error) => return error,
        };
        let range = KeyRange::prefix(self.settings.prefix.clone());
        let mut watch = match self.store.watch(range, self.log.synced().revision).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        // A start may have been behind already, and then nothing comes by itself.
        watch.request_progress();
        let mut due = Instant::now() + self.settings.write_within;
        let mut is_written = true;
        loop {
            let batch = tokio::select! {
                batch = watch.next() => batch,
                () = self.asked.notified() => {
                    watch.request_progress();
                    continue;
                }
                () = tokio::time::sleep_until(due) => {
                    is_written = self.write().await;
                    due = Instant::now() + self.settings.write_within;
                    continue;
                }
            };
            match batch {
                None => return Error::Closed,
                Some(Err(error)) => return error,
                Some(Ok(batch)) => {
                    if let Err(lost) = self.note(batch, start) {
                        tracing::warn!(
                            revision = lost,
                            "the store doesn't tell what a change replaced: history begins anew"
                        );
                        self.begin(lost).await;
                    }
                }
            }
            match self.log.pending() {
                waits if waits > MOST => is_written = self.write().await,
                // What failed is tried again in its time, and not at each change.
                waits if waits > SOON && is_written => due = due.min(Instant::now() + MOMENT),
                _ => {}
            }
        }
    }

    /// `start`: where the store stood when the watch began. An error is the last change that isn't whole.
    fn note(&self, batch: WatchBatch, start: Revision) -> Result<(), Revision> {
        let time_ms = now_ms().max(self.log.synced().time_ms);
        let lost = batch.events.iter().filter(|event| is_lost(event)).map(Event::revision);
        if let Some(lost) = lost.max() {
            return Err(lost.max(batch.synced));
        }
        let kept = batch.events.into_iter().filter(|event| self.keeps(&event.kv.key));
        let records = kept.map(|event| record(event, time_ms, start)).collect();
        let synced = batch.synced;
        self.log.note(
            records,
            Point {
                revision: synced,
                time_ms,
            },
        );
        self.synced.send_replace(synced);
        Ok(())
    }

    async fn begin(&self, revision: Revision) {
        let (log, at) = (
            self.log.clone(),
            Point {
                revision,
                time_ms: now_ms().max(self.log.synced().time_ms),
            },
        );
        let begun = tokio::task::spawn_blocking(move || log.begin(at)).await;
        if let Ok(Err(error)) = begun {
            tracing::warn!(%error, "history can't be begun anew");
        }
        self.synced.send_replace(revision);
    }

    /// False: there is still what isn't on disk.
    async fn write(&self) -> bool {
        let (synced, written) = (self.log.synced(), self.log.written());
        if self.log.pending() == 0 && synced.revision == written.revision {
            return true;
        }
        let (log, writers) = (self.log.clone(), self.writers.clone());
        let wrote = tokio::task::spawn_blocking(move || {
            let write = || {
                let finish = |record: &mut Record| record.who = writers.of(record.revision);
                log.write(finish, now_ms())
            };
            let mut wrote = write();
            // Of what else fails, another attempt may do better, and what was kept for a day isn't given up for it.
            while matches!(wrote, Err(Failed::Full { .. })) && log.shrink() {
                wrote = write();
            }
            if wrote.is_ok() {
                writers.forget(log.written().revision);
            }
            wrote
        });
        let error = match wrote.await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if self.log.pending() > MOST {
            tracing::warn!(%error, "history can't be written, and more has happened than is held in memory: it begins anew");
            self.begin(synced.revision).await;
        } else {
            tracing::warn!(%error, "history can't be written; trying again");
        }
        false
    }
}

/// etcd has given up what stood there before.
fn is_lost(event: &Event) -> bool {
    event.prev.is_none() && (event.kind == EventKind::Delete || event.kv.version > 1)
}

fn record(event: Event, time_ms: u64, start: Revision) -> Record {
    Record {
        revision: event.revision(),
        time_ms,
        deleted: event.kind == EventKind::Delete,
        late: event.revision() <= start,
        before: event.prev.map(|prev| Before {
            value: prev.value,
            mod_revision: prev.mod_revision,
            create_revision: prev.create_revision,
            version: prev.version,
        }),
        key: event.kv.key,
        who: None,
    }
}
