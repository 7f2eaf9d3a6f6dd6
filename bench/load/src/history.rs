//! The history: a line of JSON for each figure, so that runs can be held against each other, and go on where they were interrupted.

use crate::cpu;
use crate::measure::Figures;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub time: String,
    pub machine: Machine,
    pub side: String,
    pub revision: String,
    /// Of the program that was measured: what was measured with another doesn't count for it.
    pub program: String,
    pub round: usize,
    pub row: String,
    pub clients: usize,
    pub http1: bool,
    pub share: f64,
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cores: usize,
    pub model: String,
    pub kernel: String,
    /// Load over the last minute, others' included.
    pub load: String,
}

impl Machine {
    pub fn now() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        Machine {
            cores: cpu::all_cores().len(),
            model: model.unwrap_or_default().trim_matches([' ', '\t', ':']).to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

pub fn read(path: &Path) -> Result<Vec<Record>> {
    let Ok(text) = fs::read_to_string(path) else {
        return Ok(Vec::new());
    };
    // A line that was being written when the run was ended is no line.
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

pub fn append(path: &Path, record: &Record) -> Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path);
    let file = file.as_mut().map_err(|e| anyhow::anyhow!("{e}"));
    let line = serde_json::to_string(record)?;
    writeln!(file.with_context(|| path.display().to_string())?, "{line}")?;
    Ok(())
}

/// What a program is known by in the history.
pub fn digest(program: &Path) -> Result<String> {
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    Ok(hex::encode(&Sha256::digest(bytes)[..6]))
}
