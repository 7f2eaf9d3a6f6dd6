//! The engine's failures in the store's words, each with what to do about it.

use crate::Error;
use std::io::ErrorKind;
use std::path::Path;

pub(super) fn engine(path: &Path, error: fjall::Error) -> Error {
    match error {
        fjall::Error::Io(e) => io(path, &e),
        fjall::Error::Storage(fjall::LsmError::Io(e)) => io(path, &e),
        fjall::Error::Poisoned => Error::Unavailable {
            what: "an earlier write to the disk failed".into(),
        },
        fjall::Error::Locked => Error::Locked {
            path: path.into(),
            fix: super::owner::locked_fix(path),
        },
        fjall::Error::InvalidVersion(version) => {
            corrupt(path, format!("its format is {version:?}, this program's is 3"))
        }
        other => corrupt(path, other.to_string()),
    }
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::NoSpace {
            path: path.into(),
            what: format!("{error}. Free some space on its file system"),
        },
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::Denied {
            path: path.into(),
            what: error.to_string(),
            fix: "Run as the user who owns it, give it to this user (chown -R), or name another --data-dir".into(),
        },
        // A file that ends too early, or says what it can't mean.
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData => corrupt(path, error.to_string()),
        _ => Error::Unavailable {
            what: format!("{}: {error}", path.display()),
        },
    }
}

pub(super) fn corrupt(path: &Path, what: impl Into<String>) -> Error {
    let shown = path.display();
    Error::Corrupt {
        path: path.into(),
        what: what.into(),
        fix: format!(
            "Restore {shown} from a backup. Without one, move it away (mv {shown} {shown}.broken): \
             the next start makes an empty store, and what the cluster held is lost"
        ),
    }
}
