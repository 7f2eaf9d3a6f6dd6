//! A machine's part: it says what it runs, looks at the order when it is told to look, and does what it is asked, once.
//!
//! It believes nobody but the servers: the order and the program come over the connection that it has to them as a node, of which the
//! cluster's authority says who is at the other end. What came is run only if it has the sum that the order names, and then judged as
//! any program is that somebody gives to `keelson upgrade` here: an older one is refused.

use super::super::journal::{Attended, Journal};
use super::super::machine::Machine;
use super::super::{place, run};
use super::asked::{Asked, Outcome};
use super::order::{ANSWER, Kept, LOOK, Order, PROGRAM, Report, Verb};
use super::programs::Programs;
use crate::config::{Config, KUBERNETES_VERSION};
use crate::install::{Host, Role};
use crate::supervise::Supervisor;
use crate::version::VERSION;
use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use keelson_apiserver::upgrades::{PATH, is_sum};
use keelson_client::objects::{Objects, Patch};
use keelson_client::rest::{JSON, Rest};
use keelson_client::{ClientFactory, Informer, InformerOptions};
use serde::Serialize;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often it is looked how a process fares that isn't this one's child.
const PAUSE: Duration = Duration::from_millis(500);
/// A process that was started and doesn't attend yet.
const BEGINS: Duration = Duration::from_secs(10);
/// Between two attempts to fetch what no server gave.
const AGAIN: Duration = Duration::from_secs(1);
/// For one piece of a program: of a server that is gone nobody may hear anything for ever.
const PIECE_COMES: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Follower {
    rest: Rest,
    name: String,
    role: Role,
    data_dir: PathBuf,
    programs: Programs,
}

/// As part of a machine's service. Of machines that run no node nobody hears anything.
pub fn start(running: &mut Supervisor, config: &Config, clients: &dyn ClientFactory, role: Role, programs: Programs) {
    let follower = Follower {
        rest: Rest::new(
            clients.client(&format!("system:node:{}", config.node_name)),
            "keelson-upgrade",
        ),
        name: config.node_name.clone(),
        role,
        data_dir: config.data_dir.clone(),
        programs,
    };
    running.spawn("upgrades", move |stop| follower.clone().run(stop));
}

/// What is done for an order now.
enum Work {
    None,
    /// By a process that this one started, or that one before it did.
    Process(Option<Child>, Instant),
}

