//! What can go wrong in a store, so that a caller can tell what to do about it.

use crate::Revision;
use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every variant is `Clone`: one failed disk write is told to all writers of its batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The API's 410: list again and watch from there.
    #[error("the revision asked for has been compacted; the oldest kept is {compact_revision}")]
    Compacted { compact_revision: Revision },
    #[error("revision {asked} is in the future; the store stands at {current}")]
    FutureRevision { asked: Revision, current: Revision },
    /// The watcher didn't take its events in time. List again and watch from there.
    #[error("the watcher was too slow: more than {bound} events waited for it")]
    SlowWatcher { bound: usize },
    /// Nothing was written. The disk, or the other side, may come back: try again later.
    #[error("the store is unavailable: {what}")]
    Unavailable { what: String },
    /// Whether it was written is unknown: the answer didn't come in time.
    #[error("the store didn't answer in time: {what}")]
    Stalled { what: String },
    /// What etcd said, in its own words. After a write it may be open whether it was written.
    #[error("{what}")]
    Answered { what: String },
    /// Nothing was written. Writes work again by themselves when there is space.
    #[error("no space left for the store at {path}: {what}")]
    NoSpace { path: PathBuf, what: String },
    /// Another process has the data directory.
    #[error("the store at {path} is in use by another process: {fix}")]
    Locked { path: PathBuf, fix: String },
    /// The file system refuses this process.
    #[error("the store at {path} can't be used: {what}. {fix}")]
    Denied { path: PathBuf, what: String, fix: String },
    /// What is on disk can't be trusted, or isn't ours.
    #[error("the store at {path} can't be read: {what}. {fix}")]
    Corrupt { path: PathBuf, what: String, fix: String },
    /// A request no store can carry out.
    #[error("{what}")]
    Invalid { what: String },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    pub fn is_compacted(&self) -> bool {
        matches!(self, Error::Compacted { .. })
    }
    /// Trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Error::Unavailable { .. } | Error::Stalled { .. } | Error::NoSpace { .. }
        )
    }
}
