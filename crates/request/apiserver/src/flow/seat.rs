//! The seat that a request has at the moment: shared by what serves it, given back by whoever is done first.

use super::gate::Permit;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Cloning shares the seat.
#[derive(Clone, Default)]
pub struct Seat(Arc<Mutex<Option<Permit>>>);

impl Seat {
    pub fn set(&self, permit: Option<Permit>) {
        let old = std::mem::replace(&mut *self.0.lock(), permit);
        drop(old);
    }
    pub fn give_back(&self) {
        self.set(None);
    }
    pub fn take(&self) -> Option<Permit> {
        self.0.lock().take()
    }
    pub fn is_held(&self) -> bool {
        self.0.lock().is_some()
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
