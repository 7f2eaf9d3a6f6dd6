//! The machine, or the tree, that is installed into: its files, and the programs that see to services.

use anyhow::{Context, bail};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    Systemd,
    Openrc,
}

pub struct Host {
    root: PathBuf,
    /// Whether its services can be started.
    live: bool,
    /// Where to look for programs, in place of PATH.
    tools: Option<PathBuf>,
}

impl Host {
    pub fn at(root: PathBuf) -> Host {
        let live = root == Path::new("/");
        Host {
            root,
            live,
            tools: None,
        }
    }

    #[cfg(test)]
    pub fn fake(root: &Path) -> Host {
        Host {
            root: root.to_owned(),
            live: true,
            tools: Some(root.join("tools")),
        }
    }

    pub fn is_live(&self) -> bool {
        self.live
    }
    pub fn is_this_machine(&self) -> bool {
        self.root == Path::new("/")
    }
    /// Where a path of the machine is for this process.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn manager(&self) -> anyhow::Result<Manager> {
        let any = |paths: &[&str]| paths.iter().any(|p| self.path(Path::new(p)).exists());
        let systemd: &[&str] = match self.live {
            // As sd_booted(3) tells it.
            true => &["/run/systemd/system"],
            false => &["/usr/lib/systemd/systemd", "/lib/systemd/systemd"],
        };
        if any(systemd) {
            Ok(Manager::Systemd)
        } else if any(&["/sbin/openrc-run", "/usr/sbin/openrc-run"]) {
            Ok(Manager::Openrc)
        } else {
            bail!(
                "{}: neither systemd ({}) nor OpenRC (/sbin/openrc-run) is here. Have whatever starts services on this machine run \
                 `keelson server`, and end only its main process when it stops",
                self.root.display(),
                systemd[0]
            )
        }
    }

    /// What a program says, however it ends.
    pub fn ask(&self, words: &[&str]) -> anyhow::Result<Output> {
        let (name, arguments) = words.split_first().context("no program")?;
        let program = match &self.tools {
            Some(tools) => tools.join(name),
            None => PathBuf::from(name),
        };
        let mut command = Command::new(program);
        // In a group of its own: the keyboard interrupts who waits for it, and not what it has begun.
        command.args(arguments).stdin(Stdio::null()).process_group(0);
        let ran = command.output();
        ran.with_context(|| format!("cannot run {name}"))
    }

    /// Runs a program that has to succeed.
    pub fn done(&self, words: &[String]) -> anyhow::Result<()> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ran = self.ask(&words)?;
        if !ran.status.success() {
            let said = String::from_utf8_lossy(&ran.stderr);
            bail!("`{}` failed ({}): {}", words.join(" "), ran.status, said.trim());
        }
        Ok(())
    }
}

/// Creates a directory and those above, for everybody to read whatever the mask is; tells which.
pub fn make_directories(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|d| !d.exists()).collect();
    let mut made = Vec::new();
    for dir in missing.into_iter().rev() {
        std::fs::create_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
        made.push(dir.to_owned());
    }
    Ok(made)
}
