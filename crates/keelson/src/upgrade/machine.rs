//! What is installed on this machine, as far as upgrading it goes.

use crate::config::Config;
use crate::install::{Host, Installed, Manager, Record, Role, Service};
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};

/// How a service's file has the old program judge at each start.
const GUARD: &str = "upgrade settle";

pub struct Machine<'a> {
    pub host: &'a Host,
    pub manager: Manager,
    pub role: Role,
    pub config_file: PathBuf,
    pub config: Config,
    /// The program that the service runs.
    pub place: PathBuf,
}

impl<'a> Machine<'a> {
    pub fn find(host: &'a Host) -> anyhow::Result<Machine<'a>> {
        let Some(installed) = Installed::find(host)? else {
            bail!("no service of Keelson is installed on this machine: `keelson install` makes one");
        };
        ensure!(
            Record::read(&installed.data_dir)?.is_some(),
            "this service wasn't made by `keelson install`: upgrade it as it was installed"
        );
        let place = installed.program.context("the service's file names no program")?;
        ensure!(
            !place.starts_with("/usr/bin"),
            "{} is a package's: upgrade the package",
            place.display()
        );
        ensure!(
            installed.service.contains(GUARD),
            "this service was made by a `keelson install` that knew no way back: run `keelson install` once more, with the program that runs"
        );
        let config = config(installed.role, &installed.config)?;
        Ok(Machine {
            host,
            manager: host.manager()?,
            role: installed.role,
            config_file: installed.config,
            config,
            place,
        })
    }

    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    pub fn service(&self) -> anyhow::Result<Service<'a>> {
        Service::look(self.host, self.manager, self.role)
    }

    /// Which version is installed, for who installs next.
    pub fn note_version(&self, version: &str) -> anyhow::Result<()> {
        let Some(record) = Record::read(self.data_dir())? else {
            return Ok(());
        };
        let noted = Record {
            version: version.to_owned(),
            ..record
        };
        noted.write(self.data_dir())
    }
}

/// As the program itself makes it of its file.
pub fn config(role: Role, file: &Path) -> anyhow::Result<Config> {
    let settings = crate::install::settings(file)?;
    match role {
        Role::Server => crate::config::Options::of(settings)?.resolve(),
        Role::Agent => crate::agent::Options::of(settings)?.resolve(None),
    }
}
