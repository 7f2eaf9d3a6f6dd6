//! Where archives are kept: a directory of this machine, or a bucket of a server that speaks S3.
//!
//! Names are plain segments with slashes between. Invariant: what has a name is there whole; what was cut short has none. A place knows
//! nothing of what it keeps.

pub mod directory;
pub mod s3;

use async_trait::async_trait;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{place} can't be reached: {why}")]
    Unreachable { place: String, why: String },
    #[error("{place} doesn't let us: {why}")]
    Denied { place: String, why: String },
    #[error("{place}: {why}")]
    Failed { place: String, why: String },
    #[error("{0}")]
    Wrong(String),
}

pub type Result<T, E = Trouble> = std::result::Result<T, E>;

/// Something that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub name: String,
    pub bytes: u64,
}

#[async_trait]
pub trait Place: Send + Sync {
    /// As people write it.
    fn told(&self) -> &str;
    /// Keeps something under a name, in the place of what had it.
    async fn put(&self, name: &str, bytes: Bytes) -> Result<()>;
    async fn put_file(&self, name: &str, from: &Path) -> Result<()>;
    /// `None`: there is none. More than `most` bytes are refused.
    async fn get(&self, name: &str, most: u64) -> Result<Option<Bytes>>;
    /// Into a file that isn't there yet, its owner's; there is none after an error. False: there is none of that name. More than `most` bytes
    /// are refused.
    async fn get_file(&self, name: &str, to: &Path, most: u64) -> Result<bool>;
    /// What is kept under names that begin so: all of a segment, and a slash. By name.
    async fn list(&self, below: &str) -> Result<Vec<Object>>;
    /// One that isn't there is removed.
    async fn remove(&self, name: &str) -> Result<()>;
    /// Removes what was cut short below a segment. Whoever is at it still gets an error: only for who knows that nobody else writes there.
    async fn tidy(&self, below: &str) -> Result<()>;
}

/// Whether this means a bucket, and not a directory.
pub fn is_bucket(text: &str) -> bool {
    text.starts_with(s3::SCHEME)
}

/// `s3://BUCKET/PREFIX`, or the path of a directory, which is made when something is put there.
///
/// # Errors
///
/// If it can't be such a place, or the settings of S3 are no good.
pub fn open(text: &str, settings: &s3::Settings) -> Result<Arc<dyn Place>> {
    if is_bucket(text) {
        return Ok(Arc::new(s3::S3::open(text, settings)?));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(Trouble::Wrong(format!(
            "{text}: {scheme}:// isn't known; a place is a directory, or s3://BUCKET/PREFIX"
        )));
    }
    Ok(Arc::new(directory::Directory::new(PathBuf::from(text))))
}

/// Whether a name is made of plain segments: no place is left by it.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= 512
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && part.chars().all(plain))
}

fn named(name: &str) -> Result<()> {
    match is_name(name) {
        true => Ok(()),
        false => Err(Trouble::Wrong(format!(
            "{name:?} is no name that something is kept under"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for (name, sound) in [
            ("chunks/ab/abcd", true),
            ("scheduled-20260301T120003Z.db", true),
            ("", false),
            ("/etc/passwd", false),
            ("a//b", false),
            ("a/../b", false),
            ("./a", false),
            ("a/", false),
            ("a b", false),
            ("a\0", false),
        ] {
            assert_eq!(is_name(name), sound, "{name:?}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let open = |text| open(text, &s3::Settings::default()).map(|place| place.told().to_string());
        assert_eq!(open("/var/backups").ok().as_deref(), Some("/var/backups"));
        assert!(open("gs://bucket").unwrap_err().to_string().contains("gs://"));
    }
}
