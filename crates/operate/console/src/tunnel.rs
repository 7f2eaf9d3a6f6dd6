//! A shell in a container: the WebSocket of the browser is the API's own, and the console passes its bytes on. It ends with either
//! side, and counts as a connection of the listener for as long as it lasts.

use crate::answer::{self, Body};
use crate::forward::{copy, relative, send};
use crate::paths;
use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::time::timeout;

const REQUEST: [HeaderName; 5] = [
    CONNECTION,
    UPGRADE,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
];
const ANSWER: [HeaderName; 4] = [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL];
/// How long both sides may take to change.
const CHANGE: Duration = Duration::from_secs(10);

pub async fn open(client: &kube::Client, mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_string();
    let is_websocket = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if request.method() != Method::GET || !is_websocket || !paths::may_upgrade(&path) {
        return answer::failure(
            StatusCode::FORBIDDEN,
            "Refused",
            "only commands in containers become connections, by WebSocket",
        );
    }
    let mut passed = Request::new(kube::client::Body::empty());
    *passed.uri_mut() = relative(request.uri());
    copy(request.headers(), passed.headers_mut(), &REQUEST);
    let mut got = match send(client, passed).await {
        Ok(got) => got,
        Err(error) => return answer::unreachable(&error),
    };
    if got.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = got.into_parts();
        let mut answer = Response::new(body.map_err(Into::into).boxed_unsync());
        *answer.status_mut() = parts.status;
        copy(&parts.headers, answer.headers_mut(), &[http::header::CONTENT_TYPE]);
        return answer;
    }
    let mut answer = Response::new(answer::full(""));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy(got.headers(), answer.headers_mut(), &ANSWER);
    let (browser, api) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut got));
    tokio::spawn(async move {
        let changed = timeout(CHANGE, async { tokio::try_join!(browser, api) }).await;
        if let Ok(Ok((browser, api))) = changed {
            let (mut browser, mut api) = (TokioIo::new(browser), TokioIo::new(api));
            if let Err(error) = tokio::io::copy_bidirectional(&mut browser, &mut api).await {
                tracing::debug!(%path, %error, "a command's connection ended");
            }
        }
    });
    answer
}
