//! Port-forward: connections to a pod's own ports, made inside its network namespace.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::channel::{Incoming, Sender};
use super::spdy::Opened;
use super::websocket::Channels;
use crate::runtime::Inner;

/// As upstream: a client that opens half of a pair of streams loses it.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// As upstream: how long a direction goes on after the other has ended on the server's side.
const HALF_CLOSED: Duration = Duration::from_secs(1);
/// Half pairs at a time.
const MAX_HALVES: usize = 256;

/// Pairs of SPDY streams with the same request ID: one for data, one for an error.
pub async fn spdy(runtime: Arc<Inner>, sandbox: String, mut streams: mpsc::Receiver<Opened>) {
    let mut halves: HashMap<String, (Opened, tokio::time::Instant)> = HashMap::new();
    while let Some(opened) = streams.recv().await {
        let now = tokio::time::Instant::now();
        halves.retain(|_, (_, since)| now.duration_since(*since) < PAIR_TIMEOUT);
        let kind = opened.headers.get("streamtype").cloned().unwrap_or_default();
        let port = opened
            .headers
            .get("port")
            .and_then(|p| p.parse::<u16>().ok())
            .filter(|p| *p > 0);
        let (Some(port), "data" | "error") = (port, kind.as_str()) else {
            // The stream's sender ends with it.
            opened.sender.end().await;
            continue;
        };
        // Old clients number nothing: their pairs come one after the other.
        let request = opened
            .headers
            .get("requestid")
            .cloned()
            .unwrap_or_else(|| port.to_string());
        match halves.remove(&request) {
            Some((other, _)) if other.headers.get("streamtype") != opened.headers.get("streamtype") => {
                let (data, error) = if kind == "data" {
                    (opened, other)
                } else {
                    (other, opened)
                };
                let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
                tokio::spawn(async move {
                    let (data, error) = ((data.receiver, data.sender), error.sender);
                    stream(runtime, sandbox, port, data, error).await;
                });
            }
            _ if halves.len() < MAX_HALVES => drop(halves.insert(request, (opened, now))),
            _ => opened.sender.end().await,
        }
    }
}

/// Pairs of numbered channels: an even one for data, the next for an error, in the order of the ports asked for. `forward`: what becomes of each.
pub async fn websocket<Forward, Done>(
    runtime: Arc<Inner>,
    sandbox: String,
    ports: Vec<i32>,
    mut channels: Channels,
    forward: Forward,
) where
    Forward: Fn(Arc<Inner>, String, u16, (Incoming, Sender), Sender) -> Done,
    Done: Future<Output = ()> + Send + 'static,
{
    let mut tasks = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let (data, error) = (channels.sender(2 * i as u32), channels.sender(2 * i as u32 + 1));
        let Ok(port) = u16::try_from(*port) else { continue };
        let number = port.to_le_bytes();
        if data.send(Bytes::copy_from_slice(&number)).await.is_err()
            || error.send(Bytes::copy_from_slice(&number)).await.is_err()
        {
            return;
        }
        if let Some(receiver) = channels.receiver(2 * i) {
            let data = (receiver, data);
            tasks.push(tokio::spawn(forward(
                runtime.clone(),
                sandbox.clone(),
                port,
                data,
                error,
            )));
        }
    }
    drop(channels);
    futures::future::join_all(tasks).await;
}

/// One connection.
pub async fn stream(
    runtime: Arc<Inner>,
    sandbox: String,
    port: u16,
    (receiver, data): (Incoming, Sender),
    error: Sender,
) {
    let result = match connect(&runtime, &sandbox, port).await {
        Ok(stream) => carry(stream, receiver, &data).await,
        Err(why) => {
            data.end().await;
            Err(why)
        }
    };
    if let Err(why) = result {
        // A client that is gone does not want to know.
        let _ = error
            .send(format!("error forwarding port {port} to pod {sandbox}: {why}"))
            .await;
    }
    error.end().await;
}

/// Carries both directions until the server has ended the connection, and ends the client's stream.
async fn carry(stream: TcpStream, mut receiver: Incoming, data: &Sender) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let mut upload = tokio::spawn(async move {
        while let Some(piece) = receiver.recv().await {
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        // The connection may be gone already.
        let _ = write.shutdown().await;
    });
    let mut buffer = vec![0; 32 << 10];
    let result = loop {
        let read = tokio::select! {
            read = read.read(&mut buffer) => read,
            () = data.gone() => break Ok(()),
        };
        match read {
            Ok(0) => break Ok(()),
            Ok(n) => {
                if data.send(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                    break Ok(());
                }
            }
            // How servers end connections that they have read enough of: this one ends, the forwarding does not.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    // A server that has said all may still be listening.
    data.end().await;
    let _ended_or_not = tokio::time::timeout(HALF_CLOSED, &mut upload).await;
    upload.abort();
    result
}

/// To the pod's localhost, IPv4 first.
async fn connect(runtime: &Arc<Inner>, sandbox: &str, port: u16) -> io::Result<TcpStream> {
    let dial = move || {
        let at = |ip: IpAddr| std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_TIMEOUT);
        at(Ipv4Addr::LOCALHOST.into()).or_else(|first| at(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
    };
    let connected = inside(runtime, sandbox, dial).await?;
    let connected = connected.map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("failed to execute portforward in network namespace: failed to connect to localhost:{port} inside namespace: dial tcp4 127.0.0.1:{port}: connect: {}", words(&e)),
        )
    })?;
    connected.set_nonblocking(true)?;
    TcpStream::from_std(connected)
}

/// Has something done in a pod's network.
pub async fn inside<T: Send + 'static>(
    runtime: &Arc<Inner>,
    sandbox: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let sandbox = runtime
        .sandbox(sandbox)
        .filter(|s| s.is_ready())
        .ok_or_else(|| io::Error::other("sandbox container is not running"))?;
    let own_network = sandbox.record.lock().own_network;
    let namespace = sandbox.shim.namespace("net");
    let done = tokio::task::spawn_blocking(move || {
        if !own_network {
            return Ok(work());
        }
        let namespace = keelson_sys::process::open_namespace(&namespace)?;
        keelson_sys::process::in_network_namespace(&namespace, work)
    });
    done.await.map_err(io::Error::other)?
}

pub fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
