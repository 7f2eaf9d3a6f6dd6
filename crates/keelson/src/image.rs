//! wip
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    /// Data directory
    #[arg(long, value_name = "DIR", default_value = crate::config::DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
}
pub fn main(_options: Options) -> anyhow::Result<ExitCode> {
    anyhow::bail!("wip")
}
