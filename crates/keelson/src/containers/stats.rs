//! `keelson stats`: what the containers or pods of this node use.

use super::usage::{Row, Sampler, head};
use super::{Filter, Reach};
use crate::client::block_on;
use crate::history::table;
use anyhow::anyhow;
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// Between the first two readings, of which the first rates are.
pub const FIRST: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Options {
    /// Pods in place of containers
    #[arg(long, conflicts_with = "name")]
    pods: bool,
    /// Again after so many seconds, until ctrl-c [default: once]
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut sampler = Sampler::new(options.reach.connect().await?);
        sampler.take().await?;
        tokio::time::sleep(FIRST).await;
        loop {
            let used = sampler.take().await?;
            let rows = used.rows(options.pods, &options.filter);
            show(&rows, &options)?;
            let Some(seconds) = options.watch else {
                return Ok(ExitCode::SUCCESS);
            };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    })
}

fn show(rows: &[&Row], options: &Options) -> anyhow::Result<()> {
    let again = options.watch.is_some();
    let objects = || Value::from(rows.iter().map(|row| row.object()).collect::<Vec<_>>());
    match options.output {
        Output::Table => {
            let cells: Vec<_> = rows.iter().map(|row| row.cells()).collect();
            table::print(&head(options.pods), &cells);
            if again {
                println!();
            }
        }
        // A line each time, so that who reads knows where one ends.
        Output::Json if again => println!("{}", objects()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&objects())?),
        Output::Yaml => {
            if again {
                println!("---");
            }
            let text = serde_saphyr::to_string(&objects()).map_err(|error| anyhow!("{error}"))?;
            print!("{text}");
        }
    }
    Ok(())
}
