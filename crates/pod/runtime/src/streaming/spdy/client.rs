//! The client's side: it opens its streams at once, and takes what comes on each.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{Frame, PING, RST_STREAM, write_frames};
use crate::streaming::channel::{Incoming, Outgoing, QUEUE, Queue, Sender};

/// A stream that this side opened.
pub struct Stream {
    pub sender: Sender,
    pub receiver: Incoming,
}

/// A connection, which ends when this is dropped.
pub type Connection = AbortOnDropHandle<()>;

/// Opens a stream of each type. Receivers end with their streams, or with the connection.
pub async fn open<IO>(io: IO, kinds: &[&'static str]) -> (Vec<Stream>, Connection)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    // Nobody takes from the queue before all are in it.
    let (queue, outgoing) = mpsc::channel(QUEUE.max(kinds.len()));
    let (mut streams, mut receivers) = (Vec::new(), HashMap::new());
    for (number, kind) in (1u32..).step_by(2).zip(kinds.iter().copied()) {
        // The connection's task isn't there yet: it can't be gone.
        let _ = queue.send((number, Outgoing::Open(kind))).await;
        let (sender, receiver) = mpsc::channel(QUEUE);
        receivers.insert(number, sender);
        let sender = Sender::new(number, queue.clone());
        streams.push(Stream { sender, receiver });
    }
    let (read, write) = tokio::io::split(io);
    let connection = tokio::spawn(async move {
        // The queue stays open as long as this reads: who has nothing more to say may still listen.
        let reading = read_frames(BufReader::new(read), receivers, queue);
        let writing = async {
            if let Err(error) = write_frames(write, outgoing).await {
                tracing::debug!(%error, "nothing more can be said over this SPDY connection");
            }
            // What the other side has said before it left is still to be read.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            read = reading => {
                if let Err(error) = read {
                    tracing::debug!(%error, "SPDY connection ended");
                }
            }
            () = writing => {}
        }
    });
    (streams, AbortOnDropHandle::new(connection))
}

async fn read_frames(
    mut io: impl AsyncRead + Unpin,
    mut streams: HashMap<u32, mpsc::Sender<Bytes>>,
    queue: Queue,
) -> io::Result<()> {
    while let Some(frame) = Frame::read(&mut io).await? {
        match frame.control() {
            None => frame.deliver(&mut streams).await,
            Some(RST_STREAM) => drop(streams.remove(&frame.stream()?)),
            Some(PING) => {
                if queue.send((frame.word(0)?, Outgoing::Pong)).await.is_err() {
                    return Ok(());
                }
            }
            // That a stream is accepted shows when something comes on it; headers say nothing that is needed, so none is ever
            // decompressed.
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_sides_understand_each_other() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let mut opened = super::super::serve(server);
        let (mut streams, connection) = open(client, &["error", "stdin", "stdout"]).await;
        let mut served = Vec::new();
        for kind in ["error", "stdin", "stdout"] {
            let stream = opened.recv().await.unwrap();
            assert_eq!(stream.headers["streamtype"], kind);
            served.push(stream);
        }
        streams[1].sender.send("in").await.unwrap();
        streams[1].sender.end().await;
        assert_eq!(served[1].receiver.recv().await.unwrap(), "in");
        assert!(served[1].receiver.recv().await.is_none());
        // More than a frame and more than a queue holds, taken while it comes.
        let much = vec![b'x'; 3 << 20];
        let stdout = served.remove(2).sender;
        let sending = tokio::spawn(async move {
            stdout.send(much).await.unwrap();
            stdout.end().await;
        });
        let mut come = 0;
        while let Some(bytes) = streams[2].receiver.recv().await {
            come += bytes.len();
        }
        sending.await.unwrap();
        assert_eq!(come, 3 << 20);
        served[0].sender.send("done").await.unwrap();
        assert_eq!(streams[0].receiver.recv().await.unwrap(), "done");
        // The client leaves: its streams end at the server.
        drop(connection);
        assert!(opened.recv().await.is_none());
    }

    #[tokio::test]
    async fn streams_end_with_the_connection() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let (mut streams, _connection) = open(client, &["error"]).await;
        drop(server);
        assert!(streams[0].receiver.recv().await.is_none());
    }
}
