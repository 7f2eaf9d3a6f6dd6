//! SPDY/3.1 as Kubernetes clients use it: the client opens streams, both sides send data, nobody controls the flow. This is the server's side,
//! [`client`] the other.

pub mod client;
mod dictionary;
mod headers;

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::channel::{Incoming, Outgoing, QUEUE, Sender};
use headers::{Compressor, Decompressor};

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const FLAG_FIN: u8 = 1;

/// Larger frames and more streams than clients make are refused.
const MAX_FRAME: usize = 4 << 20;
const MAX_STREAMS: usize = 1000;
/// A long piece is cut, so that streams take turns.
const MAX_DATA: usize = 32 << 10;

/// A stream that the client opened.
pub struct Opened {
    pub headers: HashMap<String, String>,
    pub receiver: Incoming,
    pub sender: Sender,
}

/// Serves a connection: opened streams come out of the returned channel, which ends with the connection.
pub fn serve<IO>(io: IO) -> mpsc::Receiver<Opened>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (opened, streams) = mpsc::channel(QUEUE);
    let (queue, outgoing) = mpsc::channel(QUEUE);
    let (read, write) = tokio::io::split(io);
    let mut reader = tokio::spawn(async move {
        if let Err(error) = read_frames(BufReader::new(read), &opened, queue).await {
            tracing::debug!(%error, "SPDY connection ended");
        }
    });
    tokio::spawn(async move {
        tokio::select! {
            written = write_frames(write, outgoing) => {
                if let Err(error) = written {
                    tracing::debug!(%error, "SPDY client gone");
                }
            }
            // A client that sends no more has gone: whoever sends to it learns it from the queue's end.
            _ = &mut reader => {}
        }
        reader.abort();
    });
    streams
}

async fn read_frames(
    mut io: impl AsyncRead + Unpin,
    opened: &mpsc::Sender<Opened>,
    queue: super::channel::Queue,
) -> io::Result<()> {
    let mut decompressor = Decompressor::new();
    let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    while let Some(frame) = Frame::read(&mut io).await? {
        let Some(kind) = frame.control() else {
            frame.deliver(&mut streams).await;
            continue;
        };
        match kind {
            SYN_STREAM => {
                let stream = frame.stream()?;
                let headers = decompressor.headers(frame.after(10)?)?;
                streams.retain(|_, s| !s.is_closed());
                if streams.len() >= MAX_STREAMS {
                    return Err(io::Error::other("more than 1000 streams"));
                }
                let (sender, receiver) = mpsc::channel(QUEUE);
                if frame.flags & FLAG_FIN == 0 {
                    streams.insert(stream, sender);
                }
                if queue.send((stream, Outgoing::Accept)).await.is_err() {
                    return Ok(());
                }
                let sender = Sender::new(stream, queue.clone());
                if opened
                    .send(Opened {
                        headers,
                        receiver,
                        sender,
                    })
                    .await
                    .is_err()
                {
                    return Ok(());
                }
            }
            HEADERS => {
                // Nobody uses them, but the compression has a memory.
                decompressor.headers(frame.after(4)?)?;
            }
            RST_STREAM => drop(streams.remove(&frame.stream()?)),
            PING => match queue.send((frame.word(0)?, Outgoing::Pong)).await {
                Ok(()) => {}
                Err(_) => return Ok(()),
            },
            GOAWAY => {}
            // Settings and window updates: the client's affair.
            _ => {}
        }
    }
    Ok(())
}

/// A frame as it came: data of a stream, or control.
struct Frame {
    head: [u8; 4],
    flags: u8,
    body: Vec<u8>,
}

impl Frame {
    /// `None`: the connection has ended where one may.
    async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
        let mut header = [0; 8];
        match io.read_exact(&mut header).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        let [a, b, c, d, flags, rest @ ..] = header;
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of more than 4 MiB"));
        }
        let mut body = vec![0; length];
        io.read_exact(&mut body).await?;
        Ok(Some(Frame {
            head: [a, b, c, d],
            flags,
            body,
        }))
    }

    /// What kind of control frame it is; `None`: it is data.
    fn control(&self) -> Option<u16> {
        let [a, _, c, d] = self.head;
        (a & 0x80 != 0).then(|| u16::from_be_bytes([c, d]))
    }

    /// Data goes to its stream's receiver. One that is done drops what still comes.
    async fn deliver(self, streams: &mut HashMap<u32, mpsc::Sender<Bytes>>) {
        let stream = u32::from_be_bytes(self.head);
        if let Some(receiver) = streams.get(&stream) {
            let done = !self.body.is_empty() && receiver.send(self.body.into()).await.is_err();
            if done || self.flags & FLAG_FIN != 0 {
                streams.remove(&stream);
            }
        }
    }

    fn word(&self, at: usize) -> io::Result<u32> {
        let bytes = self.body.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or_else(short)
    }

    /// Which stream a control frame is about.
    fn stream(&self) -> io::Result<u32> {
        Ok(self.word(0)? & 0x7fff_ffff)
    }

    fn after(&self, bytes: usize) -> io::Result<&[u8]> {
        self.body.get(bytes..).ok_or_else(short)
    }
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame that is too short")
}

