//! What upstream's controllers left of the scenarios, kept so that ours can be held to it without them.

use crate::controllers::outcome::Outcome;
use anyhow::Result;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression, Crc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    /// Of what was played.
    sum: u32,
    outcome: Outcome,
}

/// What is played.
pub trait Played: Debug {
    fn name(&self) -> &str;
}

fn sum(scenario: &impl Played) -> u32 {
    let mut crc = Crc::new();
    crc.update(format!("{scenario:?}").as_bytes());
    crc.sum()
}

/// Writes anew what was played now; of the others stays what was recorded.
pub fn update(scenarios: &[impl Played], played: BTreeMap<String, Outcome>, file: &Path) -> Result<()> {
    let mut all = match File::open(file) {
        Ok(before) => read(scenarios, before)?,
        Err(_) => BTreeMap::new(),
    };
    all.extend(played);
    write(scenarios, &all, File::create(file)?)
}

/// Writes a line a scenario, compressed.
fn write(scenarios: &[impl Played], outcomes: &BTreeMap<String, Outcome>, out: impl Write) -> Result<()> {
    let mut out = GzEncoder::new(out, Compression::best());
    for scenario in scenarios {
        let Some(outcome) = outcomes.get(scenario.name()) else {
            continue;
        };
        let record = Record {
            name: scenario.name().to_string(),
            sum: sum(scenario),
            outcome: outcome.clone(),
        };
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    out.finish()?;
    Ok(())
}

/// What was recorded of those scenarios that are still the same.
pub fn read(scenarios: &[impl Played], from: impl Read) -> Result<BTreeMap<String, Outcome>> {
    let sums: BTreeMap<&str, u32> = scenarios.iter().map(|s| (s.name(), sum(s))).collect();
    let mut out = BTreeMap::new();
    for line in BufReader::new(GzDecoder::new(from)).lines() {
        let record: Record = serde_json::from_str(&line?)?;
        if sums.get(record.name.as_str()) == Some(&record.sum) {
            out.insert(record.name, record.outcome);
        }
    }
    Ok(out)
}
