//! An upgrade of this machine, from the first check to the last: what is refused is refused before anything has changed, and what was
//! changed is confirmed or taken back.

use super::health::{Cluster, Seen};
use super::journal::{Attended, Journal, Program};
use super::machine::Machine;
use super::place::{self, NEXT, PREVIOUS, beside};
use super::probe::{self, Told};
use super::skew;
use super::steps::{self, FORTH, Phase, Placed, Step};
use crate::client::block_on;
use crate::install::Role;
use crate::store::Choice;
use crate::store::snapshot::command as snapshot;
use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

const PAUSE: Duration = Duration::from_millis(250);
/// What is left free beside the files that come.
const RESERVE: u64 = 64 << 20;

pub struct Wanted<'a> {
    pub file: &'a Path,
    pub sha256: Option<&'a str>,
    pub timeout: Duration,
    pub dry_run: bool,
    /// Of a machine whose servers will have it by then.
    pub ahead: bool,
}

impl Wanted<'_> {
    /// Whether a program of this sum is the one that is meant.
    pub fn has_sum(&self, sha256: &str) -> anyhow::Result<()> {
        ensure!(
            self.sha256.is_none_or(|given| given.eq_ignore_ascii_case(sha256)),
            "{} has the sum {sha256}, not the one that was given",
            self.file.display()
        );
        Ok(())
    }
}

/// What was found of the two programs and the cluster, all of it well.
struct Judged {
    from: Program,
    to: Program,
    seen: Seen,
    /// `None`: there is no store here, or nothing is to be changed.
    snapshot: Option<PathBuf>,
}

