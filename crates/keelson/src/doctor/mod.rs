//! `keelson doctor`: what this machine lacks, and the fix. The server runs the same checks before it starts. With `--security`:
//! how a running server stands ([`security`]).

mod checks;
mod security;

use crate::config::Config;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// Data directory to check for room and rights
    #[arg(long, value_name = "DIR", default_value = crate::config::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Port that the API is to be served on
    #[arg(long, default_value_t = 6443)]
    api_port: u16,
    /// Port that the kubelet is to be served on
    #[arg(long, default_value_t = 10250)]
    kubelet_port: u16,
    /// Measure how a running server of this machine stands against intruders, point by point
    #[arg(long)]
    security: bool,
    /// Kubeconfig by which a running server is asked [default: DATA_DIR/admin.kubeconfig]
    #[arg(long, value_name = "FILE", requires = "security")]
    kubeconfig: Option<PathBuf>,
    /// Write the points as JSON
    #[arg(long, requires = "security")]
    json: bool,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With what was found.
    Fine(String),
    /// Something will work less well.
    Warning { found: String, fix: String },
    /// The server can't run.
    Failure { found: String, fix: String },
}

/// A check and its result.
#[derive(Clone, Debug)]
pub struct Finding {
    pub name: &'static str,
    pub verdict: Verdict,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    if options.security {
        return measured(&options);
    }
    let findings = checks::all(&options.data_dir, &[options.api_port, options.kubelet_port]);
    let mut failed = 0;
    for finding in &findings {
        match &finding.verdict {
            Verdict::Fine(found) => println!("ok       {}: {found}", finding.name),
            Verdict::Warning { found, fix } => println!("warning  {}: {found}\n         {fix}", finding.name),
            Verdict::Failure { found, fix } => {
                failed += 1;
                println!("missing  {}: {found}\n         {fix}", finding.name);
            }
        }
    }
    println!("{} checks, {failed} failed", findings.len());
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measured(options: &Options) -> anyhow::Result<ExitCode> {
    let data_dir = crate::config::absolute(options.data_dir.clone())?;
    let measuring = security::measure(&data_dir, options.kubeconfig.as_deref(), options.kubelet_port);
    let points = crate::client::block_on(measuring)?;
    match options.json {
        true => println!("{}", security::json(&points)?),
        false => security::print(&points),
    }
    Ok(match security::is_sound(&points) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Refuses to start on a machine that can't run pods; warnings go to the log, once.
pub fn preflight(config: &Config) -> anyhow::Result<()> {
    judge(&config.data_dir, &[])
}

/// The same, and whether these ports are free.
pub fn judge(data_dir: &Path, ports: &[u16]) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for finding in checks::all(data_dir, ports) {
        match finding.verdict {
            Verdict::Fine(_) => {}
            Verdict::Warning { found, fix } => {
                tracing::warn!(check = finding.name, found, fix, "this machine lacks something")
            }
            Verdict::Failure { found, fix } => failures.push(format!("{}: {found}. {fix}", finding.name)),
        }
    }
    anyhow::ensure!(
        failures.is_empty(),
        "this machine cannot run pods:\n  {}",
        failures.join("\n  ")
    );
    Ok(())
}
