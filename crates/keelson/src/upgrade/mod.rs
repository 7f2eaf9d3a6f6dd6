//! `keelson upgrade`: a newer program in the place of the one that the machine's service runs, while pods go on. `keelson rollback` goes
//! back.
//!
//! What is to happen, and what a start makes of an upgrade that was cut short, is decided by [`steps`] alone; how far it has come
//! stands in the [`journal`]. The new program is asked what it is and can read before it is trusted ([`probe`], [`skew`]), and the
//! cluster before and afterwards ([`health`]). The old one stays beside it: until the new one has been confirmed, it judges at each
//! start of the service (`upgrade settle`, in the service's file), so that not even a new program that can't start is in the way.
//!
//! [`all`] has every machine of a cluster do that, one after the other.

pub mod all;
mod health;
mod journal;
mod machine;
mod place;
mod probe;
mod run;
mod skew;
mod steps;

pub use place::{NEXT, PREVIOUS, beside, free};

use crate::install::{Host, Installed, Role};
use crate::wait;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use journal::{Attended, Journal};
use machine::Machine;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use steps::Phase;

pub const AFTER_HELP: &str = "Examples:\n  keelson upgrade ./keelson --dry-run\n  keelson upgrade ./keelson --sha256 …\n  keelson upgrade ./keelson --all-nodes\n  \
keelson upgrade status\n\nThis machine's program, or with --all-nodes that of every machine: servers first, one after the other, then agents. A program that isn't ready in time, or under which containers \
are lost, is taken back by itself.";

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// The new program
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// What its sum has to be
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Judge it, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long the new program may take until all is well; then the old one comes back
    #[arg(long, default_value = "5m", value_parser = wait::duration)]
    timeout: Duration,
    /// Upgrade every machine of the cluster, from anywhere: servers first, one after the other, then agents
    #[arg(long)]
    all_nodes: bool,
    /// Only machines whose nodes have these labels
    #[arg(long, short = 'l', value_name = "LABELS", requires = "all_nodes")]
    selector: Option<String>,
    /// How many agents at a time
    #[arg(long, value_name = "N", default_value_t = 1, requires = "all_nodes", value_parser = clap::value_parser!(u16).range(1..=100))]
    at_once: u16,
    /// The administrator's kubeconfig [default: $KUBECONFIG, or that of the server on this machine]
    #[arg(long, value_name = "FILE", requires = "all_nodes")]
    kubeconfig: Option<PathBuf>,
    /// What a machine's service was asked, of which it is to hear how it went
    #[arg(long, hide = true, conflicts_with = "all_nodes")]
    asked: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Say what the last upgrade was, and how it went
    Status,
    /// Before the service starts: take back what nobody has confirmed
    #[command(hide = true)]
    Settle {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say what this program is, and whether it can read this machine's configuration and records
    #[command(hide = true)]
    Probe {
        #[arg(value_enum)]
        role: Role,
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Args)]
pub struct Rollback {
    /// Go back even if the store has to go back to what it was before the upgrade
    #[arg(long)]
    lose_writes: bool,
    /// How long the program may take until all is well
    #[arg(long, default_value = "5m", value_parser = wait::duration)]
    timeout: Duration,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let host = Host::at("/".into());
    match (options.command, options.file) {
        (Some(Command::Status), _) => println!("{}", status(&host)?),
        (Some(Command::Settle { config }), _) => settle(&config)?,
        (Some(Command::Probe { role, config }), _) => {
            println!("{}", serde_json::to_string(&probe::tell(role, &config)?)?)
        }
        (None, None) => bail!("which program? Give the new one's file, or `status`"),
        (None, Some(file)) => {
            if !file.exists() {
                bail!(
                    "{}: there is no such file. A version can't be named alone, since there is no place where programs are published: \
                     bring the file here, and give its sum with --sha256",
                    file.display()
                );
            }
            let wanted = run::Wanted {
                file: &file,
                sha256: options.sha256.as_deref(),
                timeout: options.timeout,
                dry_run: options.dry_run,
                ahead: options.dry_run && options.asked.is_some(),
            };
            if options.all_nodes {
                let whom = all::Whom {
                    at_once: options.at_once.into(),
                    selector: options.selector.as_deref().unwrap_or_default(),
                    kubeconfig: crate::client::kubeconfig(options.kubeconfig),
                };
                println!("{}", all::upgrade(&wanted, &whom)?);
                return Ok(ExitCode::SUCCESS);
            }
            only_root()?;
            match &options.asked {
                Some(id) => all::run_asked(id, &wanted)?,
                None => {
                    let machine = Machine::find(&host)?;
                    let attended = Attended::alone(machine.data_dir())?;
                    println!("{}", run::upgrade(&machine, &wanted, &attended)?);
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn rollback(options: Rollback) -> anyhow::Result<ExitCode> {
    only_root()?;
    let host = Host::at("/".into());
    println!(
        "{}",
        run::rollback(&Machine::find(&host)?, options.lose_writes, options.timeout)?
    );
    Ok(ExitCode::SUCCESS)
}

fn only_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root may exchange a service's program: run it with sudo");
    }
    Ok(())
}

fn settle(config: &std::path::Path) -> anyhow::Result<()> {
    let data_dir = crate::install::data_dir(&crate::install::settings(config)?)?;
    match place::settle(&data_dir)? {
        Some(Phase::Returned) => {
            eprintln!("keelson: an upgrade that nobody had confirmed was taken back (keelson upgrade status)")
        }
        Some(_) => eprintln!("keelson: an upgrade that was cut short was given up (keelson upgrade status)"),
        None => {}
    }
    Ok(())
}

fn status(host: &Host) -> anyhow::Result<String> {
    let installed = Installed::find(host)?.context("no service of Keelson is installed on this machine")?;
    let Some(journal) = Journal::read(&installed.data_dir)? else {
        return Ok("nothing was upgraded here yet".into());
    };
    let attended = Attended::is_held(&installed.data_dir)?;
    Ok(told(&journal, attended))
}

fn told(journal: &Journal, attended: bool) -> String {
    let how = match (journal.phase, attended) {
        (Phase::Confirmed, _) => "confirmed; `keelson rollback` goes back",
        (Phase::Returned, _) => "taken back",
        (Phase::Abandoned, _) => "given up before anything had changed",
        (Phase::Unknown, _) => "in a state that only a later version knows",
        (_, true) => "under way",
        (_, false) => "cut short; a start of the service takes it back, and so does `keelson rollback`",
    };
    let when = journal.ended.map(|at| format!(", {at}")).unwrap_or_default();
    let why = journal
        .why
        .as_ref()
        .map(|why| format!("\nwhy: {why}"))
        .unwrap_or_default();
    let snapshot = journal
        .snapshot
        .as_ref()
        .map(|s| format!("\nsnapshot of the store: {}", s.display()));
    format!(
        "from {} to {}, begun {}: {how}{when}{why}{}",
        journal.from.told.version,
        journal.to.told.version,
        journal.began,
        snapshot.unwrap_or_default()
    )
}
