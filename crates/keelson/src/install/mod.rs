//! `keelson install`: this program as a service of the machine, which starts with it. What is to be there is decided first
//! ([`plan`]), from what was said ([`given`]) and what is there already; then it is shown, or done. What was put where is kept in
//! the data directory ([`record`]), by which `keelson uninstall` takes it back.
//!
//! An older program is replaced by a newer one in the same way: its file is exchanged and the service is started again, while pods
//! go on.

mod config_file;
mod files;
mod given;
mod host;
mod openrc;
mod plan;
mod ready;
mod record;
mod shells;
#[cfg(test)]
mod tests;
mod unit;

pub use given::Role;
pub use host::{Host, Manager};
pub use plan::newer;
pub use ready::Service;
pub use record::{Installed, Record, data_dir};
pub use shells::{Options as ManOptions, completion, man};

use crate::wait;
use anyhow::{Context, bail};
use clap::Args;
use given::Given;
use plan::Plan;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

pub const AFTER_HELP: &str = "Examples:\n  keelson install\n  keelson install server -- --tls-san api.example.org --disable dns\n  \
KEELSON_TOKEN=… keelson install agent -- --server https://192.0.2.10:6443\n\nOptions go into /etc/keelson/config.yaml, secrets into \
a file that only root may read. `keelson uninstall` takes everything back.";

#[derive(Args)]
pub struct Options {
    /// What this machine is to be [default: what it is already, or else a server]
    #[arg(value_enum)]
    role: Option<Role>,
    /// Options of `keelson server` or `keelson agent`, after two dashes
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
    /// Start it with the machine, but not now
    #[arg(long)]
    no_start: bool,
    /// Show every file and command, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace what somebody else wrote, or what says something else
    #[arg(long)]
    force: bool,
    /// Directory for the program
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    bin_dir: PathBuf,
    /// The tree to install into, such as an image's; in another one than this machine's nothing is started
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// How long to wait until it is ready
    #[arg(long, default_value = "120s", value_parser = wait::duration)]
    timeout: Duration,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let host = Host::at(crate::config::absolute(options.root.clone())?);
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    if host.is_this_machine() && !options.dry_run && !nix::unistd::geteuid().is_root() {
        bail!("only root may install a service: run it with sudo (--dry-run shows what it would do)");
    }
    println!("{}", run(&options, &host, &program)?.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn run(options: &Options, host: &Host, program: &Path) -> anyhow::Result<String> {
    let manager = host.manager()?;
    let role = role(options.role, host)?;
    let given = Given::parse(role, &options.options)?;
    let plan = Plan::make(host, manager, role, &given, program, &options.bin_dir)?;
    plan.judge(host)?;
    if options.dry_run {
        let service = Service::look(host, manager, role)?;
        return Ok(plan.shown(plan.verb(options.no_start, &service, host), host));
    }
    if let Some(differences) = plan.differences().filter(|_| !options.force) {
        eprint!("{differences}");
        bail!("that is there already and says something else (- is there, + would be): --force puts this in its place");
    }
    if host.is_this_machine() && !options.no_start {
        plan.judge_machine(Service::look(host, manager, role)?.runs())?;
    }
    let changed = plan.apply(host)?;
    let service = Service::look(host, manager, role)?;
    let verb = plan.verb(options.no_start, &service, host);
    for words in plan.commands(verb, host) {
        host.done(&words)?;
    }
    plan.settled(host)?;
    if verb.is_some() {
        service.wait(&plan.kubeconfig(), options.timeout)?;
    }
    let starts = !options.no_start && host.is_live();
    Ok(plan.told(&changed, starts))
}

/// What stands in a service's configuration file.
pub fn settings(file: &Path) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    config_file::read(&text).with_context(|| file.display().to_string())
}

/// A machine is one or the other: they have the same ports and the same data directory.
fn role(said: Option<Role>, host: &Host) -> anyhow::Result<Role> {
    let is = [Role::Server, Role::Agent]
        .into_iter()
        .find(|role| host.path(&unit::place(*role)).exists() || host.path(&openrc::place(*role)).exists());
    match (said, is) {
        (Some(said), Some(is)) if said != is => bail!(
            "this machine is installed as {} ({}): `keelson uninstall` first",
            is.phrase(),
            is.service()
        ),
        (said, is) => Ok(said.or(is).unwrap_or(Role::Server)),
    }
}
