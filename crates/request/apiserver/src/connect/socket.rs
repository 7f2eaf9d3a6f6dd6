//! A log as a WebSocket: for clients (browsers) that can't read a stream otherwise.
//!
//! Each piece is a message, in the form that the agreed sub-protocol says.

use crate::authn::revoked::Cut;
use crate::request::{Body, Request, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::SinkExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_api::{ApiError, ApiResult};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

pub fn is_wanted(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok());
    upgrade.is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
}

/// The sub-protocol among those offered; an offer of none is answered with none.
fn agreed(headers: &HeaderMap) -> ApiResult<Option<&'static str>> {
    let offers: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|p| !p.is_empty())
        .collect();
    match offers
        .iter()
        .find_map(|o| [BINARY, BASE64].into_iter().find(|p| p == o))
    {
        None if !offers.is_empty() => Err(ApiError::bad_request(format!(
            "requested protocol(s) are not supported: {offers:?}; supports [\"\" {BINARY:?} {BASE64:?}]"
        ))),
        found => Ok(found),
    }
}

/// Answers with 101 and sends the body when the connection has been upgraded.
pub fn serve(request: &mut Request, body: Body) -> ApiResult<Response> {
    let protocol = agreed(request.headers())?;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let (Some(key), Some(upgrade)) = (key, request.extensions_mut().remove::<OnUpgrade>()) else {
        return Err(ApiError::bad_request("the connection can't be upgraded to a WebSocket"));
    };
    let cut = request.extensions_mut().remove::<Cut>();
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(ApiError::internal)?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let sent = async move {
        if let Err(e) = send(upgrade, body, protocol == Some(BASE64)).await {
            tracing::debug!("a log over a WebSocket ended: {e}");
        }
    };
    tokio::spawn(Cut::or(cut, sent));
    Ok(answer)
}

async fn send(upgrade: OnUpgrade, mut body: Body, base64: bool) -> anyhow::Result<()> {
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgrade.await?), Role::Server, None).await;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let message = if base64 {
            Message::text(STANDARD.encode(&data))
        } else {
            Message::binary(data)
        };
        socket.send(message).await?;
    }
    socket.close(None).await?;
    Ok(())
}
