//! Clients that ask, each on its own connection: one after another (a closed loop), or when requests are due (an open one).

use crate::latency::Schedule;
use crate::plan::Plan;
use crate::target::Connection;
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Closed,
    /// Requests a second, of all clients together.
    Open(f64),
}

/// So many requests, from which number on, at most for so long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub first: usize,
    pub count: usize,
    pub limit: Duration,
}

/// What was answered.
#[derive(Debug, Default)]
pub struct Taken {
    /// Nanoseconds.
    pub latencies: Vec<u64>,
    /// How many were answered.
    pub answered: usize,
    pub bytes: u64,
    pub took: Duration,
}

pub async fn drive(connections: &mut Vec<Connection>, plan: &Arc<Plan>, pace: Pace, bounds: Bounds) -> Result<Taken> {
    match pace {
        Pace::Closed => closed(connections, plan, bounds).await,
        Pace::Open(rate) => open(connections, plan, rate, bounds).await,
    }
}

async fn closed(connections: &mut Vec<Connection>, plan: &Arc<Plan>, bounds: Bounds) -> Result<Taken> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for mut connection in connections.drain(..) {
        let (plan, next) = (plan.clone(), next.clone());
        clients.spawn(async move {
            let (mut latencies, mut bytes) = (Vec::new(), 0);
            while began.elapsed() < bounds.limit {
                let n = next.fetch_add(1, Relaxed);
                if n >= bounds.count {
                    break;
                }
                let asked = Instant::now();
                bytes += plan.ask(&mut connection, bounds.first + n).await?;
                latencies.push(asked.elapsed().as_nanos() as u64);
            }
            anyhow::Ok((connection, latencies, bytes))
        });
    }
    let mut taken = Taken::default();
    while let Some(client) = clients.join_next().await {
        let (connection, latencies, bytes) = client??;
        connections.push(connection);
        taken.latencies.extend(latencies);
        taken.bytes += bytes;
    }
    taken.took = began.elapsed();
    taken.answered = taken.latencies.len();
    Ok(taken)
}

async fn open(connections: &mut Vec<Connection>, plan: &Arc<Plan>, rate: f64, bounds: Bounds) -> Result<Taken> {
    let schedule = Schedule {
        rate,
        count: bounds.count,
    };
    let count = connections.len();
    // A permit is a request that is due.
    let (due, next, over) = (
        Arc::new(Semaphore::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let began = Instant::now();
    let pacer = {
        let (due, over) = (due.clone(), over.clone());
        // A thread's sleep is finer than the runtime's milliseconds.
        std::thread::spawn(move || {
            for n in 0..bounds.count {
                std::thread::sleep(schedule.due(n).saturating_sub(began.elapsed()));
                if over.load(Relaxed) || began.elapsed() >= bounds.limit {
                    break;
                }
                due.add_permits(1);
            }
            // For the clients to see that nothing more comes.
            due.add_permits(bounds.count + count);
        })
    };
    let mut clients = JoinSet::new();
    for mut connection in connections.drain(..) {
        let (plan, next, due) = (plan.clone(), next.clone(), due.clone());
        clients.spawn(async move {
            let (mut served, mut bytes) = (Vec::new(), 0);
            loop {
                due.acquire().await?.forget();
                let n = next.fetch_add(1, Relaxed);
                if n >= bounds.count || began.elapsed() >= bounds.limit {
                    break;
                }
                bytes += plan.ask(&mut connection, bounds.first + n).await?;
                served.push((n, began.elapsed()));
            }
            anyhow::Ok((connection, served, bytes))
        });
    }
    let (mut taken, mut served, mut failed) = (Taken::default(), Vec::new(), None);
    while let Some(client) = clients.join_next().await {
        match client? {
            Ok((connection, some, bytes)) => {
                connections.push(connection);
                served.extend(some);
                taken.bytes += bytes;
            }
            Err(error) => {
                over.store(true, Relaxed);
                clients.abort_all();
                failed = Some(error);
                break;
            }
        }
    }
    taken.took = began.elapsed();
    over.store(true, Relaxed);
    // It sleeps until the next is due at most.
    let _ = pacer.join();
    if let Some(error) = failed {
        return Err(error);
    }
    taken.answered = served.len();
    taken.latencies = schedule.latencies(&served, taken.took.min(bounds.limit));
    Ok(taken)
}
