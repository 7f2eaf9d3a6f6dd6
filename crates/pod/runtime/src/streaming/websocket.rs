//! WebSocket connections: channels numbered by the first byte of a message, and SPDY carried in messages.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::channel::{Incoming, Outgoing, QUEUE, Sender};

/// Clients send pieces of at most 32 KiB; some leave it to the operating system.
const MAX_MESSAGE: usize = 4 << 20;
/// In version 5: the rest of the message is the number of a channel that the client has ended.
const CLOSE: u8 = 255;

/// How bytes are put into messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    Binary,
    /// A digit for the channel, the rest as base64, in text messages.
    Base64,
}

/// Channels 0 to `count` - 1 of a connection.
pub struct Channels {
    receivers: Vec<Option<Incoming>>,
    queue: super::channel::Queue,
}

impl Channels {
    pub fn receiver(&mut self, channel: usize) -> Option<Incoming> {
        self.receivers.get_mut(channel)?.take()
    }

    pub fn sender(&self, channel: u32) -> Sender {
        Sender::new(channel, self.queue.clone())
    }
}

async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketStream<IO> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves a connection of numbered channels. The connection ends when all senders are dropped.
pub async fn channels<IO>(io: IO, count: usize, encoding: Encoding) -> Channels
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut source) = accept(io).await.split();
    let (queue, mut outgoing) = mpsc::channel::<(u32, Outgoing)>(QUEUE);
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (sender, receiver) = mpsc::channel(QUEUE);
        senders.push(Some(sender));
        receivers.push(Some(receiver));
    }
    let reader = tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            let Some((channel, data)) = decode(message, encoding) else {
                continue;
            };
            if channel == CLOSE {
                if let Some(ended) = data.first().and_then(|c| senders.get_mut(usize::from(*c))) {
                    *ended = None;
                }
            } else if let Some(Some(sender)) = senders.get(usize::from(channel)).filter(|_| !data.is_empty()) {
                // A receiver that is done drops what still comes.
                let _ = sender.send(data).await;
            }
        }
    });
    tokio::spawn(async move {
        tokio::pin! { let reading = reader; }
        loop {
            let next = tokio::select! {
                next = outgoing.recv() => next,
                // The client is gone; so is this queue, and with it the containers' side.
                _ = &mut reading => return,
            };
            let message = match next {
                Some((channel, Outgoing::Data(data))) => encode(channel as u8, &data, encoding),
                Some(_) => continue,
                None => break,
            };
            if sink.send(message).await.is_err() {
                break;
            }
        }
        // Says good-bye; a client that is gone does not hear it.
        let _ = sink.send(good_bye()).await;
        // The answer to it, for a moment: closing before it would lose data on the way.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), &mut reading).await;
        reading.abort();
    });
    Channels { receivers, queue }
}

/// An ordinary end. Clients take a close without a code for a failure.
fn good_bye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

fn decode(message: Message, encoding: Encoding) -> Option<(u8, Bytes)> {
    let mut bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => Bytes::from(text),
        _ => return None,
    };
    if bytes.is_empty() {
        return None;
    }
    let channel = bytes.split_to(1)[0];
    match encoding {
        Encoding::Binary => Some((channel, bytes)),
        Encoding::Base64 => {
            let number = channel.checked_sub(b'0').filter(|n| *n < 10)?;
            Some((number, STANDARD.decode(&bytes).ok()?.into()))
        }
    }
}

fn encode(channel: u8, data: &[u8], encoding: Encoding) -> Message {
    match encoding {
        Encoding::Binary => {
            let mut bytes = BytesMut::with_capacity(data.len() + 1);
            bytes.put_u8(channel);
            bytes.put_slice(data);
            Message::Binary(bytes.freeze())
        }
        Encoding::Base64 => Message::text(format!("{channel}{}", STANDARD.encode(data))),
    }
}

/// The bytes that binary messages carry, as one stream.
pub async fn tunnel<IO>(io: IO) -> DuplexStream
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut source) = accept(io).await.split();
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(theirs);
    let reader = tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            if let Message::Binary(bytes) = message
                && write.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        // The other side may be gone already.
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match read.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    if sink
                        .send(Message::Binary(Bytes::copy_from_slice(&buffer[..n])))
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
            }
        }
        let _ = sink.send(good_bye()).await;
        reader.abort();
    });
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn channels_are_numbered_and_can_end() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let mut channels = channels(server, 5, Encoding::Binary).await;
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let mut stdin = channels.receiver(0).unwrap();
        client
            .send(Message::Binary(Bytes::from_static(b"\0hello")))
            .await
            .unwrap();
        client
            .send(Message::Binary(Bytes::from_static(&[CLOSE, 0])))
            .await
            .unwrap();
        assert_eq!(stdin.recv().await.unwrap(), "hello");
        assert!(stdin.recv().await.is_none());
        channels.sender(1).send("out").await.unwrap();
        drop(channels);
        assert_eq!(
            client.next().await.unwrap().unwrap(),
            Message::Binary(Bytes::from_static(b"\x01out"))
        );
        assert_eq!(client.next().await.unwrap().unwrap(), good_bye());
    }

    #[test]
    fn base64_has_digits_for_channels() {
        assert_eq!(encode(1, b"hi", Encoding::Base64), Message::text("1aGk="));
        let decoded = decode(Message::text("0aGk="), Encoding::Base64).unwrap();
        assert_eq!(decoded, (0, Bytes::from_static(b"hi")));
        assert!(decode(Message::text("xaGk="), Encoding::Base64).is_none());
    }
}
