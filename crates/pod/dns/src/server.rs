//! Sockets: queries in, answers out.
//!
//! Names of the cluster, and outside ones that are known, are answered at once, by whoever read the query; only a question
//! to other servers becomes a task, and those have a budget of their own ([`crate::outside`]). So no number of outside
//! names keeps one of the cluster waiting. Bounds: [`CONNECTIONS`] TCP connections, each closed when [`IDLE`] passes
//! without a whole query from the client, or when it takes as long to read an answer.
//!
//! Only the cluster is answered: its pods, its nodes, this machine. Everybody else is refused, whatever he asks, so that
//! this is no open resolver.

use crate::answer::answer;
use crate::cache::Key;
use crate::outside::Outside;
use crate::told::{By, Query as Came};
use crate::zone::Zone;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Name;
use ipnet::IpNet;
use keelson_sys::handed;
use parking_lot::RwLock;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CONNECTIONS: usize = 200;
const IDLE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What fits into an answer over UDP when the client doesn't say, and the most that is sent if it does.
const CLASSIC_LIMIT: u16 = 512;
const LARGEST: u16 = 4096;

pub struct Sockets {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

impl Sockets {
    /// Queries that come while one process follows another wait in its sockets, if somebody keeps those.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Sockets> {
        let name = |kind: &str| format!("dns-{kind}-{}", address.ip().to_string().replace(':', "."));
        let (tcp_name, udp_name) = (name("tcp"), name("udp"));
        let tcp = match handed::listener(&tcp_name, address) {
            Some(tcp) => TcpListener::from_std(tcp)?,
            None => {
                let tcp = TcpListener::bind(address).await?;
                keep(&tcp_name, tcp.as_fd());
                tcp
            }
        };
        // The same port, also when the system chose it.
        let address = tcp.local_addr()?;
        let udp = match handed::datagrams(&udp_name, address) {
            Some(udp) => UdpSocket::from_std(udp)?,
            None => {
                let udp = UdpSocket::bind(address).await?;
                keep(&udp_name, udp.as_fd());
                udp
            }
        };
        Ok(Sockets {
            udp: Arc::new(udp),
            tcp,
        })
    }

    #[cfg(test)]
    pub fn address(&self) -> SocketAddr {
        self.tcp.local_addr().unwrap()
    }
}

fn keep(name: &str, socket: BorrowedFd<'_>) {
    if let Err(error) = handed::keep(name, socket) {
        tracing::warn!(%error, name, "a socket isn't kept over a restart");
    }
}

/// Who is answered.
#[derive(Default)]
pub struct Clients {
    /// The pods' ranges.
    pub ranges: Vec<IpNet>,
    /// Addresses of nodes: what their pods ask leaves with them, if it leaves.
    pub nodes: RwLock<BTreeSet<IpAddr>>,
}

impl Clients {
    fn has(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.ranges.iter().any(|r| r.contains(&ip)) || self.nodes.read().contains(&ip)
    }
}

#[derive(Default)]
pub struct Shared {
    pub zone: RwLock<Zone>,
    pub outside: Outside,
    pub clients: Clients,
}

/// Answers until `stop` fires.
pub async fn serve(sockets: Sockets, shared: Arc<Shared>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    tokio::join!(
        udp(sockets.udp, shared.clone(), tasks.clone(), stop.clone()),
        tcp(sockets.tcp, shared, tasks.clone(), stop)
    );
    tasks.close();
    tasks.wait().await;
}

async fn udp(socket: Arc<UdpSocket>, shared: Arc<Shared>, tasks: TaskTracker, stop: CancellationToken) {
    let mut buffer = vec![0u8; 4096];
    let send = async |socket: &UdpSocket, reply: Option<Vec<u8>>, client| {
        if let Some(reply) = reply
            && let Err(error) = socket.send_to(&reply, client).await
        {
            tracing::debug!(%error, %client, "DNS send");
        }
    };
    let server: Arc<str> = socket.local_addr().map(called).unwrap_or_default().into();
    loop {
        let (n, client) = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => match received {
                Ok(r) => r,
                // An ICMP error for an earlier answer; the socket itself is well.
                Err(error) => { tracing::debug!(%error, "DNS receive"); continue }
            },
        };
        let came = Came {
            server: &server,
            proto: "udp",
            client: client.ip(),
            began: Instant::now(),
            bytes: n,
        };
        match at_once(&buffer[..n], &came, &shared) {
            Step::Ignore => {}
            Step::Done(reply) => send(&socket, reply.told(&came, &shared), client).await,
            Step::Ask(question) => {
                let (socket, shared, server, began) = (socket.clone(), shared.clone(), server.clone(), came.began);
                tasks.spawn(async move {
                    let reply = question.finish(&shared.outside).await;
                    let came = Came {
                        server: &server,
                        proto: "udp",
                        client: client.ip(),
                        began,
                        bytes: n,
                    };
                    send(&socket, reply.told(&came, &shared), client).await;
                });
            }
        }
    }
}

async fn tcp(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let (stream, client) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "DNS connection not accepted");
                    // Without descriptors to give it fails again at once.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                result = connection(stream, client.ip(), shared) => if let Err(error) = result {
                    tracing::debug!(%error, "DNS connection");
                }
            }
            drop(place);
        });
    }
}

