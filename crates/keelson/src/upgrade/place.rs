//! The files of an upgrade: the program, and beside it the one that is to come and the one that was.

use super::journal::{self, Journal, Program};
use super::steps::{Phase, Placed, Step};
use crate::store::snapshot::command as snapshot;
use anyhow::{Context, ensure};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What is beside a program, by the ending of its name.
pub const NEXT: &str = "next";
pub const PREVIOUS: &str = "previous";
const MOVING: &str = "moving";
/// More than any program of ours has.
pub const LARGEST: u64 = 1 << 30;

pub fn beside(place: &Path, ending: &str) -> PathBuf {
    let mut path = place.as_os_str().to_os_string();
    path.push(".");
    path.push(ending);
    path.into()
}

pub fn sum(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let copied = File::open(path).and_then(|file| io::copy(&mut file.take(LARGEST), &mut hash));
    copied.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex::encode(hash.finalize()))
}

/// The first bytes of a file.
pub fn head(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// Copies a program beside the one that runs, whole and on disk; tells its sum. What is judged from now on is the copy.
pub fn stage(from: &Path, place: &Path) -> anyhow::Result<String> {
    let next = beside(place, NEXT);
    let staged = || -> anyhow::Result<()> {
        let source = File::open(from)?;
        ensure!(source.metadata()?.is_file(), "it is no file");
        ensure!(source.metadata()?.len() <= LARGEST, "it is larger than any program");
        gone(&next)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&next)?;
        io::copy(&mut source.take(LARGEST), &mut file)?;
        file.flush()?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        Ok(file.sync_all()?)
    };
    staged().with_context(|| format!("copying {} to {}", from.display(), next.display()))?;
    sum(&next)
}

/// What has the program's place, and whether the way back is there.
pub fn look(journal: &Journal) -> anyhow::Result<(Placed, bool)> {
    let is = |path: &Path, program: &Program| Ok::<_, anyhow::Error>(path.exists() && sum(path)? == program.sha256);
    let placed = match &journal.place {
        place if !place.exists() => Placed::Nothing,
        place if is(place, &journal.from)? => Placed::Old,
        place if is(place, &journal.to)? => Placed::New,
        _ => Placed::Other,
    };
    Ok((placed, is(&beside(&journal.place, PREVIOUS), &journal.from)?))
}

/// Does a step, so that it is on disk when this returns.
pub fn take(step: Step, journal: &mut Journal, data_dir: &Path) -> anyhow::Result<()> {
    let place = journal.place.clone();
    let (next, previous) = (beside(&place, NEXT), beside(&place, PREVIOUS));
    match step {
        Step::Note(phase) => {
            let ends = matches!(phase, Phase::Confirmed | Phase::Returned | Phase::Abandoned);
            journal.phase = phase;
            journal.ended = ends.then(Timestamp::now);
            journal.write(data_dir)
        }
        Step::KeepOld => put(&place, &previous),
        Step::PutNew => {
            ensure!(
                sum(&next)? == journal.to.sha256,
                "{} isn't what was judged any more",
                next.display()
            );
            fs::rename(&next, &place).with_context(|| format!("cannot put {} in its place", next.display()))?;
            on_disk(&place)
        }
        Step::PutOld => put(&previous, &place),
        Step::RestoreStore => {
            let file = journal
                .snapshot
                .as_deref()
                .context("no snapshot of the store was taken")?;
            snapshot::restore(data_dir, file, false, keelson_store::snapshot::Sum::Wanted)
        }
        Step::ClearNew => gone(&next),
        Step::ClearOld => gone(&previous),
    }
}

/// A second name for a file, in place of what has that name.
fn put(file: &Path, name: &Path) -> anyhow::Result<()> {
    let moving = beside(name, MOVING);
    let done = || -> anyhow::Result<()> {
        gone(&moving)?;
        fs::hard_link(file, &moving)?;
        fs::rename(&moving, name)?;
        // Where both names were the same file already, renaming does nothing.
        gone(&moving)?;
        on_disk(name)
    };
    done().with_context(|| format!("cannot put {} at {}", file.display(), name.display()))
}

