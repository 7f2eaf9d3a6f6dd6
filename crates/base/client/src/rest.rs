//! Requests and responses as bytes. Everything typed is a thin layer over these plain functions.
//!
//! Invariant: a response of 400 or more becomes [`Error::Api`] with the server's own `Status`; a body that isn't a
//! `Status` is kept as its message. No error is ever taken for an answer.

use crate::pace::Pace;
use crate::telling::{Requests, Telling};
use crate::together::Together;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Status;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::Arc;
use tokio::time::Instant;

pub use kube::Error;
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The largest response that isn't a stream.
pub const MAX_RESPONSE: usize = 512 << 20;

/// A client and the name it goes by: the server takes the field manager from it.
#[derive(Clone)]
pub struct Rest {
    client: kube::Client,
    agent: Arc<HeaderValue>,
    told: Option<Arc<Requests>>,
    together: Option<Arc<Together>>,
    pace: Option<Arc<Pace>>,
}

impl Rest {
    pub fn new(client: kube::Client, agent: &str) -> Self {
        let agent = HeaderValue::from_str(agent).unwrap_or_else(|_| HeaderValue::from_static("keelson"));
        Rest {
            client,
            agent: Arc::new(agent),
            told: None,
            together: None,
            pace: None,
        }
    }

    /// Its requests, watches too, go no faster; `None`: as fast as they come.
    pub fn paced(mut self, pace: Option<Arc<Pace>>) -> Self {
        self.pace = pace;
        self
    }

    /// Its informers share watches with those of others, and its requests wait for a seat among theirs.
    pub fn together(mut self, together: Arc<Together>) -> Self {
        self.together = Some(together);
        self
    }

    pub(crate) fn joined(&self) -> Option<&Arc<Together>> {
        self.together.as_ref()
    }

    /// The same without what it shares.
    pub(crate) fn alone(&self) -> Rest {
        Rest {
            together: None,
            ..self.clone()
        }
    }

    /// Counts its requests.
    pub fn telling(mut self, telling: &Telling) -> Self {
        self.told = Some(Requests::new(telling));
        self
    }

    pub(crate) fn told(&self) -> Option<&Arc<Requests>> {
        self.told.as_ref()
    }

    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        accept: &str,
        content_type: &str,
        body: Vec<u8>,
        streams: bool,
    ) -> Result<http::Response<Body>> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, (*self.agent).clone());
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let bytes = body.len();
        let mut request = request.body(Body::from(body)).map_err(Error::HttpError)?;
        keelson_trace::headers::inject(request.headers_mut());
        let came = Instant::now();
        if let Some(pace) = &self.pace {
            pace.turn().await;
        }
        if let Some(told) = &self.told {
            told.begins(method.as_str(), bytes, came.elapsed());
        }
        let _seat = match &self.together {
            Some(together) if !streams => together.seat().await,
            _ => None,
        };
        let began = Instant::now();
        let sent = self.client.send(request).await;
        if let Some(told) = &self.told {
            let status = sent.as_ref().ok().map(http::Response::status);
            let code = status.as_ref().map(http::StatusCode::as_str);
            told.answered(method.as_str(), code, (!streams).then(|| began.elapsed()));
        }
        let response = sent?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let text = self.collect(&method, response).await?;
        Err(Error::Api(Box::new(status(code, &text))))
    }

    /// One request, one JSON answer.
    pub async fn call(&self, method: Method, uri: &str, content_type: &str, body: Vec<u8>) -> Result<Bytes> {
        let answer = self.send(method.clone(), uri, JSON, content_type, body, false).await?;
        self.collect(&method, answer).await
    }

    /// The whole of an answer.
    async fn collect(&self, method: &Method, response: http::Response<Body>) -> Result<Bytes> {
        let body = http_body_util::Limited::new(response.into_body(), MAX_RESPONSE);
        let body = body.collect().await.map_err(Error::Service)?.to_bytes();
        if let Some(told) = &self.told {
            told.read(method.as_str(), body.len());
        }
        Ok(body)
    }

    pub async fn get(&self, uri: &str, accept: &str) -> Result<Bytes> {
        let answer = self.send(Method::GET, uri, accept, JSON, Vec::new(), false).await?;
        self.collect(&Method::GET, answer).await
    }

    /// A GET whose body is read as it arrives.
    pub async fn stream(&self, uri: &str, accept: &str) -> Result<Body> {
        let answer = self.send(Method::GET, uri, accept, JSON, Vec::new(), true).await?;
        Ok(answer.into_body())
    }
}

pub const JSON: &str = "application/json";

fn status(code: u16, body: &[u8]) -> Status {
    if let Ok(mut status) = serde_json::from_slice::<Status>(body)
        && (status.code != 0 || !status.reason.is_empty())
    {
        if status.code == 0 {
            status.code = code;
        }
        return status;
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(2048)])
        .trim()
        .to_string();
    let mut status = Status::failure(&text, "Unknown");
    status.code = code;
    status
}

/// What may stand unescaped in a query value.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Appends `?a=b&c=d`, leaving out empty values.
pub fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let mut uri = path.to_string();
    let mut separator = '?';
    for (key, value) in query {
        if !value.is_empty() {
            uri.push(separator);
            uri.push_str(key);
            uri.push('=');
            uri.extend(utf8_percent_encode(value, QUERY));
            separator = '&';
        }
    }
    uri
}

fn api(error: &Error) -> Option<&Status> {
    match error {
        Error::Api(status) => Some(status),
        _ => None,
    }
}

/// The object (or the resource) doesn't exist: the server said so.
pub fn is_not_found(error: &Error) -> bool {
    api(error).is_some_and(|s| s.code == 404)
}
pub fn is_already_exists(error: &Error) -> bool {
    api(error).is_some_and(|s| s.reason == "AlreadyExists")
}
/// Somebody else changed the object first, or a precondition failed.
pub fn is_conflict(error: &Error) -> bool {
    api(error).is_some_and(|s| s.code == 409 && s.reason != "AlreadyExists")
}
pub fn is_forbidden(error: &Error) -> bool {
    api(error).is_some_and(|s| s.code == 403)
}
pub fn is_invalid(error: &Error) -> bool {
    api(error).is_some_and(|s| s.code == 422)
}
/// The revision asked for isn't kept any more.
pub fn is_gone(error: &Error) -> bool {
    api(error).is_some_and(|s| s.code == 410 || s.reason == "Expired" || s.reason == "Gone")
}
/// The namespace is being deleted: nothing new can be created in it.
pub fn is_namespace_terminating(error: &Error) -> bool {
    api(error).is_some_and(|s| {
        s.code == 403
            && s.details
                .as_ref()
                .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_escapes_and_skips() {
        assert_eq!(
            with_query(
                "/api/v1/pods",
                &[("watch", "1"), ("x", ""), ("labelSelector", "a=b,c in (d)")]
            ),
            "/api/v1/pods?watch=1&labelSelector=a%3Db%2Cc%20in%20%28d%29"
        );
        assert_eq!(with_query("/x", &[("x", "")]), "/x");
    }

    #[test]
    fn a_body_that_is_no_status_is_kept() {
        let s = status(502, b"bad gateway\n");
        assert_eq!((s.code, s.message.as_str()), (502, "bad gateway"));
        let s = status(
            409,
            br#"{"kind":"Status","status":"Failure","reason":"Conflict","code":409,"message":"m"}"#,
        );
        assert!(is_conflict(&Error::Api(Box::new(s))));
    }
}
