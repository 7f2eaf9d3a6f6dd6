//! What `install` put where, kept in the data directory. `uninstall` goes by it: what isn't in it is somebody else's.

use super::given::{self, Role};
use super::host::{Host, Manager};
use super::{config_file, openrc, unit};
use crate::{config, upgrade};
use anyhow::Context;
use keelson_pki::files;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
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
    /// Variables that were written into files that were there before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<PathBuf, BTreeSet<String>>,
    /// What was begun wasn't ended: the service may not run as the files have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
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
        // Users of pods pass through it to what is theirs.
        super::host::make_directories(data_dir)?;
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
        for (path, variables) in &self.variables {
            let path = host.path(path);
            if let Some(text) = files::read(&path)? {
                let kept = given::without(&text, |name| variables.contains(name));
                files::write_secret(&path, kept.as_bytes())?;
            }
        }
        if self.manager() == Manager::Systemd && self.role.is_some() && host.is_live() {
            host.done(&["systemctl".to_owned(), "daemon-reload".to_owned()])?;
        }
        Ok(())
    }

    /// The program, and directories that nothing is in any more.
    pub fn remove_program(&self, host: &Host) -> anyhow::Result<()> {
        if let Some(program) = &self.program {
            let program = host.path(program);
            for kept in [upgrade::NEXT, upgrade::PREVIOUS] {
                remove(&upgrade::beside(&program, kept))?;
            }
            remove(&program)?;
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

/// The cluster of the service that is installed here, by this program or a package.
pub struct Installed {
    pub role: Role,
    pub config: PathBuf,
    /// The text of its unit or script, and the program that this names.
    pub service: String,
    pub program: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub cgroup_root: Option<String>,
}

impl Installed {
    /// By the configuration that the service's unit or script names. `None`: there is no such service.
    pub fn find(host: &Host) -> anyhow::Result<Option<Installed>> {
        for role in [Role::Server, Role::Agent] {
            let package = Path::new("/usr/lib/systemd/system").join(unit::name(role));
            let read = |path: &Path| files::read(&host.path(path));
            let (service, is_openrc) = match (read(&unit::place(role))?, read(&openrc::place(role))?) {
                (Some(text), _) => (Some(text), false),
                (None, Some(text)) => (Some(text), true),
                (None, None) => (read(&package)?, false),
            };
            let Some(service) = service else { continue };
            let (named, program) = match is_openrc {
                false => (unit::config(&service), unit::program(&service)),
                true => (openrc::config(&service), openrc::program(&service)),
            };
            let Some(config) = named else { continue };
            let Some(text) = read(&config)? else { continue };
            let settings = config_file::read(&text).with_context(|| config.display().to_string())?;
            return Ok(Some(Installed {
                role,
                config,
                service,
                program,
                data_dir: data_dir(&settings)?,
                cgroup_root: settings.get("cgroup-root").and_then(|c| c.as_str()).map(String::from),
            }));
        }
        Ok(None)
    }
}

/// The data directory that a configuration names.
pub fn data_dir(settings: &serde_json::Map<String, serde_json::Value>) -> anyhow::Result<PathBuf> {
    let named = settings.get("data-dir").and_then(|d| d.as_str());
    config::absolute(named.unwrap_or(config::DEFAULT_DATA_DIR).into())
}
