//! Watchers and informers: what the delivery of an event costs, and what it costs when everybody begins at once.

use crate::drive::Taken;
use crate::objects;
use crate::target::{Connection, Head, Target};
use crate::world::{JSON, World};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// So many shake hands at once.
const AT_ONCE: usize = 32;
const WITHIN: Duration = Duration::from_secs(120);

/// Connections of many clients, made side by side.
async fn clients(target: &Target, count: usize) -> Result<Vec<Connection>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut made = JoinSet::new();
    for _ in 0..count {
        let (target, turns) = (target.clone(), turns.clone());
        made.spawn(async move {
            let _turn = turns.acquire().await?;
            target.connect().await
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(connection) = made.join_next().await {
        all.push(connection??);
    }
    Ok(all)
}

/// Watchers that stand, before anything happens.
pub struct Fanout {
    watchers: Vec<(Connection, Incoming)>,
    writer: Connection,
    path: String,
    prefix: String,
}

impl Fanout {
    pub async fn prepare(world: &mut World, watchers: usize) -> Result<Fanout> {
        world.namespace("watched").await?;
        let (path, prefix) = (world.path("watched", "configmaps"), world.prefix());
        let mut writer = world.target.connect().await?;
        let head = Head::get(JSON);
        let list = writer.ask(&head, &format!("{path}?limit=1"), Bytes::new()).await?;
        let revision = list.expect(200)?.value("resourceVersion");
        let revision = revision.context("a list without a revision")?;
        let watch = format!("{path}?watch=true&timeoutSeconds=600&resourceVersion={revision}");
        let mut standing = Vec::with_capacity(watchers);
        for mut connection in clients(&world.target, watchers).await? {
            let opened = connection.open(&head, &watch, Bytes::new()).await?;
            ensure!(opened.status() == 200, "a watch is answered {}", opened.status());
            standing.push((connection, opened.into_body()));
        }
        Ok(Fanout {
            watchers: standing,
            writer,
            path,
            prefix,
        })
    }

    /// What is told is from when a write was sent until its event was there, for each event and watcher. As one client writes, the nth
    /// event is of the nth write.
    pub async fn run(mut self, events: usize, rate: Option<f64>) -> Result<Taken> {
        let sent: Arc<Vec<AtomicU64>> = Arc::new((0..events).map(|_| AtomicU64::new(0)).collect());
        let began = Instant::now();
        let mut reading = JoinSet::new();
        for (connection, body) in self.watchers {
            reading.spawn(read(connection, body, sent.clone(), began));
        }
        let head = Head::write(Method::POST, JSON);
        let map = objects::config_map(&format!("{}-NUMBER", self.prefix));
        for (n, at) in sent.iter().enumerate() {
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64(n as f64 / rate);
                tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
            }
            let body = map.replace("NUMBER", &n.to_string()).replace("{n}", "0");
            at.store(began.elapsed().as_nanos() as u64, Relaxed);
            let answer = self.writer.ask(&head, &self.path, Bytes::from(body)).await?;
            answer.expect(201)?;
        }
        let mut taken = Taken::default();
        let all = async {
            while let Some(read) = reading.join_next().await {
                let (lags, bytes) = read??;
                taken.latencies.extend(lags);
                taken.bytes += bytes;
            }
            anyhow::Ok(())
        };
        let all = tokio::time::timeout(WITHIN, all).await;
        all.context("not all events were delivered in time")??;
        taken.took = began.elapsed();
        taken.answered = taken.latencies.len();
        Ok(taken)
    }
}

/// Reads a watch until all events are there. The connection lives as long as its body is read.
async fn read(
    _connection: Connection,
    mut body: Incoming,
    sent: Arc<Vec<AtomicU64>>,
    began: Instant,
) -> Result<(Vec<u64>, u64)> {
    let (mut lags, mut bytes) = (Vec::with_capacity(sent.len()), 0);
    while lags.len() < sent.len() {
        let frame = body.frame().await.context("a watch ended")??;
        let Ok(data) = frame.into_data() else { continue };
        bytes += data.len() as u64;
        let now = began.elapsed().as_nanos() as u64;
        for _ in 0..events(&data) {
            let sent = sent.get(lags.len()).context("more events than writes")?;
            lags.push(now.saturating_sub(sent.load(Relaxed)));
        }
    }
    Ok((lags, bytes))
}

/// An event in JSON is a line.
fn events(data: &[u8]) -> usize {
    data.iter().filter(|b| **b == b'\n').count()
}

pub struct Informers {
    connections: Vec<Connection>,
    path: String,
}

impl Informers {
    pub async fn prepare(world: &World, count: usize) -> Result<Informers> {
        Ok(Informers {
            connections: clients(&world.target, count).await?,
            path: world.path("maps", "configmaps"),
        })
    }

    /// All begin at once; what is told is how long each took until it had everything and its watch stood.
    pub async fn run(self, streamed: bool, objects: usize) -> Result<Taken> {
        let path = Arc::new(self.path);
        let began = Instant::now();
        let mut starting = JoinSet::new();
        for connection in self.connections {
            let path = path.clone();
            starting.spawn(async move {
                let started = match streamed {
                    true => watched(connection, &path, objects).await,
                    false => listed(connection, &path).await,
                };
                started.map(|(standing, bytes)| (standing, bytes, began.elapsed()))
            });
        }
        let (mut taken, mut standing) = (Taken::default(), Vec::new());
        let all = async {
            while let Some(started) = starting.join_next().await {
                let (watch, bytes, took) = started??;
                standing.push(watch);
                taken.latencies.push(took.as_nanos() as u64);
                taken.bytes += bytes;
            }
            anyhow::Ok(())
        };
        let all = tokio::time::timeout(WITHIN, all).await;
        all.context("not all informers were in step in time")??;
        taken.took = began.elapsed();
        taken.answered = taken.latencies.len();
        Ok(taken)
    }
}

type Standing = (Connection, Incoming);

async fn listed(mut connection: Connection, path: &str) -> Result<(Standing, u64)> {
    let head = Head::get(JSON);
    let list = connection
        .ask(&head, &format!("{path}?resourceVersion=0"), Bytes::new())
        .await?;
    let list = list.expect(200)?;
    let revision = list.value("resourceVersion").context("a list without a revision")?;
    let watch = format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds=600&resourceVersion={revision}");
    let opened = connection.open(&head, &watch, Bytes::new()).await?;
    ensure!(opened.status() == 200, "a watch is answered {}", opened.status());
    Ok(((connection, opened.into_body()), list.bytes))
}

/// Until the objects and the bookmark behind them are there.
async fn watched(mut connection: Connection, path: &str, objects: usize) -> Result<(Standing, u64)> {
    let query = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let watch = format!("{path}?{query}&timeoutSeconds=600");
    let opened = connection.open(&Head::get(JSON), &watch, Bytes::new()).await?;
    ensure!(opened.status() == 200, "a watch is answered {}", opened.status());
    let (mut body, mut seen, mut bytes) = (opened.into_body(), 0, 0);
    while seen <= objects {
        let frame = body.frame().await.context("a watch ended")??;
        let Ok(data) = frame.into_data() else { continue };
        bytes += data.len() as u64;
        seen += events(&data);
    }
    Ok(((connection, body), bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_event_is_a_line() {
        assert_eq!(super::events(b"{\"type\":\"ADDED\"}\n{\"type\":\"MOD"), 1);
        assert_eq!(super::events(b"IFIED\"}\n"), 1);
    }
}
