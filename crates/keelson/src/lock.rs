//! One server a data directory: a lock that the kernel gives back when the process ends, however it ends.

use anyhow::{Context, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
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
    /// The process that holds the directory, if any does.
    pub fn holder(data_dir: &Path) -> anyhow::Result<Option<i32>> {
        let path = data_dir.join(NAME);
        let Ok(mut file) = File::open(&path) else {
            return Ok(None);
        };
        match file.try_lock() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                pid.trim()
                    .parse()
                    .map(Some)
                    .with_context(|| format!("{} names no process", path.display()))
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot read the lock {}", path.display())),
        }
    }

    /// Waits until nobody holds the directory.
    pub fn wait(data_dir: &Path, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        while let Some(pid) = Self::holder(data_dir)? {
            if Instant::now() > until {
                bail!("process {pid} has not stopped within {patience:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_told_who_holds_the_directory() {
        let dir = std::env::temp_dir().join(format!("keelson-lock-{}", std::process::id()));
        let first = Lock::take(&dir).unwrap();
        let second = Lock::take(&dir).unwrap_err().to_string();
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        drop(first);
        Lock::take(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
