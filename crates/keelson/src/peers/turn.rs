//! When this node's key for WireGuard is exchanged: by age, or because somebody asked. Pure.
//!
//! The next key is shown for [`SHOWN`] before it is used, so that every node that hears of nodes at all has it by then.

use std::time::Duration;

/// How old a key gets.
pub const AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long the next key is shown before it is used.
pub const SHOWN: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Of the key that is in use. A clock that was set back makes it no older.
    pub age: Duration,
    /// Whether somebody asked for another one since.
    pub asked: bool,
    /// The next one, if there is one: for how long the cluster has shown it.
    pub next: Option<Option<Duration>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Another key is made, and shown.
    Begin,
    /// The next one is used.
    Switch,
    /// There is nothing to do for so long, unless something happens; `None`: until then.
    Wait(Option<Duration>),
}

pub fn turn(facts: Facts) -> Turn {
    match facts.next {
        Some(Some(shown)) if shown >= SHOWN => Turn::Switch,
        Some(Some(shown)) => Turn::Wait(Some(SHOWN - shown)),
        // What waits for is that it is shown.
        Some(None) => Turn::Wait(None),
        None if facts.asked || facts.age >= AGE => Turn::Begin,
        None => Turn::Wait(Some(AGE - facts.age)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_exchanged_when_it_is_old_or_somebody_asks_and_never_before_the_next_one_is_known() {
        let second = Duration::from_secs(1);
        let turn = |age, asked, next| turn(Facts { age, asked, next });
        for (age, asked, next, expected) in [
            (second, false, None, Turn::Wait(Some(AGE - second))),
            (second, true, None, Turn::Begin),
            (AGE, false, None, Turn::Begin),
            (AGE * 2, true, Some(None), Turn::Wait(None)),
            (second, true, Some(Some(second)), Turn::Wait(Some(SHOWN - second))),
            (second, false, Some(Some(SHOWN)), Turn::Switch),
        ] {
            assert_eq!(turn(age, asked, next), expected, "{age:?} {asked} {next:?}");
        }
    }
}
