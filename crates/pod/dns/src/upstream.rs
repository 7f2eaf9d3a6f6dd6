//! The servers that know the rest of the world: asked by UDP with EDNS, by TCP when the answer doesn't fit, and passed over
//! while they are dead.
//!
//! A server that let [`FAILURES`] queries in a row go unanswered is dead until it answers a probe; there is one probe a
//! dead server, every [`PROBE`]. When all are dead all are asked, the first two in turn: an answer is better than none.

use crate::told::Told;
use anyhow::{Context, bail};
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::RwLock;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long one server has to answer. Clients wait for five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many servers are asked for one query.
const ATTEMPTS: usize = 2;
const FAILURES: u32 = 2;
const PROBE: Duration = Duration::from_millis(500);
/// What fits through every network without fragments (DNS flag day 2020); more comes by TCP.
const PAYLOAD: u16 = 1232;

struct Server {
    address: SocketAddr,
    /// In a row.
    failures: AtomicU32,
    gone: CancellationToken,
}

impl Server {
    fn dead(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

/// The servers in their order of preference.
#[derive(Default)]
pub struct Upstreams {
    servers: RwLock<Vec<Arc<Server>>>,
}

impl Upstreams {
    /// Those that were here before keep what is known of them.
    pub fn set(&self, addresses: &[SocketAddr]) {
        let mut servers = self.servers.write();
        let known = std::mem::take(&mut *servers);
        let find = |address: &SocketAddr| known.iter().find(|s| s.address == *address).cloned();
        *servers = addresses
            .iter()
            .map(|address| {
                find(address).unwrap_or_else(|| {
                    Arc::new(Server {
                        address: *address,
                        failures: AtomicU32::new(0),
                        gone: CancellationToken::new(),
                    })
                })
            })
            .collect();
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.read().iter().map(|s| s.address).collect()
    }

    /// What the first server that answers says.
    pub async fn ask(
        &self,
        query: &Query,
        dnssec: bool,
        checking_disabled: bool,
        told: &Told,
    ) -> anyhow::Result<Message> {
        let all = self.servers.read().clone();
        let living: Vec<Arc<Server>> = all.iter().filter(|s| !s.dead()).cloned().collect();
        let chosen = if living.is_empty() { all } else { living };
        let mut last = None;
        for server in chosen.into_iter().take(ATTEMPTS) {
            let began = Instant::now();
            match timeout(PATIENCE, exchange(query, dnssec, checking_disabled, server.address)).await {
                Ok(Ok(answer)) => {
                    told.asked(server.address, &answer, began.elapsed());
                    server.failures.store(0, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(anyhow::anyhow!("{} did not answer within {PATIENCE:?}", server.address)),
            }
            if server.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES {
                tracing::warn!(server = %server.address, "a DNS server doesn't answer; it is passed over until it does");
                tokio::spawn(probe(Arc::downgrade(&server), server.address, server.gone.clone()));
            }
        }
        match last {
            Some(error) => Err(error),
            None => bail!("there is no server to ask (the machine's resolv.conf names none)"),
        }
    }
}

/// Until the server answers anything at all, or nobody wants it any more.
async fn probe(server: std::sync::Weak<Server>, address: SocketAddr, gone: CancellationToken) {
    let root = Query::query(Name::root(), RecordType::NS);
    loop {
        tokio::select! {
            () = gone.cancelled() => return,
            () = tokio::time::sleep(PROBE) => {}
        }
        if let Ok(Ok(_)) = timeout(PATIENCE, exchange(&root, false, false, address)).await {
            if let Some(server) = server.upgrade() {
                server.failures.store(0, Ordering::Relaxed);
            }
            tracing::info!(server = %address, "the DNS server answers again");
            return;
        }
    }
}

async fn exchange(query: &Query, dnssec: bool, checking_disabled: bool, server: SocketAddr) -> anyhow::Result<Message> {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.metadata.checking_disabled = checking_disabled;
    request.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    edns.set_dnssec_ok(dnssec);
    request.set_edns(edns);
    let bytes = request.to_vec()?;
    let answer = by_udp(&request, &bytes, server).await?;
    match answer.metadata.truncation {
        true => by_tcp(&request, &bytes, server).await,
        false => Ok(answer),
    }
}

/// Whether this is the answer to that: anybody may send us a datagram.
fn answers(answer: &Message, request: &Message) -> bool {
    let same = |a: &Query, b: &Query| {
        a.name().eq_ignore_root(b.name()) && a.query_type() == b.query_type() && a.query_class() == b.query_class()
    };
    let (asked, told) = (request.queries.first(), answer.queries.first());
    // A refusal may leave the question out.
    let question = asked.zip(told).map_or(answer.answers.is_empty(), |(a, b)| same(a, b));
    answer.metadata.id == request.metadata.id && question
}

async fn by_udp(request: &Message, bytes: &[u8], server: SocketAddr) -> anyhow::Result<Message> {
    // A socket a query: the kernel picks a port at random, which is half of what guards against forged answers.
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..n]) {
            Ok(answer) if answers(&answer, request) => return Ok(answer),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, %server, "a DNS answer that can't be read"),
        }
    }
}

async fn by_tcp(request: &Message, bytes: &[u8], server: SocketAddr) -> anyhow::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).context("the query is too long")?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(bytes).await?;
    let n = stream.read_u16().await?;
    let mut answer = vec![0; n.into()];
    stream.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer)?;
    match answers(&answer, request) {
        true => Ok(answer),
        false => bail!("{server} answered another question"),
    }
}
