//! `keelson uninstall`: stops the pods of a data directory and takes back what was changed on the machine.

use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// Data directory of the cluster to remove
    #[arg(long, value_name = "DIR", default_value = crate::config::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub fn main(_options: Options) -> anyhow::Result<ExitCode> {
    anyhow::bail!("wip")
}