fn on_disk(path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().context("a file has a directory")?;
    Ok(File::open(directory)?.sync_all()?)
}

fn gone(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Bytes that are free where a path is or will be.
pub fn free(path: &Path) -> anyhow::Result<u64> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(there).with_context(|| format!("asking for room at {}", there.display()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// What a start does with an upgrade that was cut short. Tells what it did.
pub fn settle(data_dir: &Path) -> anyhow::Result<Option<Phase>> {
    let Some(mut journal) = Journal::read(data_dir)? else {
        return Ok(None);
    };
    if matches!(
        journal.phase,
        Phase::Confirmed | Phase::Returned | Phase::Abandoned | Phase::Unknown
    ) {
        return Ok(None);
    }
    let Some(_attended) = journal::Attended::begin(data_dir)? else {
        return Ok(None);
    };
    journal.look_at_store(data_dir)?;
    let (placed, way_back) = look(&journal)?;
    let steps = super::steps::at_start(journal.phase, placed, way_back, journal.store_changes, false);
    if steps.is_empty() {
        return Ok(None);
    }
    journal
        .why
        .get_or_insert_with(|| "the service started anew before anybody had confirmed it".into());
    for step in steps {
        take(step, &mut journal, data_dir)?;
    }
    Ok(Some(journal.phase))
}

#[cfg(test)]
mod tests {
    use super::super::steps::{FORTH, back};
    use super::*;

    fn begun(dir: &Path) -> Journal {
        let place = dir.join("keelson");
        fs::write(&place, "old").unwrap();
        fs::write(dir.join("new"), "new").unwrap();
        let program = |sha256: String| Program {
            told: Default::default(),
            sha256,
        };
        Journal {
            phase: Phase::Begun,
            from: program(sum(&place).unwrap()),
            to: program(stage(&dir.join("new"), &place).unwrap()),
            place,
            snapshot: None,
            store_changes: false,
            began: Timestamp::now(),
            ended: None,
            why: None,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.filter(|name| name.starts_with("keelson")).collect();
        names.sort();
        names
    }

    /// On a real disk: whatever the step before which the power went, the next start finds the old program.
    #[test]
    fn files_settle_after_every_step() {
        let all: Vec<Step> = FORTH.into_iter().chain(back(false)).collect();
        for cut in 0..=all.len() {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            let mut journal = begun(dir.path());
            for step in &all[..cut] {
                take(*step, &mut journal, &data).unwrap();
            }
            if (4..7).contains(&cut) {
                let runs = fs::read_to_string(&journal.place).unwrap();
                assert_eq!(runs, if cut < 6 { "new" } else { "old" }, "{cut}");
            }
            settle(&data).unwrap();
            assert_eq!(
                fs::read_to_string(&journal.place).unwrap(),
                "old",
                "cut after {cut} steps"
            );
            if (1..7).contains(&cut) {
                assert_eq!(names(dir.path()), ["keelson"], "cut after {cut} steps");
                assert!(Journal::read(&data).unwrap().unwrap().ended.is_some());
            }
            assert_eq!(settle(&data).unwrap(), None, "it has come to rest");
        }
    }

    #[test]
    fn what_is_confirmed_stays_and_what_is_attended_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut journal = begun(dir.path());
        for step in FORTH {
            take(step, &mut journal, &data).unwrap();
        }
        let attended = journal::Attended::alone(&data).unwrap();
        assert_eq!(settle(&data).unwrap(), None);
        drop(attended);
        take(Step::Note(Phase::Confirmed), &mut journal, &data).unwrap();
        assert_eq!(settle(&data).unwrap(), None);
        assert_eq!(fs::read_to_string(&journal.place).unwrap(), "new");
        assert_eq!(names(dir.path()), ["keelson", "keelson.previous"]);
    }

    #[test]
    fn another_file_than_was_judged_is_not_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut journal = begun(dir.path());
        fs::write(beside(&journal.place, NEXT), "evil").unwrap();
        let error = take(Step::PutNew, &mut journal, &data).unwrap_err().to_string();
        assert!(error.contains("isn't what was judged"), "{error}");
        assert_eq!(fs::read_to_string(&journal.place).unwrap(), "old");
    }
}
