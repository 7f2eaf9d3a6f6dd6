//! Follows a resource by one watch of the server's own, so that stages of the chain have it in memory.
//!
//! The watch passes the whole chain like any other client's. A [`Sink`] gets a first complete list, then each change;
//! after a gap it gets a complete list again. Nothing is dropped and nothing polled. Objects come without their managed
//! fields: no stage looks at them, and they are half of many objects. Only built-in kinds can be followed.

use crate::request::Body;
use crate::serve::Loopback;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use keelson_api::Object;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::proto::Only;
use keelson_api::codec::{DecodeError, proto};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What receives a followed resource. Calls are made one after another.
pub trait Sink: Send + Sync {
    fn replace(&self, objects: Vec<Object>);
    fn set(&self, object: Object);
    fn delete(&self, object: Object);
    /// The fields that it looks at, by type; what isn't among them may be absent. Of other types it looks at all.
    fn looks_at(&self) -> Fields {
        &[]
    }
}

/// Fields by the full names of their types.
pub type Fields = &'static [(&'static str, &'static [&'static str])];

/// What every follower needs of an object.
pub const METADATA: (&str, &[&str]) = (
    "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    &["name", "namespace", "annotations", "resourceVersion"],
);

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// An event never gets longer than an object may be, with room for its encoding.
const MAX_EVENT: usize = 16 * 1024 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Follows `path` (a collection's, without query) until `stop`. The receiver turns true when the first list is in.
pub fn follow(
    loopback: &Loopback,
    path: &'static str,
    sink: Arc<dyn Sink>,
    stop: CancellationToken,
) -> watch::Receiver<bool> {
    let (synced, receiver) = watch::channel(false);
    let follower = Follower {
        loopback: loopback.clone(),
        path,
        sink,
        synced,
        version: String::new(),
        only: OnceLock::new(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = follower.run() => {}
            () = stop.cancelled() => {}
        }
    });
    receiver
}

struct Follower {
    loopback: Loopback,
    path: &'static str,
    sink: Arc<dyn Sink>,
    synced: watch::Sender<bool>,
    /// Where to go on; empty: from a complete list.
    version: String,
    /// By the type of what is followed.
    only: OnceLock<Option<Only>>,
}

/// Why a watch ended.
enum End {
    Closed,
    /// The version is too old, or not understood: begin anew.
    Expired,
    Failed(String),
}

impl Follower {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = tokio::time::Instant::now();
            match self.watch_once().await {
                End::Closed => {}
                End::Expired => self.version.clear(),
                End::Failed(why) => {
                    tracing::warn!(path = self.path, "following a resource failed, trying again: {why}");
                }
            }
            // Watches end regularly after minutes; only those that end at once are slowed down.
            pause = if began.elapsed() > LONGEST_PAUSE {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn watch_once(&mut self) -> End {
        let query = if self.version.is_empty() {
            "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_string()
        } else {
            format!("watch=true&allowWatchBookmarks=true&resourceVersion={}", self.version)
        };
        let response = match self.loopback.get(&format!("{}?{query}", self.path), PROTOBUF).await {
            Ok(response) => response,
            Err(e) => return End::Failed(e.to_string()),
        };
        if response.status() == http::StatusCode::GONE {
            return End::Expired;
        }
        if !response.status().is_success() {
            let status = response.status();
            let text = response.into_body().collect(64 * 1024).await.unwrap_or_default();
            return End::Failed(format!("{status}: {}", String::from_utf8_lossy(&text)));
        }
        self.read(response.into_body()).await.unwrap_or_else(End::Failed)
    }

    async fn read(&mut self, mut body: Body) -> Result<End, String> {
        let mut initial = self.version.is_empty().then(Vec::new);
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else {
                continue;
            };
            buffer.extend_from_slice(&data);
            while let Some(frame) = take_frame(&mut buffer) {
                match self.read_event(&frame) {
                    Ok((kind, object)) => {
                        if let Some(end) = self.take(kind, object, &mut initial) {
                            return Ok(end);
                        }
                    }
                    // One object that can't be read must not keep all others from being followed.
                    Err(e) => tracing::error!(path = self.path, "an object can't be followed: {e}"),
                }
            }
            if buffer.len() > MAX_EVENT {
                return Ok(End::Failed(format!("an event is longer than {MAX_EVENT} bytes")));
            }
        }
        Ok(End::Closed)
    }

    fn take(&mut self, kind: &str, object: Object, initial: &mut Option<Vec<Object>>) -> Option<End> {
        if kind == "ERROR" {
            let expired = object.0.int("code") == Some(410);
            return Some(if expired {
                End::Expired
            } else {
                End::Failed(object.0.str("message").unwrap_or_default().to_string())
            });
        }
        let version = object.resource_version().to_string();
        match (kind, initial.as_mut()) {
            ("ADDED" | "MODIFIED", Some(list)) => list.push(object),
            ("DELETED", Some(list)) => {
                list.retain(|o| o.name() != object.name() || o.namespace() != object.namespace())
            }
            ("BOOKMARK", Some(_)) if object.annotation("k8s.io/initial-events-end") == Some("true") => {
                self.sink.replace(initial.take().unwrap_or_default());
                self.version = version;
                self.synced.send_replace(true);
            }
            ("BOOKMARK", None) => self.version = version,
            ("BOOKMARK", Some(_)) => {}
            ("ADDED" | "MODIFIED", None) => {
                self.sink.set(object);
                self.version = version;
            }
            ("DELETED", None) => {
                self.sink.delete(object);
                self.version = version;
            }
            (other, _) => return Some(End::Failed(format!("an event of unknown type {other:?}"))),
        }
        None
    }

    fn read_event<'a>(&self, frame: &'a [u8]) -> Result<(&'a str, Object), DecodeError> {
        let (kind, object) = proto::open_watch_event(frame)?;
        let envelope = proto::open(object)?;
        let schema = builtin_kind_at(envelope.api_version, envelope.kind)
            .ok_or_else(|| DecodeError(format!("{} is no built-in kind", envelope.kind)))?;
        let looks_at = self.sink.looks_at();
        if looks_at.is_empty() || kind == "ERROR" {
            return Ok((kind, envelope.decode_without_managed_fields(&schema)?));
        }
        let only = self.only.get_or_init(|| Only::new(&schema, looks_at));
        let object = match only {
            Some(only) => envelope.decode_only(only)?,
            None => envelope.decode_without_managed_fields(&schema)?,
        };
        Ok((kind, object))
    }
}

/// An event's bytes, once all of them are there.
fn take_frame(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(*buffer.first_chunk::<4>()?) as usize;
    if buffer.len() - 4 < length {
        return None;
    }
    buffer.advance(4);
    Some(buffer.split_to(length))
}
