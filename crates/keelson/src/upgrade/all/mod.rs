//! `keelson upgrade FILE --all-nodes`: every machine of a cluster, by one command, which may end at any moment.
//!
//! The command brings the program to the servers ([`cluster`]), has every machine judge it, and then has one machine after the other
//! take it ([`plan`]). What a machine is asked stands in an [`order`], which the servers keep ([`offer`]) and only administrators
//! give; machines [`follow`] it, each by its own upgrade, and note what they were asked ([`asked`]). Nothing of how far it is is kept:
//! it is what the machines run.

mod asked;
mod cluster;
mod follow;
mod offer;
mod order;
mod plan;
mod programs;

pub use asked::run as run_asked;
pub use follow::start as follow;
pub use offer::Offer;
pub use programs::Programs;

use super::place;
use super::run::Wanted;
use crate::client::block_on;
use anyhow::{Context, bail, ensure};
use cluster::{Cluster, Machine, refusals};
use jiff::{SignedDuration, Timestamp};
use order::{Ask, Order, Verb, shown};
use plan::{Facts, Next, Pace, Seen, Standing};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(500);
/// How long a machine may take to fetch the program and to begin.
const BEGINS: SignedDuration = SignedDuration::from_secs(300);
/// How many judge at a time.
const JUDGES: usize = 8;
/// A machine that had its turn may not be Ready for so long before it is not well.
const SETTLES: Duration = Duration::from_secs(60);

/// Which machines are to run it, and how many at a time.
pub struct Whom<'a> {
    pub at_once: usize,
    /// Labels of the nodes; empty: all.
    pub selector: &'a str,
    pub kubeconfig: PathBuf,
}

pub fn upgrade(wanted: &Wanted<'_>, whom: &Whom<'_>) -> anyhow::Result<String> {
    ensure!(
        (1..=order::LONGEST_TIMEOUT).contains(&wanted.timeout.as_secs()),
        "--timeout: a second to an hour"
    );
    let size = std::fs::metadata(wanted.file)?.len();
    ensure!(
        place::head(wanted.file)?.starts_with(b"\x7fELF") && size <= place::LARGEST,
        "{}: it is no program",
        wanted.file.display()
    );
    let sha256 = place::sum(wanted.file)?;
    wanted.has_sum(&sha256)?;
    block_on(upgrade_to(wanted, whom, sha256, size))
}

async fn upgrade_to(wanted: &Wanted<'_>, whom: &Whom<'_>, sha256: String, size: u64) -> anyhow::Result<String> {
    let cluster = Cluster::open(&whom.kubeconfig).await?;
    let (all, servers) = (cluster.machines("").await?, cluster.servers().await?);
    let chosen = match whom.selector {
        "" => all.clone(),
        labels => cluster.machines(labels).await?,
    };
    ensure!(!chosen.is_empty(), "no node has these labels");
    let refused = refusals(&all, &chosen, &servers);
    ensure!(
        refused.is_empty(),
        "nothing was begun:\n{}\n--selector chooses others",
        refused.join("\n")
    );
    let kept = cluster.kept().await?;
    let mut run = Run {
        cluster,
        servers,
        labels: whom.selector.into(),
        order: Order {
            sha256,
            size,
            timeout_seconds: wanted.timeout.as_secs(),
            asks: BTreeMap::new(),
        },
        revision: kept.revision,
        told: BTreeMap::new(),
    };
    let before = kept.order.as_ref();
    let standings: BTreeMap<String, Standing> = all
        .iter()
        .filter_map(|machine| Some((machine.name.clone(), stands(before?, machine))))
        .collect();
    run.order.asks = plan::carried(before, &run.order.sha256, &standings)?;
    if let Some(other) = run
        .order
        .asks
        .keys()
        .find(|name| chosen.iter().all(|m| m.name != **name))
    {
        bail!("{other} is being upgraded: wait until that has ended, or choose it too");
    }
    let at_it = |machine: &&Machine| run.order.asks.contains_key(&machine.name);
    let names: Vec<String> = sorted(&chosen).iter().map(|machine| machine.name.clone()).collect();
    let left: Vec<String> = sorted(&chosen)
        .into_iter()
        .filter(|machine| machine.runs() != run.order.sha256 && !at_it(machine))
        .map(|machine| machine.name.clone())
        .collect();
    for machine in sorted(&chosen).into_iter().filter(|m| !left.contains(&m.name)) {
        let why = if at_it(&machine) {
            "is at it already"
        } else {
            "runs that program already"
        };
        println!("{}: {why}", machine.name);
    }
    if left.is_empty() && run.order.asks.is_empty() {
        return Ok("nothing to do: all machines run that program already".into());
    }
    if !wanted.dry_run {
        // Who asked them may have been ended before they were told to look.
        for (name, ask) in &run.order.asks {
            run.cluster.have_looked(name, &ask.id).await?;
        }
    }
    for address in run.servers.clone() {
        let brought = run.cluster.bring(&address, wanted.file, &run.order.sha256, size).await;
        brought.with_context(|| format!("bringing the program to the server {address}"))?;
    }
    let carried = run.order.asks.clone();
    let judged = run
        .pass(
            &left,
            Verb::Judge,
            Pace {
                servers_first: false,
                at_once: JUDGES,
            },
        )
        .await;
    judged.context("nothing was begun")?;
    run.order.asks = carried;
    if wanted.dry_run {
        let turns: Vec<String> = left
            .iter()
            .enumerate()
            .map(|(n, name)| format!("{}. {name}", n + 1))
            .collect();
        return Ok(format!("nothing was changed; it would go so:\n{}", turns.join("\n")));
    }
    let pace = Pace {
        servers_first: true,
        at_once: whom.at_once,
    };
    let taken = run.pass(&names, Verb::Take, pace).await;
    taken.context("stopped; the same command goes on where it was")?;
    // Who was starting anew when this command began is among them now.
    let servers = run.cluster.servers().await.unwrap_or_else(|_| run.servers.clone());
    for address in &servers {
        // What is left there is one file, and the next one takes its place.
        if let Err(error) = run.cluster.forget(address).await {
            eprintln!("keelson: the program stays on the server {address}: {error:#}");
        }
    }
    Ok(format!("all {} machines run that program now", names.len()))
}

