//! Programs that came in pieces, by their sums: on a server for all machines, on others for themselves. One at a time; it is there under
//! its sum only when it is whole and has that sum.

use super::super::place::{LARGEST, free, sum};
use anyhow::{Context, ensure};
use bytes::Bytes;
use keelson_apiserver::upgrades::{PIECE, is_sum};
use parking_lot::Mutex;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BEGUN: &str = ".part";
/// What is left free beside it.
const RESERVE: u64 = 64 << 20;

#[derive(Clone)]
pub struct Programs {
    directory: PathBuf,
    /// Who writes.
    writes: Arc<Mutex<()>>,
}

/// How much of one is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub bytes: u64,
    pub whole: bool,
}

impl Programs {
    pub fn new(data_dir: &Path) -> Programs {
        Programs {
            directory: super::super::journal::directory(data_dir).join("programs"),
            writes: Arc::default(),
        }
    }

    /// Where a program is, or will be.
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    fn begun(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}{BEGUN}"))
    }

    pub fn standing(&self, program: &str) -> anyhow::Result<Standing> {
        if let Some(bytes) = length(&self.path(program))? {
            return Ok(Standing { bytes, whole: true });
        }
        let bytes = length(&self.begun(program))?.unwrap_or(0);
        Ok(Standing { bytes, whole: false })
    }

    /// What follows after `at`; nothing at its end, `None` if it isn't here.
    pub fn piece(&self, program: &str, at: u64) -> anyhow::Result<Option<Bytes>> {
        let mut file = match File::open(self.path(program)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.context("reading a program")?,
        };
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        file.take(PIECE as u64).read_to_end(&mut bytes)?;
        Ok(Some(bytes.into()))
    }

    /// Takes a piece, if it goes on where the last one ended; tells how far it is now. The last one ends it, or all was in vain: an empty
    /// one, where whoever took all of it was ended before he had looked.
    pub fn take(&self, program: &str, size: u64, at: u64, piece: &[u8]) -> anyhow::Result<Standing> {
        let _alone = self.writes.lock();
        ensure!(is_sum(program), "a program is named by its sum");
        ensure!((1..=LARGEST).contains(&size), "no program of ours has {size} bytes");
        let standing = self.standing(program)?;
        if standing.whole || standing.bytes != at {
            return Ok(standing);
        }
        let bytes = at + piece.len() as u64;
        ensure!(bytes <= size, "it is larger than was said");
        if at == 0 {
            self.keep_only(None)?;
            fs::create_dir_all(&self.directory)
                .with_context(|| format!("cannot create {}", self.directory.display()))?;
            let room = free(&self.directory)?;
            ensure!(
                room >= size + RESERVE,
                "{} MiB are free in {}, and {} are needed",
                room >> 20,
                self.directory.display(),
                (size + RESERVE) >> 20
            );
        }
        let begun = self.begun(program);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&begun)?;
        file.write_all(piece)?;
        if bytes < size {
            return Ok(Standing { bytes, whole: false });
        }
        file.sync_all()?;
        if sum(&begun)? != program {
            fs::remove_file(&begun)?;
            anyhow::bail!("what came isn't the program of that sum");
        }
        fs::rename(&begun, self.path(program))?;
        File::open(&self.directory)?.sync_all()?;
        self.keep_only(Some(program))?;
        Ok(Standing { bytes, whole: true })
    }

    /// All others go.
    pub fn forget(&self) -> anyhow::Result<()> {
        let _alone = self.writes.lock();
        self.keep_only(None)
    }

    fn keep_only(&self, kept: Option<&str>) -> anyhow::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if kept.is_none_or(|kept| entry.file_name() != kept) {
                fs::remove_file(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(())
    }
}

fn length(path: &Path) -> anyhow::Result<Option<u64>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        meta => Ok(Some(meta.with_context(|| path.display().to_string())?.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn named(bytes: &[u8]) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    #[test]
    fn it_comes_in_pieces_and_is_there_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::new(dir.path());
        let bytes = vec![7; PIECE + 10];
        let program = named(&bytes);
        let size = bytes.len() as u64;
        assert_eq!(
            programs.standing(&program).unwrap(),
            Standing { bytes: 0, whole: false }
        );
        programs.take(&program, size, 0, &bytes[..PIECE]).unwrap();
        assert!(programs.piece(&program, 0).unwrap().is_none(), "not before it is whole");
        // Brought twice, or out of turn: what is so is told.
        for at in [0, 5] {
            let told = programs.take(&program, size, at, b"x").unwrap();
            assert_eq!(
                told,
                Standing {
                    bytes: PIECE as u64,
                    whole: false
                }
            );
        }
        // Who comes later finds what there is.
        let programs = Programs::new(dir.path());
        let told = programs.take(&program, size, PIECE as u64, &bytes[PIECE..]).unwrap();
        assert_eq!(
            told,
            Standing {
                bytes: size,
                whole: true
            }
        );
        assert_eq!(programs.piece(&program, 0).unwrap().unwrap().len(), PIECE);
        assert_eq!(programs.piece(&program, PIECE as u64).unwrap().unwrap().len(), 10);
        assert!(programs.piece(&program, size + 99).unwrap().unwrap().is_empty());
        // The next takes its place; who takes it is ended before he has looked whether it is the one.
        let other = named(b"other");
        programs.take(&other, 5, 0, b"oth").unwrap();
        fs::write(programs.begun(&other), b"other").unwrap();
        assert!(!programs.standing(&other).unwrap().whole);
        assert!(programs.take(&other, 5, 5, b"").unwrap().whole);
        assert!(programs.piece(&program, 0).unwrap().is_none());
        programs.forget().unwrap();
        assert!(programs.piece(&other, 0).unwrap().is_none());
    }

    #[test]
    fn what_has_another_sum_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::new(dir.path());
        let program = named(b"good");
        let error = programs.take(&program, 4, 0, b"evil").unwrap_err().to_string();
        assert!(error.contains("isn't the program of that sum"), "{error}");
        assert_eq!(
            programs.standing(&program).unwrap(),
            Standing { bytes: 0, whole: false }
        );
        assert!(programs.take(&program, 4, 0, b"goods").is_err(), "larger than was said");
        assert!(programs.take(&program, LARGEST + 1, 0, b"g").is_err());
        assert!(programs.take(&program, 0, 0, b"").is_err());
        for name in ["../../x", "", &"g".repeat(64)] {
            assert!(programs.take(name, 4, 0, b"good").is_err(), "{name}");
        }
    }
}
