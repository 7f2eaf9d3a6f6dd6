//! All scenarios on both sides. Outcomes are kept, so that a run goes on where another one was interrupted, and only what
//! changed is played again.

use crate::compare::Group;
use crate::controllers::drive::Stage;
use crate::controllers::managers::{self, Which};
use crate::controllers::outcome::{Outcome, differences};
use crate::controllers::recorded;
use crate::controllers::scenario::{self, Scenario};
use crate::report::{Known, fits};
use anyhow::{Context, Result};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const KNOWN: &str = include_str!("../../controllers/known-differences.txt");

pub struct Options {
    /// Where kube-apiserver, etcd and kube-controller-manager are.
    pub bin: PathBuf,
    /// Ours.
    pub program: PathBuf,
    pub work: PathBuf,
    pub only: Option<Regex>,
    pub width: usize,
    pub longest: Duration,
    /// Where the peer's outcomes are written.
    pub record: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What was played by which program.
    pub stamp: u64,
    pub outcome: Outcome,
}

/// Those that are asked for.
pub fn chosen(only: Option<&Regex>) -> Result<Vec<Scenario>> {
    let mut scenarios = scenario::all()?;
    scenarios.retain(|s| only.is_none_or(|o| o.is_match(&s.name)));
    Ok(scenarios)
}

/// Plays what isn't there yet; gives what differs as text, and how much of it has no reason.
pub async fn run(options: &Options) -> Result<(String, usize)> {
    let scenarios = chosen(options.only.as_ref())?;
    let begun = Instant::now();
    let both = async {
        tokio::try_join!(
            side(Which::Ours, options, &scenarios, begun),
            side(Which::Peer, options, &scenarios, begun)
        )
    };
    let played = tokio::time::timeout(options.longest, both).await;
    let (ours, peer) = played.with_context(|| {
        format!(
            "interrupted after {:?}: the next run goes on from here",
            options.longest
        )
    })??;
    let mut found = Found::default();
    for scenario in &scenarios {
        found.add(&scenario.name, &ours[&scenario.name], &peer[&scenario.name]);
    }
    if let Some(file) = &options.record {
        recorded::update(&scenario::all()?, peer, file)?;
    }
    let known = known()?;
    let text = found.text(&known, options.only.is_none());
    fs::write(options.work.join("report.txt"), &text)?;
    Ok((text, found.unknown(&known).count()))
}

/// Differences that have a reason.
pub fn known() -> Result<Known> {
    Known::parse(KNOWN)
}

async fn side(
    which: Which,
    options: &Options,
    scenarios: &[Scenario],
    begun: Instant,
) -> Result<BTreeMap<String, Outcome>> {
    let dir = options.work.join(which.name());
    fs::create_dir_all(&dir)?;
    let program = match which {
        Which::Ours => options.program.clone(),
        Which::Peer => options.bin.join("kube-controller-manager"),
    };
    let mut out = BTreeMap::new();
    let mut left = Vec::new();
    for scenario in scenarios {
        match kept(&dir, &scenario.name, stamp(scenario, &program)?) {
            Some(outcome) => {
                out.insert(scenario.name.clone(), outcome);
            }
            None => left.push(scenario.clone()),
        }
    }
    println!("{}: {} played before, {} to play", which.name(), out.len(), left.len());
    if left.is_empty() {
        return Ok(out);
    }
    let peer = managers::start(which, &options.bin, &options.program).await?;
    let mut stage = Stage::set(peer.side.client("admin")?, &left).await?;
    stage
        .play(&left, options.width, |scenario, outcome| {
            let kept = Kept {
                stamp: stamp(scenario, &program)?,
                outcome,
            };
            fs::write(
                dir.join(format!("{}.json", scenario.name)),
                serde_json::to_vec_pretty(&kept)?,
            )?;
            out.insert(scenario.name.clone(), kept.outcome);
            println!(
                "{}: {} of {}, {} s: {}",
                which.name(),
                out.len(),
                scenarios.len(),
                begun.elapsed().as_secs(),
                scenario.name
            );
            Ok(())
        })
        .await?;
    let _ = fs::copy(
        peer.path("manager.log"),
        options.work.join(format!("{}.log", which.name())),
    );
    Ok(out)
}

pub(crate) fn stamp(played: &impl Debug, program: &Path) -> Result<u64> {
    let facts = fs::metadata(program).with_context(|| format!("{}", program.display()))?;
    let mut hasher = DefaultHasher::new();
    format!("{played:?}").hash(&mut hasher);
    (facts.len(), facts.modified()?).hash(&mut hasher);
    Ok(hasher.finish())
}

pub(crate) fn kept(dir: &Path, name: &str, stamp: u64) -> Option<Outcome> {
    let bytes = fs::read(dir.join(format!("{name}.json"))).ok()?;
    let kept: Kept = serde_json::from_slice(&bytes).ok()?;
    (kept.stamp == stamp).then_some(kept.outcome)
}

/// Differences by group, with the scenarios that show them.
#[derive(Default)]
pub struct Found {
    groups: BTreeMap<Group, (Vec<String>, String, String)>,
    compared: usize,
    equal: usize,
}

impl Found {
    pub fn add(&mut self, scenario: &str, ours: &Outcome, peer: &Outcome) {
        let all = differences(scenario, ours, peer);
        self.compared += 1;
        self.equal += usize::from(all.is_empty());
        for d in all {
            let (scenarios, ..) = self.groups.entry(d.group).or_insert((Vec::new(), d.ours, d.peer));
            if scenarios.last().is_none_or(|last| last != scenario) {
                scenarios.push(scenario.into());
            }
        }
    }

    pub fn unknown<'a>(
        &'a self,
        known: &'a Known,
    ) -> impl Iterator<Item = (&'a Group, &'a (Vec<String>, String, String))> {
        self.groups.iter().filter(|(g, (scenarios, ..))| {
            let of = |s: &String| Group {
                kind: format!("{s}: {}", g.kind),
                ..(*g).clone()
            };
            known.reason(g).is_none() && !scenarios.iter().all(|s| known.reason(&of(s)).is_some())
        })
    }

    /// What a reader is shown.
    pub fn text(&self, known: &Known, all: bool) -> String {
        let mut unknown: Vec<_> = self.unknown(known).collect();
        unknown.sort_by_key(|(_, (scenarios, ..))| std::cmp::Reverse(scenarios.len()));
        let mut out = format!(
            "{} scenarios compared, {} equal; {} groups of differences, of which {} have a reason\n",
            self.compared,
            self.equal,
            self.groups.len(),
            self.groups.len() - unknown.len()
        );
        for (group, (scenarios, ours, peer)) in unknown {
            let _ = write!(
                out,
                "\n{} × {group}\n  {}\n  ours: {ours}\n  peer: {peer}\n",
                scenarios.len(),
                scenarios.join(" ")
            );
        }
        let shown: Vec<String> = self
            .groups
            .iter()
            .flat_map(|(g, (scenarios, ..))| {
                scenarios
                    .iter()
                    .map(move |s| format!("{s}: {g}"))
                    .chain([g.to_string()])
            })
            .collect();
        for pattern in known.patterns().filter(|p| all && !shown.iter().any(|g| fits(p, g))) {
            let _ = writeln!(out, "\nno longer differs, and can go from the list: {pattern}");
        }
        out
    }
}
