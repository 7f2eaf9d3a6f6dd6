//! Backups: one picture of objects, keys and this machine's volumes, in a repository ([`keelson_backup`]). The server takes the picture;
//! who makes the backup (a command, or the schedule) reads it from the disk, and clears it away.

pub mod back;
pub mod command;
mod create;
mod options;
pub mod picture;
mod reading;
mod restore;
pub mod schedule;
pub mod selection;
pub mod volume;

pub use options::{Scheduled, Target};

use anyhow::{Context, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";

/// Below the data directory: pictures, and who is at it.
fn workshop(data_dir: &Path) -> PathBuf {
    data_dir.join("backup")
}

/// Where volumes of a node's own disk are.
fn pool(data_dir: &Path) -> PathBuf {
    data_dir.join("volumes")
}

/// One backup of a machine at a time.
struct Turn {
    _file: File,
    workshop: PathBuf,
}

impl Turn {
    /// What another one left, that died, is cleared away: it is as secret as the cluster.
    fn take(data_dir: &Path) -> anyhow::Result<Turn> {
        let workshop = workshop(data_dir);
        prepare(&workshop)?;
        let path = workshop.join(LOCK);
        let mut open = OpenOptions::new();
        let file = open.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another backup of {} is being made", data_dir.display()),
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        let turn = Turn { _file: file, workshop };
        turn.clear()?;
        Ok(turn)
    }

    /// An empty one, that is cleared away with the turn.
    fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.workshop.join(name);
        prepare(&directory)?;
        Ok(directory)
    }

    fn clear(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.workshop)? {
            let entry = entry?;
            let path = entry.path();
            let removed = match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false if entry.file_name() == LOCK => Ok(()),
                false => std::fs::remove_file(&path),
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(
                error = format!("{error:#}"),
                "a picture for a backup stays until the next one"
            );
        }
    }
}

/// What is in it is as secret as the cluster.
fn prepare(directory: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("cannot create {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_that_died_left_is_cleared_away_and_one_works_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let left = |name: &str| workshop(dir.path()).join(name);
        std::fs::create_dir_all(left("picture-1/volumes")).unwrap();
        std::fs::write(left("store.db"), "secret").unwrap();
        let turn = Turn::take(dir.path()).unwrap();
        assert!(!left("picture-1").exists() && !left("store.db").exists());
        assert!(Turn::take(dir.path()).is_err());
        std::fs::write(left("store.db"), "secret").unwrap();
        drop(turn);
        assert!(!left("store.db").exists());
        assert!(Turn::take(dir.path()).is_ok());
    }
}
