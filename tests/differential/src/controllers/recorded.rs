//! What upstream's controllers left of the scenarios, kept so that ours can be held to it without them.

use crate::controllers::outcome::Outcome;
use crate::controllers::scenario::Scenario;
use anyhow::Result;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression, Crc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};

#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    /// Of what was played.
    sum: u32,
    outcome: Outcome,
}

fn sum(scenario: &Scenario) -> u32 {
    let mut crc = Crc::new();
    crc.update(format!("{scenario:?}").as_bytes());
    crc.sum()
}

/// Writes a line a scenario, compressed.
pub fn write(scenarios: &[Scenario], outcomes: &BTreeMap<String, Outcome>, out: impl Write) -> Result<()> {
    let mut out = GzEncoder::new(out, Compression::best());
    for scenario in scenarios {
        let record = Record {
            name: scenario.name.clone(),
            sum: sum(scenario),
            outcome: outcomes[&scenario.name].clone(),
        };
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    out.finish()?;
    Ok(())
}

/// What was recorded of those scenarios that are still the same.
pub fn read(scenarios: &[Scenario], from: impl Read) -> Result<BTreeMap<String, Outcome>> {
    let sums: BTreeMap<&str, u32> = scenarios.iter().map(|s| (s.name.as_str(), sum(s))).collect();
    let mut out = BTreeMap::new();
    for line in BufReader::new(GzDecoder::new(from)).lines() {
        let record: Record = serde_json::from_str(&line?)?;
        if sums.get(record.name.as_str()) == Some(&record.sum) {
            out.insert(record.name, record.outcome);
        }
    }
    Ok(out)
}
