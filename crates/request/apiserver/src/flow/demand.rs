//! How many seats a level was asked for over a time: average, deviation and peak, by which levels lend and borrow.

use tokio::time::Instant;

/// What was seen in one period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    pub average: f64,
    pub deviation: f64,
    pub peak: usize,
    pub seconds: f64,
}

pub struct Demand {
    now: usize,
    since: Instant,
    seconds: f64,
    /// Integrals of the demand and of its square.
    sum: f64,
    squares: f64,
    peak: usize,
}

impl Default for Demand {
    fn default() -> Self {
        Demand {
            now: 0,
            since: Instant::now(),
            seconds: 0.0,
            sum: 0.0,
            squares: 0.0,
            peak: 0,
        }
    }
}

impl Demand {
    /// What is asked for from now on.
    pub fn set(&mut self, seats: usize, at: Instant) {
        let passed = at.saturating_duration_since(self.since).as_secs_f64();
        let was = self.now as f64;
        self.seconds += passed;
        self.sum += was * passed;
        self.squares += was * was * passed;
        self.since = at;
        self.now = seats;
        self.peak = self.peak.max(seats);
    }

    /// The period so far; a new one begins.
    pub fn take(&mut self) -> Seen {
        let mut seen = Seen {
            peak: self.peak,
            seconds: self.seconds,
            ..Seen::default()
        };
        if self.seconds > 0.0 {
            seen.average = self.sum / self.seconds;
            seen.deviation = (self.squares / self.seconds - seen.average * seen.average)
                .max(0.0)
                .sqrt();
        }
        (self.seconds, self.sum, self.squares) = (0.0, 0.0, 0.0);
        self.peak = self.now;
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_period_is_told_by_average_deviation_and_peak() {
        let mut demand = Demand::default();
        demand.set(4, Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        demand.set(0, Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        demand.set(0, Instant::now());
        let seen = demand.take();
        assert_eq!((seen.average, seen.deviation, seen.peak), (2.0, 2.0, 4));
        assert_eq!(demand.take(), Seen::default());
    }
}
