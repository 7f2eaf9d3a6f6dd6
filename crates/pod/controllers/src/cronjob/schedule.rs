//! When a cron job is due. Pure.

use anyhow::{Context, bail};
use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::str::FromStr;

/// More missed starts than this are a reason to warn.
const MANY: usize = 100;

pub enum Schedule {
    Cron(Box<Cron>, TimeZone),
    Every(SignedDuration),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// The latest time at which a job should have started, if any is not yet past the deadline.
    pub at: Option<Timestamp>,
    /// Starts were missed in large number: the clock jumped, or nobody was there for long.
    pub many_missed: bool,
}

impl Schedule {
    pub fn parse(text: &str, zone: Option<&str>) -> anyhow::Result<Self> {
        let zone = match zone {
            None => TimeZone::system(),
            Some(name) => TimeZone::get(name).with_context(|| format!("unknown time zone {name}"))?,
        };
        if let Some(every) = text.strip_prefix("@every ") {
            let every: SignedDuration = every.trim().parse().context("not a duration")?;
            if every < SignedDuration::from_secs(1) {
                bail!("a job can't be started more often than every second");
            }
            return Ok(Schedule::Every(SignedDuration::from_secs(every.as_secs())));
        }
        let cron = Cron::from_str(text).map_err(|error| anyhow::anyhow!("unparseable schedule {text:?}: {error}"))?;
        Ok(Schedule::Cron(Box::new(cron), zone))
    }

    /// The first start after `time`.
    pub fn next(&self, time: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Every(step) => Timestamp::from_second(time.checked_add(*step).ok()?.as_second()).ok(),
            Schedule::Cron(cron, zone) => {
                let next = cron
                    .find_next_occurrence(&time.to_zoned(zone.clone()), false)
                    .ok()?
                    .timestamp();
                (next > time).then_some(next)
            }
        }
    }

    /// The last start not after `now`.
    fn previous(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Every(step) => {
                let steps = now.duration_since(since).as_secs().div_euclid(step.as_secs());
                let whole = SignedDuration::from_secs(step.as_secs() * steps);
                since.checked_add(whole).ok().filter(|_| steps > 0)
            }
            Schedule::Cron(cron, zone) => {
                let previous = cron
                    .find_previous_occurrence(&now.to_zoned(zone.clone()), true)
                    .ok()?
                    .timestamp();
                (previous > since && previous <= now).then_some(previous)
            }
        }
    }

    /// What is due at `now`, given the last start (or the job's creation) and how late a start may be.
    pub fn due(&self, last: Timestamp, deadline: Option<SignedDuration>, now: Timestamp) -> Due {
        let since = match deadline {
            // A deadline from before all time is none.
            Some(deadline) => now.checked_sub(deadline).map_or(last, |earliest| last.max(earliest)),
            None => last,
        };
        let mut missed = 0;
        let mut time = since;
        while let Some(next) = self.next(time).filter(|next| *next <= now) {
            time = next;
            missed += 1;
            if missed > MANY {
                break;
            }
        }
        Due {
            at: self.previous(since, now),
            many_missed: missed > MANY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_latest_missed_start_is_due() {
        let hourly = Schedule::parse("0 * * * *", Some("Etc/UTC")).expect("valid");
        let due =
            |last, deadline: Option<i64>, now| hourly.due(at(last), deadline.map(SignedDuration::from_secs), at(now));
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
            hourly.next(at("2026-01-01T10:00:00Z")),
            Some(at("2026-01-01T11:00:00Z"))
        );
        assert_eq!(
            due("2026-01-01T10:00:00Z", Some(i64::MAX), "2026-01-01T11:00:00Z").at,
            Some(at("2026-01-01T11:00:00Z")),
            "however long a start may be late"
        );
        let hardly = Schedule::parse("@every 87600000h", None).expect("valid");
        assert_eq!(hardly.next(at("2026-01-01T10:00:00Z")), None);
    }

    #[test]
    fn zones_and_intervals() {
        let berlin = Schedule::parse("30 6 * * *", Some("Europe/Berlin")).expect("valid");
        assert_eq!(
            berlin.next(at("2026-07-01T00:00:00Z")),
            Some(at("2026-07-01T04:30:00Z"))
        );
        assert_eq!(
            berlin.next(at("2026-12-01T00:00:00Z")),
            Some(at("2026-12-01T05:30:00Z"))
        );
        let every = Schedule::parse("@every 90m", None).expect("valid");
        assert_eq!(
            every
                .due(at("2026-01-01T10:00:00Z"), None, at("2026-01-01T13:10:00Z"))
                .at,
            Some(at("2026-01-01T13:00:00Z"))
        );
        assert!(Schedule::parse("0 0 * *", None).is_err());
        assert!(Schedule::parse("0 0 * * *", Some("Mars/Olympus")).is_err());
        assert!(Schedule::parse("@hourly", None).is_ok() && Schedule::parse("*/1 * * * *", None).is_ok());
    }
}
