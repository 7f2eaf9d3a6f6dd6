//! Backups: one picture of objects, keys and this machine's volumes, in a repository ([`keelson_backup`]). The server takes the picture;
//! who makes the backup (a command, or the schedule) reads it from the disk, and clears it away.

mod back;
pub mod command;
mod create;
mod options;
pub mod picture;
mod reading;
mod restore;
pub mod schedule;
mod selection;
mod volume;

pub use options::{Scheduled, Target};

use anyhow::{Context, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    /// What another one left, that died, is cleared away.
    fn take(data_dir: &Path) -> anyhow::Result<Turn> {
        let workshop = workshop(data_dir);
        prepare(&workshop)?;
        let path = workshop.join("lock");
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
            if entry.file_type()?.is_dir() {
                let path = entry.path();
                std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
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
