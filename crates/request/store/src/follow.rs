//! A watch over one store: reads the past in portions until it has caught up, then goes live.
//!
//! The step from past to live happens under the hub's lock and only at the very revision the past was read to:
//! no event is lost between them, none comes twice. Before that step a watch holds no queue, so a long past
//! is read at the watcher's own speed.

use crate::hub::{Hub, NotLive, Subscription};
use crate::{Error, KeyRange, Result, Revision, WatchBatch, WatchSource};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// At most so many changes are read at once.
const PORTION: usize = 512;

/// The past of a store.
pub(crate) trait History: Send + Sync + 'static {
    /// Reading waits for a disk, so it's done on a thread for that.
    const BLOCKS: bool;
    /// Changes of `range` after revision `after`; looks at no more than `max` changes. `synced` tells how far it got.
    fn read(&self, range: &KeyRange, after: Revision, max: usize) -> Result<WatchBatch>;
}

pub(crate) struct Follow<H> {
    history: Arc<H>,
    hub: Arc<Hub>,
    range: KeyRange,
    position: Revision,
    progress_wanted: bool,
    reading: Option<JoinHandle<Result<WatchBatch>>>,
    live: Option<Subscription>,
    over: bool,
}

impl<H: History> Follow<H> {
    pub(crate) fn new(history: Arc<H>, hub: Arc<Hub>, range: KeyRange, after: Revision) -> Self {
        let (reading, live) = (None, None);
        Follow {
            history,
            hub,
            range,
            position: after,
            progress_wanted: false,
            reading,
            live,
            over: false,
        }
    }

    async fn step(&mut self) -> Result<WatchBatch> {
        loop {
            if let Some(live) = &mut self.live {
                return live.next().await;
            }
            match self.hub.subscribe(&self.range, self.position) {
                Ok(live) => {
                    if self.progress_wanted {
                        live.request_progress();
                    }
                    self.live = Some(live);
                    continue;
                }
                Err(NotLive::Closed) => return Err(Error::Closed),
                Err(NotLive::Behind) => {}
            }
            let batch = self.read_past().await?;
            self.position = batch.synced;
            if !batch.events.is_empty() {
                return Ok(batch);
            }
        }
    }

    async fn read_past(&mut self) -> Result<WatchBatch> {
        if !H::BLOCKS {
            return self.history.read(&self.range, self.position, PORTION);
        }
        let reading = self.reading.get_or_insert_with(|| {
            let (history, range, position) = (self.history.clone(), self.range.clone(), self.position);
            tokio::task::spawn_blocking(move || history.read(&range, position, PORTION))
        });
        let read = reading.await;
        self.reading = None;
        read.unwrap_or_else(|e| Err(crate::not_read(&e)))
    }
}

#[async_trait]
impl<H: History> WatchSource for Follow<H> {
    async fn next(&mut self) -> Option<Result<WatchBatch>> {
        if self.over {
            return None;
        }
        let batch = self.step().await;
        match &batch {
            Ok(batch) => self.position = batch.synced,
            Err(e) => {
                self.over = true;
                if *e == Error::Closed {
                    return None;
                }
            }
        }
        Some(batch)
    }

    fn request_progress(&mut self) {
        match &self.live {
            Some(live) => live.request_progress(),
            None => self.progress_wanted = true,
        }
    }
}
