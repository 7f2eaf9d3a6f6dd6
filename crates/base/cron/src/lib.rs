//! Cron schedules: what a text means, and when it is next due.
//!
//! Both follow `ParseStandard` and `Next` of robfig/cron v3, which upstream uses for validation and for the controller
//! alike: what the API accepts runs, and at the times at which it would run upstream. Crates that know cron know another
//! dialect (none has `N/step` up to the maximum, `?` in every field and Go's way over a change of clocks), therefore
//! this one. `tests/golden.txt` holds answers of the Go library; `tools/cron` makes them.
//!
//! A schedule knows no controller and no object: it is a function from one point of time to the next.

mod next;
mod parse;
pub mod zone;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Why a text is no schedule, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(pub String);

#[derive(Clone, Debug)]
pub enum Schedule {
    Fields(Fields),
    /// Whole seconds, at least one.
    Every(SignedDuration),
}

/// A bit a value; [`STAR`] marks a field that restricts nothing.
#[derive(Clone, Debug)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    zone: TimeZone,
}

const STAR: u64 = 1 << 63;

impl Schedule {
    /// Reads a schedule. `zone` is where its hours are meant, unless the text begins with a zone of its own.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, ScheduleError> {
        parse::schedule(text, zone)
    }

    /// The first time after `time`, on a whole second. None if there is none within five years.
    pub fn next(&self, time: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Fields(fields) => fields.next(time),
            Schedule::Every(step) => {
                let whole = Timestamp::from_second(next::floor(time)).ok()?;
                whole.checked_add(*step).ok()
            }
        }
    }
}
