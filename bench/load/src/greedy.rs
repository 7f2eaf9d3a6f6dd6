//! A polite client's latency, alone and while a greedy one does what it likes.
//!
//! The greedy client is a process of its own with the lowest priority, so that the polite one waits for the server and not for it.

use crate::drive::{Bounds, Pace, Taken, drive};
use crate::measure::Sizes;
use crate::objects;
use crate::plan::Plan;
use crate::target::{Connection, Head, Target};
use crate::world::{JSON, World, create};
use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http::Method;
use http_body_util::BodyExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// Reads a second of the polite client, and as many writes.
const RATE: f64 = 25.0;
/// What the greedy client begins with comes before what is measured.
const FIRST: Duration = Duration::from_secs(1);
/// Connections for each kind of greed.
const EACH: usize = 4;
const WATCHES: usize = 20;
/// As large as a body may be, nearly.
const BIG: usize = 900 << 10;
const SLOW: Duration = Duration::from_millis(50);

/// Who asks, beside the administrator: both are users of the server, with the same rights.
#[derive(Clone, Debug)]
pub struct Users {
    pub polite: PathBuf,
    pub greedy: PathBuf,
    /// This program, which the greedy client is, too.
    pub program: PathBuf,
}

/// Their names in the server's list of tokens.
pub const POLITE: &str = "polite";
pub const GREEDY: &str = "greedy";

pub struct Contest {
    target: Target,
    get: Arc<Plan>,
    create: Arc<Plan>,
    asked: usize,
    /// How to start the greedy client.
    command: Vec<String>,
    program: PathBuf,
    greedy: PathBuf,
}

impl Contest {
    pub async fn prepare(world: &mut World, users: &Users, http1: bool) -> Result<Contest> {
        world.namespace("made").await?;
        let binding = format!(
            r#"{{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{{"name":"load"}},"roleRef":{{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}},"subjects":[{{"kind":"User","name":"{POLITE}"}},{{"kind":"User","name":"{GREEDY}"}}]}}"#
        );
        let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        world.fill(create(path, &binding).or(409), 1).await?;
        let target = Target::read(&users.polite, http1)?;
        let maps = world.path("maps", "configmaps");
        let name = format!("{}-{{n}}", world.prefix());
        // Rights are known a moment later.
        world.until_there_for(&target, &maps).await?;
        Ok(Contest {
            target,
            get: Arc::new(Plan::new(Head::get(JSON), &format!("{maps}/c-{{i}}")).objects(world.some)),
            create: Arc::new(create(&world.path("made", "configmaps"), &objects::config_map(&name))),
            asked: 0,
            command: vec![world.path("many", "pods"), world.path("made", "configmaps")],
            program: users.program.clone(),
            greedy: users.greedy.clone(),
        })
    }

    /// The polite client's requests, for so long.
    pub async fn polite(&mut self, time: Duration) -> Result<Taken> {
        let count = (RATE * time.as_secs_f64()) as usize;
        let bounds = Bounds {
            first: self.asked,
            count,
            limit: time * 10,
        };
        self.asked += count;
        let (mut one, mut other) = (self.target.connections(1).await?, self.target.connections(1).await?);
        let (read, written) = tokio::try_join!(
            drive(&mut one, &self.get, Pace::Open(RATE), bounds),
            drive(&mut other, &self.create, Pace::Open(RATE), bounds)
        )?;
        Ok(Taken {
            latencies: [read.latencies, written.latencies].concat(),
            answered: read.answered + written.answered,
            bytes: read.bytes + written.bytes,
            took: read.took.max(written.took),
        })
    }

    /// Lets the greedy client loose; it ends with what is given back, or after so long.
    pub async fn flood(&self, time: Duration) -> Result<Child> {
        let mut command = Command::new("nice");
        command.arg("-n19").arg(&self.program).arg("flood");
        command
            .arg("--kubeconfig")
            .arg(&self.greedy)
            .args(["--seconds", &time.as_secs().max(1).to_string()]);
        command.args(&self.command).stdout(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().context("starting the greedy client")?;
        tokio::time::sleep(FIRST).await;
        Ok(child)
    }

    pub fn floods(sizes: &Sizes) -> Duration {
        // It goes on until it is ended.
        FIRST + sizes.greedy * 10
    }
}

/// The greedy client.
#[derive(Args)]
pub struct Flood {
    #[arg(long)]
    kubeconfig: PathBuf,
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// What there is much of
    lists: String,
    /// Where ConfigMaps can be made
    maps: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Greed {
    Lists,
    BigBodies,
    SlowReads,
    Watches,
}

impl Flood {
    /// Until its time is over. What is refused is asked again.
    pub async fn run(self) -> Result<()> {
        let target = Target::read(Path::new(&self.kubeconfig), false)?;
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let this = Arc::new(self);
        let mut clients = JoinSet::new();
        for greed in [Greed::Lists, Greed::BigBodies, Greed::SlowReads, Greed::Watches] {
            for _ in 0..EACH {
                let (target, this) = (target.clone(), this.clone());
                clients.spawn(async move {
                    while Instant::now() < end {
                        // A connection that is closed on it is made anew.
                        if this.client(&target, greed, end).await.is_err() {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                });
            }
        }
        clients.join_all().await;
        Ok(())
    }

    async fn client(&self, target: &Target, greed: Greed, end: Instant) -> Result<()> {
        let mut connection = target.connect().await?;
        let create = Head::write(Method::POST, JSON);
        let big = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big"}},"data":{{"k":"{}"}}}}"#,
            "x".repeat(BIG)
        );
        let (big, get) = (Bytes::from(big), Head::get(JSON));
        while Instant::now() < end {
            match greed {
                Greed::Lists => drop(connection.ask(&get, &self.lists, Bytes::new()).await?),
                // Nothing is kept of it, so that the store stays as it is.
                Greed::BigBodies => {
                    let path = format!("{}?dryRun=All", self.maps);
                    connection.ask(&create, &path, big.clone()).await?;
                }
                Greed::SlowReads => slowly(&mut connection, &get, &self.lists).await?,
                Greed::Watches => self.watches(&mut connection, &get).await?,
            }
        }
        Ok(())
    }

    /// Watches that are told all there is, and given up.
    async fn watches(&self, connection: &mut Connection, get: &Head) -> Result<()> {
        let mut watching = JoinSet::new();
        for _ in 0..WATCHES {
            let path = format!("{}?watch=true&resourceVersion=0&timeoutSeconds=5", self.lists);
            let mut body = connection.open(get, &path, Bytes::new()).await?.into_body();
            watching.spawn(async move {
                for _ in 0..100 {
                    if body.frame().await.is_none() {
                        break;
                    }
                }
            });
        }
        watching.join_all().await;
        Ok(())
    }
}

async fn slowly(connection: &mut Connection, get: &Head, path: &str) -> Result<()> {
    let mut body = connection.open(get, path, Bytes::new()).await?.into_body();
    for _ in 0..40 {
        if body.frame().await.is_none() {
            break;
        }
        tokio::time::sleep(SLOW).await;
    }
    Ok(())
}
