//! The newest acknowledged revision, kept beside the engine's files.
//!
//! A journal that ends too early reads like one whose last write was cut short by a kill: the engine can't tell whether what
//! is missing had been acknowledged. This mark can. It is written after each commit and before its answers, without a sync of
//! its own: a kill loses nothing of it, and after a power failure it is at most older than the journal, never newer.
//!
//! While something is being written the mark says so: whoever opens the store then knows that what it reads at the journal's end
//! may be in memory only, be it that the sync failed or that nobody was left to see how it went.

use super::fault;
use crate::{Error, Result, Revision};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const NAME: &str = "acknowledged";
/// As many digits as the largest revision has.
const DIGITS: usize = 20;
/// What follows the digits.
const SYNCED: u8 = b'\n';
const IN_DOUBT: u8 = b'!';

pub(super) struct Mark {
    path: PathBuf,
    file: File,
    has_failed: AtomicBool,
}

/// Whether the last sync is not known to have succeeded.
pub(super) fn is_in_doubt(store: &Path) -> Result<bool> {
    match std::fs::read(store.join(NAME)) {
        Ok(text) => Ok(text.get(DIGITS) == Some(&IN_DOUBT)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(fault::io(store, &e)),
    }
}

impl Mark {
    /// Fails when the store, which stands at `revision`, lacks something that was acknowledged.
    pub(super) fn open(store: &Path, revision: Revision) -> Result<Mark> {
        let path = store.join(NAME);
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|e| fault::io(store, &e))?;
        let mut text = Vec::new();
        let read = (&mut file).take(DIGITS as u64 + 1).read_to_end(&mut text);
        read.map_err(|e| fault::io(store, &e))?;
        match parse(&text) {
            Some(noted) if noted > revision => return Err(lost(store, &path, revision, noted)),
            Some(_) => {}
            None if text.is_empty() => tracing::debug!("no revision was noted as acknowledged"),
            None => {
                tracing::warn!(path = %path.display(), "what was noted as acknowledged can't be read; it is noted anew")
            }
        }
        let mark = Mark {
            path,
            file,
            has_failed: AtomicBool::new(false),
        };
        mark.set(revision);
        Ok(mark)
    }

    /// Something is about to be written.
    pub(super) fn doubt(&self) {
        self.write(&[IN_DOUBT], DIGITS as u64);
    }

    /// Everything up to `revision` is on disk, and nothing else was written.
    pub(super) fn set(&self, revision: Revision) {
        let mut line = format!("{revision:0DIGITS$}").into_bytes();
        line.push(SYNCED);
        self.write(&line, 0);
    }

    /// A mark that can't be written stays behind, and notices less: no reason to refuse what is on disk.
    fn write(&self, text: &[u8], at: u64) {
        if let Err(error) = self.file.write_all_at(text, at)
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(path = %self.path.display(), %error, "what was acknowledged couldn't be noted");
        }
    }
}

fn parse(text: &[u8]) -> Option<Revision> {
    let digits = std::str::from_utf8(text)
        .ok()?
        .strip_suffix([char::from(SYNCED), char::from(IN_DOUBT)])?;
    (digits.len() == DIGITS).then(|| digits.parse().ok())?
}

fn lost(store: &Path, mark: &Path, revision: Revision, noted: Revision) -> Error {
    let what =
        format!("it stands at revision {revision}, but {noted} was acknowledged: its journal is damaged or incomplete");
    let mut error = fault::corrupt(store, what);
    if let Error::Corrupt { fix, .. } = &mut error {
        fix.push_str(&format!(
            ". To go on with what is left, without the last {} changes, remove {}",
            noted - revision,
            mark.display()
        ));
    }
    error
}