/// In the order of their turns.
fn sorted(machines: &[Machine]) -> Vec<&Machine> {
    let mut all: Vec<&Machine> = machines.iter().collect();
    all.sort_by_key(|machine| (!machine.is_server(), machine.name.clone()));
    all
}

fn stands(order: &Order, machine: &Machine) -> Standing {
    plan::standing(&Facts {
        target: &order.sha256,
        runs: machine.runs(),
        ask: order.asks.get(&machine.name),
        answer: machine.answer.as_ref(),
        timeout: SignedDuration::from_secs(order.timeout_seconds().cast_signed()),
        now: Timestamp::now(),
    })
}

/// One run of the command.
struct Run {
    cluster: Cluster,
    servers: Vec<String>,
    labels: String,
    order: Order,
    revision: u64,
    /// What was said of each machine last.
    told: BTreeMap<String, String>,
}

impl Run {
    /// Has all of them do it, until all have or one isn't well.
    async fn pass(&mut self, names: &[String], verb: Verb, pace: Pace) -> anyhow::Result<()> {
        let mut unsettled: Option<Instant> = None;
        loop {
            let machines = self.cluster.machines(&self.labels).await?;
            let found: BTreeMap<&str, &Machine> = machines.iter().map(|m| (m.name.as_str(), m)).collect();
            let seen: Vec<Seen> = names
                .iter()
                .map(|name| self.see(name, found.get(name.as_str()).copied()))
                .collect();
            for one in &seen {
                self.tell(one, found.get(one.name.as_str()).copied(), verb);
            }
            let next = plan::next(&seen, pace);
            if !matches!(next, Next::Settle(_)) {
                unsettled = None;
            }
            match next {
                Next::Ask(names) => self.ask(&names, verb).await?,
                Next::Wait => tokio::time::sleep(PAUSE).await,
                Next::Settle(names) => {
                    let since = *unsettled.get_or_insert_with(Instant::now);
                    ensure!(
                        since.elapsed() < SETTLES,
                        "{} had its turn, and isn't Ready any more",
                        names.join(", ")
                    );
                    tokio::time::sleep(PAUSE).await;
                }
                Next::Stop(lines) => bail!("{}", lines.join("\n")),
                Next::Done => return Ok(()),
            }
        }
    }

    fn see(&self, name: &str, machine: Option<&Machine>) -> Seen {
        let gone = || Standing::Ill("its node is gone".into());
        Seen {
            name: name.into(),
            server: machine.is_some_and(Machine::is_server),
            ready: machine.is_some_and(|machine| machine.ready),
            standing: match machine.map_or_else(gone, |machine| stands(&self.order, machine)) {
                Standing::Ill(why) => Standing::Ill(shown(&why)),
                standing => standing,
            },
        }
    }

    async fn ask(&mut self, names: &[String], verb: Verb) -> anyhow::Result<()> {
        if verb == Verb::Take {
            // While one is away the others have to be there.
            self.cluster.all_ready(&self.servers).await?;
        }
        for name in names {
            let ask = Ask {
                id: uuid::Uuid::new_v4().to_string(),
                verb,
                until: Timestamp::now() + BEGINS,
            };
            self.order.asks.insert(name.clone(), ask);
        }
        self.revision = self.cluster.give(self.revision, &self.order).await?.revision;
        for name in names {
            let id = self.order.asks.get(name).map_or("", |ask| &ask.id);
            self.cluster.have_looked(name, id).await?;
        }
        Ok(())
    }

    /// Says what is new of a machine.
    fn tell(&mut self, seen: &Seen, machine: Option<&Machine>, verb: Verb) {
        let asked = self.order.asks.contains_key(&seen.name);
        let what = match (&seen.standing, verb) {
            (Standing::UnderWay, Verb::Judge) => "judges it".to_owned(),
            (Standing::UnderWay, _) => "takes it".to_owned(),
            (Standing::Done, _) if asked => {
                let why = machine
                    .and_then(|machine| machine.answer.as_ref())
                    .map(|answer| shown(&answer.why));
                why.unwrap_or_default()
            }
            _ => return,
        };
        if self.told.get(&seen.name) != Some(&what) {
            println!("{}: {what}", seen.name);
            self.told.insert(seen.name.clone(), what);
        }
    }
}
