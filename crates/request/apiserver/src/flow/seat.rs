//! The seat that a request has at the moment: shared by what serves it, given back by whoever is done first.

use super::gate::Permit;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Cloning shares the seat.
#[derive(Clone, Default)]
pub struct Seat(Arc<Place>);

#[derive(Default)]
struct Place {
    permit: Mutex<Option<Permit>>,
    /// Nanoseconds for which the request has waited for seats and for webhooks.
    waited: AtomicU64,
}

impl Seat {
    pub fn set(&self, permit: Option<Permit>) {
        let old = std::mem::replace(&mut *self.0.permit.lock(), permit);
        drop(old);
    }
    pub fn give_back(&self) {
        self.set(None);
    }
    pub fn take(&self) -> Option<Permit> {
        self.0.permit.lock().take()
    }
    pub fn is_held(&self) -> bool {
        self.0.permit.lock().is_some()
    }
    /// The request has waited for what is none of its own work.
    pub fn has_waited(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.waited.fetch_add(nanos, Ordering::Relaxed);
    }
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.0.waited.load(Ordering::Relaxed))
    }
    /// Gives it back after a time at the latest, also if nobody looks at it again.
    pub fn bound(&self, time: Duration) {
        let seat = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if let Some(seat) = seat.upgrade() {
                Seat(seat).give_back();
            }
        });
    }
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_held() { "Seat(held)" } else { "Seat(none)" })
    }
}
