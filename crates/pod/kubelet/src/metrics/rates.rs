//! How much CPU is used, in billionths of a core: measured between two readings, which is what "now" can mean for something
//! that only counts up. Whoever reads first has nothing to compare with, and is told nothing.

use parking_lot::Mutex;
use std::collections::HashMap;

/// Readings nearer to each other than this tell more of the clock than of the use: the last rate stands.
const NEAREST: i64 = 500_000_000;
/// What nobody has read for so long is forgotten.
const LONGEST: i64 = 600_000_000_000;
/// More than any node has containers; at that many all are forgotten.
const MOST: usize = 16_384;

#[derive(Clone, Copy)]
struct Reading {
    at: i64,
    used: u64,
    rate: Option<u64>,
}

#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Reading>>);

impl Rates {
    /// The rate up to a reading: nanoseconds of CPU used at all, at a time in nanoseconds.
    pub fn read(&self, what: &str, at: i64, used: u64) -> Option<u64> {
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.retain(|_, r| at - r.at < LONGEST);
            if all.len() >= MOST {
                all.clear();
            }
        }
        let fresh = Reading { at, used, rate: None };
        let Some(last) = all.get_mut(what) else {
            all.insert(what.to_owned(), fresh);
            return None;
        };
        let since = at - last.at;
        // Another instance of the same name has used less; a clock that was set back tells nothing.
        if used < last.used || !(0..LONGEST).contains(&since) {
            *last = fresh;
        } else if since >= NEAREST {
            let rate = u128::from(used - last.used) * 1_000_000_000 / since as u128;
            let rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
            *last = Reading { at, used, rate };
        }
        last.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_is_of_the_time_between_two_readings() {
        let r = Rates::default();
        assert_eq!(r.read("a", SECOND, 100), None);
        assert_eq!(r.read("b", SECOND, 7), None);
        // Half a core for two seconds.
        assert_eq!(r.read("a", 3 * SECOND, 100 + SECOND as u64), Some(500_000_000));
        // Too near: the last one stands, and the time isn't lost.
        assert_eq!(r.read("a", 3 * SECOND + 1000, 100 + SECOND as u64), Some(500_000_000));
        assert_eq!(r.read("a", 5 * SECOND, 100 + SECOND as u64), Some(0));
    }

    #[test]
    fn what_began_anew_has_no_rate() {
        let r = Rates::default();
        r.read("a", SECOND, 100);
        assert_eq!(r.read("a", 2 * SECOND, 50), None);
        assert_eq!(r.read("a", SECOND, 60), None);
        assert_eq!(r.read("a", SECOND + LONGEST, 70), None);
    }
}
