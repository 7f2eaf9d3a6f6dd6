//! Upstream's scheduler_perf workloads, read as data and played against our scheduler: `make scheduler-perf`.
//!
//! ```text
//! workload (cases, operations, sizes) ─→ objects (from templates) ─→ play ─→ decisions: queue, picture, plan; a world in memory
//!                                                                        └→ api: API server, store in memory, scheduler, bindings
//! ```
//!
//! Nodes are objects only, as upstream has it. What upstream measures is measured: pods a second, and how long attempts take. What
//! can't be played is named, and left out.

mod api;
mod decisions;
mod measure;
mod objects;
mod play;
mod report;
mod workload;
mod world;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use keelson_scheduler::{Config, configuration};
use measure::Outcome;
use regex::Regex;
use std::path::{Path, PathBuf};
use std::time::Duration;
use workload::{Case, Size};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(about = "Plays scheduler_perf's workloads against Keelson's scheduler, and prints a table")]
struct Options {
    /// A directory with performance-config.yaml files and their templates, as upstream's test/integration/scheduler_perf
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads"))]
    workloads: PathBuf,
    /// Which, by CASE/SIZE
    #[arg(long, default_value = "/(500|5000)Nodes$")]
    run: Regex,
    /// Decisions alone, bound through the API, or both
    #[arg(long, value_enum, default_value = "both")]
    level: Level,
    /// How often each is played; the run with the middle throughput counts
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=99))]
    times: u32,
    /// Each workload is given up after so many seconds
    #[arg(long, default_value = "120", value_parser = clap::value_parser!(u64).range(1..=3600))]
    within: u64,
    /// A file that a line of JSON is added to for each row
    #[arg(long)]
    history: Option<PathBuf>,
    /// What there is, and what can't be played
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Level {
    Decisions,
    Api,
    Both,
}

impl Level {
    fn each(self) -> &'static [Level] {
        match self {
            Level::Decisions => &[Level::Decisions],
            Level::Api => &[Level::Api],
            Level::Both => &[Level::Decisions, Level::Api],
        }
    }
    fn name(self) -> &'static str {
        if self == Level::Decisions { "decisions" } else { "api" }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let cases = workload::read(&options.workloads)?;
    let all = cases
        .iter()
        .flat_map(|case| case.workloads.iter().map(move |size| (case, size)));
    let chosen: Vec<_> = all
        .filter(|(case, size)| options.run.is_match(&named(case, size)))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no workload is called {:?}; --list tells what there is",
        options.run.as_str()
    );
    if options.list {
        for (case, size) in chosen {
            match case.ops(size) {
                Ok(_) => println!("{}", named(case, size)),
                Err(why) => println!("{} – {why:#}", named(case, size)),
            }
        }
        return Ok(());
    }
    println!("{}", report::HEAD);
    let mut failed = 0;
    for (case, size) in chosen {
        for level in options.level.each() {
            let name = named(case, size);
            let row = several(&options, case, size, *level).await;
            match row {
                Ok(outcome) => {
                    println!("{}", report::row(&name, level.name(), &outcome));
                    if let Some(file) = &options.history {
                        report::remember(file, &name, level.name(), &outcome, options.times as usize)?;
                    }
                }
                Err(why) => {
                    failed += 1;
                    println!("| {name} | {} | not played: {why:#} |", level.name());
                }
            }
        }
    }
    ensure!(failed == 0, "{failed} could not be played");
    Ok(())
}

fn named(case: &Case, size: &Size) -> String {
    format!("{}/{}", case.name, size.name)
}

async fn several(options: &Options, case: &Case, size: &Size, level: Level) -> Result<Outcome> {
    let mut runs = Vec::new();
    for _ in 0..options.times {
        runs.extend(once(case, size, level, Duration::from_secs(options.within)).await?);
    }
    report::middle(runs).context("nothing of it is measured")
}

async fn once(case: &Case, size: &Size, level: Level, within: Duration) -> Result<Option<Outcome>> {
    let ops = case.ops(size)?;
    let config = match case.configuration() {
        Some(path) => configured(&path)?,
        None => Config::default(),
    };
    match level {
        Level::Decisions => play::play(ops, decisions::Decisions::new(config, within)?).await,
        _ => play::play(ops, api::Cluster::start(config, within).await?).await,
    }
}

fn configured(path: &Path) -> Result<Config> {
    let value = serde_saphyr::from_str(&workload::text(path)?).with_context(|| path.display().to_string())?;
    configuration::read(value).with_context(|| path.display().to_string())
}
