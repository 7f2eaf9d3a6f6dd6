//! When snapshots are taken by themselves.

use super::{Snapshots, Why, list};
use crate::config::{Options, absolute};
use anyhow::{Context, ensure};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use keelson_cron::Schedule;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const BY_DEFAULT: &str = "0 */12 * * *";
const KEPT: usize = 5;
const KEPT_AT_MOST: usize = 10_000;
/// After a start, or a failure.
const SOON: Duration = Duration::from_secs(60);

/// When, and how many are kept.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In UTC.
    schedule: Schedule,
    kept: usize,
}

/// What options say about it.
#[derive(Clone, Debug)]
pub struct Settings {
    plan: Option<Plan>,
    /// Somebody said so; else it is only for a store that is this server's to look after.
    given: bool,
    pub directory: PathBuf,
}

impl Settings {
    pub fn of(options: &Options, data_dir: &Path) -> anyhow::Result<Settings> {
        let kept = options.store_snapshot_retention.unwrap_or(KEPT);
        ensure!(
            (1..=KEPT_AT_MOST).contains(&kept),
            "--store-snapshot-retention {kept}: from 1 to {KEPT_AT_MOST} can be kept; --store-snapshot-schedule none takes none"
        );
        let text = options.store_snapshot_schedule.as_deref();
        let schedule = match text.unwrap_or(BY_DEFAULT) {
            "none" => None,
            text => {
                let schedule = Schedule::parse(text, TimeZone::UTC);
                let schedule = schedule.with_context(|| format!("--store-snapshot-schedule {text}"))?;
                ensure!(
                    schedule.next(Timestamp::now()).is_some(),
                    "--store-snapshot-schedule {text}: that time never comes; none takes none"
                );
                Some(schedule)
            }
        };
        let directory = options.store_snapshot_dir.clone();
        let directory = absolute(directory.unwrap_or_else(|| data_dir.join("snapshots")))?;
        ensure!(
            !directory.starts_with(data_dir.join("store")) && !directory.starts_with(data_dir.join("etcd")),
            "--store-snapshot-dir {}: that is the store's own directory",
            directory.display()
        );
        ensure!(
            directory.is_dir() || !directory.exists(),
            "--store-snapshot-dir {}: that is no directory",
            directory.display()
        );
        Ok(Settings {
            plan: schedule.map(|schedule| Plan { schedule, kept }),
            given: text.is_some(),
            directory,
        })
    }

    /// `own`: the store is this server's, and not an etcd that somebody else runs.
    pub fn plan(&self, own: bool) -> Option<Plan> {
        self.plan.clone().filter(|_| own || self.given)
    }
}

impl Plan {
    /// A time that has passed while nobody took one is made up for; where there is none at all, it may have passed.
    fn due(&self, newest: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        match newest {
            Some(newest) => self.schedule.next(newest.min(now)),
            None => Some(now),
        }
    }
}

pub async fn run(snapshots: Arc<Snapshots>, plan: Plan, stop: CancellationToken) -> anyhow::Result<()> {
    // A start has other things to do.
    let mut wait = SOON;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
        let newest = list(&snapshots.directory)?
            .into_iter()
            .rev()
            .find(|found| found.why == Why::Scheduled);
        let Some(due) = plan.due(newest.map(|found| found.at), Timestamp::now()) else {
            return Ok(());
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = keelson_clock::sleep_until(due) => {}
        }
        match snapshots.take(Why::Scheduled).await {
            Ok(taken) => {
                wait = Duration::from_secs(1);
                if let Err(error) = snapshots.keep(plan.kept, &taken.path, Timestamp::now()) {
                    tracing::warn!(error = format!("{error:#}"), "old snapshots of the store stay");
                }
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "no snapshot of the store could be taken; trying again"
                );
                wait = SOON;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(schedule: Option<&str>, retention: Option<usize>, own: bool) -> anyhow::Result<Option<Plan>> {
        let options = Options {
            store_snapshot_schedule: schedule.map(Into::into),
            store_snapshot_retention: retention,
            ..Options::default()
        };
        Ok(Settings::of(&options, Path::new("/data"))?.plan(own))
    }

    #[test]
    fn what_is_due_is_what_was_missed_or_comes_next() {
        let plan = plan(None, None, true).unwrap().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-03-01T13:00:00Z");
        assert_eq!(plan.due(None, now), Some(now));
        assert_eq!(
            plan.due(Some(at("2026-03-01T12:00:03Z")), now),
            Some(at("2026-03-02T00:00:00Z"))
        );
        assert_eq!(
            plan.due(Some(at("2026-02-20T12:00:03Z")), now),
            Some(at("2026-02-21T00:00:00Z"))
        );
        // Taken by a clock that was ahead.
        assert_eq!(
            plan.due(Some(at("2031-01-01T00:00:00Z")), now),
            Some(at("2026-03-02T00:00:00Z"))
        );
    }

    #[test]
    fn options_are_honoured_or_refused() {
        assert!(plan(None, None, false).unwrap().is_none());
        assert!(plan(Some("none"), None, true).unwrap().is_none());
        assert_eq!(plan(Some("@hourly"), Some(3), false).unwrap().unwrap().kept, 3);
        for (schedule, retention) in [(Some("at noon"), None), (None, Some(0)), (None, Some(1 << 40))] {
            assert!(plan(schedule, retention, true).is_err(), "{schedule:?} {retention:?}");
        }
    }
}
