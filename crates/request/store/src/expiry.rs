//! Keys with a time to live: one timer for the one that ends next, no polling.
//!
//! Deadlines are wall-clock milliseconds, since they outlive the process; while it runs they follow tokio's clock,
//! so that they also hold in virtual time.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Wall-clock time that advances with tokio's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    wall_ms: u64,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock {
            started: Instant::now(),
            wall_ms: wall.as_millis() as u64,
        }
    }
    pub(crate) fn now_ms(&self) -> u64 {
        self.wall_ms + self.started.elapsed().as_millis() as u64
    }
    pub(crate) fn deadline_ms(&self, ttl: Duration) -> u64 {
        self.now_ms().saturating_add(ttl.as_millis() as u64)
    }
    /// Never earlier than the deadline.
    fn instant(&self, deadline_ms: u64) -> Instant {
        self.started + Duration::from_millis(deadline_ms.saturating_sub(self.wall_ms))
    }
}

/// A store whose keys can expire.
#[async_trait::async_trait]
pub(crate) trait Expires: Send + Sync + 'static {
    /// Deletes some of what is due by now and tells the next deadline; one that is past if more is due.
    async fn expire(&self, now_ms: u64) -> Option<u64>;
}

/// Runs until the store is gone. `earlier` is signalled when a deadline was added.
pub(crate) async fn reap<E: Expires>(store: Weak<E>, clock: Clock, earlier: Arc<Notify>) {
    loop {
        let next = match store.upgrade() {
            Some(store) => store.expire(clock.now_ms()).await,
            None => return,
        };
        match next {
            None => earlier.notified().await,
            Some(deadline) => {
                tokio::select! {
                    () = tokio::time::sleep_until(clock.instant(deadline)) => {}
                    () = earlier.notified() => {}
                }
            }
        }
    }
}
