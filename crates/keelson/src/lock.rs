//! One server a data directory: a lock that the kernel gives back when the process ends, however it ends.

use anyhow::{Context, bail};
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Held for as long as the server runs.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

pub const NAME: &str = "server.pid";

impl Lock {
    pub fn take(data_dir: &Path) -> anyhow::Result<Lock> {
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot create the data directory {}", data_dir.display()))?;
        let path = data_dir.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot write in the data directory {}", data_dir.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                bail!(
                    "the data directory {} is in use by process {}: stop that server, or give another --data-dir",
                    data_dir.display(),
                    pid.trim()
                );
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", std::process::id())?;
        Ok(Lock { _file: file })
    }
}

impl Lock {
    /// Whether a process holds the directory.
    pub fn is_held(data_dir: &Path) -> anyhow::Result<bool> {
        let path = data_dir.join(NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).with_context(|| format!("cannot read the lock {}", path.display())),
        };
        match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot read the lock {}", path.display())),
        }
    }

    /// The process that holds the directory, if any does, by its number here. A holder in another PID namespace wrote the number that it has
    /// there, by which another process is known here: a number counts only if that process has the lock.
    pub fn holder(data_dir: &Path) -> anyhow::Result<Option<i32>> {
        if !Self::is_held(data_dir)? {
            return Ok(None);
        }
        let path = data_dir.join(NAME);
        let lock = std::fs::metadata(&path)?;
        let written = std::fs::read_to_string(&path)?.trim().parse().ok();
        if let Some(pid) = written.filter(|pid| has_lock(*pid, &lock)) {
            return Ok(Some(pid));
        }
        let own = std::process::id().cast_signed();
        let found = processes().find(|pid| *pid != own && has_lock(*pid, &lock));
        found
            .map(Some)
            .with_context(|| format!("{} is held by a process that can't be seen from here", path.display()))
    }

    /// Waits until nobody holds the directory.
    pub fn wait(data_dir: &Path, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        while Self::is_held(data_dir)? {
            if Instant::now() > until {
                bail!(
                    "the server of {} has not stopped within {patience:?}",
                    data_dir.display()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process has the file open and locked; whoever only reads who holds it has it open, too.
fn has_lock(pid: i32, file: &Metadata) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    open.into_iter().flatten().flatten().any(|fd| {
        let is_it = std::fs::metadata(fd.path()).is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()));
        let told = || std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().display()));
        is_it
            && told().is_ok_and(|told| {
                told.lines()
                    .any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_the_directory_is_found_whatever_number_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Lock::holder(dir.path()).unwrap(), None);
        let path = dir.path().join(NAME);
        let mut held = std::process::Command::new("flock")
            .arg("--no-fork")
            .arg(&path)
            .args(["sleep", "20"])
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while !Lock::is_held(dir.path()).unwrap() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut reader = std::process::Command::new("sleep")
            .arg("20")
            .stdin(File::open(&path).unwrap())
            .spawn()
            .unwrap();
        // The first process of another namespace, there, is another here; so may be one that reads the file.
        let found = ["1".to_string(), reader.id().to_string()].map(|written| {
            std::fs::write(&path, written).unwrap();
            Lock::holder(dir.path()).unwrap()
        });
        for child in [&mut held, &mut reader] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found, [Some(held.id().cast_signed()); 2]);
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_free() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Lock::is_held(dir.path()).unwrap());
        // A link to itself.
        std::os::unix::fs::symlink(dir.path().join(NAME), dir.path().join(NAME)).unwrap();
        assert!(Lock::is_held(dir.path()).is_err());
        assert!(Lock::wait(dir.path(), Duration::ZERO).is_err());
    }

    #[test]
    fn a_second_server_is_told_who_holds_the_directory() {
        let dir = std::env::temp_dir().join(format!("keelson-lock-{}", std::process::id()));
        let first = Lock::take(&dir).unwrap();
        let second = Lock::take(&dir).unwrap_err().to_string();
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        drop(first);
        // A process that another test is about to start has it for a moment, too.
        Lock::wait(&dir, Duration::from_secs(10)).unwrap();
        Lock::take(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
