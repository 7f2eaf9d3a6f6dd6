//! A store's content in a file: what each key is at one revision, and no past. The file is a snapshot of etcd's: `etcdutl` restores
//! it, and what `etcdctl snapshot save` wrote is restored here.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `key` | revision · `_` · number within it, and `t` for a deletion | the key and its value, as etcd's API has them |
//! | `lease` | a lease's number | number, seconds to live, seconds that are left |
//! | `meta` | `scheduledCompactRev`, `finishedCompactRev` | before it the past is given up |
//!
//! Numbers are big-endian, so that they sort; the last 32 bytes of the file are the SHA-256 of those before them. A key that the API server
//! lets end by itself has a lease of its own, numbered as its revision, with the time that is left: while the file lies around, that time
//! stands still. Leases of etcd's clients begin anew with all of their time.

mod read;
mod save;

pub(crate) use read::Content;
pub(crate) use save::Saver;

use crate::{KeyValue, Revision};
use std::path::Path;

pub(crate) const KEYS: &str = "key";
const LEASES: &str = "lease";
const META: &str = "meta";
const SCHEDULED: &[u8] = b"scheduledCompactRev";
const FINISHED: &[u8] = b"finishedCompactRev";
/// What etcd's servers and tools look for, besides those that hold something.
const EMPTY: [&str; 7] = [
    "alarm",
    "auth",
    "authRoles",
    "authUsers",
    "cluster",
    "members",
    "members_removed",
];
const SUM: usize = 32;

/// One key in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kv: KeyValue,
    /// Which of its revision's changes it is.
    pub sub: u32,
    /// When the API server lets it end by itself, after so many seconds.
    pub seconds: Option<u64>,
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub revision: Revision,
    pub keys: u64,
    /// Of the file.
    pub bytes: u64,
}

/// Whether a file has to end with its sum, and be what was summed. A copy of a member's own file has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Wanted,
    Ignored,
}

/// Makes an empty file for its owner alone: never what somebody else has put there, or a link leads to.
pub(crate) fn begin(part: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::remove_file(part) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut owners = std::fs::OpenOptions::new();
    owners.write(true).create_new(true).mode(0o600).open(part)
}

/// Gives a whole file its name, for good.
pub(crate) fn name(part: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(part, to)?;
    std::fs::File::open(directory(to))?.sync_all()
}

/// Where a file is.
pub(crate) fn directory(of: &Path) -> &Path {
    let parent = of.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Reads a snapshot through, and tells what it is of. Blocks.
///
/// # Errors
///
/// [`crate::Error::Corrupt`] if the file isn't what was once written, or isn't a snapshot.
pub fn check(file: &Path, sum: Sum) -> crate::Result<Summary> {
    let content = Content::open(file, sum)?;
    content.summary()
}

/// What a snapshot's keys sum up to: a store that was made of it has the same sum ([`crate::Digest`]).
///
/// # Errors
///
/// As [`check`].
pub fn digest(file: &Path, sum: Sum) -> crate::Result<u32> {
    let mut summer = crate::digest::Summer::new();
    Content::open(file, sum)?.each(|entry| {
        summer.version(entry.sub, entry.kv);
        Ok(())
    })?;
    Ok(summer.sum())
}

#[derive(Clone, PartialEq, prost::Message)]
struct Lease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    seconds: i64,
    #[prost(int64, tag = "3")]
    left: i64,
}

/// One of a revision's changes, as a key.
pub(crate) fn place(revision: Revision, sub: u32) -> Vec<u8> {
    let mut place = revision.to_be_bytes().to_vec();
    place.push(b'_');
    place.extend(u64::from(sub).to_be_bytes());
    place
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> crate::Error {
    crate::Error::Corrupt {
        path: path.into(),
        what: what.to_string(),
        fix: "Take another snapshot".into(),
    }
}

pub(crate) fn io(path: &Path, error: &std::io::Error) -> crate::Error {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => crate::Error::NoSpace {
            path: path.into(),
            what: format!("{error}. Free some space on its file system"),
        },
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => damaged(path, error),
        _ => crate::Error::Unavailable {
            what: format!("{}: {error}", path.display()),
        },
    }
}

#[cfg(test)]
mod tests;
