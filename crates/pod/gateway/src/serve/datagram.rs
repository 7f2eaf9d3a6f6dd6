//! Datagrams: all that a client sends goes to one backend, for as long as it goes on; what comes back goes to it.
//!
//! Nothing is kept for long: what can't be sent on at once is lost, as datagrams may be.

use super::Serving;
use super::forward::{Reached, choose};
use super::stream::find;
use crate::table::{Action, Speaks, Upstream};
use anyhow::{Context, bail};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Clients at once; one more takes the place of the one that has been silent for longest.
const CLIENTS: usize = 4096;
/// A client is forgotten after so long without a datagram in either direction.
const SILENT: Duration = Duration::from_secs(60);
/// Datagrams of a client that wait for its backend.
const WAITING: usize = 8;
const LARGEST: usize = 65_535;

/// From where datagrams go to backends. One that comes to a port from there was led back by whoever said where the backend is, and would go
/// round for ever, each time as another client's.
#[derive(Default)]
pub struct Ours(Mutex<HashSet<SocketAddr>>);

impl Ours {
    fn has(&self, address: &SocketAddr) -> bool {
        self.0.lock().contains(address)
    }

    fn add(&self, address: SocketAddr) -> One<'_> {
        self.0.lock().insert(address);
        One { ours: self, address }
    }
}

/// One of them, while it is.
struct One<'a> {
    ours: &'a Ours,
    address: SocketAddr,
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.ours.0.lock().remove(&self.address);
    }
}

/// A client, as it is known to the port.
struct Client {
    to: mpsc::Sender<Bytes>,
    last: Instant,
    /// Once it is known.
    backend: Arc<OnceLock<SocketAddr>>,
}

/// Takes in what comes to a socket until `stop`. `at` is the port under which the table has it.
pub async fn run(socket: UdpSocket, at: u16, serving: Arc<Serving>, stop: CancellationToken) -> anyhow::Result<()> {
    let socket = Arc::new(socket);
    let _ended = stop.clone().drop_guard();
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = stop.cancelled() => return Ok(()),
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                // An answer that couldn't be delivered is told here; anything worse would be told again at once.
                tracing::debug!(%error, "a datagram couldn't be received");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        if serving.ours.has(&from) {
            continue;
        }
        let Some((action, _)) = find(&serving, at, Speaks::Udp, "") else {
            continue;
        };
        let datagram = Bytes::copy_from_slice(&buffer[..length]);
        if let Some(known) = clients.get_mut(&from)
            && known.backend.get().is_none_or(|backend| leads_to(&action, *backend))
            && !known.to.is_closed()
        {
            known.last = Instant::now();
            known.to.try_send(datagram).ok();
            continue;
        }
        if clients.len() >= CLIENTS {
            make_room(&mut clients);
        }
        let (to, waiting) = mpsc::channel(WAITING);
        to.try_send(datagram).ok();
        let backend = Arc::<OnceLock<SocketAddr>>::default();
        let known = Client {
            to,
            last: Instant::now(),
            backend: backend.clone(),
        };
        clients.insert(from, known);
        let (socket, serving, stop) = (socket.clone(), serving.clone(), stop.clone());
        tokio::spawn(async move {
            let passed = pass(&socket, from, waiting, &serving, &action, &backend);
            let done = tokio::select! {
                done = passed => done,
                () = stop.cancelled() => Ok(()),
            };
            if let Err(error) = done {
                tracing::debug!(%from, error = format!("{error:#}"), "datagrams weren't passed on");
            }
        });
    }
}

fn make_room(clients: &mut HashMap<SocketAddr, Client>) {
    clients.retain(|_, client| !client.to.is_closed());
    if clients.len() >= CLIENTS {
        let oldest = clients.iter().min_by_key(|(_, client)| client.last);
        if let Some(from) = oldest.map(|(from, _)| *from) {
            clients.remove(&from);
        }
    }
}

/// Whether a backend that was chosen earlier is still one. Of names of elsewhere the addresses are nobody's business here.
fn leads_to(action: &Action, backend: SocketAddr) -> bool {
    action.backends.iter().any(|b| match &*b.to {
        Upstream::Endpoints { addresses, .. } => b.weight > 0 && addresses.contains(&backend),
        Upstream::External { .. } => true,
        Upstream::Nowhere(_) => false,
    })
}

/// Until one of both has been silent for too long, or the client is forgotten.
async fn pass(
    socket: &UdpSocket,
    client: SocketAddr,
    mut waiting: mpsc::Receiver<Bytes>,
    serving: &Serving,
    action: &Action,
    backend: &OnceLock<SocketAddr>,
) -> anyhow::Result<()> {
    let chosen = choose(&action.backends).context("the route has no backend")?;
    let found = serving.forward.addresses(&chosen.to).await;
    let Ok(Reached { addresses, .. }) = found else {
        bail!("the backend isn't there")
    };
    let address = addresses[rand::rng().random_range(0..addresses.len())];
    backend.get_or_init(|| address);
    let any: IpAddr = match address.is_ipv4() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let out = UdpSocket::bind((any, 0)).await?;
    out.connect(address).await?;
    let _one = serving.ours.add(out.local_addr()?);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            datagram = waiting.recv() => match datagram {
                Some(datagram) => {
                    out.send(&datagram).await?;
                }
                None => return Ok(()),
            },
            ready = out.readable() => {
                ready?;
                let mut datagram = Vec::with_capacity(LARGEST);
                match out.try_recv_buf(&mut datagram) {
                    Ok(_) => {
                        socket.send_to(&datagram, client).await?;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            () = sleep_until(last + SILENT) => return Ok(()),
        }
        last = Instant::now();
    }
}
