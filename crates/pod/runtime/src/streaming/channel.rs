//! One direction of a stream between a client and a container, whatever protocol carries it.

use bytes::Bytes;
use tokio::sync::mpsc;

/// Pieces that may wait for a slow receiver; the sender waits then.
pub const QUEUE: usize = 16;

/// What the other side sends on a stream. `None` is its end.
pub type Incoming = mpsc::Receiver<Bytes>;

/// What goes to the other side.
#[derive(Debug)]
pub enum Outgoing {
    /// The stream that a client opened is accepted; only SPDY has this.
    Accept,
    /// A client opens a stream of this type; only SPDY has this.
    Open(&'static str),
    Data(Bytes),
    End,
    /// Answer to a ping; only SPDY has this.
    Pong,
}

/// The queue of a connection's writer: stream numbers and what is for them.
pub type Queue = mpsc::Sender<(u32, Outgoing)>;

/// A stream to the other side.
#[derive(Clone, Debug)]
pub struct Sender {
    stream: u32,
    queue: Queue,
}

/// The other side is gone.
#[derive(Debug)]
pub struct Gone;

impl Sender {
    pub fn new(stream: u32, queue: Queue) -> Sender {
        Sender { stream, queue }
    }

    pub async fn send(&self, data: impl Into<Bytes>) -> Result<(), Gone> {
        self.queue
            .send((self.stream, Outgoing::Data(data.into())))
            .await
            .map_err(|_| Gone)
    }

    /// Ends the stream; who is gone needs no end.
    pub async fn end(&self) {
        let _ = self.queue.send((self.stream, Outgoing::End)).await;
    }

    /// Waits until the connection is gone.
    pub async fn gone(&self) {
        self.queue.closed().await;
    }
}

/// The streams of an exec or attach.
pub struct Streams {
    pub stdin: Option<Incoming>,
    pub stdout: Option<Sender>,
    pub stderr: Option<Sender>,
    pub error: Sender,
    pub resize: Option<Incoming>,
    /// Whether the end is told as a JSON status; otherwise only errors are told, as text.
    pub json_status: bool,
}
