//! One row measured: what is needed is made, connections are warmed, and then the servers' CPU time is read before and after.

use crate::cpu;
use crate::drive::{Bounds, Pace, Taken, drive};
use crate::greedy::{Contest, Users};
use crate::latency::percentile;
use crate::plan::Plan;
use crate::rows::{Row, What};
use crate::watch::{Fanout, Informers};
use crate::world::World;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

const WARM: usize = 50;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Of the rows' counts.
    pub share: f64,
    /// Objects that are patched, replaced and read in turn.
    pub some: usize,
    pub listed: usize,
    pub watchers: usize,
    pub informers: usize,
    /// How long the polite client asks, alone and beside the greedy one.
    pub greedy: Duration,
    /// What follows an answer within this time, as telling watchers and writing to the disk, belongs to it.
    pub settles: Duration,
    /// A row ends after so long.
    pub limit: Duration,
}

impl Sizes {
    pub fn full() -> Sizes {
        Sizes {
            share: 1.0,
            some: 500,
            listed: 5000,
            watchers: 1000,
            informers: 500,
            greedy: Duration::from_secs(15),
            settles: Duration::from_millis(150),
            limit: Duration::from_secs(60),
        }
    }
    /// The same things, asked less often.
    pub fn quick() -> Sizes {
        Sizes {
            share: 0.4,
            greedy: Duration::from_secs(6),
            limit: Duration::from_secs(15),
            ..Sizes::full()
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub requests: usize,
    pub seconds: f64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of the servers for a request, in microseconds; 0: it can't be told whose it was.
    pub server_us: f64,
    /// The same of the load generator.
    pub client_us: f64,
    /// Bytes of answers' bodies, of all of them.
    pub bytes: u64,
}

impl Figures {
    fn of(mut taken: Taken, server: Duration, client: Duration) -> Result<Figures> {
        anyhow::ensure!(taken.answered > 0, "nothing was answered");
        taken.latencies.sort_unstable();
        let at = |share| percentile(&taken.latencies, share).map_or(0.0, |ns| ns as f64 / 1000.0);
        let each = |time: Duration| time.as_secs_f64() * 1e6 / taken.answered as f64;
        let seconds = taken.took.as_secs_f64();
        Ok(Figures {
            requests: taken.answered,
            seconds,
            per_second: taken.answered as f64 / seconds.max(1e-9),
            p50_us: at(0.5),
            p99_us: at(0.99),
            server_us: each(server),
            client_us: each(client),
            bytes: taken.bytes,
        })
    }
}

/// What is measured, where.
pub struct Bench {
    pub world: World,
    pub sizes: Sizes,
    pub http1: bool,
    /// Processes that are the server.
    pub servers: Vec<u32>,
    pub users: Option<Users>,
}

impl Bench {
    /// Each figure has a name: of most rows there is one, and it has the row's.
    pub async fn measure(&mut self, row: &Row, clients: usize) -> Result<Vec<(String, Figures)>> {
        for need in row.needs {
            self.world.need(*need).await?;
        }
        self.world.namespace(row.namespace).await?;
        let prefix = self.world.prefix();
        let count = row.requests(clients, self.sizes.share);
        let named = |figures| vec![(row.name.to_owned(), figures)];
        match &row.what {
            What::Asks(plan) => {
                let plan = plan(&self.world, &prefix);
                Ok(named(self.asked(plan, Pace::Closed, clients, count, true).await?))
            }
            What::Due(rate, plan) => {
                let plan = plan(&self.world, &prefix);
                Ok(named(self.asked(plan, Pace::Open(*rate), clients, count, true).await?))
            }
            What::Made(make, plan) => {
                self.world.fill(make(&self.world, &prefix), count).await?;
                let plan = plan(&self.world, &prefix);
                Ok(named(self.asked(plan, Pace::Closed, clients, count, false).await?))
            }
            What::Fanout(rate) => {
                let fanout = Fanout::prepare(&mut self.world, self.sizes.watchers).await?;
                Ok(named(self.metered(fanout.run(count, *rate)).await?))
            }
            What::Informers { streamed } => {
                let informers = Informers::prepare(&self.world, self.sizes.informers).await?;
                Ok(named(self.metered(informers.run(*streamed, self.world.some)).await?))
            }
            What::Greedy => self.contest().await,
        }
    }

    async fn asked(&self, plan: Plan, pace: Pace, clients: usize, count: usize, warm: bool) -> Result<Figures> {
        let plan = Arc::new(plan);
        let mut connections = self.world.target.connections(clients).await?;
        let mut bounds = Bounds {
            first: 0,
            count: (count / 10).clamp(1, WARM),
            limit: self.sizes.limit,
        };
        if warm {
            drive(&mut connections, &plan, Pace::Closed, bounds).await?;
            bounds.first = bounds.count;
        }
        bounds.count = count;
        self.metered(drive(&mut connections, &plan, pace, bounds)).await
    }

    async fn metered(&self, work: impl Future<Output = Result<Taken>>) -> Result<Figures> {
        tokio::time::sleep(self.sizes.settles).await;
        let (server, client) = (cpu::spent(&self.servers)?, cpu::own());
        let taken = work.await?;
        let client = cpu::own() - client;
        tokio::time::sleep(self.sizes.settles).await;
        Figures::of(taken, cpu::spent(&self.servers)?.saturating_sub(server), client)
    }

    async fn contest(&mut self) -> Result<Vec<(String, Figures)>> {
        let users = self.users.clone();
        let users = users.context("a polite and a greedy user are needed: --polite, --greedy")?;
        let mut contest = Contest::prepare(&mut self.world, &users, self.http1).await?;
        let time = self.sizes.greedy;
        contest.polite(time / 4).await?;
        let alone = self.metered(contest.polite(time)).await?;
        let mut flood = contest.flood(Contest::floods(&self.sizes)).await?;
        let beside = self.metered(contest.polite(time)).await.map(|figures| Figures {
            server_us: 0.0,
            ..figures
        });
        let ended = flood.try_wait()?;
        flood.kill().await?;
        anyhow::ensure!(ended.is_none(), "the greedy client ended by itself: {ended:?}");
        Ok(vec![(ALONE.into(), alone), (BESIDE.into(), beside?)])
    }
}

pub const ALONE: &str = "a polite client, alone";
pub const BESIDE: &str = "a polite client, beside a greedy one";
