//! All scenarios on both sides. Outcomes are kept, so that only what changed is played again.

use crate::controllers::managers::Which;
use crate::controllers::outcome::Outcome;
use crate::controllers::recorded;
use crate::controllers::run::{Found, Kept, Options, kept, stamp};
use crate::peer::{Peer, SCHEDULER, free_port};
use crate::report::Known;
use crate::scheduler::drive::Stage;
use crate::scheduler::scenario::{self, CONFIGURATION, Scenario};
use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Instant;

/// So many clusters at most are there at a time, each with a share of the scenarios.
const CLUSTERS: usize = 4;

const LATE: &str = "interrupted: the next run goes on from here";

const KNOWN: &str = include_str!("../../scheduler/known-differences.txt");

/// Differences that have a reason.
pub fn known() -> Result<Known> {
    Known::parse(KNOWN)
}

/// Plays what isn't there yet; gives what differs as text, and how much of it has no reason.
pub async fn run(options: &Options) -> Result<(String, usize)> {
    let mut scenarios = scenario::all()?;
    scenarios.retain(|s| options.only.as_ref().is_none_or(|o| o.is_match(&s.name)));
    if let Some(file) = &options.record {
        let played = side(Which::Peer, options, &scenarios);
        let peer = tokio::time::timeout(options.longest, played).await.context(LATE)??;
        let count = peer.len();
        recorded::update(&scenario::all()?, peer, file)?;
        return Ok((format!("{count} scenarios recorded"), 0));
    }
    let both = async {
        tokio::try_join!(
            side(Which::Ours, options, &scenarios),
            side(Which::Peer, options, &scenarios)
        )
    };
    let (ours, peer) = tokio::time::timeout(options.longest, both).await.context(LATE)??;
    let mut found = Found::default();
    for scenario in &scenarios {
        found.add(&scenario.name, &ours[&scenario.name], &peer[&scenario.name]);
    }
    let known = known()?;
    let text = found.text(&known, options.only.is_none());
    fs::write(options.work.join("report.txt"), &text)?;
    Ok((text, found.unknown(&known).count()))
}

async fn side(which: Which, options: &Options, scenarios: &[Scenario]) -> Result<BTreeMap<String, Outcome>> {
    let dir = options.work.join(which.name());
    fs::create_dir_all(&dir)?;
    let program = match which {
        Which::Ours => options.program.clone(),
        Which::Peer => options.bin.join("kube-scheduler"),
    };
    let mut out = BTreeMap::new();
    for scenario in scenarios {
        let stamp = stamp(&(scenario, CONFIGURATION), &program)?;
        if let Some(outcome) = kept(&dir, &scenario.name, stamp) {
            out.insert(scenario.name.clone(), outcome);
        }
    }
    let left: Vec<&Scenario> = scenarios.iter().filter(|s| !out.contains_key(&s.name)).collect();
    println!("{}: {} played before, {} to play", which.name(), out.len(), left.len());
    if left.is_empty() {
        return Ok(out);
    }
    let (begun, all) = (Instant::now(), scenarios.len());
    let share = left.len().div_ceil(options.width.clamp(1, CLUSTERS));
    let done = Mutex::new(out);
    let shares = left.chunks(share).enumerate().map(|(n, share)| {
        let (dir, program, done) = (&dir, &program, &done);
        async move {
            let peer = start(which, options, n).await?;
            let mut stage = Stage::set(peer.side.client("admin")?).await?;
            let played = stage
                .play(share.iter().copied(), |scenario, outcome| {
                    let stamp = stamp(&(scenario, CONFIGURATION), program)?;
                    let kept = Kept { stamp, outcome };
                    let file = dir.join(format!("{}.json", scenario.name));
                    fs::write(file, serde_json::to_vec_pretty(&kept)?)?;
                    let mut done = done.lock();
                    done.insert(scenario.name.clone(), kept.outcome);
                    let (count, seconds) = (done.len(), begun.elapsed().as_secs());
                    println!("{}: {count} of {all}, {seconds} s: {}", which.name(), scenario.name);
                    Ok(())
                })
                .await;
            let log = options.work.join(format!("{}-{n}.log", which.name()));
            let _ = fs::copy(peer.path("scheduler.log"), log);
            played
        }
    });
    futures::future::try_join_all(shares).await?;
    Ok(done.into_inner())
}

/// Starts a server and a scheduler over it.
async fn start(which: Which, options: &Options, n: usize) -> Result<Peer> {
    let mut peer = Peer::named(&options.bin, &format!("scheduler-{}-{n}", which.name())).await?;
    let kubeconfig = peer.path(&format!("{SCHEDULER}.kubeconfig"));
    let (port, config) = (free_port()?.to_string(), peer.path("configuration.yaml"));
    let mut settings = CONFIGURATION.to_string();
    if which == Which::Peer {
        settings.push_str(&format!(
            "clientConnection: {{kubeconfig: {kubeconfig}, qps: 1000, burst: 2000}}\n"
        ));
    }
    fs::write(&config, settings)?;
    let mut given = vec![
        ("config", config.as_str()),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("bind-address", "127.0.0.1"),
        ("secure-port", &port),
    ];
    match which {
        Which::Peer => peer.run(&options.bin.join("kube-scheduler"), "scheduler", &given)?,
        Which::Ours => {
            given.extend([("kubeconfig", kubeconfig.as_str()), ("leader-elect", "false")]);
            let mut command = Command::new(&options.program);
            command.arg("scheduler");
            peer.start_program(command, "scheduler", &given)?;
        }
    }
    Ok(peer)
}