impl Follower {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let options = InformerOptions {
            fields: format!("metadata.name={}", self.name),
            ..InformerOptions::default()
        };
        let nodes: Informer<Node> = Informer::start(&self.rest, options, &stop);
        let changed = Arc::new(Notify::new());
        let note = changed.clone();
        // A node's status is written all the time.
        nodes.on_change(move |change| {
            let same = |old: &Arc<Node>| old.metadata.annotations == change.object().metadata.annotations;
            if !change.old().is_some_and(same) {
                note.notify_one();
            }
        });
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            done = self.follow(&nodes, &changed) => done,
        }
    }

    async fn follow(&self, nodes: &Informer<Node>, changed: &Notify) -> anyhow::Result<()> {
        let mut report = self.report().await?;
        let mut asked = Asked::read(&self.data_dir)?;
        self.tidy(asked.as_ref())?;
        let mut work = match &asked {
            Some(asked) if asked.outcome.is_none() => Work::Process(None, Instant::now()),
            _ => Work::None,
        };
        // What stands in the Node counts once it has been read; what was looked at before isn't known.
        let mut looked: Option<String> = None;
        loop {
            if let Work::Process(child, began) = &mut work
                && !self.is_at_work(child, *began)?
            {
                asked = self.ended()?;
                report = self.report().await?;
                work = Work::None;
            }
            let node = nodes.store().list().into_iter().next();
            if let Some(node) = &node {
                self.say(node, PROGRAM, Some(&report)).await?;
                self.say(node, ANSWER, asked.as_ref().map(Asked::answer).as_ref())
                    .await?;
                let look = node
                    .metadata
                    .annotations
                    .iter()
                    .flatten()
                    .find(|(name, _)| *name == LOOK);
                let look = look.map(|(_, text)| text.clone()).unwrap_or_default();
                if matches!(work, Work::None) && looked.as_ref() != Some(&look) {
                    if let Some((next, child)) = self.look(asked.as_ref(), &report).await? {
                        work = child.map_or(Work::None, |child| Work::Process(Some(child), Instant::now()));
                        asked = Some(next);
                        continue;
                    }
                    looked = Some(look);
                }
            }
            match work {
                Work::None => changed.notified().await,
                Work::Process(..) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn is_at_work(&self, child: &mut Option<Child>, began: Instant) -> anyhow::Result<bool> {
        if let Some(started) = child {
            return match started.try_wait() {
                Ok(ended) => Ok(ended.is_none()),
                // Somebody else was told of its end.
                Err(_) => Ok(Attended::is_held(&self.data_dir)?),
            };
        }
        Ok(Attended::is_held(&self.data_dir)? || began.elapsed() < BEGINS && self.is_open()?)
    }

    fn is_open(&self) -> anyhow::Result<bool> {
        Ok(Asked::read(&self.data_dir)?.is_some_and(|asked| asked.outcome.is_none()))
    }

    /// How it went, from now on.
    fn ended(&self) -> anyhow::Result<Option<Asked>> {
        let Some(asked) = Asked::read(&self.data_dir)? else {
            return Ok(None);
        };
        if asked.outcome.is_none() {
            let outcome = asked.concluded(Journal::read(&self.data_dir)?.as_ref());
            Asked::end(&self.data_dir, &asked.id, outcome)?;
        }
        let ended = Asked::read(&self.data_dir)?;
        self.tidy(ended.as_ref())?;
        Ok(ended)
    }

    /// What came for an upgrade that is over goes; a server has it for the others.
    fn tidy(&self, asked: Option<&Asked>) -> anyhow::Result<()> {
        let taken = |asked: &Asked| asked.verb == Verb::Take && asked.outcome.as_ref().is_some_and(|o| o.well);
        match self.role == Role::Agent && asked.is_some_and(taken) {
            true => self.programs.forget(),
            false => Ok(()),
        }
    }

    async fn say<T: Serialize>(&self, node: &Node, name: &str, what: Option<&T>) -> anyhow::Result<()> {
        let text = what.map(serde_json::to_string).transpose()?;
        let said = node.metadata.annotations.as_ref().and_then(|all| all.get(name));
        if said == text.as_ref() {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {name: text}}});
        let nodes: Objects<Node> = Objects::new(&self.rest);
        let done = nodes.patch("", &self.name, Patch::Merge(&patch)).await;
        done.context("saying what this machine runs")?;
        Ok(())
    }

    /// What this machine is asked and hasn't been asked before. It is noted first; a process is at it, or it has come to its end.
    async fn look(&self, before: Option<&Asked>, report: &Report) -> anyhow::Result<Option<(Asked, Option<Child>)>> {
        let kept = self.rest.get(&format!("{PATH}/order"), JSON).await;
        let kept: Kept = match kept {
            Ok(text) => serde_json::from_slice(&text).context("the order of an upgrade")?,
            // Servers that give none.
            Err(error) if keelson_client::is_not_found(&error) || keelson_client::is_forbidden(&error) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("the order of an upgrade"),
        };
        let Some(order) = kept.order else { return Ok(None) };
        let Some(ask) = order.asks.get(&self.name) else {
            return Ok(None);
        };
        if ask.verb == Verb::Unknown
            || before.is_some_and(|before| before.id == ask.id)
            || keelson_clock::now() > ask.until
        {
            return Ok(None);
        }
        let asked = Asked {
            id: ask.id.clone(),
            verb: ask.verb,
            sha256: order.sha256.clone(),
            began: keelson_clock::now(),
            outcome: None,
        };
        tracing::info!(sha256 = order.sha256, verb = ?ask.verb, "an administrator asks for another program");
        asked.write(&self.data_dir)?;
        match self.begin(&asked, &order, ask.until, report).await {
            Ok(child) => Ok(Some((asked, Some(child)))),
            Err(error) => {
                let outcome = Outcome {
                    well: false,
                    why: format!("{error:#}"),
                };
                Asked::end(&self.data_dir, &asked.id, outcome)?;
                Ok(self.ended()?.map(|asked| (asked, None)))
            }
        }
    }

    async fn begin(&self, asked: &Asked, order: &Order, until: Timestamp, report: &Report) -> anyhow::Result<Child> {
        if let Some(why) = &report.refused {
            bail!("{why}");
        }
        ensure!(is_sum(&order.sha256), "the order names no program");
        self.fetch(&order.sha256, order.size, until).await?;
        let (this, asked, timeout) = (self.clone(), asked.clone(), order.timeout_seconds());
        let started = move || {
            let host = Host::at("/".into());
            let program = Machine::find(&host)?.place;
            asked.begin(&this.data_dir, &program, &this.programs.path(&asked.sha256), timeout)
        };
        tokio::task::spawn_blocking(started).await?
    }

    /// Has the program here, whole, before it is too late to begin. Whatever server answers is asked for the next piece.
    async fn fetch(&self, program: &str, size: u64, until: Timestamp) -> anyhow::Result<()> {
        loop {
            let standing = self.programs.standing(program)?;
            if standing.whole {
                return Ok(());
            }
            let path = format!("{PATH}/programs/{program}?at={}", standing.bytes);
            let why = match tokio::time::timeout(PIECE_COMES, self.rest.get(&path, "*/*")).await {
                // At its end an empty one has it looked at.
                Ok(Ok(piece)) if !piece.is_empty() || standing.bytes == size => {
                    let (programs, name, at) = (self.programs.clone(), program.to_owned(), standing.bytes);
                    let taken = tokio::task::spawn_blocking(move || programs.take(&name, size, at, &piece));
                    taken.await?.context("fetching the program")?;
                    None
                }
                Ok(Ok(_)) => Some("it is shorter than was said".to_owned()),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no server answers".to_owned()),
            };
            ensure!(
                keelson_clock::now() < until,
                "the program couldn't be fetched in time: {}",
                why.as_deref().unwrap_or("it comes too slowly")
            );
            if why.is_some() {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// What this machine is. Its program is read at its start and after an upgrade, and only where it can be exchanged.
    async fn report(&self) -> anyhow::Result<Report> {
        let this = self.clone();
        let found = tokio::task::spawn_blocking(move || this.found()).await?;
        Ok(Report {
            role: self.role,
            version: VERSION.into(),
            kubernetes: KUBERNETES_VERSION.into(),
            refused: found.as_ref().err().map(|error| format!("{error:#}")),
            sha256: found.unwrap_or_default(),
        })
    }

    fn found(&self) -> anyhow::Result<String> {
        let host = Host::at("/".into());
        let machine = Machine::find(&host)?;
        ensure!(
            machine.role == self.role && machine.data_dir() == self.data_dir,
            "what runs isn't the service that is installed on this machine"
        );
        ensure!(
            same(Path::new("/proc/self/exe"), &machine.place)?,
            "what runs isn't {} any more: start the service anew",
            machine.place.display()
        );
        // It would be taken back at the next start: nobody is to count on it.
        if !Attended::is_held(&self.data_dir)? {
            run::settled(&self.data_dir)?;
        }
        place::sum(&machine.place)
    }
}

fn same(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let of = |path: &Path| {
        let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        anyhow::Ok((meta.dev(), meta.ino()))
    };
    Ok(of(one)? == of(other)?)
}
