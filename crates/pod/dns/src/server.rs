//! Sockets: queries in, answers out. Bounds: [`IN_FLIGHT`] queries at a time (one more waits in the kernel's buffer),
//! [`CONNECTIONS`] TCP connections, each closed when [`IDLE`] passes without a whole query from the client, or when it
//! takes as long to read an answer.

use crate::answer::{answer, question};
use crate::forward::forward;
use crate::zone::Zone;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Name;
use parking_lot::RwLock;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const IN_FLIGHT: usize = 1000;
const CONNECTIONS: usize = 200;
const IDLE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What fits into an answer over UDP when the client doesn't say.
const CLASSIC_LIMIT: u16 = 512;

pub struct Sockets {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

impl Sockets {
    pub async fn bind(address: SocketAddr) -> std::io::Result<Sockets> {
        Ok(Sockets {
            udp: Arc::new(UdpSocket::bind(address).await?),
            tcp: TcpListener::bind(address).await?,
        })
    }
}

#[derive(Clone)]
struct Shared {
    zone: Arc<RwLock<Arc<Zone>>>,
    upstreams: Arc<[SocketAddr]>,
}

/// Answers until `stop` fires.
pub async fn serve(
    sockets: Sockets,
    zone: Arc<RwLock<Arc<Zone>>>,
    upstreams: Vec<SocketAddr>,
    stop: CancellationToken,
) {
    let shared = Shared {
        zone,
        upstreams: upstreams.into(),
    };
    let tasks = TaskTracker::new();
    tokio::join!(
        udp(sockets.udp, shared.clone(), tasks.clone(), stop.clone()),
        tcp(sockets.tcp, shared, tasks.clone(), stop)
    );
    tasks.close();
    tasks.wait().await;
}

async fn udp(socket: Arc<UdpSocket>, shared: Shared, tasks: TaskTracker, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut buffer = vec![0u8; 4096];
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let (n, client) = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => match received {
                Ok(r) => r,
                // An ICMP error for an earlier answer; the socket itself is well.
                Err(error) => { tracing::debug!(%error, "DNS receive"); continue }
            },
        };
        let query = buffer[..n].to_vec();
        let (socket, shared) = (socket.clone(), shared.clone());
        tasks.spawn(async move {
            if let Some(reply) = reply(&query, &shared, false).await
                && let Err(error) = socket.send_to(&reply, client).await
            {
                tracing::debug!(%error, %client, "DNS send");
            }
            drop(place);
        });
    }
}

async fn tcp(listener: TcpListener, shared: Shared, tasks: TaskTracker, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
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
                result = connection(stream, shared) => if let Err(error) = result {
                    tracing::debug!(%error, "DNS connection");
                }
            }
            drop(place);
        });
    }
}

async fn connection(mut stream: TcpStream, shared: Shared) -> std::io::Result<()> {
    loop {
        let Ok(query) = tokio::time::timeout(IDLE, receive(&mut stream)).await else {
            return Ok(());
        };
        let Some(reply) = reply(&query?, &shared, true).await else {
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

/// The answer's bytes; `None` for what is no query at all.
async fn reply(bytes: &[u8], shared: &Shared, tcp: bool) -> Option<Vec<u8>> {
    let request = Message::from_vec(bytes).ok()?;
    let zone = shared.zone.read().clone();
    let Some(mut ours) = answer(&zone, &request) else {
        return match forward(bytes, &shared.upstreams, tcp).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "DNS forward");
                let mut failed =
                    Message::error_msg(request.metadata.id, request.metadata.op_code, ResponseCode::ServFail);
                failed.metadata.recursion_desired = request.metadata.recursion_desired;
                failed.metadata.recursion_available = true;
                failed.add_queries(request.queries.iter().cloned());
                failed.to_vec().ok()
            }
        };
    };
    if let Some(target) = &ours.follow {
        append(&mut ours.message, target, &request, shared).await;
    }
    if let Some(edns) = &request.edns {
        let mut own = hickory_proto::op::Edns::new();
        own.set_max_payload(edns.max_payload().max(CLASSIC_LIMIT));
        ours.message.set_edns(own);
    }
    let bytes = ours.message.to_vec().ok()?;
    let limit = request
        .edns
        .as_ref()
        .map_or(CLASSIC_LIMIT, |e| e.max_payload().max(CLASSIC_LIMIT));
    if !tcp && bytes.len() > limit.into() {
        return ours.message.truncate().to_vec().ok();
    }
    Some(bytes)
}

/// Adds what the target of an alias stands for; without an answer the alias alone is given.
async fn append(message: &mut Message, target: &Name, request: &Message, shared: &Shared) {
    let Some(kind) = request.queries.first().map(|q| q.query_type()) else {
        return;
    };
    let Ok(query) = question(target, kind).to_vec() else {
        return;
    };
    match forward(&query, &shared.upstreams, false).await {
        Ok(bytes) => {
            if let Ok(answer) = Message::from_vec(&bytes) {
                message.add_answers(answer.answers);
            }
        }
        Err(error) => tracing::debug!(error = format!("{error:#}"), %target, "DNS alias"),
    }
}
