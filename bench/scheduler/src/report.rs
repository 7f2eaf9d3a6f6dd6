//! The table, and a line of JSON for each figure, so that runs can be held against each other later.

use crate::measure::{Outcome, quantile};
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::path::Path;

pub const HEAD: &str = "| workload | level | pods | pods/s | attempt median | p99 | decision median | p99 |\n\
                        |---|---|---:|---:|---:|---:|---:|---:|";

pub fn row(name: &str, level: &str, outcome: &Outcome) -> String {
    format!(
        "| {name} | {level} | {} | {:.0} | {:.2} ms | {:.2} ms | {:.3} ms | {:.2} ms |",
        outcome.pods,
        outcome.throughput(),
        outcome.attempt.median,
        outcome.attempt.p99,
        outcome.decision.median,
        outcome.decision.p99,
    )
}

/// Of several runs the one with the middle throughput.
pub fn middle(mut runs: Vec<Outcome>) -> Option<Outcome> {
    runs.sort_by(|a, b| a.throughput().total_cmp(&b.throughput()));
    let at = runs.len() / 2;
    (at < runs.len()).then(|| runs.swap_remove(at))
}

/// One line; its names are those of scheduler_perf's data items.
pub fn remember(file: &Path, name: &str, level: &str, outcome: &Outcome, runs: usize) -> Result<()> {
    let mut samples = outcome.samples.clone();
    samples.sort_by(f64::total_cmp);
    let at = |share| quantile(&samples, share);
    let line = json!({
        "time": jiff::Timestamp::now().to_string(), "name": name, "level": level, "runs": runs, "pods": outcome.pods,
        "SchedulingThroughput": {"Average": outcome.throughput(), "Perc50": at(0.5), "Perc90": at(0.9), "Perc95": at(0.95), "Perc99": at(0.99)},
        "scheduler_scheduling_attempt_duration_seconds": {"Perc50": outcome.attempt.median, "Perc99": outcome.attempt.p99},
        "scheduler_scheduling_algorithm_duration_seconds": {"Perc50": outcome.decision.median, "Perc99": outcome.decision.p99},
    });
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| file.display().to_string())?;
    writeln!(file, "{line}")?;
    Ok(())
}
