//! A server that speaks as much of S3 as archives need, on loopback, with faults to order.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

pub const KEY: &str = "AKIDTEST";
/// So small that lists have several.
const PAGE: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Answered so, and nothing done.
    Status(u16, &'static str),
    /// The connection ends without an answer.
    Hangs,
    /// Half of the answer.
    Half,
}

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Bytes>,
    parts: BTreeMap<String, BTreeMap<u32, Bytes>>,
    /// What comes of the next requests; `None`: what should.
    pub faults: VecDeque<Option<Fault>>,
    pub requests: usize,
    /// Whether lists are pages without names, and there is always another.
    pub endless: bool,
}

impl State {
    pub fn unfinished(&self) -> usize {
        self.parts.len()
    }
}

pub struct Bucket {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

impl Bucket {
    pub async fn start() -> Bucket {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(State::default())));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Bucket { address, state }
    }

    pub fn order(&self, faults: &[Option<Fault>]) {
        self.state.lock().unwrap().faults = faults.iter().copied().collect();
    }
}

fn said(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn error(status: u16, code: &str) -> Response<Full<Bytes>> {
    said(
        status,
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>"),
    )
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let mut state = state.lock().unwrap();
    state.requests += 1;
    let fault = state.faults.pop_front().flatten();
    match fault {
        Some(Fault::Status(status, code)) => return Ok(error(status, code)),
        Some(Fault::Hangs) => return Err(std::io::Error::other("as ordered")),
        _ => {}
    }
    let query: BTreeMap<String, String> = reqwest::Url::parse(&format!("http://x{}", head.uri))
        .unwrap()
        .query_pairs()
        .into_owned()
        .collect();
    let signed = query
        .get("X-Amz-Credential")
        .is_some_and(|c| c.starts_with(&format!("{KEY}/")));
    if !signed || !query.contains_key("X-Amz-Signature") {
        return Ok(error(403, "InvalidAccessKeyId"));
    }
    let path = head.uri.path().trim_start_matches('/');
    let Some(key) = path
        .strip_prefix("bucket")
        .map(|rest| rest.trim_start_matches('/').to_string())
    else {
        return Ok(error(404, "NoSuchBucket"));
    };
    let upload = query.get("uploadId").cloned();
    Ok(match (head.method, upload) {
        (Method::GET, _) if key.is_empty() => list(&state, &query),
        (Method::GET, _) => match state.objects.get(&key) {
            Some(bytes) if fault == Some(Fault::Half) => half(bytes),
            Some(bytes) => said(200, bytes.clone()),
            None => error(404, "NoSuchKey"),
        },
        (Method::PUT, Some(upload)) => {
            let number = query["partNumber"].parse().unwrap();
            match state.parts.get_mut(&upload) {
                Some(parts) => drop(parts.insert(number, body)),
                None => return Ok(error(404, "NoSuchUpload")),
            }
            let mut response = said(200, "");
            let tag = format!("\"{number}\"").parse().unwrap();
            response.headers_mut().insert("etag", tag);
            response
        }
        (Method::PUT, None) => {
            state.objects.insert(key, body);
            said(200, "")
        }
        (Method::POST, None) => {
            let upload = format!("u{}", state.requests);
            state.parts.insert(upload.clone(), BTreeMap::new());
            said(
                200,
                format!(
                    "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>{key}</Key><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                ),
            )
        }
        (Method::POST, Some(upload)) => match state.parts.remove(&upload) {
            Some(parts) => {
                let whole: Vec<u8> = parts.into_values().flatten().collect();
                state.objects.insert(key, whole.into());
                said(200, "<CompleteMultipartUploadResult/>")
            }
            None => error(404, "NoSuchUpload"),
        },
        (Method::DELETE, Some(upload)) => {
            state.parts.remove(&upload);
            said(204, "")
        }
        (Method::DELETE, None) => {
            state.objects.remove(&key);
            said(204, "")
        }
        _ => error(405, "MethodNotAllowed"),
    })
}

fn list(state: &State, query: &BTreeMap<String, String>) -> Response<Full<Bytes>> {
    if state.endless {
        let next = state.requests;
        return said(
            200,
            format!("<ListBucketResult><NextContinuationToken>{next}</NextContinuationToken></ListBucketResult>"),
        );
    }
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let after = query.get("continuation-token").cloned().unwrap_or_default();
    let mut left = state
        .objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix) && **key > after)
        .peekable();
    let mut body = String::from("<ListBucketResult>");
    let mut last = String::new();
    for (key, bytes) in left.by_ref().take(PAGE) {
        let size = bytes.len();
        body += &format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>\"x\"</ETag><Size>{size}</Size></Contents>"
        );
        last.clone_from(key);
    }
    if left.peek().is_some() {
        body += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
    }
    said(200, body + "</ListBucketResult>")
}

/// Says that there is more than comes.
fn half(bytes: &Bytes) -> Response<Full<Bytes>> {
    let mut response = said(200, bytes.slice(..bytes.len() / 2));
    let length = bytes.len().to_string().parse().unwrap();
    response.headers_mut().insert("content-length", length);
    response
}