async fn connection(mut stream: TcpStream, client: IpAddr, shared: Arc<Shared>) -> std::io::Result<()> {
    // A stranger gets no connection to hold.
    if !shared.clients.has(client) {
        return Ok(());
    }
    let server = called(stream.local_addr()?);
    loop {
        let Ok(query) = tokio::time::timeout(IDLE, receive(&mut stream)).await else {
            return Ok(());
        };
        let query = query?;
        let came = Came {
            server: &server,
            proto: "tcp",
            client,
            began: Instant::now(),
            bytes: query.len(),
        };
        let reply = match at_once(&query, &came, &shared) {
            Step::Ignore => return Ok(()),
            Step::Done(reply) => reply,
            Step::Ask(question) => question.finish(&shared.outside).await,
        };
        let Some(reply) = reply.told(&came, &shared) else {
            return Ok(());
        };
        let mut framed = u16::try_from(reply.len())
            .map_err(std::io::Error::other)?
            .to_be_bytes()
            .to_vec();
        framed.extend_from_slice(&reply);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn receive(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut query = vec![0; length.into()];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

enum Step {
    /// No query at all.
    Ignore,
    Done(Reply),
    Ask(Question),
}

/// An answer on its way out.
struct Reply {
    message: Message,
    /// What the client takes over UDP.
    limit: u16,
    by: By,
}

/// One that others have to answer: wholly, or for the target of an alias.
struct Question {
    request: Message,
    query: Query,
    /// Our part: the alias.
    ours: Option<Message>,
}

fn dnssec(request: &Message) -> bool {
    request.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok)
}

fn limit(request: &Message) -> u16 {
    let said = request.edns.as_ref().map_or(CLASSIC_LIMIT, |e| e.max_payload());
    said.clamp(CLASSIC_LIMIT, LARGEST)
}

/// All that needs nobody else.
fn at_once(bytes: &[u8], came: &Came<'_>, shared: &Shared) -> Step {
    let Ok(request) = Message::from_vec(bytes) else {
        return Step::Ignore;
    };
    // An answer to an answer would go on for ever.
    if request.metadata.message_type != MessageType::Query {
        return Step::Ignore;
    }
    let refuse = |request: &Message, code| Step::Done(reply(request, status(request, code), By::Nobody));
    if !shared.clients.has(came.client) {
        return refuse(&request, ResponseCode::Refused);
    }
    if request.metadata.op_code != OpCode::Query {
        return refuse(&request, ResponseCode::NotImp);
    }
    let [query] = request.queries.as_slice() else {
        return refuse(&request, ResponseCode::FormErr);
    };
    let query = query.clone();
    match answer(&shared.zone.read(), &request) {
        Some(ours) => match ours.follow {
            None => Step::Done(reply(&request, ours.message, By::Cluster)),
            Some(target) => step_outside(request, alias(&query, target), Some(ours.message), came, shared),
        },
        None => step_outside(request, query, None, came, shared),
    }
}

fn alias(query: &Query, target: Name) -> Query {
    Query::query(target, query.query_type())
}

fn step_outside(request: Message, query: Query, ours: Option<Message>, came: &Came<'_>, shared: &Shared) -> Step {
    let key = Key::of(&query, dnssec(&request), request.metadata.checking_disabled);
    let question = Question { request, query, ours };
    let known = shared.outside.known(&key);
    shared.outside.told.looked(came.server, known.as_ref());
    match known {
        Some(found) => Step::Done(question.with(found, By::Cache)),
        None => Step::Ask(question),
    }
}

impl Question {
    async fn finish(self, outside: &Outside) -> Reply {
        let checking_disabled = self.request.metadata.checking_disabled;
        let found = outside.ask(&self.query, dnssec(&self.request), checking_disabled).await;
        self.with(found, By::Forward)
    }

    /// The answer as the client asked for it. What the target of an alias is, the alias is: also no such name, or a failure.
    fn with(self, found: Message, by: By) -> Reply {
        let mut message = status(&self.request, found.metadata.response_code);
        message.metadata.authentic_data = found.metadata.authentic_data && self.ours.is_none();
        message.add_answers(self.ours.into_iter().flat_map(|ours| ours.answers));
        message.add_answers(found.answers);
        message.add_authorities(found.authorities);
        message.add_additionals(found.additionals);
        reply(&self.request, message, by)
    }
}

/// An answer without content.
fn status(request: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = request.metadata.checking_disabled;
    message.metadata.response_code = code;
    message.add_queries(request.queries.iter().cloned());
    message
}

fn reply(request: &Message, mut message: Message, by: By) -> Reply {
    if request.edns.is_some() {
        let mut own = Edns::new();
        own.set_max_payload(LARGEST);
        own.set_dnssec_ok(dnssec(request));
        message.set_edns(own);
    }
    Reply {
        message,
        limit: limit(request),
        by,
    }
}

/// A listener's name, as CoreDNS gives it.
pub fn called(at: SocketAddr) -> String {
    format!("dns://{at}")
}

impl Reply {
    /// The same; it is counted.
    fn told(self, came: &Came<'_>, shared: &Shared) -> Option<Vec<u8>> {
        let bytes = self.encode(came.proto == "udp");
        let sent = bytes.as_ref().map_or(0, Vec::len);
        shared.outside.told.answered(came, &self.message, self.by, sent);
        bytes
    }

    /// Over UDP what doesn't fit is left out wholly, and said to be: the client asks again by TCP.
    fn encode(&self, udp: bool) -> Option<Vec<u8>> {
        match self.message.to_vec() {
            Ok(bytes) if !udp || bytes.len() <= self.limit.into() => Some(bytes),
            Ok(_) => self.message.truncate().to_vec().ok(),
            Err(error) => {
                tracing::debug!(%error, "a DNS answer that can't be written");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
