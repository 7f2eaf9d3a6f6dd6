//! The newest acknowledged revision, kept beside the engine's files.
//!
//! A journal that ends too early reads like one whose last write was cut short by a kill: the engine can't tell whether what
//! is missing had been acknowledged. This mark can. It is written after each commit and before its answers, without a sync of
//! its own: a kill loses nothing of it, and after a power failure it is at most older than the journal, never newer.

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

pub(super) struct Mark {
    path: PathBuf,
    file: File,
    has_failed: AtomicBool,
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

    /// A mark that can't be written stays behind, and notices less: no reason to refuse what is on disk.
    pub(super) fn set(&self, revision: Revision) {
        let line = format!("{revision:0DIGITS$}\n");
        if let Err(error) = self.file.write_all_at(line.as_bytes(), 0)
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(path = %self.path.display(), %error, "what was acknowledged couldn't be noted");
        }
    }
}

fn parse(text: &[u8]) -> Option<Revision> {
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
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
