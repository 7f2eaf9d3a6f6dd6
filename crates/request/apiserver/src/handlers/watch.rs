//! Watches: events as they happen, framed for the client's format, until the client or the time says so.

use super::negotiate::{Output, Shape};
use super::{Call, Served, respond, table};
use crate::flow::Seat;
use crate::metrics::WatchEvents;
use crate::request::socket::{is_wanted, offered};
use crate::request::{Body, Response};
use crate::socket::{self, Asked, Messages};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, header};
use keelson_api::codec::{Format, encode_status, json, proto};
use keelson_api::{ApiError, ApiResult, Object, builtin};
use keelson_cache::{Cache, Entry, Form, Watch, WatchEvent};
use keelson_listen::WriteBy;
use keelson_machinery::canonical::fill_zero;
use keelson_registry::codec::{self, partial_metadata};
use keelson_registry::engine::{Engine, cache_error};
use keelson_registry::options::ListOptions;
use keelson_registry::{Cx, ResourceDef};
use rand::Rng;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// No client waits longer; what is asked for, or set, beyond would leave the clock's range.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long after a watch's end its last bytes may take.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// About so many bytes of events that wait are sent at once.
const PIECE: usize = 64 * 1024;

pub async fn serve(mut call: Call<'_>) -> Served {
    let mut query = call.query();
    // Old paths (`/watch/…`) watch without saying so in the query.
    query.retain(|(k, _)| k != "watch");
    query.push(("watch".into(), "true".into()));
    let options = ListOptions::from_query(&query)?;
    table::check_include(call.include_object())?;
    let cx = call.cx();
    let serving = &call.state.config.serving;
    let longest_beginning = serving.request_timeout;
    let timeout = match options
        .timeout_seconds
        .and_then(|s| u64::try_from(s).ok())
        .filter(|s| *s > 0)
    {
        Some(s) => Duration::from_secs(s).min(MAX_TIMEOUT),
        None => {
            let least = serving.min_request_timeout.min(MAX_TIMEOUT);
            least.mul_f64(1.0 + rand::rng().random::<f64>())
        }
    };
    let socket = match is_wanted(&call.headers) {
        true => match Asked::of(&call.headers, &mut call.extensions) {
            Ok(asked) => Some((asked, agreed(&call.headers)?)),
            Err(refusal) => return Ok(*refusal),
        },
        false => None,
    };
    let engine = call.state.engine.clone();
    let source = match engine.watch(&cx, &options, timeout).await? {
        Ok(watch) => Source::Watch(watch),
        Err(e) => Source::Failed(e),
    };
    // The seat is the watch's until what it begins with has been taken.
    let seat = Seat::default();
    if matches!(&source, Source::Watch(watch) if watch.is_beginning()) {
        seat.set(call.context.seat.take());
        // A client that doesn't take what a watch begins with has a seat no longer than any request.
        seat.bound(longest_beginning);
    }
    let stream = Stream {
        source,
        seat,
        cache: engine.cache_of(&call.def)?,
        engine,
        told: call.state.metrics.requests.watch(&call.def),
        def: call.def.clone(),
        out: call.out,
        include: call.include_object().to_string(),
        cx,
        end: Box::pin(sleep_until(Instant::now() + timeout)),
        headers_sent: false,
        alone: false,
        by_itself: socket.is_some(),
        start: respond::json_start(&call.def, call.out),
    };
    let body = stream::unfold(stream, |mut s| async move {
        s.next().await.map(|bytes| (Ok::<_, ApiError>(bytes), s))
    });
    let body = Body::from_stream(body);
    let mut response = match socket {
        Some((asked, protocol)) => asked.answer(protocol.as_deref(), messages(call.out.format), body),
        None => {
            let kind = HeaderValue::from_static(call.out.stream_content_type());
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
    };
    response
        .extensions_mut()
        .insert(WriteBy(Instant::now() + timeout + LAST_WORDS));
    Ok(response)
}

/// Whatever one protocol is offered is the one: a watch has none of its own. Only what shows where it comes from is
/// answered, as browsers do.
fn agreed(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let origin = headers
        .get(header::ORIGIN)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if origin.is_empty() {
        return Err(socket::refused(
            "null origin: a watch by WebSocket needs the header Origin",
        ));
    }
    // A page that is nowhere says `null`.
    let is_url = origin.starts_with('/') || origin.split_once("://").is_some_and(|(scheme, _)| !scheme.is_empty());
    if !is_url {
        return Err(socket::refused(format!("the header Origin is no URL: {origin:?}")));
    }
    let mut offers = offered(headers);
    match offers.len() {
        0 | 1 => Ok(offers.pop()),
        _ => Err(ApiError::bad_request(
            "a watch by WebSocket takes one sub-protocol at most",
        )),
    }
}

fn messages(format: Format) -> Messages {
    match format {
        Format::Json | Format::Yaml => Messages::Text,
        Format::Protobuf => Messages::Binary,
    }
}

/// What stands before an event in a stream, to tell it from the one before it. A message has its own bounds.
fn divider(format: Format) -> usize {
    match format {
        Format::Json | Format::Yaml => 0,
        Format::Protobuf => size_of::<u32>(),
    }
}

enum Source {
    Watch(Watch),
    Failed(ApiError),
    Over,
}

struct Stream {
    source: Source,
    seat: Seat,
    cache: Cache,
    engine: Arc<Engine>,
    told: WatchEvents,
    def: Arc<ResourceDef>,
    out: Output,
    include: String,
    cx: Cx,
    /// One timer for all of it, not one an event.
    end: Pin<Box<Sleep>>,
    /// A table's columns are told once.
    headers_sent: bool,
    /// The event goes to nobody else.
    alone: bool,
    /// Each event is a message.
    by_itself: bool,
    /// How an object begins in JSON.
    start: String,
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        if matches!(&self.source, Source::Watch(watch) if !watch.is_beginning()) && self.seat.is_held() {
            self.seat.give_back();
        }
        let is_beginning = matches!(&self.source, Source::Watch(watch) if watch.is_beginning());
        if is_beginning {
            // As with a list's pieces: what there is doesn't have to be waited for.
            tokio::task::yield_now().await;
        }
        let event = match &mut self.source {
            Source::Over => return None,
            Source::Failed(e) => Err(e.clone()),
            Source::Watch(watch) => {
                let event = tokio::select! {
                    // The end first: a watch on which there is always something ends, too.
                    biased;
                    () = &mut self.end => return None,
                    event = watch.next() => event?,
                };
                event.map_err(|e| cache_error(&self.cx, "watch", e))
            }
        };
        self.alone = is_beginning || self.cache.watchers() < 2;
        let mut first = self.framed(event).await;
        if self.by_itself {
            return Some(first.split_off(divider(self.out.format)));
        }
        let Some(mut event) = self.ready() else {
            return Some(first);
        };
        // What is there already goes along.
        let mut piece = Vec::with_capacity(PIECE + first.len());
        piece.extend_from_slice(&first);
        loop {
            piece.extend_from_slice(&self.framed(event).await);
            if piece.len() >= PIECE {
                break;
            }
            match self.ready() {
                Some(next) => event = next,
                None => break,
            }
        }
        Some(piece.into())
    }

    fn ready(&mut self) -> Option<ApiResult<WatchEvent>> {
        let Source::Watch(watch) = &mut self.source else {
            return None;
        };
        let event = watch.next_ready()?;
        Some(event.map_err(|e| cache_error(&self.cx, "watch", e)))
    }

    async fn framed(&mut self, event: ApiResult<WatchEvent>) -> Bytes {
        let framed = match event {
            Ok(event) => self.frame(event).await,
            Err(e) => Err(e),
        };
        let framed = framed.unwrap_or_else(|e| {
            self.source = Source::Over;
            self.error(&e)
        });
        self.told.sent(framed.len());
        framed
    }

    fn error(&self, e: &ApiError) -> Bytes {
        let status = e.to_status();
        match self.out.format {
            Format::Protobuf => {
                let encoded = Object::try_from(status).ok().and_then(|o| {
                    let schema = builtin::builtin_kind_at("v1", "Status")?;
                    proto::encode(&o, &schema).ok()
                });
                proto::watch_frame("ERROR", &encoded.unwrap_or_default()).into()
            }
            _ => self.text("ERROR", &encode_status(&status)),
        }
    }

    /// An event whose object is JSON.
    fn text(&self, kind: &str, object: &[u8]) -> Bytes {
        [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":", object, b"}\n"]
            .concat()
            .into()
    }

    /// An event's line, of the members that the cache has.
    fn line(&self, kind: &str, entry: &Arc<Entry>, form: Form) -> Option<Bytes> {
        let head = ["{\"type\":\"", kind, "\",\"object\":", &self.start];
        if !self.alone {
            let members = self.cache.encoded(entry, form).ok()?;
            let [a, b, c, d] = head.map(str::as_bytes);
            return Some([a, b, c, d, &members, b"}}\n"].concat().into());
        }
        let mut line = Vec::with_capacity(entry.value().len() + entry.value().len() / 2 + 128);
        for part in head {
            line.extend_from_slice(part.as_bytes());
        }
        self.cache.append(entry, form, &mut line).ok()?;
        line.extend_from_slice(b"}}\n");
        Some(line.into())
    }

    fn message(&self, kind: &str, entry: &Arc<Entry>, form: Form) -> Option<Bytes> {
        let (api_version, name) = respond::shown_kind(&self.def, self.out);
        let mut object = Vec::with_capacity(entry.value().len() + 64);
        let written = respond::append_enveloped(&self.cache, form, (&api_version, &name), entry, &mut object);
        written.then(|| proto::watch_frame(kind, &object).into())
    }

    async fn frame(&mut self, event: WatchEvent) -> ApiResult<Bytes> {
        let kind = match &event {
            WatchEvent::Added(_) => "ADDED",
            WatchEvent::Modified(_) => "MODIFIED",
            WatchEvent::Deleted(_) => "DELETED",
            WatchEvent::Bookmark { .. } => "BOOKMARK",
        };
        let out = self.out;
        if let (Some(entry), Some(form)) = (event.entry(), respond::cached_form(&self.def, out)) {
            let framed = match out.format {
                Format::Protobuf => self.message(kind, entry, form),
                _ => self.line(kind, entry, form),
            };
            if let Some(framed) = framed {
                return Ok(framed);
            }
        }
        let object = match &event {
            WatchEvent::Bookmark {
                revision,
                initial_events_end,
            } => bookmark(&self.def, *revision, *initial_events_end),
            WatchEvent::Added(e) | WatchEvent::Modified(e) | WatchEvent::Deleted(e) => {
                self.engine.object(&self.def, e).await?
            }
        };
        self.object(kind, object)
    }

    fn object(&mut self, kind: &str, object: Object) -> ApiResult<Bytes> {
        let (object, schema) = match self.out.shape {
            Shape::Table => {
                let headers = !std::mem::replace(&mut self.headers_sent, true);
                let version = object.resource_version().to_string();
                let table = table::table(&self.def, vec![object], self.out, &self.include, &version, headers)?;
                return Ok(self.text(kind, &json::encode(&table)));
            }
            Shape::Metadata | Shape::MetadataList => (
                partial_metadata(&object, self.out.meta_version()),
                codec::partial_schema()?,
            ),
            Shape::Object => (object, self.def.schema.clone()),
        };
        Ok(match self.out.format {
            Format::Protobuf => {
                let bytes = proto::encode(&object, &schema).map_err(ApiError::internal)?;
                proto::watch_frame(kind, &bytes).into()
            }
            _ => self.text(kind, &codec::to_json(&object)),
        })
    }
}

/// An object that is nothing but a revision, and what is always written of its kind.
fn bookmark(def: &ResourceDef, revision: u64, initial_events_end: bool) -> Object {
    let zero = (!def.custom).then(|| fill_zero(&def.schema));
    let mut o = zero
        .and_then(|zero| zero.as_object().cloned())
        .map_or_else(Object::new, Object);
    o.set_gvk(&def.api_version(), &def.kind);
    o.set_meta("resourceVersion", &revision.to_string());
    if initial_events_end {
        o.set_at(&["metadata", "annotations", "k8s.io/initial-events-end"], "true");
    }
    o
}
