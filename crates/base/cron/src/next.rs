//! The next time of a schedule, found the way upstream's library finds it: field by field, from months to minutes.
//!
//! The way matters where clocks are changed. An hour that a day lacks is passed over, so that day's run is skipped; an
//! hour that a day has twice is met twice; and a day that begins late is begun where Go's calendar begins it.

use crate::{Fields, STAR};
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use jiff::{Span, Timestamp};

/// Years in which a date is looked for.
const HORIZON: i16 = 5;

/// The last whole second not after `time`.
pub fn floor(time: Timestamp) -> i64 {
    let second = time.as_second();
    if time.subsec_nanosecond() < 0 {
        second - 1
    } else {
        second
    }
}

/// A point of time, and what clocks in the zone show.
#[derive(Clone, Copy)]
struct Moment {
    second: i64,
    shown: DateTime,
}

/// The moment at which clocks show `shown`. Of two the one, of none a near one, that Go's `time.Date` gives.
fn at(zone: &TimeZone, shown: DateTime) -> Option<Moment> {
    let as_if_utc = Offset::UTC.to_timestamp(shown).ok()?.as_second();
    let offset = |second: i64| {
        Some(i64::from(
            zone.to_offset(Timestamp::from_second(second).ok()?).seconds(),
        ))
    };
    let second = match offset(as_if_utc)? {
        0 => as_if_utc,
        first => as_if_utc - offset(as_if_utc - first)?,
    };
    moment(zone, second)
}

fn moment(zone: &TimeZone, second: i64) -> Option<Moment> {
    let shown = zone.to_datetime(Timestamp::from_second(second).ok()?);
    Some(Moment { second, shown })
}

impl Fields {
    pub(crate) fn next(&self, time: Timestamp) -> Option<Timestamp> {
        // A field without values (`,`) is never due: no need to ask every minute of the years ahead.
        if [self.minute, self.hour, self.month, self.day | self.weekday].contains(&0) {
            return None;
        }
        let zone = &self.zone;
        let mut now = moment(zone, floor(time) + 1)?;
        let limit = now.shown.year() + HORIZON;
        // Whether all smaller fields are at their beginning already.
        let mut begun = false;
        'fields: while now.shown.year() <= limit {
            while !has(self.month, now.shown.month()) {
                let day = if begun { now.shown.day() } else { 1 };
                let clock = if begun { now.shown.time() } else { Default::default() };
                if !begun {
                    begun = true;
                    now = at(
                        zone,
                        Date::new(now.shown.year(), now.shown.month(), day)
                            .ok()?
                            .to_datetime(clock),
                    )?;
                }
                now = at(zone, month_later(now.shown)?)?;
                if now.shown.month() == 1 {
                    continue 'fields;
                }
            }
            while !self.has_day(now.shown.date()) {
                if !begun {
                    begun = true;
                    now = at(zone, now.shown.date().to_datetime(Default::default()))?;
                }
                now = at(zone, now.shown.checked_add(Span::new().days(1)).ok()?)?;
                // A day whose midnight doesn't exist begins an hour early or late.
                let hour = i64::from(now.shown.hour());
                if hour != 0 {
                    let off = if hour > 12 { 24 - hour } else { -hour };
                    now = moment(zone, now.second + off * 3600)?;
                }
                if now.shown.day() == 1 {
                    continue 'fields;
                }
            }
            while !has(self.hour, now.shown.hour()) {
                if !begun {
                    begun = true;
                    let clock = jiff::civil::time(now.shown.hour(), 0, 0, 0);
                    now = at(zone, now.shown.date().to_datetime(clock))?;
                }
                now = moment(zone, now.second + 3600)?;
                if now.shown.hour() == 0 {
                    continue 'fields;
                }
            }
            while !has(self.minute, now.shown.minute()) {
                if !begun {
                    begun = true;
                    now = moment(zone, now.second - now.second.rem_euclid(60))?;
                }
                now = moment(zone, now.second + 60)?;
                if now.shown.minute() == 0 {
                    continue 'fields;
                }
            }
            // Seconds: the first of each minute.
            while now.shown.second() != 0 {
                begun = true;
                now = moment(zone, now.second + 1)?;
                if now.shown.second() == 0 {
                    continue 'fields;
                }
            }
            return Timestamp::from_second(now.second).ok();
        }
        None
    }

    /// Of day of month and day of week either may match, unless one of them restricts nothing.
    fn has_day(&self, date: Date) -> bool {
        let day = has(self.day, date.day());
        let weekday = has(self.weekday, date.weekday().to_sunday_zero_offset());
        if (self.day | self.weekday) & STAR != 0 {
            day && weekday
        } else {
            day || weekday
        }
    }
}

fn has(bits: u64, value: i8) -> bool {
    bits >> value & 1 == 1
}

/// The same day of the next month; days that it lacks run over into the month after it, as in Go.
fn month_later(shown: DateTime) -> Option<DateTime> {
    let first = Date::new(shown.year(), shown.month(), 1).ok()?;
    let next = first.checked_add(Span::new().months(1)).ok()?;
    let date = next.checked_add(Span::new().days(i64::from(shown.day()) - 1)).ok()?;
    Some(date.to_datetime(shown.time()))
}
