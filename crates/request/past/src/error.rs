//! What can go wrong when the past is asked for.

use crate::log::Point;
use keelson_store::Revision;
use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("history reaches back to {since} and no further")]
    TooOld { since: Point },
    #[error("revision {asked} is in the future; the store stands at {current}")]
    Future { asked: Revision, current: Revision },
    #[error("{what}")]
    Invalid { what: String },
    /// The follower is behind the store, or the store doesn't answer.
    #[error("history can't be told now: {what}")]
    Later { what: String },
    #[error("history can't be read: {path}: {what}")]
    Unreadable { path: PathBuf, what: String },
    /// What makes room helps.
    #[error("history can't be written: {path}: there is no room on the disk")]
    Full { path: PathBuf },
}

impl Error {
    pub(crate) fn at(path: &Path, what: impl ToString) -> Error {
        Error::Unreadable {
            path: path.into(),
            what: what.to_string(),
        }
    }

    /// Of a write.
    pub(crate) fn written(path: &Path, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full { path: path.into() },
            _ => Error::at(path, error),
        }
    }
}

impl From<keelson_store::Error> for Error {
    fn from(error: keelson_store::Error) -> Error {
        Error::Later {
            what: error.to_string(),
        }
    }
}
