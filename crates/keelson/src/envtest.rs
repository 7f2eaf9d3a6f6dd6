//! `keelson envtest setup`: a directory of programs as controller-runtime's envtest wants one (`KUBEBUILDER_ASSETS`).

use crate::config::absolute;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// This program under upstream's names.
const OURS: [&str; 2] = ["kube-apiserver", "etcd"];
const KUBECTL: &str = "kubectl";

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a directory of links to this program, as KUBEBUILDER_ASSETS names it
    Setup {
        dir: PathBuf,
        /// The kubectl that tests get [default: the one on PATH, if there is one]
        #[arg(long, value_name = "FILE")]
        kubectl: Option<PathBuf>,
    },
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let Command::Setup { dir, kubectl } = options.command;
    let dir = absolute(dir)?;
    let program = std::env::current_exe().context("where this program is")?;
    let kubectl = match kubectl {
        Some(given) => Some(absolute(given)?),
        None => on_path(KUBECTL, std::env::var_os("PATH").as_deref()),
    };
    set_up(&dir, &program, kubectl.as_deref())?;
    if kubectl.is_none() {
        eprintln!("There is no kubectl on PATH: tests that call it fail. Give one by --kubectl");
    }
    println!("export KUBEBUILDER_ASSETS={}", dir.display());
    Ok(ExitCode::SUCCESS)
}

fn on_path(name: &str, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let places = std::env::split_paths(path?);
    places.map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn set_up(dir: &Path, program: &Path, kubectl: Option<&Path>) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for name in OURS {
        link(program, &dir.join(name))?;
    }
    kubectl.map_or(Ok(()), |kubectl| link(kubectl, &dir.join(KUBECTL)))
}

/// A link of an earlier time is replaced; what isn't one is somebody's.
fn link(to: &Path, at: &Path) -> anyhow::Result<()> {
    match at.symlink_metadata() {
        Ok(there) if there.is_symlink() => std::fs::remove_file(at)?,
        Ok(_) => bail!("{} is there, and no link: move it away first", at.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| at.display().to_string()),
    }
    std::os::unix::fs::symlink(to, at).with_context(|| format!("cannot make the link {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_and_made_anew_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let assets = dir.path().join("assets");
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        set_up(&assets, &one, None).unwrap();
        set_up(&assets, &other, Some(&one)).unwrap();
        for (name, to) in [("kube-apiserver", &other), ("etcd", &other), ("kubectl", &one)] {
            assert_eq!(&std::fs::read_link(assets.join(name)).unwrap(), to);
        }
        std::fs::remove_file(assets.join("etcd")).unwrap();
        std::fs::write(assets.join("etcd"), "theirs").unwrap();
        let refused = set_up(&assets, &one, None).unwrap_err().to_string();
        assert!(refused.contains("no link"), "{refused}");
        assert_eq!(std::fs::read(assets.join("etcd")).unwrap(), b"theirs");
    }

    #[test]
    fn programs_are_found_where_the_shell_looks() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KUBECTL), "").unwrap();
        let path = std::env::join_paths([Path::new("/nowhere"), dir.path()]).unwrap();
        assert_eq!(on_path(KUBECTL, Some(&path)), Some(dir.path().join(KUBECTL)));
        assert_eq!(on_path("other", Some(&path)), None);
        assert_eq!(on_path(KUBECTL, None), None);
    }
}
