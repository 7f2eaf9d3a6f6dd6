//! When a cron job is due, as upstream counts it. Pure.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::CronJob;
use keelson_cron::zone::ZoneError;
use keelson_cron::{Schedule, ScheduleError, zone};

/// More missed starts than this are a reason to warn.
const MANY: i64 = 100;

/// A schedule whose starts are no second apart: one that has none within five years.
pub const NEVER: &str = "time difference between two schedules is less than 1 second";

#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// The latest start that was missed since, if any.
    pub at: Option<Timestamp>,
    /// From where starts were looked for.
    since: Timestamp,
    /// Starts were missed in large number: the clock jumped, or nobody was there for long.
    pub many_missed: bool,
    any_missed: bool,
}

/// Whether the schedule has a zone in its text, as objects from before that was refused may have.
pub fn has_own_zone(cron: &CronJob) -> bool {
    cron.spec.schedule.contains("TZ")
}

pub fn zone_of(cron: &CronJob) -> Result<TimeZone, ZoneError> {
    match cron.spec.time_zone.as_deref() {
        Some(name) => zone::load(name),
        None => Ok(TimeZone::system()),
    }
}

/// The schedule in its zone. A zone that can't be found counts for nothing: it is told of elsewhere.
pub fn of(cron: &CronJob) -> Result<Schedule, ScheduleError> {
    let zone = if has_own_zone(cron) { None } else { zone_of(cron).ok() };
    Schedule::parse(&cron.spec.schedule, zone.unwrap_or_else(TimeZone::system))
}

/// What is due at `now`, given the last start (or the job's creation) and how late a start may be.
pub fn due(
    schedule: &Schedule,
    last: Timestamp,
    deadline: Option<SignedDuration>,
    now: Timestamp,
) -> Result<Due, &'static str> {
    let since = match deadline {
        // A deadline from before all time is none.
        Some(deadline) => now.checked_sub(deadline).map_or(last, |earliest| last.max(earliest)),
        None => last,
    };
    let found = |at, missed| Due {
        at,
        since,
        many_missed: missed > MANY,
        any_missed: missed > 0,
    };
    let first = schedule.next(since).ok_or(NEVER)?;
    if now < first {
        return Ok(found(None, 0));
    }
    let second = schedule.next(first).ok_or(NEVER)?;
    if now < second {
        return Ok(found(Some(first), 0));
    }
    // About as many starts fit in as the first two are apart; from shortly before there on, they are looked up.
    let step = second.duration_since(first).as_secs();
    if step < 1 {
        return Err(NEVER);
    }
    let missed = now.duration_since(first).as_secs() / step + 1;
    let mut time = first + SignedDuration::from_secs((missed - 2) * step);
    let mut latest = None;
    while let Some(next) = schedule.next(time).filter(|next| *next <= now) {
        latest = Some(next);
        time = next;
    }
    Ok(found(latest, missed))
}

/// The first start that is still to come. Counted from the last one, so that intervals keep their beat.
pub fn next(schedule: &Schedule, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let from = match due(schedule, last, None, now) {
        Ok(Due { at: Some(at), .. }) => at,
        Ok(due) if !due.any_missed => due.since,
        _ => now,
    };
    schedule.next(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn parse(text: &str, zone: &str) -> Schedule {
        Schedule::parse(text, zone::load(zone).expect("a zone")).expect("a schedule")
    }

    #[test]
    fn the_latest_missed_start_is_due() {
        let hourly = parse("0 * * * *", "Etc/UTC");
        let due = |last, deadline: Option<i64>, now| {
            due(&hourly, at(last), deadline.map(SignedDuration::from_secs), at(now)).expect("a date")
        };
        assert_eq!(due("2026-01-01T10:00:00Z", None, "2026-01-01T10:59:59Z").at, None);
        assert_eq!(
            due("2026-01-01T10:00:00Z", None, "2026-01-01T11:00:00Z").at,
            Some(at("2026-01-01T11:00:00Z"))
        );
        assert_eq!(
            due("2026-01-01T10:00:00Z", None, "2026-01-01T13:30:00Z").at,
            Some(at("2026-01-01T13:00:00Z"))
        );
        assert_eq!(
            due("2026-01-01T10:00:00Z", Some(600), "2026-01-01T11:30:00Z").at,
            None,
            "too late"
        );
        assert!(!due("2026-01-01T10:00:00Z", None, "2026-01-03T13:30:00Z").many_missed);
        assert!(due("2026-01-01T10:00:00Z", None, "2026-02-01T13:30:00Z").many_missed);
        assert_eq!(
            due("2026-01-01T10:00:00Z", Some(i64::MAX), "2026-01-01T11:00:00Z").at,
            Some(at("2026-01-01T11:00:00Z")),
            "however long a start may be late"
        );
        assert_eq!(
            next(&hourly, at("2026-01-01T10:00:00Z"), at("2026-01-01T13:30:00Z")),
            Some(at("2026-01-01T14:00:00Z"))
        );
    }

    #[test]
    fn starts_of_irregular_schedules_are_found() {
        let working = parse("30 6-16/4 * * 1-5", "UTC");
        let due = |now| {
            due(&working, at("2026-06-05T14:30:00Z"), None, at(now))
                .expect("a date")
                .at
        };
        assert_eq!(
            due("2026-06-08T15:00:00Z"),
            Some(at("2026-06-08T14:30:00Z")),
            "Friday to Monday"
        );
        // Upstream's estimate takes the first gap for all: longer away, and a start is passed over, not made up for.
        assert_eq!(due("2026-06-09T03:00:00Z"), None);
    }

    #[test]
    fn intervals_keep_their_beat() {
        let every = parse("@every 90m", "UTC");
        let start = at("2026-01-01T10:00:00Z");
        assert_eq!(
            due(&every, start, None, at("2026-01-01T13:10:00Z")).expect("a date").at,
            Some(at("2026-01-01T13:00:00Z"))
        );
        assert_eq!(
            next(&every, start, at("2026-01-01T10:40:00Z")),
            Some(at("2026-01-01T11:30:00Z")),
            "asked in between"
        );
        let hardly = parse("@every 2562047h", "UTC");
        assert!(next(&hardly, start, start).is_some());
    }

    #[test]
    fn a_date_that_never_comes_is_an_error() {
        let never = parse("59 23 31 2 *", "UTC");
        let start = at("2026-01-01T10:00:00Z");
        assert_eq!(due(&never, start, None, start), Err(NEVER));
        assert_eq!(next(&never, start, start), None);
    }
}
