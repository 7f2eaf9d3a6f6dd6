//! Answers as WebSockets, for clients (browsers) that can't read a stream otherwise: watches and logs.
//!
//! Such an answer is an ordinary one on its whole way through the chain: what counts, logs, ends or cuts a body is put
//! around this one too. Only when it is complete does [`begin`] send it by the upgraded connection, each piece of the body a
//! message. What the client says is read, so that its pings are answered and its end is seen, and forgotten.
//!
//! Bounds: what a watch or a log has, so its time ([`WriteBy`]), and what is asked for only when there is room for it. A
//! message of a client has [`LONGEST_HEARD`].

use crate::authn::revoked::Cut;
use crate::request::{Body, Response, response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt, future};
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_api::{ApiError, Reason};
use keelson_listen::WriteBy;
use std::time::Duration;
use tokio::time::{timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// Clients have nothing to say; one that says more at once is left.
const LONGEST_HEARD: usize = 64 * 1024;
/// How long the last words may take: they come when all else has been read, or nothing is read any more.
const GOODBYE: Duration = Duration::from_secs(5);
/// Of the protocol, which has had no other in use.
const VERSION: &str = "13";

/// What a piece of a body becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    Text,
    Binary,
    Base64,
}

/// A client's side of the handshake.
pub struct Asked {
    accept: HeaderValue,
    connection: OnUpgrade,
    cut: Option<Cut>,
}

impl Asked {
    /// Of a request that wants one ([`crate::request::socket::is_wanted`]).
    pub fn of(headers: &HeaderMap, extensions: &mut Extensions) -> Result<Asked, Box<Response>> {
        let refused = |why: &str| Box::new(response::error(&ApiError::bad_request(why)));
        let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| refused("missing or bad challenge response"))?;
        let version = headers.get(header::SEC_WEBSOCKET_VERSION);
        if version.is_none_or(|version| version != VERSION) {
            let mut answer = refused("missing or bad WebSocket Version");
            let ours = HeaderValue::from_static(VERSION);
            answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, ours);
            return Err(answer);
        }
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
        let accept = accept.map_err(|e| Box::new(response::error(&ApiError::internal(e))))?;
        let connection = extensions.remove::<OnUpgrade>();
        Ok(Asked {
            accept,
            connection: connection.ok_or_else(|| refused("the connection can't be upgraded to a WebSocket"))?,
            cut: extensions.get::<Cut>().cloned(),
        })
    }

    /// The answer that promises `body` in messages.
    pub fn answer(self, protocol: Option<&str>, messages: Messages, body: Body) -> Response {
        let mut answer = Response::new(body);
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(Ok(protocol)) = protocol.map(HeaderValue::from_str) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        answer.extensions_mut().insert(Promised {
            connection: self.connection,
            cut: self.cut,
            messages,
        });
        answer
    }
}

/// What upstream answers to a handshake that it doesn't like.
pub fn refused(why: impl Into<String>) -> ApiError {
    ApiError::new(Reason::Forbidden, why)
}

/// An extension of the answer, until it is on its way.
#[derive(Clone)]
struct Promised {
    connection: OnUpgrade,
    cut: Option<Cut>,
    messages: Messages,
}

/// The last step of an answer: one that was promised as messages goes by the connection, what remains is its head.
pub fn begin(mut answer: Response) -> Response {
    let Some(promised) = answer.extensions_mut().remove::<Promised>() else {
        return answer;
    };
    let body = std::mem::take(answer.body_mut());
    let by = answer.extensions_mut().remove::<WriteBy>();
    let sent = async move {
        let sending = send(promised.connection, body, promised.messages);
        let sent = match by {
            Some(WriteBy(by)) => timeout_at(by, sending).await,
            None => Ok(sending.await),
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!("a WebSocket ended: {e}"),
            Err(_) => tracing::debug!("a WebSocket was not read in time"),
        }
    };
    // A body that is cut says so itself; who reads nothing never asks it.
    tokio::spawn(Cut::or(promised.cut, sent));
    answer
}

fn message(piece: Bytes, messages: Messages) -> anyhow::Result<Message> {
    Ok(match messages {
        Messages::Text => Message::Text(Utf8Bytes::try_from(piece)?),
        Messages::Binary => Message::Binary(piece),
        Messages::Base64 => Message::text(STANDARD.encode(&piece)),
    })
}

async fn send(connection: OnUpgrade, mut body: Body, messages: Messages) -> anyhow::Result<()> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .max_message_size(Some(LONGEST_HEARD))
        .max_frame_size(Some(LONGEST_HEARD));
    let io = TokioIo::new(connection.await?);
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (mut sink, mut source) = socket.split();
    let gone = async { while let Some(Ok(_)) = source.next().await {} };
    let told = async {
        loop {
            // What is there goes along before anything is waited for.
            let frame = match body.frame().now_or_never() {
                Some(frame) => frame,
                None => {
                    sink.flush().await?;
                    body.frame().await
                }
            };
            let Some(frame) = frame else { break };
            if let Ok(piece) = frame?.into_data() {
                sink.feed(message(piece, messages)?).await?;
            }
        }
        let end = CloseFrame {
            code: CloseCode::Normal,
            reason: Utf8Bytes::default(),
        };
        timeout(GOODBYE, sink.send(Message::Close(Some(end)))).await??;
        anyhow::Ok(())
    };
    // Its end is answered while it is read.
    match future::select(std::pin::pin!(told), std::pin::pin!(gone)).await {
        future::Either::Left((told, gone)) => {
            told?;
            // The client's answer to the end; what it still says before is nobody's any more.
            let _late = timeout(GOODBYE, gone).await;
            Ok(())
        }
        future::Either::Right(((), _)) => Ok(()),
    }
}
