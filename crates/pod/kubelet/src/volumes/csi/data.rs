//! `vol_data.json`: what has to be known of a volume to give it back, written before a driver is asked to make it, in
//! upstream's words.

use super::paths::DATA;
use crate::host::Host;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeData {
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    pub attachment: String,
    #[serde(rename = "driverName")]
    pub driver: String,
    #[serde(rename = "nodeName", skip_serializing_if = "String::is_empty")]
    pub node: String,
    #[serde(rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "volumeHandle")]
    pub handle: String,
    /// `Persistent` or `Ephemeral`.
    #[serde(rename = "volumeLifecycleMode", skip_serializing_if = "String::is_empty")]
    pub lifecycle: String,
    /// Not empty: staged at most, the driver wasn't asked to publish it yet. Not upstream's: it asks for what never was to be undone.
    #[serde(rename = "keelson.dev/unpublished", skip_serializing_if = "String::is_empty")]
    pub unpublished: String,
}

/// More than any driver's handle needs.
const LONGEST: u64 = 64 << 10;

impl VolumeData {
    /// Whether the volume lives longer than the pod.
    pub fn is_persistent(&self) -> bool {
        self.lifecycle != "Ephemeral"
    }

    pub fn is_published(&self) -> bool {
        self.unpublished.is_empty()
    }

    pub fn save(&self, host: &dyn Host, dir: &Path) -> io::Result<()> {
        host.make_dir(dir, 0o750)?;
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        host.write(&dir.join(DATA), &text, 0o600)
    }

    /// `None` where none were written.
    pub fn load(host: &dyn Host, dir: &Path) -> io::Result<Option<VolumeData>> {
        let path = dir.join(DATA);
        match host.read(&path, LONGEST) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))),
        }
    }

    /// Removes them, and the directory if nothing else is in it.
    pub fn remove(host: &dyn Host, dir: &Path) -> io::Result<()> {
        host.remove_file(&dir.join(DATA))?;
        host.remove_dir(dir)
    }
}
