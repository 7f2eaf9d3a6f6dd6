//! A sample of the peer's answers, kept so that ours can be held to them without it.

use crate::answer::Answer;
use crate::case::{Case, Phase};
use crate::compare::differences;
use crate::generate;
use crate::report::Groups;
use crate::side::Side;
use crate::world;
use anyhow::{Context, Result};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};

/// Cases of each phase that are kept.
const SAMPLE: [(Phase, usize); 3] = [(Phase::Create, 1500), (Phase::Change, 1300), (Phase::Live, 200)];
/// What a case's answers may have, so that none takes the others' room.
const LONGEST: usize = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Record {
    phase: String,
    case: Case,
    answers: Vec<Answer>,
}

/// Asks the peer a sample drawn by the seed, and writes its answers, compressed.
pub async fn record(peer: &Side, seed: u64, out: impl Write) -> Result<usize> {
    let seeds = world::seeds()?;
    let mut out = GzEncoder::new(out, Compression::best());
    let mut count = 0;
    world::set_up(peer).await?;
    for (phase, sample) in SAMPLE {
        if phase == Phase::Change {
            world::sow(peer, &seeds).await?;
        }
        let cases = generate::cases(phase, &seeds, seed, sample / 3);
        let mut rng = StdRng::seed_from_u64(seed);
        let chosen: BTreeSet<usize> = index::sample(&mut rng, cases.len(), sample.min(cases.len()))
            .into_iter()
            .collect();
        for at in chosen {
            let case = cases[at].clone();
            // What a start writes, and when, is each server's own.
            if case.what.contains("watch") {
                continue;
            }
            let answers = peer.case(&case).await?;
            let record = Record {
                phase: format!("{phase:?}"),
                case,
                answers,
            };
            let line = serde_json::to_string(&record)?;
            if line.len() < LONGEST {
                writeln!(out, "{line}")?;
                count += 1;
            }
        }
    }
    out.finish()?;
    Ok(count)
}

/// Asks ours what the peer was asked.
pub async fn replay(ours: &Side, recorded: impl Read) -> Result<Groups> {
    let seeds = world::seeds()?;
    let mut groups = Groups::default();
    let mut phase = String::new();
    world::set_up(ours).await?;
    for line in BufReader::new(GzDecoder::new(recorded)).lines() {
        let record: Record = serde_json::from_str(&line?).context("a recorded case")?;
        if phase != record.phase {
            phase.clone_from(&record.phase);
            if phase == format!("{:?}", Phase::Change) {
                world::sow(ours, &seeds).await?;
            }
        }
        let answers = ours.case(&record.case).await?;
        groups.add(&record.case, differences(&record.case, &answers, &record.answers));
    }
    Ok(groups)
}
