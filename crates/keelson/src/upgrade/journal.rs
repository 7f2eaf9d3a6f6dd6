//! What was begun, from which program to which, and how far it has come: one file, which is on disk before the next step is taken.

use super::probe::Told;
use super::steps::Phase;
use anyhow::{Context, bail};
use jiff::Timestamp;
use keelson_pki::files;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "journal.json";

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Program {
    pub told: Told,
    pub sha256: String,
}

/// Fields are added and never change their meaning: who comes back reads what the newer one wrote.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Journal {
    pub phase: Phase,
    pub from: Program,
    pub to: Program,
    /// Where the program is.
    pub place: PathBuf,
    /// Taken before, where there is a store here.
    #[serde(default)]
    pub snapshot: Option<PathBuf>,
    /// Whether the old program can't read what the new one makes of the store.
    #[serde(default)]
    pub store_changes: bool,
    pub began: Timestamp,
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// Why it was given up.
    #[serde(default)]
    pub why: Option<String>,
}

/// Where an upgrade's files are.
pub fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("upgrade")
}

impl Journal {
    /// `None`: nothing was ever begun here.
    pub fn read(data_dir: &Path) -> anyhow::Result<Option<Journal>> {
        let path = directory(data_dir).join(NAME);
        let text = files::read(&path)?;
        text.map(|text| serde_json::from_str(&text).with_context(|| format!("{} can't be read", path.display())))
            .transpose()
    }

    /// Notes it if the store that is here has become one that the old program can't read: what is written decides, not the program.
    pub fn look_at_store(&mut self, data_dir: &Path) -> anyhow::Result<()> {
        let store = data_dir.join("store");
        if !self.store_changes && store.is_dir() {
            self.store_changes = !self.from.told.can_read(&keelson_store::embedded::kept_as(&store)?);
        }
        Ok(())
    }

    pub fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        files::write_secret(&directory(data_dir).join(NAME), &serde_json::to_vec_pretty(self)?)
    }
}

const ATTEMPTS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(20);

/// Held by who upgrades, for as long as he looks after it.
pub struct Attended {
    _file: File,
}

impl Attended {
    /// `None`: somebody else does.
    pub fn begin(data_dir: &Path) -> anyhow::Result<Option<Attended>> {
        let directory = directory(data_dir);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let path = directory.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        for attempt in 0..ATTEMPTS {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Attended { _file: file })),
                // Who only looks whether somebody does is gone at once.
                Err(TryLockError::WouldBlock) if attempt + 1 < ATTEMPTS => std::thread::sleep(BETWEEN),
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        Ok(None)
    }

    /// Whether somebody does. Nothing is made for that, and whoever begins meanwhile is not kept from it.
    pub fn is_held(data_dir: &Path) -> anyhow::Result<bool> {
        let path = directory(data_dir).join("lock");
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            file => file.with_context(|| format!("cannot open {}", path.display()))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    pub fn alone(data_dir: &Path) -> anyhow::Result<Attended> {
        match Attended::begin(data_dir)? {
            Some(attended) => Ok(attended),
            None => bail!("another upgrade of this machine is under way (keelson upgrade status)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first release that had one wrote it, and with what a later one might add.
    const FIRST: &str = r#"{"phase": "trial", "from": {"told": {"version": "0.1.0", "kubernetes": "1.37.2", "store": "keelson-store-1"},
        "sha256": "aa"}, "to": {"told": {"version": "0.2.0", "kubernetes": "1.37.2", "store": "keelson-store-1", "mood": "good"},
        "sha256": "bb"}, "place": "/usr/local/bin/keelson", "began": "2026-11-29T17:00:00Z", "of_a_later_version": {"any": "thing"}}"#;

    #[test]
    fn an_older_and_a_newer_journal_is_read() {
        let read: Journal = serde_json::from_str(FIRST).unwrap();
        assert_eq!(
            (read.phase, read.store_changes, read.ended),
            (Phase::Trial, false, None)
        );
        assert_eq!(read.to.told.version, "0.2.0");
        let later: Journal = serde_json::from_str(&FIRST.replace("trial", "resting")).unwrap();
        assert_eq!(later.phase, Phase::Unknown);
    }

    #[test]
    fn a_store_that_became_another_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal: Journal = serde_json::from_str(FIRST).unwrap();
        let mut looked = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::create_dir_all(dir.path().join("store")).unwrap();
                std::fs::write(dir.path().join("store/format"), text).unwrap();
            }
            journal.look_at_store(dir.path()).unwrap();
            journal.store_changes
        };
        assert!(!looked(None), "no store of its own");
        assert!(!looked(Some("keelson-store-1\n")));
        assert!(looked(Some("keelson-store-2\n")));
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Attended::is_held(dir.path()).unwrap() && !dir.path().join("upgrade").exists());
        let first = Attended::alone(dir.path()).unwrap();
        assert!(Attended::is_held(dir.path()).unwrap());
        assert!(Attended::begin(dir.path()).unwrap().is_none());
        assert!(Attended::alone(dir.path()).is_err());
        drop(first);
        assert!(!Attended::is_held(dir.path()).unwrap());
        assert!(Attended::begin(dir.path()).unwrap().is_some());
        // Those who look all the time keep nobody from it.
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = Attended::is_held(dir.path()).unwrap();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
            let began: Vec<bool> = (0..50)
                .map(|_| Attended::begin(dir.path()).unwrap().is_some())
                .collect();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(began.iter().all(|began| *began));
        });
    }
}
