//! The member of etcd that runs beside a server: begun with it, before anything else, and ended after everything else.

use super::{Met, Remembered, Shared, agree, items, join, joining, offer};
use crate::config::{Config, Options};
use crate::etcd::certificates::Certificates;
use crate::etcd::program::{self, Begin};
use crate::etcd::upkeep::Upkeep;
use crate::etcd::{Place, command, membership};
use crate::store::Opened;
use crate::supervise::Supervisor;
use anyhow::{Context, bail, ensure};
use keelson_apiserver::joining::Joining;
use keelson_pki::ServerToken;
use keelson_store::Etcd;
use keelson_store::etcd::Cluster;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to reach a majority: machines that were switched on together find each other.
const AGAIN: Duration = Duration::from_secs(1);

pub struct Beside {
    /// The program, and its certificates.
    running: Supervisor,
    upkeep: Arc<Upkeep>,
}

impl Beside {
    pub fn upkeep(&self) -> Arc<Upkeep> {
        self.upkeep.clone()
    }
    /// Nobody needs it any more.
    pub async fn stop(self) {
        self.running.stop().await;
    }
}

fn place(options: &Options, alone: &Config) -> Place {
    Place {
        data_dir: alone.data_dir.clone(),
        name: alone.node_name.clone(),
        ip: alone.node_ip(),
        program: options.etcd_program.clone(),
    }
}

/// The options by which this server reaches its own member, and the others.
fn reaching(options: &Options, place: &Place, known: &Remembered) -> Options {
    let pki = place.pki();
    let own = place.client_url();
    let others = known.etcd_servers.iter().filter(|server| **server != own).cloned();
    Options {
        etcd_servers: Some(std::iter::once(own.clone()).chain(others).collect()),
        etcd_prefix: Some(known.etcd_prefix.clone()),
        etcd_cafile: Some(pki.join("ca.crt")),
        etcd_certfile: Some(pki.join("client.crt")),
        etcd_keyfile: Some(pki.join("client.key")),
        ..options.clone()
    }
}

/// The first member of a new etcd.
pub async fn begin(options: Options, alone: &Config, given: Option<ServerToken>) -> anyhow::Result<Met> {
    ensure!(
        !alone.data_dir.join("store").exists(),
        "{} has a cluster in it whose objects are in a store of its own: --cluster-init begins a new one, so give another --data-dir",
        alone.data_dir.display()
    );
    let place = place(&options, alone);
    let known = Remembered {
        etcd_servers: vec![place.client_url()],
        etcd_prefix: options.etcd_prefix.clone().unwrap_or_else(|| "/registry".into()),
        member: Some(place.name.clone()),
    };
    let how = match place.has_data().context("etcd's directory")? {
        true => Begin::Again,
        false => Begin::New,
    };
    let program = find(&place).await?;
    let running = run(&place, program, how)?;
    met(options, place, known, running, given).await
}

/// A member that was one before, or that is to become one now.
pub async fn again(
    options: Options,
    alone: &Config,
    known: Remembered,
    given: Option<ServerToken>,
) -> anyhow::Result<Met> {
    let place = place(&options, alone);
    if let Some(name) = known.member.as_deref().filter(|name| *name != place.name) {
        bail!(
            "this machine is the member {name} of etcd, and its node's name is {} now: give --node-name {name}",
            place.name
        );
    }
    let program = find(&place).await?;
    let running = match place.has_data().context("etcd's directory")? {
        true => run(&place, program, Begin::Again)?,
        false => {
            // As a client of those that are there: by the certificate of a member that this machine was, or what another server has told.
            let told = match place.pki().join("client.crt").exists() {
                true => reaching(&options, &place, &known),
                false => join::reaching(options.clone(), &place.data_dir, known.clone()),
            };
            let there = told.clone().resolve()?;
            let store = Opened::open(&there.store).await?;
            agree(&told, &there, &store, &items(true), given.clone()).await?;
            Certificates::ensure(&place)?;
            let cluster = Cluster::new(command::options(&place.data_dir, known.etcd_servers.clone())?)?;
            let how = membership::join(&cluster, &place).await?;
            store.close().await;
            run(&place, program, how)?
        }
    };
    met(options, place, known, running, given).await
}

