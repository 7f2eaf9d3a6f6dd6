//! Datagrams to a pod's own ports, which no protocol of upstream's carries.
//!
//! Channels are as of connections: an even one for data, the next for errors, in the order of the ports. Each message of data, either way, is one
//! datagram behind four bytes (big endian) that number the client's senders: each sender has a socket of its own here, as programs tell
//! senders apart by their addresses. What can't be kept up with is lost, as datagrams are.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::channel::{Incoming, Sender};
use super::forward::{inside, words};
use crate::runtime::Inner;

/// By this name a client asks for it.
pub const PROTOCOL: &str = "v1.datagrams.keelson.dev";
/// Of IPv4.
pub const LARGEST: usize = 65_507;
/// Of one port; one more takes the place of who has been silent for longest.
const MAX_SENDERS: usize = 256;

/// One port, until the client is gone.
pub async fn forward(
    runtime: Arc<Inner>,
    sandbox: String,
    port: u16,
    (mut receiver, data): (Incoming, Sender),
    error: Sender,
) {
    let told = Arc::new(Told {
        error,
        what: format!("error forwarding port {port}/udp to pod {sandbox}"),
        already: AtomicBool::default(),
    });
    let mut senders: HashMap<u32, (Instant, Socket)> = HashMap::new();
    loop {
        let message = tokio::select! {
            message = receiver.recv() => message,
            () = data.gone() => None,
        };
        let Some(message) = message else { break };
        let Some((sender, datagram)) = parted(message) else {
            continue;
        };
        if !senders.contains_key(&sender) {
            match open(&runtime, &sandbox, port).await {
                Ok(socket) => {
                    make_room(&mut senders);
                    let socket = Socket::answering(socket, sender, data.clone(), told.clone());
                    senders.insert(sender, (Instant::now(), socket));
                }
                Err(why) => {
                    told.once(&why).await;
                    continue;
                }
            }
        }
        if let Some((used, socket)) = senders.get_mut(&sender) {
            *used = Instant::now();
            socket.send(&datagram, &told).await;
        }
    }
    drop(senders);
    data.end().await;
    told.error.end().await;
}

fn make_room(senders: &mut HashMap<u32, (Instant, Socket)>) {
    if senders.len() < MAX_SENDERS {
        return;
    }
    let silent = senders.iter().min_by_key(|(_, (used, _))| *used);
    if let Some(sender) = silent.map(|(sender, _)| *sender) {
        senders.remove(&sender);
    }
}

/// Whose datagram it is, and what is in it.
pub fn parted(mut message: Bytes) -> Option<(u32, Bytes)> {
    let sender = message.try_get_u32().ok()?;
    Some((sender, message))
}

pub fn joined(sender: u32, datagram: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(4 + datagram.len());
    message.put_u32(sender);
    message.put_slice(datagram);
    message.freeze()
}

/// From the pod's localhost to it.
async fn open(runtime: &Arc<Inner>, sandbox: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = inside(runtime, sandbox, move || {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))?;
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(socket)
    });
    UdpSocket::from_std(socket.await??)
}

/// Errors that the client is told: the first since anything was answered.
struct Told {
    error: Sender,
    what: String,
    already: AtomicBool,
}

impl Told {
    async fn once(&self, why: &io::Error) {
        if !self.already.swap(true, Ordering::Relaxed) {
            // A client that is gone does not want to know.
            let _ = self.error.send(format!("{}: {}", self.what, words(why))).await;
        }
    }
}

/// A sender's, with what passes answers on to it.
struct Socket {
    socket: Arc<UdpSocket>,
    _answers: AbortOnDropHandle<()>,
}

impl Socket {
    fn answering(socket: UdpSocket, sender: u32, data: Sender, told: Arc<Told>) -> Socket {
        let socket = Arc::new(socket);
        let answers = tokio::spawn(answer(socket.clone(), sender, data, told));
        Socket {
            socket,
            _answers: AbortOnDropHandle::new(answers),
        }
    }

    async fn send(&self, datagram: &[u8], told: &Told) {
        let mut sent = self.socket.send(datagram).await;
        // What is told is of the one before, and this one hasn't gone.
        if is_refusal(&sent) {
            sent = self.socket.send(datagram).await;
        }
        if let Err(why) = sent {
            told.once(&why).await;
        }
    }
}

fn is_refusal<T>(done: &io::Result<T>) -> bool {
    matches!(done, Err(why) if why.kind() == io::ErrorKind::ConnectionRefused)
}

async fn answer(socket: Arc<UdpSocket>, sender: u32, data: Sender, told: Arc<Told>) {
    while let Ok(ready) = socket.ready(Interest::READABLE | Interest::ERROR).await {
        if ready.is_error() {
            if let Ok(Some(why)) = socket.take_error() {
                told.once(&why).await;
            }
            // Until there is another.
            let _cleared = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        // Only while something is there.
        let mut buffer = vec![0; LARGEST];
        match socket.try_recv(&mut buffer) {
            Ok(length) => {
                told.already.store(false, Ordering::Relaxed);
                if data.send(joined(sender, &buffer[..length])).await.is_err() {
                    return;
                }
            }
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
            // Nobody listens now; somebody may later.
            Err(why) => told.once(&why).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_datagram_of_somebody() {
        assert_eq!(parted(joined(7, b"a")), Some((7, Bytes::from_static(b"a"))));
        assert_eq!(parted(joined(u32::MAX, b"")), Some((u32::MAX, Bytes::new())));
        assert_eq!(parted(Bytes::from_static(b"abc")), None);
    }
}
