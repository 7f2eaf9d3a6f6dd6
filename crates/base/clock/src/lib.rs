//! The calendar's time: what goes into timestamps and is compared with them.
//!
//! Durations and timers are tokio's business; waiting for a date is [`sleep_until`]'s. Where a date is needed, everyone asks [`now`]: it reads the machine's clock,
//! unless the calling thread [simulates](simulate) one. A simulated clock shows a given date and goes on with tokio's
//! clock, so that dates and timers agree when that clock is paused and jumps.
//!
//! A simulation is one thread: what other threads ask for is the machine's time.

mod calendar;

pub use calendar::sleep_until;
use jiff::{SignedDuration, Timestamp};
use std::cell::Cell;
use std::marker::PhantomData;
use tokio::time::Instant;

#[derive(Clone, Copy)]
struct Simulated {
    epoch: Timestamp,
    start: Instant,
    /// What was shown last.
    last: Timestamp,
}

thread_local! {
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
}

/// The present.
pub fn now() -> Timestamp {
    SIMULATED.with(|cell| match cell.get() {
        None => Timestamp::now(),
        Some(clock) => {
            let last = clock.next();
            cell.set(Some(Simulated { last, ..clock }));
            last
        }
    })
}

/// Whether this thread's clock is a simulated one.
pub fn is_simulated() -> bool {
    SIMULATED.get().is_some()
}

impl Simulated {
    /// A paused clock stands still, but no clock shows the same nanosecond twice: names are made from the time.
    fn next(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.start.elapsed()).unwrap_or(SignedDuration::MAX);
        let shown = self.epoch.saturating_add(passed).unwrap_or(Timestamp::MAX);
        let tick = self.last.saturating_add(SignedDuration::from_nanos(1));
        shown.max(tick.unwrap_or(Timestamp::MAX))
    }
}

/// While it lives, this thread's clock is a simulated one.
pub struct Simulation {
    before: Option<Simulated>,
    // It belongs to the thread that made it.
    _thread: PhantomData<*const ()>,
}

/// Lets this thread's clock show `epoch` now and go on with tokio's clock.
pub fn simulate(epoch: Timestamp) -> Simulation {
    let clock = Simulated {
        epoch,
        start: Instant::now(),
        last: epoch,
    };
    Simulation {
        before: SIMULATED.replace(Some(clock)),
        _thread: PhantomData,
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        SIMULATED.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_goes_with_tokios() {
        let epoch: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a date");
        let simulation = simulate(epoch);
        let first = now();
        assert!(first > epoch && first.duration_since(epoch) < SignedDuration::from_secs(1));
        assert!(now() > first, "never twice the same");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(now().duration_since(epoch).as_secs(), 3600);
        drop(simulation);
        let off = now().duration_since(Timestamp::now()).abs();
        assert!(off < SignedDuration::from_secs(60), "{off} from the machine's clock");
    }
}
