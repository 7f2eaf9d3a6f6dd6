//! `keelson fork`: a copy of a cluster in this process, for whoever wants to see first what a command would do. What is copied and told is
//! [`keelson_fork`]'s; here are the reading, the copy's components, and who runs in it.

mod cluster;
mod read;
mod settle;
#[cfg(test)]
mod tests;

use crate::client::kubeconfig;
use crate::components::LogOptions;
use crate::process::{self, Ended, Stopping};
use crate::wait::duration;
use anyhow::Context;
use clap::{Args, ValueEnum};
use cluster::Fork;
use keelson_client::Rest;
use keelson_fork::copy::Manner;
use read::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;
use tokio::process::Command;

pub const AFTER_HELP: &str = "\
Examples:
  keelson fork -- helm upgrade web ./chart                          what an upgrade would change
  keelson fork -- kubectl drain n1 --ignore-daemonsets --timeout=1m what would move, and what holds it back
  keelson fork                                                      look around in the copy until Ctrl-C

The command's KUBECONFIG is the copy's. Nothing reaches the cluster itself: it is read once, at the start.
Exit status: the command's.";

#[derive(Args)]
pub struct Options {
    /// What to run on the copy; without it, it stays until Ctrl-C
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Kubeconfig of the cluster [default: $KUBECONFIG, or /var/lib/keelson/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(long)]
    context: Option<String>,
    /// Copy the values of secrets, too; else each is another
    #[arg(long)]
    secret_values: bool,
    /// Keep the copy after the command and its report, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// How long to wait, at most, until controllers have nothing more to do
    #[arg(long, default_value = "1m", value_name = "TIME", value_parser = duration)]
    settle: Duration,
    /// The form of the report
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    log: LogOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub fn main(mut options: Options) -> anyhow::Result<ExitCode> {
    options.log.or_level(Some("error"));
    let mut code = ExitCode::SUCCESS;
    process::run(&options.log.resolve()?, None, async |mut stopping| {
        let started = tokio::select! {
            started = start(&options) => Some(started?),
            () = stopping.wait() => None,
        };
        if let Some(fork) = started {
            let tried = attempt(&options, &fork, &mut stopping).await;
            fork.stop().await;
            code = tried?;
        }
        Ok(Ended::Stopped)
    })?;
    Ok(code)
}

async fn start(options: &Options) -> anyhow::Result<Fork> {
    let path = kubeconfig(options.kubeconfig.clone());
    let client = keelson_client::from_kubeconfig(&path, options.context.as_deref()).await?;
    let namespace = client.default_namespace().to_owned();
    let rest = Rest::new(client, "keelson-fork");
    let manner = Manner {
        secrets: options.secret_values,
    };
    let read = Read::cluster(&rest, manner).await.context("reading the cluster")?;
    eprint!("{}", read.told(manner));
    let fork = Fork::start(read, &namespace).await.context("the copy")?;
    if !settle::settled(fork.store(), options.settle).await? {
        eprintln!("note: controllers were still at work when the first picture was taken: the report may tell of that");
    }
    Ok(fork)
}

/// From the first picture to the report.
async fn attempt(options: &Options, fork: &Fork, stopping: &mut Stopping) -> anyhow::Result<ExitCode> {
    let before = read::picture(&fork.rest).await?;
    let code = match options.command.split_first() {
        Some((program, arguments)) => run(fork, program, arguments, stopping).await?,
        None => {
            println!("export KUBECONFIG={}", fork.kubeconfig().display());
            eprintln!("Ctrl-C ends the copy, and tells what became of it.");
            stopping.wait().await;
            ExitCode::SUCCESS
        }
    };
    if !settle::settled(fork.store(), options.settle).await? {
        eprintln!("note: controllers are still at work after {:?}", options.settle);
    }
    let report = keelson_fork::report(&before, &read::picture(&fork.rest).await?);
    match options.output {
        Output::Text => print!("{}", report.text()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    if options.keep && !options.command.is_empty() {
        println!("export KUBECONFIG={}", fork.kubeconfig().display());
        eprintln!("Ctrl-C ends the copy.");
        stopping.wait().await;
    }
    Ok(code)
}

async fn run(fork: &Fork, program: &str, arguments: &[String], stopping: &mut Stopping) -> anyhow::Result<ExitCode> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("KUBECONFIG", fork.kubeconfig())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let status = tokio::select! {
        status = child.wait() => status?,
        // A terminal has told it, too. Another time it is not waited for.
        () = stopping.wait() => tokio::select! {
            status = child.wait() => status?,
            () = stopping.wait() => {
                child.kill().await?;
                child.wait().await?
            }
        },
    };
    Ok(code(status))
}

/// As shells tell it.
fn code(status: ExitStatus) -> ExitCode {
    let by_signal = status.signal().map(|signal| signal.saturating_add(128));
    let code = status.code().or(by_signal).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
