//! Sessions on sockets: one task a peer. It connects, keeps the conversation, and comes back when it ends.

use crate::session::{Session, State};
use crate::wire::{Fault, LONGEST};
use crate::{Distance, Peer, Routes, Sessions};
use keelson_sys::tcp;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// How long a peer may take to answer a call.
const CALL: Duration = Duration::from_secs(5);
/// How much is read from a peer in a second: what it sends counts for nothing, and should cost little.
const RATE: f64 = 4.0 * 1024.0 * 1024.0;
/// For how long a last word is tried to be said.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub state: State,
    pub error: Option<String>,
    /// Routes that the peer has from here.
    pub announced: usize,
    /// UPDATE messages that it sent.
    pub heard: u64,
}

/// What a task is to do.
#[derive(Clone)]
enum Order {
    Announce(Arc<Routes>),
    /// End the session: the peer is wanted no more, or otherwise.
    End(Fault),
    /// This program ends, and may be back soon.
    Leave,
}

struct Running {
    peer: Peer,
    order: watch::Sender<Order>,
}

/// To one address and port: who comes later waits until the one before has said goodbye, for a peer takes one connection only.
type Line = Arc<Mutex<()>>;
type Tell = Arc<dyn Fn(Told) + Send + Sync>;

/// Holds the sessions that are wanted until `stop` fires. `resumes`: peers may have routes of an earlier process, whose addresses this machine took in
/// since.
pub async fn run(
    mut wanted: watch::Receiver<Sessions>,
    told: watch::Sender<BTreeMap<String, Told>>,
    resumes: bool,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut lines: BTreeMap<SocketAddr, Line> = BTreeMap::new();
    let begun = Instant::now();
    loop {
        let sessions = wanted.borrow_and_update().clone();
        running.retain(|name, running| match sessions.get(name) {
            Some((peer, _)) if *peer == running.peer => true,
            other => {
                let subcode = if other.is_some() { 6 } else { 3 };
                running.order.send_replace(Order::End(Fault::new(6, subcode, &[])));
                told.send_if_modified(|all| all.remove(name).is_some());
                false
            }
        });
        for (name, (peer, routes)) in sessions {
            match running.get(&name) {
                Some(there) => drop(there.order.send_replace(Order::Announce(routes))),
                None => {
                    let (order, orders) = watch::channel(Order::Announce(routes));
                    let tell = teller(&told, &name, orders.clone());
                    let to = SocketAddr::new(peer.address, peer.port);
                    let line = lines.entry(to).or_default().clone();
                    // Later no peer has anything of before.
                    let resumes = resumes && peer.graceful.is_some_and(|time| begun.elapsed() < time);
                    tasks.spawn(keep(name.clone(), peer.clone(), resumes, line, orders, tell));
                    running.insert(name, Running { peer, order });
                }
            }
        }
        lines.retain(|_, line| Arc::strong_count(line) > 1);
        tokio::select! {
            () = stop.cancelled() => break,
            changed = wanted.changed() => changed?,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => ended?,
        }
    }
    for running in running.values() {
        running.order.send_replace(Order::Leave);
    }
    let _ = timeout(FAREWELL * 2, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Tells of a session as long as it is the one of its name.
fn teller(told: &watch::Sender<BTreeMap<String, Told>>, name: &str, orders: watch::Receiver<Order>) -> Tell {
    let (told, name) = (told.clone(), name.to_string());
    Arc::new(move |now| {
        told.send_if_modified(|all| {
            // Asked while nobody else tells: who ends a session then takes back what was told of it.
            let ended = matches!(*orders.borrow(), Order::End(_));
            let differs = !ended && all.get(&name) != Some(&now);
            if differs {
                all.insert(name.clone(), now.clone());
            }
            differs
        });
    })
}

/// One session, again and again.
async fn keep(name: String, peer: Peer, resumes: bool, line: Line, mut orders: watch::Receiver<Order>, tell: Tell) {
    let _alone = tokio::select! {
        alone = line.lock() => alone,
        () = leaves(&mut orders) => return,
    };
    let jitter = 0.75 + rand::random::<f64>() / 4.0;
    let mut session = Session::new(peer.clone(), resumes, jitter, Instant::now());
    let tell = |session: &Session| {
        tell(Told {
            state: session.state(),
            error: session.error().map(str::to_string),
            announced: session.told(),
            heard: session.heard(),
        });
    };
    loop {
        tokio::select! {
            () = sleep_until(session.retry_at()) => {}
            () = leaves(&mut orders) => return,
        }
        session.connecting();
        tell(&session);
        let called = tokio::select! {
            called = timeout(CALL, call(&peer)) => called.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            () = leaves(&mut orders) => return,
        };
        let mut over = false;
        let why = match called {
            Err(error) => format!(
                "cannot connect to {}: {error}",
                SocketAddr::new(peer.address, peer.port)
            ),
            Ok((stream, local)) => {
                session.connected(local.ip(), Instant::now());
                let (ended, why) = converse(&name, &mut session, stream, &mut orders, &tell).await;
                over = ended;
                why
            }
        };
        let established = session.state() == State::Established;
        session.closed(&why, Instant::now());
        if established || over {
            let error = session.error().unwrap_or_default();
            tracing::info!(peer = name, error, "a BGP session has ended");
        } else {
            tracing::debug!(peer = name, error = session.error(), "no BGP session");
        }
        tell(&session);
        if over {
            return;
        }
    }
}

/// Until the session is wanted no more.
async fn leaves(orders: &mut watch::Receiver<Order>) {
    // Without anybody who could want it, too.
    let _ = orders.wait_for(|order| !matches!(order, Order::Announce(_))).await;
}

async fn call(peer: &Peer) -> io::Result<(TcpStream, SocketAddr)> {
    let to = SocketAddr::new(peer.address, peer.port);
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let (hops, least) = match peer.distance {
        Distance::Usual if peer.is_external() => (Some(1), None),
        Distance::Usual => (None, None),
        Distance::Multihop(hops) => (Some(hops), None),
        Distance::Secured(hops) => (Some(255), Some(256 - u16::from(hops))),
    };
    tcp::set_hops(
        &socket,
        to.is_ipv6(),
        hops,
        least.and_then(|least| u8::try_from(least).ok()),
    )?;
    if let Some(password) = &peer.password {
        tcp::sign(&socket, peer.address, &password.0)?;
    }
    if let Some(source) = peer.source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    Ok((stream, local))
}

/// Until there is nothing more to say; whether it was for good, and why it ended.
async fn converse(
    name: &str,
    session: &mut Session,
    mut stream: TcpStream,
    orders: &mut watch::Receiver<Order>,
    tell: &impl Fn(&Session),
) -> (bool, String) {
    let (mut reader, mut writer) = stream.split();
    let mut buffer = [0; LONGEST];
    let mut out: Vec<u8> = Vec::new();
    let mut sent = 0;
    let mut wanted: Arc<Routes> = Arc::default();
    let mut for_good = false;
    let mut read_at = Instant::now();
    orders.mark_changed();
    loop {
        let before = session.state();
        if sent == out.len() {
            (out, sent) = (session.send(&wanted, Instant::now()).unwrap_or_default(), 0);
        }
        tell(session);
        if session.ends() {
            // What is half said is said first, so that the last word is one.
            let last = session.send(&wanted, Instant::now()).unwrap_or_default();
            let farewell = async {
                writer.write_all(&out[sent..]).await?;
                writer.write_all(&last).await?;
                writer.shutdown().await?;
                // Closed with something unread, a connection takes back what was said last.
                while reader.read(&mut buffer).await? > 0 {}
                io::Result::Ok(())
            };
            let _ = timeout(FAREWELL, farewell).await;
            return (for_good, "the session has ended".into());
        }
        let next = session.next();
        tokio::select! {
            read = async { sleep_until(read_at).await; reader.read(&mut buffer).await } => match read {
                Ok(0) => return (false, "the peer has closed the connection".into()),
                Ok(count) => {
                    read_at = Instant::now() + Duration::from_secs_f64(count as f64 / RATE);
                    session.received(&buffer[..count], Instant::now());
                }
                Err(error) => return (false, format!("the connection broke: {error}")),
            },
            written = writer.write(&out[sent..]), if sent < out.len() => match written {
                Ok(count) => sent += count,
                Err(error) => return (false, format!("the connection broke: {error}")),
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => session.tick(Instant::now()),
            changed = orders.changed() => {
                let order = orders.borrow_and_update().clone();
                match order {
                    // Who ends sessions forgets them.
                    _ if changed.is_err() => return (true, "nobody wants the session".into()),
                    Order::Announce(routes) => wanted = routes,
                    Order::End(fault) => {
                        for_good = true;
                        session.end(&fault);
                    }
                    // The peer keeps what it has if it heard no last word.
                    Order::Leave if session.is_graceful() => return (true, "this program ends".into()),
                    Order::Leave => {
                        for_good = true;
                        session.end(&Fault::new(6, 2, &[]));
                    }
                }
            }
        }
        if before != State::Established && session.state() == State::Established {
            tracing::info!(peer = name, "a BGP session is established");
        }
    }
}
