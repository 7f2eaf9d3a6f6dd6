//! What is known of a volume or a snapshot beside its data: one JSON file, replaced as a whole.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Where a volume's first content came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    Snapshot(String),
    Volume(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub id: String,
    /// By which it was asked for.
    pub name: String,
    pub bytes: u64,
    /// Handed out as a device; otherwise there is a file system in it.
    pub block: bool,
    /// Room is taken as it is written to, not beforehand.
    pub thin: bool,
    pub origin: Option<Origin>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub id: String,
    pub name: String,
    pub volume: String,
    pub bytes: u64,
    pub block: bool,
    /// Seconds and nanoseconds since 1970.
    pub created: (i64, i32),
}

/// None: there is no such file.
pub fn read<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A file of a directory that isn't in its place yet: what becomes of a half of it goes with the directory, whose names are the caller's
/// to sync.
pub fn first<T: Serialize>(file: &Path, value: &T) -> io::Result<()> {
    let mut open = File::create_new(file)?;
    open.write_all(&serde_json::to_vec(value)?)?;
    open.sync_all()
}

/// Afterwards the file has either what it had or all of this, whatever happens.
pub fn write<T: Serialize>(file: &Path, value: &T) -> io::Result<()> {
    let beside = file.with_extension("new");
    let mut open = File::create(&beside)?;
    open.write_all(&serde_json::to_vec(value)?)?;
    open.sync_all()?;
    std::fs::rename(&beside, file)?;
    sync_dir(file.parent().unwrap_or(file))
}

pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
