//! When snapshots are taken by themselves.

use super::bucket::Bucket;
use super::{Snapshots, Why, list};
use crate::config::{Options, absolute};
use anyhow::{Context, ensure};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use keelson_backup::place::s3;
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
    pub kept: usize,
    pub directory: PathBuf,
    /// Where they are sent as well.
    pub bucket: Option<Bucket>,
}

impl Settings {
    pub fn of(options: &Options, data_dir: &Path) -> anyhow::Result<Settings> {
        let kept = options.store_snapshot_retention.unwrap_or(KEPT);
        let text = options.store_snapshot_schedule.as_deref();
        let flag = "--store-snapshot-retention";
        let plan = match text.unwrap_or(BY_DEFAULT) {
            "none" => {
                bounded(flag, kept)?;
                None
            }
            text => Some(Plan::parse("--store-snapshot-schedule", text, flag, kept)?),
        };
        let own = data_dir.join("snapshots");
        let (directory, bucket) = place(options.store_snapshot_dir.as_deref(), options.s3.settings()?, &own)?;
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
            plan,
            given: text.is_some(),
            kept,
            directory,
            bucket,
        })
    }

    /// By no schedule.
    pub fn here(directory: PathBuf, bucket: Option<Bucket>) -> Settings {
        Settings {
            plan: None,
            given: false,
            kept: KEPT,
            directory,
            bucket,
        }
    }

    /// `own`: the store is this server's, and not an etcd that somebody else runs.
    pub fn plan(&self, own: bool) -> Option<Plan> {
        self.plan.clone().filter(|_| own || self.given)
    }
}

/// Where they are taken, and where they are sent.
pub fn place(given: Option<&Path>, s3: s3::Settings, own: &Path) -> anyhow::Result<(PathBuf, Option<Bucket>)> {
    let bucket = given.map(|given| Bucket::of(given, s3)).transpose();
    let bucket = bucket.context("--store-snapshot-dir")?.flatten();
    let directory = given.filter(|_| bucket.is_none()).unwrap_or(own);
    Ok((absolute(directory.to_path_buf())?, bucket))
}

fn bounded(flag: &str, kept: usize) -> anyhow::Result<()> {
    ensure!(
        (1..=KEPT_AT_MOST).contains(&kept),
        "{flag} {kept}: from 1 to {KEPT_AT_MOST} can be kept"
    );
    Ok(())
}

impl Plan {
    /// With the options that say so.
    pub fn parse(when: &str, text: &str, how_many: &str, kept: usize) -> anyhow::Result<Plan> {
        bounded(how_many, kept)?;
        let schedule = Schedule::parse(text, TimeZone::UTC).with_context(|| format!("{when} {text}"))?;
        ensure!(
            schedule.next(Timestamp::now()).is_some(),
            "{when} {text}: that time never comes"
        );
        Ok(Plan { schedule, kept })
    }

    pub fn kept(&self) -> usize {
        self.kept
    }

    /// A time that has passed while nobody took one is made up for; where there is none at all, it may have passed.
    pub fn due(&self, newest: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
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
        wait = Duration::from_secs(1);
        // Somebody set the clock: what is due is asked anew.
        if keelson_clock::now() < due {
            continue;
        }
        match snapshots.take(Why::Scheduled).await {
            Ok(taken) => {
                if let Some(why) = &taken.unsent {
                    tracing::error!(
                        why,
                        "a snapshot of the store stays on this machine only; it is sent with the next one"
                    );
                }
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
        crate::process::let_go();
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
