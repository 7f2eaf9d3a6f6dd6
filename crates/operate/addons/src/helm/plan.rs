//! What comes next for a chart, from its jobs and its release. Pure.
//!
//! Never two of its jobs run at a time: helm must not meet itself. Nothing waits for ever: what can't go on says why, and a chart that is to go
//! goes without a job where there is nothing to uninstall.

use super::job::{Act, label_of};
use super::release::Release;

/// How often a job that ended well is run anew, when the release isn't what it should be then.
const TRIES: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    Complete,
    Failed,
    /// Deleted; its pods may still run.
    Ending,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub hash: String,
    pub phase: Phase,
}

#[derive(Debug, Default)]
pub struct Facts<'a> {
    pub deleting: bool,
    /// It may go without its release being uninstalled.
    pub abandoned: bool,
    /// Of what is configured.
    pub hash: &'a str,
    pub policy: &'a str,
    pub install: Option<Seen>,
    pub delete: Option<Seen>,
    pub rollback: Option<Seen>,
    pub release: Release,
    /// How often this configuration's job was made.
    pub tries: u32,
}

#[derive(Debug, PartialEq)]
pub enum Next {
    Make(Act),
    /// The job goes; when it is gone it is looked again.
    Remove(Act),
    Wait(Act),
    /// The job runs.
    Running(Act),
    Installed,
    Failed(Why),
    /// The chart may go. `left`: its release is still noted.
    LetGo {
        left: bool,
    },
}

#[derive(Debug, PartialEq)]
pub enum Why {
    Job,
    /// It ended well, and the release isn't of this configuration.
    Release,
    RolledBack,
    Rollback,
    Uninstall,
}

pub fn next(facts: &Facts) -> Next {
    let jobs = [
        (Act::Install, &facts.install),
        (Act::Delete, &facts.delete),
        (Act::Rollback, &facts.rollback),
    ];
    if let Some((act, _)) = jobs
        .iter()
        .find(|(_, job)| job.as_ref().is_some_and(|j| j.phase == Phase::Ending))
    {
        return Next::Wait(*act);
    }
    match facts.deleting {
        true => uninstall(facts),
        false => install(facts),
    }
}

fn install(facts: &Facts) -> Next {
    if facts.delete.is_some() {
        return Next::Remove(Act::Delete);
    }
    let is_well = facts.release.status == "deployed" && facts.release.hash == label_of(facts.hash);
    match &facts.install {
        Some(job) if job.hash != facts.hash => Next::Remove(Act::Install),
        None if facts.rollback.is_some() => Next::Remove(Act::Rollback),
        None if is_well => Next::Installed,
        None => Next::Make(Act::Install),
        Some(Seen {
            phase: Phase::Failed, ..
        }) => failed(facts),
        Some(Seen {
            phase: Phase::Complete, ..
        }) => {
            // Images before those that note it.
            let unknown = facts.release.hash.is_empty() && matches!(facts.release.status.as_str(), "deployed" | "");
            match is_well || unknown {
                true => Next::Installed,
                false if facts.tries < TRIES => Next::Remove(Act::Install),
                false => Next::Failed(Why::Release),
            }
        }
        Some(_) => Next::Running(Act::Install),
    }
}

/// The failed job stays, so that it isn't run again before anything has changed.
fn failed(facts: &Facts) -> Next {
    if facts.policy != "rollback" {
        return Next::Failed(Why::Job);
    }
    match &facts.rollback {
        None if facts.release.status == "deployed" || facts.release.well.is_none() => Next::Failed(Why::Job),
        None => Next::Make(Act::Rollback),
        Some(job) if job.hash != facts.hash => Next::Remove(Act::Rollback),
        Some(Seen {
            phase: Phase::Complete, ..
        }) => Next::Failed(Why::RolledBack),
        Some(Seen {
            phase: Phase::Failed, ..
        }) => Next::Failed(Why::Rollback),
        Some(_) => Next::Running(Act::Rollback),
    }
}

fn uninstall(facts: &Facts) -> Next {
    for (act, job) in [(Act::Install, &facts.install), (Act::Rollback, &facts.rollback)] {
        if job.is_some() {
            return Next::Remove(act);
        }
    }
    let is_there = facts.release.revision > 0;
    if facts.abandoned {
        return match facts.delete {
            Some(_) => Next::Remove(Act::Delete),
            None => Next::LetGo { left: is_there },
        };
    }
    match &facts.delete {
        None if is_there => Next::Make(Act::Delete),
        None => Next::LetGo { left: false },
        Some(Seen {
            phase: Phase::Complete, ..
        }) => match is_there {
            true if facts.tries < TRIES => Next::Remove(Act::Delete),
            left => Next::LetGo { left },
        },
        Some(Seen {
            phase: Phase::Failed, ..
        }) => Next::Failed(Why::Uninstall),
        Some(_) => Next::Running(Act::Delete),
    }
}
