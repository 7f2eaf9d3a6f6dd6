//! What a server remembers of the datastore that it has joined or begun: `datastore.json` in its data directory. By that it finds
//! the others at its next start, without being told.

use anyhow::Context;
use keelson_pki::files;
use serde::{Deserialize, Serialize};
use std::path::Path;

const FILE: &str = "datastore.json";

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Remembered {
    pub etcd_servers: Vec<String>,
    pub etcd_prefix: String,
    /// The name of the member that runs beside this server, if servers run etcd themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

impl Remembered {
    pub fn read(data_dir: &Path) -> anyhow::Result<Option<Remembered>> {
        let file = data_dir.join(FILE);
        let text = files::read(&file)?;
        let known = text.map(|text| serde_json::from_str(&text).with_context(|| format!("reading {}", file.display())));
        known.transpose()
    }

    pub fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        if Remembered::read(data_dir)?.as_ref() == Some(self) {
            return Ok(());
        }
        files::write_public(&data_dir.join(FILE), &serde_json::to_vec(self)?)
    }

    pub fn forget(data_dir: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(data_dir.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