/// `_attended`: by who asks, who notes how it went before he turns away.
pub fn upgrade(machine: &Machine<'_>, wanted: &Wanted<'_>, _attended: &Attended) -> anyhow::Result<String> {
    let judged = match judge(machine, wanted) {
        Ok(Some(judged)) if !wanted.dry_run => judged,
        other => {
            // Nothing of it has its place yet.
            std::fs::remove_file(beside(&machine.place, NEXT)).or_else(absent)?;
            return other.map(|judged| match judged {
                None => "nothing to do: that program runs already".into(),
                Some(Judged { from, to, seen, .. }) => format!(
                    "keelson {} could follow {}; {} containers would go on running",
                    to.told.version,
                    from.told.version,
                    seen.containers.len()
                ),
            });
        }
    };
    let Judged {
        from,
        to,
        seen,
        snapshot,
    } = judged;
    let (was, is) = (from.told.version.clone(), to.told.version.clone());
    let mut journal = Journal {
        phase: Phase::Begun,
        store_changes: from.told.store != to.told.store && matches!(machine.config.store, Choice::Embedded(_)),
        from,
        to,
        place: machine.place.clone(),
        snapshot,
        began: Timestamp::now(),
        ended: None,
        why: None,
    };
    uninterrupted()?;
    eprintln!(
        "from here on it isn't interrupted; it ends within {}s, or is taken back",
        wanted.timeout.as_secs()
    );
    let tried = FORTH
        .into_iter()
        .try_for_each(|step| place::take(step, &mut journal, machine.data_dir()))
        .and_then(|()| ask_for(machine, "restart", Some(&seen), wanted.timeout));
    match tried {
        Ok(()) => {
            place::take(Step::Note(Phase::Confirmed), &mut journal, machine.data_dir())?;
            machine.note_version(&is)?;
            Ok(format!(
                "keelson {was} is {is} now; {} containers went on running. `keelson rollback` goes back",
                seen.containers.len()
            ))
        }
        Err(error) => {
            let why = format!("{error:#}");
            eprintln!("keelson {is} isn't well: {why}\ngoing back to {was}");
            journal.why = Some(why.clone());
            back(machine, &mut journal, Some(&seen), wanted.timeout)
                .with_context(|| format!("keelson {is} wasn't well ({why}), and {was} doesn't come back"))?;
            bail!("keelson {is} wasn't well, and {was} runs again: {why}")
        }
    }
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

/// Everything that can be known before anything changes. `None`: it is the program that runs.
fn judge(machine: &Machine<'_>, wanted: &Wanted<'_>) -> anyhow::Result<Option<Judged>> {
    settled(machine.data_dir())?;
    let head = place::head(wanted.file)?;
    if let Err(why) = probe::same_machine(&place::head(&machine.place)?, &head) {
        bail!("{}: {why}", wanted.file.display());
    }
    let size = std::fs::metadata(wanted.file)?.len();
    room(&machine.place, size)?;
    let sha256 = place::stage(wanted.file, &machine.place)?;
    wanted.has_sum(&sha256)?;
    let runs = place::sum(&machine.place)?;
    if runs == sha256 {
        return Ok(None);
    }
    let ask = |path: &Path| probe::ask(path, machine.role, &machine.config_file);
    let from = Program {
        told: ask(&machine.place)?,
        sha256: runs,
    };
    let to = Program {
        told: ask(&beside(&machine.place, NEXT))?,
        sha256,
    };
    records(&from.told, &to.told)?;
    ensure!(
        machine.service()?.runs(),
        "the service doesn't run: start it, so that it can be seen what the new program changes"
    );
    let seen = block_on(Cluster::new(machine.role, &machine.config).look())
        .context("the cluster isn't well, and an upgrade wouldn't mend it")?;
    let server = match wanted.ahead {
        true => &to.told.kubernetes,
        false => &seen.server,
    };
    skew::judge(machine.role, &from.told, &to.told, server, &seen.others)?;
    if let (Role::Server, Choice::Embedded(store)) = (machine.role, &machine.config.store) {
        room(&machine.config.snapshots.directory, bytes(store))?;
    }
    let snapshot = match wanted.dry_run {
        true => None,
        false => snapshot_of(machine)?,
    };
    Ok(Some(Judged {
        from,
        to,
        seen,
        snapshot,
    }))
}

/// An upgrade that nobody has ended stands in the way of the next one.
pub fn settled(data_dir: &Path) -> anyhow::Result<()> {
    match Journal::read(data_dir)? {
        Some(journal) if !matches!(journal.phase, Phase::Confirmed | Phase::Returned | Phase::Abandoned) => bail!(
            "the upgrade to {} that began at {} was cut short: `keelson rollback` ends it, and so does a start of the service",
            journal.to.told.version,
            journal.began
        ),
        _ => Ok(()),
    }
}

/// What the program that runs can read the new one has to read, too.
fn records(from: &Told, to: &Told) -> anyhow::Result<()> {
    let lost: Vec<&str> = to
        .unreadable
        .iter()
        .filter(|r| !from.unreadable.contains(r))
        .map(String::as_str)
        .collect();
    ensure!(
        lost.is_empty(),
        "the new program can't read what this one has written of pods ({}): they would be ended",
        lost.join(", ")
    );
    Ok(())
}

fn room(place: &Path, bytes: u64) -> anyhow::Result<()> {
    let (free, wanted) = (place::free(place)?, bytes + RESERVE);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    ensure!(
        free >= wanted,
        "{} MiB are free where {} is, and {} are needed",
        mib(free),
        place.display(),
        mib(wanted)
    );
    Ok(())
}

/// Of the files in a directory, which has no directories of ours that matter below the second level.
fn bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

fn snapshot_of(machine: &Machine<'_>) -> anyhow::Result<Option<PathBuf>> {
    if machine.role != Role::Server {
        return Ok(None);
    }
    let taken =
        block_on(snapshot::ask(&machine.config.kubeconfig)).context("a snapshot of the store, to be taken before")?;
    Ok(Some(taken.path))
}

/// Nobody's keyboard, and no connection that ends, leaves a machine between two programs. What waits here is bounded.
///
/// Signals are taken, not blocked: what is blocked here stays so in what is started from here, which under OpenRC is the service itself.
/// Once taken they are for as long as the process lasts.
fn uninterrupted() -> anyhow::Result<()> {
    block_on(async {
        for kind in [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ] {
            drop(signal(kind).context("signals")?);
        }
        Ok(())
    })
}

/// Has the service's manager do it, which hands the sockets on, and waits until all is as it was; an error says what isn't.
fn ask_for(machine: &Machine<'_>, verb: &str, before: Option<&Seen>, timeout: Duration) -> anyhow::Result<()> {
    let (began, until) = (Timestamp::now(), Instant::now() + timeout);
    let service = machine.service()?;
    machine.host.done(&service.command(verb))?;
    service.wait(&machine.config.kubeconfig, timeout)?;
    let Some(before) = before else { return Ok(()) };
    let cluster = Cluster::new(machine.role, &machine.config);
    loop {
        match block_on(cluster.is_back(before, began)) {
            Err(error) if Instant::now() > until => {
                return Err(error.context(format!("not well after {}s", timeout.as_secs())));
            }
            Err(_) => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
}

/// Brings the old program back, from wherever the journal stands.
fn back(machine: &Machine<'_>, journal: &mut Journal, seen: Option<&Seen>, timeout: Duration) -> anyhow::Result<()> {
    let data_dir = machine.data_dir();
    journal.look_at_store(data_dir)?;
    let (placed, way_back) = place::look(journal)?;
    let steps = match (journal.phase, placed) {
        // Told by a person, so what was confirmed goes back, too.
        (Phase::Confirmed, Placed::New) if way_back => steps::back(journal.store_changes),
        (phase, placed) => steps::at_start(phase, placed, way_back, journal.store_changes, false),
    };
    ensure!(
        !steps.is_empty(),
        "the program before isn't at {} any more, or another one has been put in this one's place",
        beside(&journal.place, PREVIOUS).display()
    );
    let (exchanges, restores) = (steps.contains(&Step::PutOld), steps.contains(&Step::RestoreStore));
    if restores {
        let snapshot = journal.snapshot.as_deref().filter(|file| file.exists());
        ensure!(
            snapshot.is_some(),
            "the snapshot that the store would go back to ({}) isn't there any more",
            journal
                .snapshot
                .as_deref()
                .unwrap_or(Path::new("none was taken"))
                .display()
        );
        machine.host.done(&machine.service()?.command("stop"))?;
        crate::lock::Lock::wait(data_dir, Duration::from_secs(90))?;
    }
    for step in steps {
        place::take(step, journal, data_dir)?;
    }
    if !exchanges {
        // It runs, as it did.
        return Ok(());
    }
    ask_for(machine, if restores { "start" } else { "restart" }, seen, timeout)?;
    machine.note_version(&journal.from.told.version)
}

/// By command, for whatever reason.
pub fn rollback(machine: &Machine<'_>, lose_writes: bool, timeout: Duration) -> anyhow::Result<String> {
    let _attended = Attended::alone(machine.data_dir())?;
    let Some(mut journal) = Journal::read(machine.data_dir())? else {
        bail!("nothing was upgraded here, so there is nothing to go back to");
    };
    let (was, is) = (journal.from.told.version.clone(), journal.to.told.version.clone());
    match journal.phase {
        Phase::Returned | Phase::Abandoned => bail!("{was} runs already: the upgrade to {is} was taken back"),
        Phase::Unknown => bail!("a later version has written the journal: go back with that program"),
        Phase::Begun | Phase::Trial | Phase::Confirmed | Phase::Returning => {}
    }
    journal.look_at_store(machine.data_dir())?;
    if journal.store_changes && !lose_writes {
        bail!(
            "{was} can't read what {is} has made of the store: with --lose-writes the store goes back to the snapshot of {}, and what was \
             written since is lost",
            journal.began
        );
    }
    // An ill cluster is a reason to go back.
    let seen = block_on(Cluster::new(machine.role, &machine.config).look());
    uninterrupted()?;
    journal.why = Some("keelson rollback".into());
    back(machine, &mut journal, seen.as_ref().ok(), timeout)?;
    Ok(match seen {
        Ok(seen) => format!(
            "keelson {was} runs again; {} containers went on running",
            seen.containers.len()
        ),
        Err(error) => format!("keelson {was} runs again. Before, the cluster wasn't well: {error:#}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_would_end_pods_is_refused() {
        let told = |unreadable: &[&str]| Told {
            unreadable: unreadable.iter().map(|r| (*r).to_owned()).collect(),
            ..Told::default()
        };
        // What was torn before is nobody's fault.
        assert!(records(&told(&["a"]), &told(&["a"])).is_ok());
        assert!(records(&told(&["a", "b"]), &told(&[])).is_ok());
        let refused = records(&told(&["a"]), &told(&["a", "c"])).unwrap_err().to_string();
        assert!(refused.contains("(c)"), "{refused}");
    }

    #[test]
    fn nothing_interrupts_it_and_what_it_starts_can_be_ended() {
        use nix::sys::signal::{Signal, raise};
        use std::os::unix::process::ExitStatusExt;
        uninterrupted().unwrap();
        raise(Signal::SIGTERM).unwrap();
        let started = std::process::Command::new("/bin/sh")
            .args(["-c", "kill -TERM $$; exit 0"])
            .status()
            .unwrap();
        assert_eq!(started.signal(), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn room_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b"), [0; 100]).unwrap();
        std::fs::write(dir.path().join("c"), [0; 10]).unwrap();
        assert_eq!(bytes(dir.path()), 110);
        assert!(room(&dir.path().join("not/there/yet"), 0).is_ok());
        assert!(
            room(dir.path(), 1 << 60)
                .unwrap_err()
                .to_string()
                .contains("are needed")
        );
    }
}
