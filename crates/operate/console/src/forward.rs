//! A request to the API and its answer back. What is passed on is named: neither the browser's cookies nor anything by which it
//! could act as somebody else.

use crate::answer::{self, Body};
use crate::{AGENT, paths, tunnel};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use std::time::Duration;
use tokio::time::timeout;

/// The largest object that the API takes is smaller.
const LARGEST: usize = 4 << 20;
/// Until the API begins to answer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For a body from a browser on the same machine.
const BODY: Duration = Duration::from_secs(30);

const REQUEST: [HeaderName; 2] = [ACCEPT, CONTENT_TYPE];
const ANSWER: [HeaderName; 4] = [
    CONTENT_TYPE,
    http::header::RETRY_AFTER,
    http::header::WARNING,
    http::header::CONTENT_ENCODING,
];

pub async fn pass(client: &kube::Client, request: Request<Incoming>) -> Response<Body> {
    if let Some(why) = paths::refused(request.uri().path()) {
        return answer::failure(StatusCode::FORBIDDEN, "Refused", why);
    }
    if request.headers().contains_key(UPGRADE) {
        return tunnel::open(client, request).await;
    }
    let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    if !known.contains(request.method()) {
        return answer::failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "Refused",
            "the console doesn't pass this method on",
        );
    }
    let (parts, body) = request.into_parts();
    let body = match timeout(BODY, Limited::new(body, LARGEST).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return answer::failure(
                StatusCode::PAYLOAD_TOO_LARGE,
                "Refused",
                "a request's body may have 4 MiB",
            );
        }
        Err(_) => {
            return answer::failure(
                StatusCode::REQUEST_TIMEOUT,
                "Refused",
                "the body didn't come within 30 s",
            );
        }
    };
    let mut passed = Request::new(kube::client::Body::from(body));
    *passed.method_mut() = parts.method;
    *passed.uri_mut() = relative(&parts.uri);
    copy(&parts.headers, passed.headers_mut(), &REQUEST);
    match send(client, passed).await {
        Ok(got) => {
            let (parts, body) = got.into_parts();
            let mut answer = Response::new(body.map_err(Into::into).boxed_unsync());
            *answer.status_mut() = parts.status;
            copy(&parts.headers, answer.headers_mut(), &ANSWER);
            let no_store = HeaderValue::from_static("no-store");
            answer.headers_mut().insert(http::header::CACHE_CONTROL, no_store);
            answer
        }
        Err(error) => answer::unreachable(&error),
    }
}

/// With the console's name, and a deadline for the head of the answer.
pub async fn send(
    client: &kube::Client,
    mut request: Request<kube::client::Body>,
) -> Result<Response<kube::client::Body>, String> {
    request
        .headers_mut()
        .insert(USER_AGENT, HeaderValue::from_static(AGENT));
    match timeout(PATIENCE, client.send(request)).await {
        Ok(sent) => sent.map_err(|e| told(&e)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// An error with what is behind it: the outermost only says that something failed.
fn told(error: &kube::Error) -> String {
    let mut all = vec![error.to_string()];
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !all.iter().any(|t| t.contains(&text)) {
            all.push(text);
        }
        next = error.source();
    }
    all.join(": ")
}

/// Path and query: the server is the kubeconfig's.
pub fn relative(uri: &Uri) -> Uri {
    let path = uri.path_and_query().map(|p| p.as_str()).unwrap_or("/");
    path.parse().unwrap_or_default()
}

pub fn copy(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
}
