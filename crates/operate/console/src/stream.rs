//! Answers without an end, watches and logs, as WebSockets. A browser has six connections an origin, whatever is open in however
//! many windows; a WebSocket is none of them. And a page can't read why a WebSocket was refused: here the first message says how
//! the API answered, as text, and then the body comes as it came, in binary messages.
//!
//! Nothing is buffered: while the browser doesn't read, the API isn't read either, and ends a watch that falls behind; a browser that
//! reads nothing for a minute has gone. An answer that breaks off is told from one that ends by another text.

use crate::answer::{self, Body, UNREACHABLE, says_unreachable, status_of};
use crate::{forward, paths};
use futures::{SinkExt, StreamExt};
use http::header::{ACCEPT, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1, application/json";
/// A page sends nothing.
const FROM_PAGE: usize = 1024;
const LONGEST_REFUSAL: usize = 64 << 10;
const CHANGE: Duration = Duration::from_secs(10);
/// A watch has a bookmark a minute; without any, nobody is there.
const SILENCE: Duration = Duration::from_secs(600);
/// For the browser to take a message, as with other answers.
const UNREAD: Duration = Duration::from_secs(60);

/// `/console/stream/api/v1/…` and `/console/table/…`: the same path of the API, the second as tables.
pub async fn open(client: &kube::Client, form: &str, mut request: Request<Incoming>) -> Response<Body> {
    let refused = |says: &str| answer::failure(StatusCode::BAD_REQUEST, "Refused", says);
    let path = request
        .uri()
        .path_and_query()
        .map(|p| p.as_str().to_string())
        .unwrap_or_default();
    let Some(asked) = path.strip_prefix("/console/").and_then(|p| p.strip_prefix(form)) else {
        return refused("no such stream");
    };
    let Ok(uri) = asked.parse::<Uri>() else {
        return refused("no such path");
    };
    if !paths::is_api(uri.path()) {
        return refused("only the API has streams");
    }
    if let Some(why) = paths::refused(uri.path()) {
        return answer::failure(StatusCode::FORBIDDEN, "Refused", why);
    }
    let is_websocket = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let key = request.headers().get(SEC_WEBSOCKET_KEY).cloned();
    let (true, true, Some(key)) = (is_websocket, request.method() == Method::GET, key) else {
        return refused("a stream is a WebSocket");
    };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return refused("no such key");
    };
    let mut passed = Request::new(kube::client::Body::empty());
    let accepts = if form == "table" {
        TABLE
    } else {
        "application/json, */*;q=0.5"
    };
    passed.headers_mut().insert(ACCEPT, HeaderValue::from_static(accepts));
    let silence = uri.query().is_some_and(|q| q.contains("watch=")).then_some(SILENCE);
    *passed.uri_mut() = uri;
    let (client, upgrade) = (client.clone(), hyper::upgrade::on(&mut request));
    tokio::spawn(async move {
        let Ok(Ok(upgraded)) = timeout(CHANGE, upgrade).await else {
            return;
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(FROM_PAGE))
            .max_frame_size(Some(FROM_PAGE));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        if let Err(error) = send(&client, passed, socket, silence).await {
            tracing::debug!(%error, "a stream to the browser ended");
        }
    });
    let mut answer = Response::new(answer::full(""));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

async fn send<S>(
    client: &kube::Client,
    request: Request<kube::client::Body>,
    mut socket: WebSocketStream<S>,
    silence: Option<Duration>,
) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let got = tokio::select! {
        got = forward::send(client, request) => got,
        () = left(&mut socket) => return Ok(()),
    };
    let (first, body) = match got {
        Ok(got) if got.status().is_success() => (json!({"code": got.status().as_u16()}), Some(got.into_body())),
        Ok(got) => (refusal(got).await, None),
        Err(error) => (status_of(502, UNREACHABLE, &says_unreachable(&error)), None),
    };
    put(&mut socket, Message::text(first.to_string())).await?;
    let mut body = body;
    while let Some(from) = &mut body {
        let next = tokio::select! {
            next = timeout(silence.unwrap_or(Duration::MAX), from.frame()) => next,
            () = left(&mut socket) => return Ok(()),
        };
        match next {
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    put(&mut socket, Message::binary(data)).await?;
                }
            }
            Ok(Some(Err(error))) => {
                let says = format!("the API's answer broke off: {error}");
                let broken = status_of(502, "BrokeOff", &says).to_string();
                put(&mut socket, Message::text(broken)).await?;
                body = None;
            }
            Ok(None) | Err(_) => body = None,
        }
    }
    put(&mut socket, Message::Close(None)).await
}

async fn put<S>(socket: &mut WebSocketStream<S>, message: Message) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(UNREAD, socket.send(message)).await {
        Ok(sent) => sent,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// Until the page goes; whatever it says is not listened to.
async fn left<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            return;
        }
    }
}

/// The API's own words.
async fn refusal(got: Response<kube::client::Body>) -> Value {
    let code = got.status().as_u16();
    let read = timeout(CHANGE, Limited::new(got.into_body(), LONGEST_REFUSAL).collect()).await;
    let bytes = read.ok().and_then(Result::ok).map(|b| b.to_bytes()).unwrap_or_default();
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(status) if status["kind"] == "Status" => status,
        _ => status_of(code, "Unknown", &String::from_utf8_lossy(&bytes)),
    }
}
