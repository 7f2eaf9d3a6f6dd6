//! A whole run, which goes on where an earlier one was interrupted.

use crate::case::{Case, Phase};
use crate::compare::differences;
use crate::generate;
use crate::report::{Groups, Known};
use crate::shrink;
use crate::side::{self, Side};
use crate::world;
use anyhow::Result;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Cases between two notes of how far it has come.
const STRETCH: usize = 500;
/// Groups whose example is made smaller.
const SHRUNK: usize = 60;

pub struct Options {
    pub seed: u64,
    /// Cases with several changes.
    pub more: usize,
    /// Requests at a time.
    pub width: usize,
    /// Only cases whose kind or description fits.
    pub only: Option<Regex>,
    /// Of the cases, each n-th.
    pub every: usize,
    /// Where state and report are kept.
    pub work: PathBuf,
    pub longest: Duration,
    pub shrink: bool,
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    seed: u64,
    /// How many cases of each phase have been compared.
    done: BTreeMap<String, usize>,
    groups: Groups,
}

/// Compares; gives what differs without a reason, as text, and how many that are.
pub async fn run(ours: &Side, peer: &Side, options: &Options) -> Result<(String, usize)> {
    let known = Known::read()?;
    let seeds = world::seeds()?;
    std::fs::create_dir_all(&options.work)?;
    let file = options.work.join("state.json");
    let mut state = match std::fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) => State::default(),
    };
    if state.seed != options.seed {
        state = State {
            seed: options.seed,
            ..State::default()
        };
    }
    let begun = Instant::now();
    println!("seed {}, {} compared before", options.seed, state.groups.compared);
    world::set_up(ours).await?;
    world::set_up(peer).await?;
    for phase in [Phase::Create, Phase::Change, Phase::Live] {
        if phase == Phase::Change {
            let (a, b) = tokio::join!(world::sow(ours, &seeds), world::sow(peer, &seeds));
            let (a, b) = (a?, b?);
            a.iter().for_each(|r| println!("ours refused a sound object: {r}"));
            b.iter().for_each(|r| println!("the peer refused a sound object: {r}"));
        }
        let mut cases = generate::cases(phase, &seeds, options.seed, options.more);
        if let Some(only) = &options.only {
            cases.retain(|c| only.is_match(&format!("{}: {}", c.kind, c.what)));
        }
        let cases: Vec<Case> = cases.into_iter().step_by(options.every).collect();
        let name = format!("{phase:?}");
        let from = state.done.get(&name).copied().unwrap_or(0).min(cases.len());
        for stretch in cases[from..].chunks(STRETCH) {
            let groups = &mut state.groups;
            side::both(ours, peer, stretch, options.width, |case, a, b| {
                groups.add(case, differences(case, &a, &b));
            })
            .await?;
            *state.done.entry(name.clone()).or_default() += stretch.len();
            std::fs::write(&file, serde_json::to_vec(&state)?)?;
            println!(
                "{name}: {} of {}; {} compared, {} equal, {} groups differ without a reason, {} s",
                state.done[&name],
                cases.len(),
                state.groups.compared,
                state.groups.equal,
                state.groups.unknown(&known).len(),
                begun.elapsed().as_secs()
            );
            anyhow::ensure!(
                begun.elapsed() < options.longest,
                "interrupted after {:?}: the next run goes on from here",
                options.longest
            );
        }
    }
    let unknown = state.groups.unknown(&known);
    let count = unknown.len();
    let mut smaller = BTreeMap::new();
    if options.shrink {
        for found in unknown.iter().take(SHRUNK) {
            smaller.insert(
                found.group.to_string(),
                shrink::smaller(ours, peer, &found.case, &found.group).await?,
            );
        }
    }
    let text = state.groups.text(&known, &smaller);
    std::fs::write(options.work.join("report.txt"), &text)?;
    // It is whole: the next run begins anew.
    let _ = std::fs::remove_file(&file);
    Ok((text, count))
}
