//! Percentiles, and how requests that are due by the clock are accounted.

use std::time::Duration;

/// The nearest rank.
pub fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// When requests of an open loop are due, counted from its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Requests a second.
    pub rate: f64,
    pub count: usize,
}

impl Schedule {
    pub fn due(&self, n: usize) -> Duration {
        Duration::from_secs_f64(n as f64 / self.rate)
    }

    /// The latencies of all that was due by the end, in nanoseconds: from when a request was due, not from when a connection was free
    /// for it. `served` are numbers and when they were answered. What was due and never answered has waited until the end.
    pub fn latencies(&self, served: &[(usize, Duration)], end: Duration) -> Vec<u64> {
        let mut waited: Vec<Option<Duration>> = vec![None; self.count];
        for (n, answered) in served {
            waited[*n] = Some(answered.saturating_sub(self.due(*n)));
        }
        let due = waited.iter().enumerate().filter_map(|(n, waited)| match waited {
            Some(waited) => Some(*waited),
            None => end.checked_sub(self.due(n)),
        });
        due.map(|waited| waited.as_nanos() as u64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn ranks_are_the_nearest() {
        let sorted: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&sorted, 0.5), Some(100));
        assert_eq!(percentile(&sorted, 0.99), Some(198));
        assert_eq!(percentile(&sorted, 1.0), Some(200));
        assert_eq!(percentile(&[7], 0.01), Some(7));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_request_that_had_to_wait_for_its_turn_has_waited() {
        // Due every 10 ms; the first takes 35 ms, and those behind it are answered at once when their turn comes.
        let schedule = Schedule { rate: 100.0, count: 4 };
        let served = [(0, 35 * MS), (1, 36 * MS), (2, 37 * MS), (3, 38 * MS)];
        let found = schedule.latencies(&served, 50 * MS);
        assert_eq!(found, [35, 26, 17, 8].map(|ms| ms * 1_000_000));
    }

    #[test]
    fn what_was_due_and_never_answered_is_not_left_out() {
        let schedule = Schedule { rate: 100.0, count: 10 };
        // Only three were answered until the end at 45 ms: two were due and waited, five weren't due.
        let served = [(0, MS), (1, 11 * MS), (2, 21 * MS)];
        let found = schedule.latencies(&served, 45 * MS);
        assert_eq!(found, [1, 1, 1, 15, 5].map(|ms| ms * 1_000_000));
    }
}
