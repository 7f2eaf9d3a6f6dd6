//! What travels with a request through the chain. Cloning shares the collectors.

use super::{RequestInfo, UserInfo};
use crate::flow::Seat;
use keelson_api::Str;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::Instant;

/// What is known of a request besides its body.
#[derive(Clone, Debug)]
pub struct RequestContext {
    pub info: Arc<RequestInfo>,
    pub user: Arc<UserInfo>,
    /// If the user is somebody else's: the verb of the constrained mode that allows it.
    pub constraint: Option<&'static str>,
    /// Path and query as they came.
    pub uri: Str,
    /// The `Audit-Id` of the request.
    pub audit_id: Str,
    pub received: jiff::Timestamp,
    pub started: Instant,
    /// When the request is given up; `None` for long-running ones.
    pub deadline: Option<Instant>,
    /// What it has of flow control while it is served.
    pub seat: Seat,
    /// A patch that is an apply: metrics tell it from others.
    pub applies: bool,
    pub user_agent: Str,
    /// The client's address; `None` for calls within the process.
    pub remote: Option<SocketAddr>,
    pub warnings: Warnings,
    pub audit: AuditAnnotations,
}

impl RequestContext {
    pub fn new(info: RequestInfo, user: UserInfo) -> Self {
        RequestContext {
            info: Arc::new(info),
            user: Arc::new(user),
            constraint: None,
            uri: Str::default(),
            audit_id: keelson_registry::meta::random_uuid(),
            received: jiff::Timestamp::now(),
            started: Instant::now(),
            deadline: None,
            seat: Seat::default(),
            applies: false,
            user_agent: Str::default(),
            remote: None,
            warnings: Warnings::default(),
            audit: AuditAnnotations::default(),
        }
    }
    /// The same request with another identity or another reading of its path.
    pub fn with_user(&self, user: UserInfo) -> Self {
        RequestContext {
            user: Arc::new(user),
            ..self.clone()
        }
    }
}

/// Warnings for the client (`Warning: 299 - "…"` headers): each text once, at most [`Warnings::MAX_TOTAL`] bytes in all.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    const MAX_TOTAL: usize = 4 * 1024;
    const MAX_EACH: usize = 256;
    /// Of as many at least one byte each is shown.
    const MAX_COUNT: usize = Self::MAX_TOTAL;

    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut list = self.0.lock();
        if !text.is_empty() && list.len() < Self::MAX_COUNT && !list.contains(&text) {
            list.push(text);
        }
    }
    /// The header values. When they don't fit, each is cut short; what still doesn't fit is left out, as upstream does.
    pub fn header_values(&self) -> Vec<String> {
        let list = self.0.lock();
        let total: usize = list.iter().map(String::len).sum();
        let mut room = Self::MAX_TOTAL;
        let mut values = Vec::with_capacity(list.len());
        for text in list.iter() {
            let text = if total > Self::MAX_TOTAL {
                cut(text, Self::MAX_EACH)
            } else {
                text
            };
            if text.len() > room {
                break;
            }
            room -= text.len();
            values.push(format!("299 - \"{}\"", quoted(text)));
        }
        values
    }
}

fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Annotations of the audit event (`authorization.k8s.io/decision`, …).
#[derive(Clone, Debug, Default)]
pub struct AuditAnnotations(Arc<Mutex<BTreeMap<Str, String>>>);

impl AuditAnnotations {
    /// The first value of a key stays, as upstream keeps it.
    pub fn add(&self, key: &str, value: impl Into<String>) {
        self.0.lock().entry(key.into()).or_insert_with(|| value.into());
    }
    pub fn snapshot(&self) -> BTreeMap<Str, String> {
        self.0.lock().clone()
    }
}
