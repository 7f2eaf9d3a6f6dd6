//! Which pods end together when the machine stops, and how long they may take. Upstream's rules; pure.

use crate::config::Config;
use std::time::Duration;

/// From which priority on, and for how many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub priority: i32,
    pub seconds: i64,
}

/// Of pods that the system needs.
const CRITICAL: i32 = 2_000_000_000;

/// The periods in force, the lowest priority first. None: nothing is held up.
pub fn periods(cfg: &Config) -> Vec<Period> {
    let mut all = match cfg.shutdown_by_priority.is_empty() {
        true => of_two(cfg.shutdown_grace, cfg.shutdown_grace_critical),
        false => cfg.shutdown_by_priority.clone(),
    };
    all.sort_by_key(|p| p.priority);
    all
}

/// What two times mean: the critical pods have the second one, all others what comes before.
fn of_two(all: Duration, critical: Duration) -> Vec<Period> {
    let Some(others) = all.checked_sub(critical).filter(|_| !all.is_zero()) else {
        return Vec::new();
    };
    let period = |priority, time: Duration| Period {
        priority,
        seconds: time.as_secs() as i64,
    };
    vec![period(0, others), period(CRITICAL, critical)]
}

/// How long it takes at most.
pub fn whole(periods: &[Period]) -> Duration {
    let seconds = periods.iter().fold(0i64, |sum, p| sum.saturating_add(p.seconds));
    Duration::from_secs(seconds.max(0) as u64)
}

/// The period that a pod belongs to: the highest that isn't above it, else the lowest.
pub fn index(periods: &[Period], priority: i32) -> usize {
    periods.partition_point(|p| p.priority <= priority).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: u64, critical: u64) -> Vec<(i32, i64)> {
        let all = of_two(Duration::from_secs(all), Duration::from_secs(critical));
        all.iter().map(|p| (p.priority, p.seconds)).collect()
    }

    #[test]
    fn two_times_are_two_periods() {
        assert_eq!(of(300, 120), [(0, 180), (CRITICAL, 120)]);
        assert_eq!(of(100, 0), [(0, 100), (CRITICAL, 0)]);
        assert_eq!(of(0, 0), []);
        assert_eq!(of(1, 100), []);
    }

    #[test]
    fn pods_belong_to_the_period_at_or_below_them() {
        let period = |priority| Period { priority, seconds: 10 };
        let four = [1, 2, 3, 4].map(period);
        let found: Vec<usize> = (0..=5).map(|p| index(&four, p)).collect();
        assert_eq!(found, [0, 0, 1, 2, 3, 3]);
        let two = [0, CRITICAL].map(period);
        let found = [-1, 0, 1_000_000_000, CRITICAL, CRITICAL + 1000].map(|p| index(&two, p));
        assert_eq!(found, [0, 0, 0, 1, 1]);
        assert_eq!(whole(&four), Duration::from_secs(40));
    }
}
