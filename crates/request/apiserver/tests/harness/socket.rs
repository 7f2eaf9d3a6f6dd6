//! The client's side of a WebSocket.

use futures::StreamExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use keelson_api::Value;
use keelson_apiserver::request::Body;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a browser sends.
pub fn ask(path: &str) -> http::request::Builder {
    http::Request::get(path)
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "websocket")
        .header("origin", "https://console.example")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
}

pub fn request(path: &str) -> http::Request<Body> {
    ask(path).body(Body::empty()).expect("a request")
}

/// The connection of an answer that promises one.
pub async fn opened<B>(mut answer: http::Response<B>) -> Socket {
    assert_eq!(answer.status(), 101);
    let accept = answer.headers()["sec-websocket-accept"].as_bytes();
    assert_eq!(accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let connection = hyper::upgrade::on(&mut answer).await.expect("an upgrade");
    WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Client, None).await
}

/// The next message; `None`: the connection has ended without a word.
pub async fn next(socket: &mut Socket) -> Option<Message> {
    let next = tokio::time::timeout(Duration::from_secs(10), socket.next()).await;
    next.expect("a message in time").and_then(Result::ok)
}

/// The event of the next message.
pub async fn event(socket: &mut Socket) -> Value {
    match next(socket).await {
        Some(Message::Text(text)) => serde_json::from_str(&text).expect("an event"),
        other => panic!("{other:?} is no event"),
    }
}
