//! A WebSocket to a pod's port: of each pair of channels the first is for data, the second for errors.

use super::target::Place;
use anyhow::{Context, anyhow};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{SplitSink, SplitStream};
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use keelson_runtime::datagrams;
use std::fmt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

/// Which any kubelet serves.
pub const CONNECTIONS: &str = "v4.channel.k8s.io";
pub const DATAGRAMS: &str = datagrams::PROTOCOL;

const DATA: u8 = 0;
/// Our runtime takes the rest of such a message as the channel that has ended; others leave it unread.
const ENDED: u8 = 255;
/// Of an answer that refuses.
const MAX_TOLD: usize = 64 << 10;

pub type Sink = SplitSink<WebSocketStream<TokioIo<Upgraded>>, Message>;

pub struct Socket {
    pub sink: Sink,
    pub source: Source,
}

/// What comes from the pod.
pub struct Source {
    messages: SplitStream<WebSocketStream<TokioIo<Upgraded>>>,
    /// Channels whose first message, the port's number, has come.
    begun: [bool; 2],
}

pub enum Told {
    Data(Bytes),
    Error(String),
}

/// The pod, or its node, isn't there.
#[derive(Debug)]
pub struct Lost(anyhow::Error);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Lost {}

pub async fn open(
    client: &kube::Client,
    namespace: &str,
    place: &Place,
    protocol: &'static str,
) -> anyhow::Result<Socket> {
    let Place { pod, port } = place;
    let request = Request::get(format!(
        "/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}"
    ))
    .header(CONNECTION, "Upgrade")
    .header(UPGRADE, "websocket")
    .header(SEC_WEBSOCKET_VERSION, "13")
    .header(SEC_WEBSOCKET_KEY, generate_key())
    .header(SEC_WEBSOCKET_PROTOCOL, protocol)
    .body(kube::client::Body::empty())?;
    let mut answer = client.send(request).await.map_err(|error| Lost(error.into()))?;
    let status = answer.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = Limited::new(answer.into_body(), MAX_TOLD).collect().await;
        let told = body.map_or_else(|error| error.to_string(), |body| words(&body.to_bytes()));
        return Err(refusal(status, protocol, &told));
    }
    let upgraded = hyper::upgrade::on(&mut answer)
        .await
        .context("the connection doesn't become a WebSocket")?;
    let (sink, messages) = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None)
        .await
        .split();
    let begun = [false; 2];
    Ok(Socket {
        sink,
        source: Source { messages, begun },
    })
}

/// A Status' message, or the text.
fn words(body: &[u8]) -> String {
    let status: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = status.as_ref().and_then(|status| status["message"].as_str());
    message.map_or_else(|| String::from_utf8_lossy(body).trim().to_owned(), str::to_owned)
}

fn refusal(status: StatusCode, protocol: &str, told: &str) -> anyhow::Error {
    let is_unknown = told.contains("negotiate") || told.contains("protocol");
    if protocol == DATAGRAMS && is_unknown && status != StatusCode::NOT_FOUND {
        return anyhow!("the container runtime of the pod's node carries no datagrams, only Keelson's does: {told}");
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => anyhow!("{told}"),
        _ => Lost(anyhow!("{told}")).into(),
    }
}

/// A message of data.
pub fn data(bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(DATA);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// Says that no more data comes.
pub fn end() -> Message {
    Message::Binary(Bytes::from_static(&[ENDED, DATA]))
}

impl Source {
    /// Until the other side has ended.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            let Message::Binary(mut message) = self.messages.next().await?.ok()? else {
                continue;
            };
            let Some(begun) = message
                .first()
                .and_then(|channel| self.begun.get_mut(usize::from(*channel)))
            else {
                continue;
            };
            let channel = message.split_to(1)[0];
            if !std::mem::replace(begun, true) {
                // Both may come together.
                message = message.split_off(message.len().min(2));
            }
            match channel {
                _ if message.is_empty() => {}
                DATA => return Some(Told::Data(message)),
                _ => return Some(Told::Error(String::from_utf8_lossy(&message).into_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_in_the_servers_words() {
        let status = br#"{"kind":"Status","message":"pods \"a\" is forbidden"}"#;
        assert_eq!(words(status), "pods \"a\" is forbidden");
        assert_eq!(words(b" no \n"), "no");
        let unknown = "unable to upgrade: unable to negotiate protocol: client supports [x], server accepts [y]";
        assert!(
            refusal(StatusCode::FORBIDDEN, DATAGRAMS, unknown)
                .to_string()
                .contains("carries no datagrams")
        );
        assert!(refusal(StatusCode::NOT_FOUND, DATAGRAMS, "pods \"a\" not found").is::<Lost>());
        assert!(!refusal(StatusCode::FORBIDDEN, CONNECTIONS, "pods \"a\" is forbidden").is::<Lost>());
    }
}
