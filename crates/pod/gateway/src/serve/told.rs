//! What is counted of requests, and the log of them (`--log info,keelson_gateway::access=debug`): each when its answer is over.
//!
//! Series are those of listeners and routes that are there, and of answers that HTTP has a name for: nobody makes more of them by asking.

use super::body::Outgoing;
use crate::table::Table;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use keelson_listen::BoxError;
use keelson_measure::{HistogramVec, IntCounterVec, Measures};
use parking_lot::RwLock;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

const LOG: &str = "keelson_gateway::access";
/// The client went before there was an answer.
const GONE: &str = "gone";
const OTHER: &str = "other";
const SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Whose a request is, by name; nobody's where it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Of {
    pub listener: Arc<str>,
    pub route: Arc<str>,
}

pub struct Told {
    requests: IntCounterVec,
    durations: HistogramVec,
    there: RwLock<HashSet<Of>>,
}

impl Told {
    pub fn new(measures: &Measures) -> Told {
        Told {
            requests: measures.counters(
                "keelson_gateway_requests_total",
                "Requests from outside",
                &["listener", "route", "code"],
            ),
            durations: measures.histograms(
                "keelson_gateway_request_duration_seconds",
                "Time until an answer was over",
                &SECONDS,
                &["listener", "route"],
            ),
            there: RwLock::new([Of::default()].into()),
        }
    }

    /// From now on these are there.
    pub fn keep(&self, table: &Table) {
        let mut now = HashSet::from([Of::default()]);
        for listener in table.ports.values().flat_map(|p| &p.listeners) {
            let rules = listener.hosts.values().flatten().map(|rule| rule.route.clone());
            now.extend(rules.chain([Arc::default()]).map(|route| Of {
                listener: listener.name.clone(),
                route,
            }));
        }
        let mut there = self.there.write();
        there.difference(&now).for_each(|of| self.forget(of));
        *there = now;
    }

    fn forget(&self, of: &Of) {
        // One that never had a request has no series.
        let _ = self.durations.remove_label_values(&[&of.listener, &of.route]);
        let codes = (100..600).filter_map(|code| StatusCode::from_u16(code).ok());
        let named = codes.filter(|code| code.canonical_reason().is_some());
        let named: Vec<String> = named.map(|code| code.as_str().to_string()).collect();
        for code in named.iter().map(String::as_str).chain([GONE, OTHER]) {
            let _ = self.requests.remove_label_values(&[&of.listener, &of.route, code]);
        }
    }

    fn count(&self, of: &Of, status: Option<StatusCode>, began: Instant) {
        let code = match &status {
            None => GONE,
            Some(status) if status.canonical_reason().is_none() => OTHER,
            Some(status) => status.as_str(),
        };
        // What isn't there any more would stay for ever. It is held until it is counted.
        let there = self.there.read();
        if there.contains(of) {
            self.requests.with_label_values(&[&of.listener, &of.route, code]).inc();
            let seconds = self.durations.with_label_values(&[&of.listener, &of.route]);
            seconds.observe(began.elapsed().as_secs_f64());
        }
    }
}

/// A request under way, until its answer is over or given up.
pub struct Noted {
    told: Arc<Told>,
    pub of: Of,
    began: Instant,
    status: Option<StatusCode>,
    bytes: u64,
    line: Option<Line>,
}

/// What is logged of a request: not what it asks for behind the path, in which there may be secrets.
struct Line {
    remote: SocketAddr,
    head: String,
    host: String,
}

impl Noted {
    pub fn new<B>(told: &Arc<Told>, remote: SocketAddr, request: &Request<B>) -> Noted {
        let line = || Line {
            remote,
            head: format!("{} {} {:?}", request.method(), request.uri().path(), request.version()),
            host: super::headers::authority(request).unwrap_or_default(),
        };
        Noted {
            told: told.clone(),
            of: Of::default(),
            began: Instant::now(),
            status: None,
            bytes: 0,
            line: tracing::enabled!(target: LOG, tracing::Level::DEBUG).then(line),
        }
    }

    pub fn answered(mut self, answer: Response<Outgoing>) -> Response<Counted> {
        self.status = Some(answer.status());
        answer.map(|body| Counted { body, noted: self })
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.told.count(&self.of, self.status, self.began);
        if let Some(Line { remote, head, host }) = &self.line {
            let code = self.status.as_ref().map_or(GONE, StatusCode::as_str);
            let (bytes, seconds) = (self.bytes, self.began.elapsed().as_secs_f64());
            let Of { listener, route } = &self.of;
            tracing::debug!(target: LOG, %remote, host, code, bytes, seconds, %listener, %route, "{head}");
        }
    }
}

/// An answer's body whose bytes are counted.
pub struct Counted {
    body: Outgoing,
    noted: Noted,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref()) {
            self.noted.bytes += data.len() as u64;
        }
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
