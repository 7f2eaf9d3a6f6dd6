//! One watch, followed by a task.

use super::Out;
use super::events::{Shown, fragments};
use crate::etcd::mvccpb;
use crate::serve::pb::WatchResponse;
use crate::serve::{Server, status};
use crate::{Error, Event, KeyRange, Revision, WatchBatch, WatchStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// Who hasn't read an answer after so long is no longer queued for.
const UNREAD: Duration = Duration::from_secs(1);

pub(super) struct Follower {
    pub(super) server: Server,
    pub(super) out: Out,
    pub(super) id: i64,
    pub(super) shown: Shown,
    pub(super) range: KeyRange,
    /// Told when something was sent.
    pub(super) advanced: Arc<Notify>,
    /// How often the client wants to know how far it is.
    pub(super) progress: Option<Duration>,
    pub(super) fragment: bool,
}

/// The task; it ends when this is dropped.
pub(super) struct Followed {
    task: JoinHandle<()>,
    point: Arc<Point>,
}

#[derive(Default)]
struct Point {
    /// Everything up to here has been sent.
    sent: AtomicU64,
    asked: Notify,
}

impl Followed {
    /// How far it has come is to be told by the store.
    pub(super) fn ask(&self) {
        self.point.asked.notify_one();
    }
    pub(super) fn sent(&self) -> Revision {
        self.point.sent.load(Ordering::SeqCst)
    }
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
    /// Nothing is sent from now on.
    pub(super) async fn end(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a watch ends: what it would go on from is given up.
pub(super) fn compacted(server: &Server, id: i64, compact_revision: Revision, now: Revision) -> WatchResponse {
    WatchResponse {
        header: server.header(now),
        watch_id: id,
        canceled: true,
        compact_revision: compact_revision as i64,
        ..Default::default()
    }
}

impl Follower {
    /// `position`: after which the source begins; `first`: changes up to there that are to be told.
    pub(super) fn begin(self, source: WatchStream, position: Revision, first: Vec<Event>) -> Followed {
        let point = Arc::new(Point::default());
        // Unless something is to be told first.
        let sent = position.saturating_sub(Revision::from(!first.is_empty()));
        point.sent.store(sent, Ordering::SeqCst);
        let theirs = point.clone();
        let task = tokio::spawn(async move {
            let advanced = self.advanced.clone();
            if self.run(source, position, first, &theirs).await.is_err() {
                tracing::debug!("a watch ended with its client");
            }
            advanced.notify_one();
        });
        Followed { task, point }
    }

    async fn run(
        self,
        mut source: WatchStream,
        mut position: Revision,
        first: Vec<Event>,
        point: &Point,
    ) -> Result<(), Gone> {
        self.send(first, position).await?;
        point.sent.store(position, Ordering::SeqCst);
        let mut ticks = self.progress.map(|every| {
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        // Since the last tick nothing was sent; its answer is to be sent even if it has no changes.
        let (mut is_quiet, mut is_due) = (true, false);
        loop {
            let batch = tokio::select! {
                batch = source.next() => batch,
                () = point.asked.notified() => {
                    source.request_progress();
                    continue;
                }
                () = tick(&mut ticks) => {
                    if is_quiet {
                        is_due = true;
                        source.request_progress();
                    }
                    is_quiet = true;
                    continue;
                }
            };
            match batch {
                Some(Ok(WatchBatch { events, synced })) => {
                    let sent = self.unqueued(synced, &mut source, self.send(events, synced)).await?;
                    is_quiet &= !sent;
                    if is_due && !sent {
                        let answer = self.answer(synced, Vec::new(), false);
                        self.unqueued(synced, &mut source, answer).await?;
                    }
                    is_due = false;
                    position = position.max(synced);
                    point.sent.store(position, Ordering::SeqCst);
                    self.advanced.notify_one();
                }
                // It goes on from what it has sent, at its own speed.
                Some(Err(Error::SlowWatcher { .. })) => {
                    match self.server.store.watch(self.range.clone(), position).await {
                        Ok(again) => source = again,
                        Err(error) => return self.end(error, position).await,
                    }
                    // Whoever asked is still to be told.
                    source.request_progress();
                }
                Some(Err(error)) => return self.end(error, position).await,
                None => return self.end(Error::Closed, position).await,
            }
        }
    }

    /// Sends what ends at `synced`. While a client doesn't read, nothing waits for it in the store's queue: there may be thousands of its
    /// watches. What comes then it finds in the past.
    async fn unqueued<T>(
        &self,
        synced: Revision,
        source: &mut WatchStream,
        sending: impl Future<Output = Result<T, Gone>>,
    ) -> Result<T, Gone> {
        let mut sending = std::pin::pin!(sending);
        if let Ok(sent) = tokio::time::timeout(UNREAD, &mut sending).await {
            return sent;
        }
        // If it can't begin anew, the one that there is goes on.
        if let Ok(again) = self.server.store.watch(self.range.clone(), synced).await {
            *source = again;
            // Whoever asked is still to be told.
            source.request_progress();
        }
        sending.await
    }

    /// Whether there was something to be shown.
    async fn send(&self, events: Vec<Event>, synced: Revision) -> Result<bool, Gone> {
        let answers = self.shown.answers(events);
        let last = answers.len();
        for (n, (revision, events)) in answers.into_iter().enumerate() {
            // How far the store is tells the last one only: more is to come after the others.
            let revision = if n + 1 == last { synced } else { revision };
            let most = self.server.options.max_request_bytes;
            let mut parts = match self.fragment {
                true => fragments(events, most),
                false => vec![events],
            };
            let end = parts.pop().unwrap_or_default();
            for part in parts {
                self.answer(revision, part, true).await?;
            }
            self.answer(revision, end, false).await?;
        }
        Ok(last > 0)
    }

    async fn answer(&self, revision: Revision, events: Vec<mvccpb::Event>, fragment: bool) -> Result<(), Gone> {
        let answer = WatchResponse {
            header: self.server.header(revision),
            watch_id: self.id,
            fragment,
            events,
            ..Default::default()
        };
        self.out.send(Ok(answer)).await.map_err(|_| Gone)
    }

    async fn end(&self, error: Error, position: Revision) -> Result<(), Gone> {
        let told = match error {
            Error::Compacted { compact_revision } => Ok(compacted(&self.server, self.id, compact_revision, position)),
            // The store is going or failed: the stream ends, and the client connects again.
            error => Err(status::of(error)),
        };
        self.out.send(told).await.map_err(|_| Gone)
    }
}

/// Nobody reads any more.
struct Gone;

async fn tick(ticks: &mut Option<tokio::time::Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}
