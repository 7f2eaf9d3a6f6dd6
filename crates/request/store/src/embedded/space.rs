//! Free space on the file system, looked at before every commit.

use super::{Options, Shared};
use crate::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// How many bytes this process may still write where `path` is.
#[derive(Clone)]
pub struct FreeSpace(pub Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>);

impl Default for FreeSpace {
    fn default() -> Self {
        FreeSpace(Arc::new(|path| {
            let stat = nix::sys::statvfs::statvfs(path)?;
            Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
        }))
    }
}

/// What the free space allows.
pub(super) struct Room {
    puts: Option<Error>,
    deletions: Option<Error>,
}

impl Room {
    /// Of what puts, or only deletes.
    pub(super) fn refusal(&self, puts: bool) -> Option<Error> {
        match puts {
            true => self.puts.clone(),
            false => self.deletions.clone(),
        }
    }
}

impl Shared {
    /// For a commit of `bytes`.
    pub(super) fn room(&self, bytes: u64) -> Room {
        let reserve = self.options.reserve_bytes;
        let free = free(&self.options, &self.path);
        let refusal = |needed| lacking(&self.options, &self.path, free, needed);
        Room {
            puts: refusal(reserve.saturating_add(bytes)),
            deletions: refusal(reserve / 4),
        }
    }

    /// Unless so much is free where a path is.
    pub(super) fn refusal(&self, path: &Path, needed: u64) -> Option<Error> {
        refusal(&self.options, path, needed)
    }
}

/// Unless so much is free where a path is.
pub(crate) fn refusal(options: &Options, path: &Path, needed: u64) -> Option<Error> {
    lacking(options, path, free(options, path), needed)
}

fn free(options: &Options, path: &Path) -> u64 {
    (options.free_space.0)(path).unwrap_or_else(|error| {
        tracing::warn!(%error, "the free space can't be told");
        u64::MAX
    })
}

fn lacking(options: &Options, path: &Path, free: u64, needed: u64) -> Option<Error> {
    (free < needed).then(|| Error::NoSpace {
        path: path.into(),
        what: format!(
            "{} MiB are free on its file system, {} MiB have to stay free. Free some space there",
            free >> 20,
            options.reserve_bytes >> 20
        ),
    })
}