async fn write_frames(
    mut io: impl AsyncWrite + Unpin,
    mut outgoing: mpsc::Receiver<(u32, Outgoing)>,
) -> io::Result<()> {
    let mut compressor = Compressor::new()?;
    while let Some((stream, what)) = outgoing.recv().await {
        match what {
            Outgoing::Accept => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend(compressor.no_headers()?);
                io.write_all(&control(SYN_REPLY, &body)).await?;
            }
            Outgoing::Open(kind) => {
                let mut body = stream.to_be_bytes().to_vec();
                // It belongs to no other stream, and has no priority.
                body.extend([0; 6]);
                body.extend(compressor.headers(&[("streamtype", kind)])?);
                io.write_all(&control(SYN_STREAM, &body)).await?;
            }
            Outgoing::Data(data) => {
                for piece in data.chunks(MAX_DATA) {
                    io.write_all(&data_header(stream, 0, piece.len())).await?;
                    io.write_all(piece).await?;
                }
            }
            Outgoing::End => io.write_all(&data_header(stream, FLAG_FIN, 0)).await?,
            Outgoing::Pong => io.write_all(&control(PING, &stream.to_be_bytes())).await?,
        }
        if outgoing.is_empty() {
            io.flush().await?;
        }
    }
    io.flush().await?;
    io.shutdown().await
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.push(0);
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(body);
    frame
}

fn data_header(stream: u32, flags: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [_, x, y, z] = (length as u32).to_be_bytes();
    [a, b, c, d, flags, x, y, z]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame that opens a stream.
    fn open(compressor: &mut Compressor, stream: u32, kind: &str) -> Vec<u8> {
        let mut body = stream.to_be_bytes().to_vec();
        body.extend([0; 6]);
        body.extend(compressor.headers(&[("streamtype", kind)]).unwrap());
        control(SYN_STREAM, &body)
    }

    #[tokio::test]
    async fn streams_open_carry_data_and_end() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut streams = serve(server);
        let mut compressor = Compressor::new().unwrap();
        for (stream, kind) in [(1, "error"), (3, "stdin")] {
            client.write_all(&open(&mut compressor, stream, kind)).await.unwrap();
        }
        client.write_all(&data_header(3, 0, 2)).await.unwrap();
        client.write_all(b"hi").await.unwrap();
        client.write_all(&data_header(3, FLAG_FIN, 0)).await.unwrap();
        client.write_all(&control(PING, &7u32.to_be_bytes())).await.unwrap();
        let error = streams.recv().await.unwrap();
        let mut stdin = streams.recv().await.unwrap();
        assert_eq!(
            (&error.headers["streamtype"][..], &stdin.headers["streamtype"][..]),
            ("error", "stdin")
        );
        assert_eq!(stdin.receiver.recv().await.unwrap(), "hi");
        assert!(stdin.receiver.recv().await.is_none());
        error.sender.send("bad").await.unwrap();
        error.sender.end().await;
        drop((error, stdin));

        let mut replies = Vec::new();
        let mut decompressor = Decompressor::new();
        while replies.len() < 5 {
            let mut header = [0; 8];
            client.read_exact(&mut header).await.unwrap();
            let mut body = vec![0; usize::from(header[7])];
            client.read_exact(&mut body).await.unwrap();
            if header[..4] == [0x80, 3, 0, SYN_REPLY as u8] {
                assert!(decompressor.headers(&body[4..]).unwrap().is_empty());
            }
            replies.push((header[0], header[3], header[4], body));
        }
        assert!(replies.contains(&(0x80, PING as u8, 0, 7u32.to_be_bytes().to_vec())));
        assert!(replies.contains(&(0, 1, 0, b"bad".to_vec())));
        assert!(replies.contains(&(0, 1, FLAG_FIN, vec![])));
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let mut streams = serve(server);
        client.write_all(&control(SYN_STREAM, b"short")).await.unwrap();
        assert!(streams.recv().await.is_none());
    }
}
