//! What this machine was asked last, on its disk: noted before anything is done for it, so that nothing is done twice; and how it went.
//!
//! It is done by a process of its own (`keelson upgrade … --asked ID`, which is each machine's own upgrade), since the service ends
//! meanwhile. That process notes how it went while it still attends; where it can't have, the journal says it.

use super::super::journal::{self, Attended, Journal};
use super::super::machine::Machine;
use super::super::run::{self, Wanted};
use super::super::steps::Phase;
use super::order::{Answer, State, Verb};
use crate::install::Host;
use anyhow::Context;
use jiff::Timestamp;
use keelson_pki::files;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const NAME: &str = "asked.json";
const LOG: &str = "asked.log";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Outcome {
    pub well: bool,
    pub why: String,
}

/// Fields are added and never change their meaning: the program that comes back reads what the newer one wrote.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Asked {
    pub id: String,
    pub verb: Verb,
    pub sha256: String,
    pub began: Timestamp,
    #[serde(default)]
    pub outcome: Option<Outcome>,
}

impl Asked {
    pub fn read(data_dir: &Path) -> anyhow::Result<Option<Asked>> {
        let path = journal::directory(data_dir).join(NAME);
        let text = files::read(&path)?;
        text.map(|text| serde_json::from_str(&text).with_context(|| format!("{} can't be read", path.display())))
            .transpose()
    }

    pub fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        files::write_secret(&journal::directory(data_dir).join(NAME), &serde_json::to_vec(self)?)
    }

    /// Notes how it went, unless that has been noted.
    pub fn end(data_dir: &Path, id: &str, outcome: Outcome) -> anyhow::Result<()> {
        match Asked::read(data_dir)? {
            Some(asked) if asked.id == id && asked.outcome.is_none() => Asked {
                outcome: Some(outcome),
                ..asked
            }
            .write(data_dir),
            _ => Ok(()),
        }
    }

    pub fn answer(&self) -> Answer {
        let (state, why) = match &self.outcome {
            None => (State::UnderWay, String::new()),
            Some(Outcome { well: true, why }) => (State::Well, why.clone()),
            Some(Outcome { well: false, why }) => (State::Ill, why.clone()),
        };
        Answer {
            id: self.id.clone(),
            state,
            why,
        }
    }

    /// How it went, where nobody is at it any more and nobody has noted it.
    pub fn concluded(&self, journal: Option<&Journal>) -> Outcome {
        let own = journal.filter(|j| self.verb == Verb::Take && j.to.sha256 == self.sha256 && j.began >= self.began);
        let ill = |why: &str| Outcome {
            well: false,
            why: why.into(),
        };
        let Some(journal) = own else {
            return ill("it was cut short before anything had changed");
        };
        let why = journal.why.as_deref().unwrap_or("no reason was noted");
        match journal.phase {
            Phase::Confirmed => Outcome {
                well: true,
                why: format!("keelson {} runs", journal.to.told.version),
            },
            Phase::Returned => ill(&format!("keelson {} runs again: {why}", journal.from.told.version)),
            Phase::Abandoned => ill(&format!("given up before anything had changed: {why}")),
            Phase::Begun | Phase::Trial | Phase::Returning | Phase::Unknown => {
                ill("it was cut short: a start of the service takes it back, and so does `keelson rollback`")
            }
        }
    }

    /// Has it done, by a process that outlives this one. Nothing of this one's environment is its business.
    pub fn begin(&self, data_dir: &Path, program: &Path, file: &Path, timeout_seconds: u64) -> anyhow::Result<Child> {
        let log = File::create(journal::directory(data_dir).join(LOG)).context("the log of an upgrade")?;
        let mut command = Command::new(program);
        command
            .arg("upgrade")
            .arg(file)
            .args([
                "--sha256",
                &self.sha256,
                "--timeout",
                &format!("{timeout_seconds}s"),
                "--asked",
                &self.id,
            ])
            .args((self.verb == Verb::Judge).then_some("--dry-run"))
            .env_clear()
            .env("PATH", keelson_sys::program::PLACES)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))
    }
}

/// What that process does.
pub fn run(id: &str, wanted: &Wanted<'_>) -> anyhow::Result<()> {
    let host = Host::at("/".into());
    let machine = Machine::find(&host)?;
    let data_dir: PathBuf = machine.data_dir().into();
    let end = |done: &anyhow::Result<String>| {
        let outcome = Outcome {
            well: done.is_ok(),
            why: done.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        };
        Asked::end(&data_dir, id, outcome)
    };
    let attended = match Attended::alone(&data_dir) {
        Ok(attended) => attended,
        Err(error) => return end(&Err(error)),
    };
    let done = run::upgrade(&machine, wanted, &attended);
    end(&done)?;
    println!("{}", done?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::journal::Program;
    use super::*;

    fn asked(verb: Verb) -> Asked {
        Asked {
            id: "x".into(),
            verb,
            sha256: "new".into(),
            began: Timestamp::from_second(1_800_000_000).unwrap(),
            outcome: None,
        }
    }

    #[test]
    fn what_nobody_noted_the_journal_says_if_it_is_of_this() {
        let program = |sha256: &str| Program {
            told: Default::default(),
            sha256: sha256.into(),
        };
        let journal = |phase, sum: &str, began: i64| Journal {
            phase,
            from: program("old"),
            to: program(sum),
            place: "/k".into(),
            snapshot: None,
            store_changes: false,
            began: Timestamp::from_second(1_800_000_000 + began).unwrap(),
            ended: None,
            why: Some("no answer".into()),
        };
        let take = asked(Verb::Take);
        assert!(take.concluded(Some(&journal(Phase::Confirmed, "new", 1))).well);
        for (phase, why) in [
            (Phase::Returned, "runs again: no answer"),
            (Phase::Abandoned, "given up"),
            (Phase::Trial, "cut short: a start"),
            (Phase::Unknown, "cut short: a start"),
        ] {
            let outcome = take.concluded(Some(&journal(phase, "new", 1)));
            assert!(!outcome.well && outcome.why.contains(why), "{outcome:?}");
        }
        let before = "before anything had changed";
        for other in [
            journal(Phase::Confirmed, "other", 1),
            journal(Phase::Confirmed, "new", -1),
        ] {
            assert!(take.concluded(Some(&other)).why.contains(before));
        }
        assert!(take.concluded(None).why.contains(before));
        let judge = asked(Verb::Judge);
        assert!(!judge.concluded(Some(&journal(Phase::Confirmed, "new", 1))).well);
    }

    #[test]
    fn how_it_went_is_noted_once_and_of_what_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Asked::read(dir.path()).unwrap(), None);
        let outcome = |why: &str| Outcome {
            well: true,
            why: why.into(),
        };
        Asked::end(dir.path(), "x", outcome("nobody asked")).unwrap();
        assert_eq!(Asked::read(dir.path()).unwrap(), None);
        asked(Verb::Take).write(dir.path()).unwrap();
        assert_eq!(
            Asked::read(dir.path()).unwrap().unwrap().answer().state,
            State::UnderWay
        );
        Asked::end(dir.path(), "y", outcome("another")).unwrap();
        Asked::end(dir.path(), "x", outcome("first")).unwrap();
        Asked::end(dir.path(), "x", outcome("second")).unwrap();
        let answer = Asked::read(dir.path()).unwrap().unwrap().answer();
        assert_eq!((answer.state, answer.why.as_str()), (State::Well, "first"));
    }
}
