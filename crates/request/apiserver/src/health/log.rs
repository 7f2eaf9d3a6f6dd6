//! Whether the log can be written.
//!
//! Whoever writes a line holds the lock of standard error until it has gone out; a reader that takes nothing more stops
//! all of them. So a thread that gets the lock and flushes has shown that lines go out: it is asked for at each check, and
//! what counts is when it came back last (upstream's two minutes).

use parking_lot::Mutex;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const WITHIN: Duration = Duration::from_secs(120);

#[derive(Clone, Default)]
pub struct Log(Arc<State>);

struct State {
    /// One at a time.
    under_way: AtomicBool,
    last: Mutex<Instant>,
}

impl Default for State {
    fn default() -> Self {
        State {
            under_way: AtomicBool::new(false),
            last: Mutex::new(Instant::now()),
        }
    }
}

impl Log {
    pub fn check(&self) -> Result<(), String> {
        self.check_by(|| std::io::stderr().lock().flush().is_ok())
    }

    fn check_by(&self, flush: impl FnOnce() -> bool + Send + 'static) -> Result<(), String> {
        let blocked = self.0.last.lock().elapsed() >= WITHIN;
        if !self.0.under_way.swap(true, Ordering::AcqRel) {
            if blocked {
                // Nobody has asked for long, and nothing says that it can't be written.
                *self.0.last.lock() = Instant::now();
            }
            let state = self.0.clone();
            tokio::task::spawn_blocking(move || {
                if flush() {
                    *state.last.lock() = Instant::now();
                }
                state.under_way.store(false, Ordering::Release);
            });
            return Ok(());
        }
        if blocked { Err("logging blocked".into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_takes_nothing_is_told_of() {
        let log = Log::default();
        let (release, held) = std::sync::mpsc::channel::<()>();
        assert!(log.check_by(move || held.recv().is_err()).is_ok());
        assert!(log.check_by(|| true).is_ok(), "not for long enough");
        *log.0.last.lock() = Instant::now() - WITHIN;
        assert_eq!(log.check_by(|| true), Err("logging blocked".to_string()));
        drop(release);
        while log.0.under_way.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(log.check_by(|| true).is_ok());
    }
}
