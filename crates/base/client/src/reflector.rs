//! Follows a collection: its present state, then every change, for ever.
//!
//! The state comes as a streaming list (`sendInitialEvents`) where the server has it, else as paged lists. A broken
//! watch resumes from the last revision seen; only if the server no longer has that revision is the state read anew,
//! and then the sink gets it as a whole, so that nothing between is lost. Knows bytes, not types.

use crate::kind::ResourceId;
use crate::rest::{Error, Rest, Result, is_gone, with_query};
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Status;
use rand::Rng;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A watch's line can't be longer than this: the server refuses objects far smaller.
const MAX_LINE: usize = 64 << 20;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// How much longer than asked for a watch may last before it is taken for dead.
const GRACE: Duration = Duration::from_secs(15);

/// What to follow.
#[derive(Clone, Debug)]
pub struct Target {
    pub resource: ResourceId,
    pub namespace: String,
    pub labels: String,
    pub fields: String,
    pub accept: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

/// Takes what the reflector finds.
pub trait Sink: Send {
    /// A complete state follows, by [`Sink::item`], then [`Sink::end`]. A begun state may be begun again.
    fn begin(&mut self);
    fn item(&mut self, json: &[u8]);
    /// The state is complete, as of `revision`: it replaces all that was known.
    fn end(&mut self, revision: &str);
    /// One change; returns the object's revision, if it could be read.
    fn event(&mut self, kind: EventKind, json: &[u8]) -> Option<String>;
    /// Nothing of interest happened up to `revision`.
    fn bookmark(&mut self, revision: &str);
}

/// Runs until `stop`.
pub async fn reflect(rest: Rest, target: Target, sink: &mut dyn Sink, stop: CancellationToken) {
    let mut reflector = Reflector {
        rest,
        target,
        revision: None,
        streaming: true,
    };
    let mut delay = BACKOFF_FIRST;
    loop {
        let started = tokio::time::Instant::now();
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = reflector.round(sink) => result,
        };
        match result {
            Ok(()) => {
                delay = BACKOFF_FIRST;
                continue;
            }
            Err(error) if is_gone(&error) => {
                tracing::debug!(resource = %reflector.target.resource, "the watch's revision is gone: reading the state anew");
                reflector.revision = None;
            }
            Err(error) => {
                tracing::warn!(resource = %reflector.target.resource, %error, "watch failed; will retry");
            }
        }
        if started.elapsed() > BACKOFF_LAST {
            delay = BACKOFF_FIRST;
        }
        let jitter = rand::rng().random_range(1.0..1.5);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(delay.mul_f64(jitter)) => {}
        }
        delay = (delay * 2).min(BACKOFF_LAST);
    }
}

struct Reflector {
    rest: Rest,
    target: Target,
    /// The last revision seen; none until a state is complete.
    revision: Option<String>,
    /// Whether the server is thought to have streaming lists.
    streaming: bool,
}

impl Reflector {
    /// One watch, from its request to its end. Ends well when the server closes it.
    async fn round(&mut self, sink: &mut dyn Sink) -> Result<()> {
        if self.revision.is_none() && !self.streaming {
            self.list(sink).await?;
        }
        let initial = self.revision.is_none();
        let seconds: u64 = rand::rng().random_range(300..600);
        let limit = Duration::from_secs(seconds) + GRACE;
        match tokio::time::timeout(limit, self.watch(sink, initial, seconds)).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(resource = %self.target.resource, "the watch outlived its time limit: taken for dead, resuming");
                Ok(())
            }
        }
    }

    async fn list(&mut self, sink: &mut dyn Sink) -> Result<()> {
        sink.begin();
        let Target {
            resource,
            namespace,
            labels,
            fields,
            accept,
        } = &self.target;
        let mut each = |json: &[u8]| -> Result<()> {
            sink.item(json);
            Ok(())
        };
        let revision = self
            .rest
            .list_raw(resource, namespace, labels, fields, accept, &mut each)
            .await?;
        sink.end(&revision);
        self.revision = Some(revision);
        Ok(())
    }

    async fn watch(&mut self, sink: &mut dyn Sink, initial: bool, seconds: u64) -> Result<()> {
        let target = &self.target;
        let uri = with_query(
            &target.resource.path(&target.namespace),
            &[
                ("watch", "true"),
                ("allowWatchBookmarks", "true"),
                ("labelSelector", &target.labels),
                ("fieldSelector", &target.fields),
                ("sendInitialEvents", if initial { "true" } else { "" }),
                ("resourceVersionMatch", if initial { "NotOlderThan" } else { "" }),
                ("resourceVersion", self.revision.as_deref().unwrap_or_default()),
                ("timeoutSeconds", &seconds.to_string()),
            ],
        );
        let body = match self.rest.stream(&uri, target.accept).await {
            Err(Error::Api(status)) if initial && (status.code == 400 || status.code == 422) => {
                tracing::debug!(resource = %target.resource, %status, "no streaming lists here: listing");
                self.streaming = false;
                return Ok(());
            }
            result => result?,
        };
        if initial {
            sink.begin();
        }
        let mut collecting = initial;
        let mut lines = Lines {
            body,
            buffer: BytesMut::new(),
            scanned: 0,
        };
        while let Some(line) = lines.next().await? {
            let event: RawEvent = serde_json::from_slice(&line).map_err(Error::SerdeError)?;
            let json = event.object.get().as_bytes();
            let kind = match event.kind {
                "ADDED" => EventKind::Added,
                "MODIFIED" => EventKind::Modified,
                "DELETED" => EventKind::Deleted,
                "BOOKMARK" => {
                    let mark: Mark = serde_json::from_slice(json).map_err(Error::SerdeError)?;
                    if collecting
                        && mark
                            .metadata
                            .annotations
                            .is_some_and(|a| a.end.as_deref() == Some("true"))
                    {
                        collecting = false;
                        sink.end(&mark.metadata.resource_version);
                        self.revision = Some(mark.metadata.resource_version);
                    } else if !collecting {
                        sink.bookmark(&mark.metadata.resource_version);
                        self.revision = Some(mark.metadata.resource_version);
                    }
                    continue;
                }
                "ERROR" => {
                    let status: Status = serde_json::from_slice(json).map_err(Error::SerdeError)?;
                    return Err(Error::Api(Box::new(status)));
                }
                other => {
                    tracing::warn!(resource = %self.target.resource, event = other, "a watch event of an unknown type is ignored");
                    continue;
                }
            };
            if collecting {
                sink.item(json);
            } else if let Some(revision) = sink.event(kind, json) {
                self.revision = Some(revision);
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Mark {
    metadata: MarkMeta,
}
#[derive(Deserialize)]
struct MarkMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
    annotations: Option<MarkAnnotations>,
}
#[derive(Deserialize)]
struct MarkAnnotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    end: Option<String>,
}

/// Cuts a body into lines.
struct Lines {
    body: Body,
    buffer: BytesMut,
    scanned: usize,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<BytesMut>> {
        loop {
            while let Some(at) = self.buffer[self.scanned..].iter().position(|&b| b == b'\n') {
                let line = self.buffer.split_to(self.scanned + at);
                self.buffer.advance(1);
                self.scanned = 0;
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_LINE {
                return Err(Error::LinesCodecMaxLineLengthExceeded);
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                // A cut-off line is a broken watch, which resumes from the last whole event.
                None => return Ok(None),
            }
        }
    }
}
