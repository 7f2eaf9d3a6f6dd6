//! Who has the data directory, so that a second server can be told; and what a first start that was cut short left behind.

use super::fault;
use crate::{Error, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const OWNER: &str = "owner";
/// The engine's own files.
const VERSION: &str = "version";
const LOCK: &str = "lock";
const TABLES: &str = "keyspaces";

/// Makes the directory ready to be opened: it is a store, or becomes one, or belongs to someone else.
pub(super) fn prepare(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| fault::io(path, &e))?;
    tighten(path).map_err(|e| fault::io(path, &e))?;
    let has = |name: &str| path.join(name).exists();
    let version_is_written = fs::metadata(path.join(VERSION)).is_ok_and(|m| m.len() > 0);
    if version_is_written {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|e| fault::io(path, &e))?;
    let is_empty = entries.count() == 0;
    if is_empty {
        return Ok(());
    }
    if !has(LOCK) {
        return Err(fault::corrupt(
            path,
            "the directory isn't empty, and there is no store in it",
        ));
    }
    let tables_are_empty = fs::read_dir(path.join(TABLES)).map_or(true, |mut dir| dir.next().is_none());
    if !tables_are_empty {
        return Err(fault::corrupt(path, "its version file is missing"));
    }
    sweep(path)
}

/// What is in it is for nobody else: objects are kept as clients said them. Somebody else's directory (a volume's) stays as it is.
fn tighten(path: &Path) -> std::io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7700)) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), "others may look into the store's directory, which isn't this user's");
            Ok(())
        }
        done => done,
    }
}

/// The first start was cut short before anything could be written: begin again.
fn sweep(path: &Path) -> Result<()> {
    with_lock(path, || {
        for name in [VERSION, "0.jnl"] {
            match fs::remove_file(path.join(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fault::io(path, &e)),
                _ => {}
            }
        }
        Ok(())
    })
}

/// Changes the engine's files while the engine isn't open, neither here nor elsewhere.
pub(super) fn with_lock(path: &Path, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let lock = fs::OpenOptions::new()
        .write(true)
        .open(path.join(LOCK))
        .map_err(|e| fault::io(path, &e))?;
    if lock.try_lock().is_err() {
        return Err(Error::Locked {
            path: path.into(),
            fix: locked_fix(path),
        });
    }
    change()
}

/// The lock is held: says by whom.
pub(super) fn claim(path: &Path) {
    if let Err(error) = fs::write(path.join(OWNER), std::process::id().to_string()) {
        tracing::debug!(%error, "the owner of the store couldn't be noted");
    }
}

pub(super) fn locked_fix(path: &Path) -> String {
    let who = match fs::read_to_string(path.join(OWNER)) {
        Ok(pid) => format!("process {}", pid.trim()),
        Err(_) => "the other process".into(),
    };
    format!("stop {who}, or give this one a --data-dir of its own")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_closed_to_others_and_no_more_than_that() {
        let directory = tempfile::tempdir().unwrap();
        for (had, has) in [(0o755, 0o700), (0o1770, 0o1700), (0o1700, 0o1700), (0o500, 0o500)] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(had)).unwrap();
            tighten(directory.path()).unwrap();
            let mode = fs::metadata(directory.path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, has, "{had:o}");
        }
    }
}
