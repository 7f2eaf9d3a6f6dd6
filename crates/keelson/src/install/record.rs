//! What `install` put where, kept in the data directory. `uninstall` goes by it: what isn't in it is somebody else's.

use super::given::Role;
use super::host::{Host, Manager};
use super::{openrc, unit};
use crate::config;
use anyhow::Context;
use keelson_pki::files;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub const NAME: &str = "installed.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of the program that installed last.
    pub version: String,
    pub role: Option<Role>,
    pub openrc: bool,
    /// Where the program was copied to, if it was.
    pub program: Option<PathBuf>,
    /// Every other file. Of those that people change, also what was written: to see whether they have.
    pub files: BTreeMap<PathBuf, Option<String>>,
    pub directories: BTreeSet<PathBuf>,
}

impl Record {
    /// `None`: nothing was installed for this data directory.
    pub fn read(data_dir: &Path) -> anyhow::Result<Option<Record>> {
        let path = data_dir.join(NAME);
        let text = files::read(&path)?;
        text.map(|text| serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display())))
            .transpose()
    }

    pub fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(data_dir);
        made.with_context(|| format!("cannot create {}", data_dir.display()))?;
        files::write_secret(&data_dir.join(NAME), serde_json::to_string_pretty(self)?.as_bytes())
    }

    pub fn has(&self, path: &Path) -> bool {
        self.files.contains_key(path) || self.program.as_deref() == Some(path)
    }
    pub fn text(&self, path: &Path) -> Option<&String> {
        self.files.get(path)?.as_ref()
    }

    fn manager(&self) -> Manager {
        match self.openrc {
            true => Manager::Openrc,
            false => Manager::Systemd,
        }
    }

    /// Ends the service, for good: its manager would start it again.
    pub fn stop(&self, host: &Host) -> anyhow::Result<()> {
        let Some(role) = self.role else { return Ok(()) };
        let (service, unit) = (role.service(), unit::name(role));
        let commands = match self.manager() {
            Manager::Systemd if host.path(&unit::place(role)).exists() => {
                vec![vec!["systemctl", "disable", "--now", &unit]]
            }
            Manager::Openrc if host.path(&openrc::place(role)).exists() => {
                vec![
                    vec!["rc-service", "--ifstarted", service, "stop"],
                    vec!["rc-update", "delete", "--all", service],
                ]
            }
            _ => Vec::new(),
        };
        for words in commands {
            host.done(&words.into_iter().map(String::from).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Removes everything but the program, by which a removal that was cut short is begun anew.
    pub fn remove_files(&self, host: &Host) -> anyhow::Result<()> {
        for path in self.files.keys() {
            remove(&host.path(path))?;
        }
        if self.manager() == Manager::Systemd && self.role.is_some() && host.is_live() {
            host.done(&["systemctl".to_owned(), "daemon-reload".to_owned()])?;
        }
        Ok(())
    }

    /// The program, and directories that nothing is in any more.
    pub fn remove_program(&self, host: &Host) -> anyhow::Result<()> {
        if let Some(program) = &self.program {
            remove(&host.path(program))?;
        }
        for directory in self.directories.iter().rev() {
            match std::fs::remove_dir(host.path(directory)) {
                Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                    return Err(e).with_context(|| format!("cannot remove {}", directory.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The data directory that a configuration names.
pub fn data_dir(settings: &serde_json::Map<String, serde_json::Value>) -> anyhow::Result<PathBuf> {
    let named = settings.get("data-dir").and_then(|d| d.as_str());
    config::absolute(named.unwrap_or(config::DEFAULT_DATA_DIR).into())
}
