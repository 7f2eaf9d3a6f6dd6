//! `keelson history`: what became of an object.

use super::{Meant, table};
use crate::client::block_on;
use clap::{Args, ValueEnum};
use keelson_history::rows;
use std::process::ExitCode;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    meant: Meant,
    /// No more than the newest so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: Option<u16>,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let (asking, named) = options.meant.asked("keelson-history").await?;
        let history = asking.history(&named, options.limit.map(usize::from)).await?;
        let rows = rows(&history);
        if let Output::Json = options.output {
            let rows: Vec<_> = rows
                .iter()
                .map(|r| serde_json::json!({"revision": r.revision, "time": r.time, "user": r.user, "client": r.client, "verb": r.verb, "what": r.what}))
                .collect();
            println!("{}", serde_json::to_string_pretty(&rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        let head = ["REVISION", "TIME", "USER", "CLIENT", "VERB", "WHAT CHANGED"];
        let rows: Vec<_> = rows
            .into_iter()
            .map(|r| vec![r.revision, r.time, r.user, r.client, r.verb, r.what])
            .collect();
        table::print(&head, &rows);
        Ok(ExitCode::SUCCESS)
    })
}