async fn find(place: &Place) -> anyhow::Result<PathBuf> {
    let program = program::find(place.program.as_deref())?;
    let version = program::version(&program).await?;
    tracing::info!(program = %program.display(), version, "etcd runs beside this server");
    Ok(program)
}

/// The program, and its certificates as long as it runs.
fn run(place: &Place, program: PathBuf, begin: Begin) -> anyhow::Result<Supervisor> {
    let mut running = Supervisor::default();
    let first = Certificates::ensure(place)?.renew_at();
    let kept = place.clone();
    running.spawn("etcd-certificates", move |stop| {
        let (place, mut due) = (kept.clone(), first);
        async move {
            while stop.run_until_cancelled(keelson_pki::due(due)).await.is_some() {
                due = Certificates::ensure(&place)?.renew_at();
            }
            Ok(())
        }
    });
    let place = place.clone();
    running.spawn("etcd", move |stop| {
        program::run(place.clone(), program.clone(), begin.clone(), stop)
    });
    Ok(running)
}

/// Once the member runs: has its vote, and the store is open by way of it.
async fn met(
    options: Options,
    place: Place,
    known: Remembered,
    running: Supervisor,
    given: Option<ServerToken>,
) -> anyhow::Result<Met> {
    match reach(options, place, known, given).await {
        Ok(reached) => Ok(Met {
            beside: Some(Beside {
                running,
                upkeep: reached.upkeep,
            }),
            config: reached.config,
            store: reached.store,
            joining: reached.joining,
            held: reached.held,
        }),
        // Nobody would look after it.
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

/// What a server knows once its own member has a vote.
struct Reached {
    config: Config,
    store: Opened,
    joining: Joining,
    held: Shared,
    upkeep: Arc<Upkeep>,
}

async fn reach(
    options: Options,
    place: Place,
    known: Remembered,
    given: Option<ServerToken>,
) -> anyhow::Result<Reached> {
    let options = reaching(&options, &place, &known);
    let alone = options.clone().resolve()?;
    let endpoints = options.etcd_servers.clone().unwrap_or_default();
    let cluster =
        || -> anyhow::Result<Cluster> { Ok(Cluster::new(command::options(&place.data_dir, endpoints.clone())?)?) };
    membership::vote(&cluster()?, &place).await?;
    let opened = loop {
        match Opened::open(&alone.store).await {
            Ok(opened) => break opened,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "etcd has no majority yet; trying again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    let (config, held) = agree(&options, &alone, &opened, &items(true), given).await?;
    known.write(&place.data_dir)?;
    let store = opened.etcd().context("the store is no etcd")?;
    let (data_dir, remembered) = (place.data_dir.clone(), known.clone());
    let upkeep = Upkeep {
        store: store.clone(),
        cluster: cluster()?,
        turn: format!("{}/keelson/defragmenting", alone.store.root()),
        learned: Box::new(move |servers| remember(&data_dir, &remembered, servers)),
        place: place.clone(),
    };
    Ok(Reached {
        joining: joining(&held, offer::of_members(&place, &store, alone.store.root()))?,
        held,
        config,
        store: opened,
        upkeep: Arc::new(upkeep),
    })
}

fn remember(data_dir: &std::path::Path, before: &Remembered, servers: &[String]) {
    let now = Remembered {
        etcd_servers: servers.to_vec(),
        ..before.clone()
    };
    if let Err(error) = now.write(data_dir) {
        tracing::warn!(
            error = format!("{error:#}"),
            "the members of etcd could not be remembered"
        );
    }
}

impl Opened {
    fn etcd(&self) -> Option<Arc<Etcd>> {
        match self {
            Opened::Etcd(store) => Some(store.clone()),
            Opened::Embedded(_) => None,
        }
    }
}
