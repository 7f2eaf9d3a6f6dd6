//! A cron job that starts nothing.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::Picture;
use serde_json::Value;

pub fn diagnose(cron: &Value, picture: &Picture, report: &mut Report) {
    if cron.flag("/spec/suspend") {
        report.add(
            Finding::certain("cronjob-suspended", cron.shown(), "it is suspended").mended_by(format!(
                "kubectl patch cronjob {} -n {} --type=merge -p '{{\"spec\":{{\"suspend\":false}}}}'",
                cron.name(),
                cron.namespace()
            )),
        );
        return;
    }
    for (reason, cause, says, fix) in EVENTS {
        if let Some(event) = picture.event(cron, &[reason]) {
            report.add(
                Finding::certain(*cause, cron.shown(), *says)
                    .shown_by(event.text("/message"))
                    .mended_by(*fix),
            );
        }
    }
    let active = cron.list("/status/active");
    if cron.text("/spec/concurrencyPolicy") == "Forbid" && !active.is_empty() && report.findings.is_empty() {
        let names: Vec<&str> = active.iter().map(|a| a.text("/name")).collect();
        report.notes.push(format!(
            "{} still runs, and with concurrencyPolicy Forbid the next one waits for it",
            names.join(", ")
        ));
    }
    let mut jobs = picture.controlled_by("Job", cron);
    jobs.sort_by_key(|j| std::cmp::Reverse(j.text("/metadata/creationTimestamp").to_string()));
    if let Some(last) = jobs.first() {
        super::job::diagnose(last, picture, report);
    }
}

const EVENTS: &[(&str, &str, &str, &str)] = &[
    (
        "UnknownTimeZone",
        "unknown-time-zone",
        "its time zone isn't known",
        "Write it as in the time zone database: Europe/Berlin, Etc/UTC.",
    ),
    (
        "UnparseableSchedule",
        "bad-schedule",
        "its schedule can't be read",
        "Five fields: minute, hour, day of month, month, day of week.",
    ),
    (
        "InvalidSchedule",
        "bad-schedule",
        "its schedule can't be read",
        "Five fields: minute, hour, day of month, month, day of week.",
    ),
    (
        "TooManyMissedTimes",
        "too-many-missed",
        "it missed more than 100 starts, while the controllers were down or the clock was off",
        "Set startingDeadlineSeconds, and see that the clock is right.",
    ),
    (
        "MissSchedule",
        "start-missed",
        "it missed a start: its startingDeadlineSeconds was over before it could be made",
        "Raise startingDeadlineSeconds (10 s at least), and see that the controllers run.",
    ),
    (
        "FailedCreate",
        "create-failed",
        "its jobs can't be made",
        "The API server's words are above.",
    ),
    (
        "JobAlreadyActive",
        "cronjob-forbid",
        "its last job still runs, and with concurrencyPolicy Forbid the next one isn't started",
        "Let the job end sooner (activeDeadlineSeconds), or allow Replace or Allow.",
    ),
];
