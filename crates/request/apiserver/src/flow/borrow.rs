//! How levels lend and borrow seats: every ten seconds each level's limit is set anew by what was asked of all of them,
//! as upstream computes it.
//!
//! A plain function from demands to limits. Nobody gets less than it keeps for itself, nor more than it may borrow; between
//! those bounds the limits are in proportion to what is wanted.

use super::demand::Seen;
use std::time::Duration;

/// How often limits are adjusted.
pub const PERIOD: Duration = Duration::from_secs(10);
/// By how much what was wanted earlier still counts after a period: half of it after five minutes.
const SMOOTHING: f64 = 0.977;
/// What nobody asks for is still asked for a little: proportions need something to divide by.
const LEAST: f64 = 0.001;
const EPSILON: f64 = 1e-7;

/// A level's bounds: its nominal limit, what it never lends, and the most it can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    pub nominal: usize,
    pub least: usize,
    pub most: usize,
}

impl Bounds {
    /// By the shares of a level and its percentages; without a limit to borrowing all of the server's seats can be.
    pub fn of(total: usize, shares: i64, sum: i64, lendable: i64, borrowing: Option<i64>) -> Bounds {
        let part = |n: usize, percent: i64| (n as f64 * percent.max(0) as f64 / 100.0).round() as usize;
        let nominal = (total as f64 * shares.max(0) as f64 / sum.max(1) as f64).ceil() as usize;
        Bounds {
            nominal,
            least: nominal - part(nominal, lendable.min(100)),
            most: nominal + borrowing.map_or(total, |p| part(nominal, p)),
        }
    }
    /// What a level begins with: half of what it may lend is lent.
    pub fn initial(&self) -> usize {
        self.nominal - (self.nominal - self.least) / 2
    }
}

/// What a level wants, as it is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Want {
    pub peak: usize,
    pub smoothed: f64,
}

impl Want {
    pub fn update(&mut self, seen: Seen) {
        self.peak = seen.peak;
        if seen.seconds > 0.0 {
            let envelope = seen.average + seen.deviation;
            self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
        }
    }
}

/// One level of the computation.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    pub bounds: Bounds,
    pub want: Want,
    pub exempt: bool,
}

impl Level {
    /// It keeps what it has just needed, within what is its own.
    fn floor(&self) -> usize {
        self.bounds.least.max(self.bounds.nominal.min(self.want.peak))
    }
}

/// The limits of all levels, in their order.
pub fn limits(levels: &[Level]) -> Vec<usize> {
    let sum: usize = levels.iter().map(|l| l.bounds.nominal).sum();
    let exempt_needs = |l: &Level| l.bounds.least.max(l.want.peak);
    let taken: usize = levels.iter().filter(|l| l.exempt).map(exempt_needs).sum();
    let left = sum as i64 - taken as i64;
    let limited = || levels.iter().filter(|l| !l.exempt);
    let least: usize = limited().map(|l| l.bounds.least).sum();
    let floors: usize = limited().map(Level::floor).sum();
    let share = (left - least as i64) as f64 / (floors - least).max(1) as f64;
    let fair = if left > floors as i64 {
        fair(sum as f64, &limited().collect::<Vec<_>>())
    } else {
        0.0
    };
    let of = |l: &Level| {
        if l.exempt {
            exempt_needs(l)
        } else if left <= least as i64 {
            l.bounds.least
        } else if left <= floors as i64 {
            l.bounds.least + ((l.floor() - l.bounds.least) as f64 * share).round() as usize
        } else {
            allotted(l, fair).round() as usize
        }
    };
    levels.iter().map(of).collect()
}

/// What a level gets when each gets `fair` times what it wants.
fn allotted(l: &Level, fair: f64) -> f64 {
    let floor = l.floor() as f64;
    let target = floor.max(l.want.smoothed).max(LEAST);
    (fair * target).clamp(floor, (l.bounds.most as f64).max(floor))
}

/// The proportion by which all seats are given out: what is given grows with it, so halving finds it.
fn fair(sum: f64, levels: &[&Level]) -> f64 {
    let given = |fair: f64| levels.iter().map(|l| allotted(l, fair)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    while given(high) < sum - EPSILON && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if given(middle) < sum {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(nominal: usize, least: usize, most: usize, peak: usize, smoothed: f64) -> Level {
        let bounds = Bounds { nominal, least, most };
        let want = Want { peak, smoothed };
        let exempt = false;
        Level { bounds, want, exempt }
    }

    #[test]
    fn who_wants_more_borrows_from_who_wants_less_and_no_more_than_it_may() {
        // Both want what they have.
        let even = [level(100, 50, 200, 100, 100.0), level(100, 50, 200, 100, 100.0)];
        assert_eq!(limits(&even), [100, 100]);
        // One sleeps: it lends what it may, half of it.
        let one = [level(100, 50, 200, 100, 180.0), level(100, 50, 200, 0, 0.0)];
        assert_eq!(limits(&one), [150, 50]);
        // One that lends nothing keeps all.
        let miser = [level(100, 50, 200, 100, 180.0), level(100, 100, 200, 0, 0.0)];
        assert_eq!(limits(&miser), [100, 100]);
        // A bound to borrowing holds, and what it leaves is the others'.
        let bounded = [level(100, 50, 120, 100, 180.0), level(100, 50, 200, 0, 0.0)];
        assert_eq!(limits(&bounded), [120, 80]);
        // What the exempt use is missing to the others, but never what they don't lend.
        let exempt = Level {
            exempt: true,
            ..level(0, 0, 600, 170, 0.0)
        };
        assert_eq!(limits(&[exempt, even[0], even[1]]), [170, 50, 50]);
    }

    #[test]
    fn bounds_are_upstreams() {
        let of = |shares, lendable| Bounds::of(600, shares, 245, lendable, None);
        let low = of(100, 90);
        assert_eq!((low.nominal, low.least, low.most, low.initial()), (245, 24, 845, 135));
        assert_eq!(of(5, 0).initial(), 13);
        assert_eq!(Bounds::of(600, 20, 245, 0, Some(50)).most, 74);
    }

    #[test]
    fn wants_rise_at_once_and_fall_slowly() {
        let mut want = Want::default();
        let seen = |average: f64| Seen {
            average,
            seconds: 10.0,
            ..Seen::default()
        };
        want.update(seen(100.0));
        assert_eq!(want.smoothed, 100.0);
        (0..30).for_each(|_| want.update(seen(0.0)));
        assert!((want.smoothed - 50.0).abs() < 1.0, "{}", want.smoothed);
    }
}
