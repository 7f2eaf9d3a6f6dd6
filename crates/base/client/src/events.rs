//! Records what happened as `Event` objects, without ever delaying who tells it.
//!
//! Like events are counted instead of repeated; those that differ only in their message are combined once there are ten
//! within ten minutes; and one source may tell 25 things about an object, then one every five minutes. The queue to the
//! writer holds [`QUEUE`] events; at that bound further ones are dropped and counted in the log, as upstream does: an
//! event is a courtesy, not a record.

mod correlate;

use crate::kind::{ApiObject, Kind, ResourceId};
use crate::objects::{Objects, Patch};
use crate::rest::{Error, Rest, is_not_found};
use correlate::{Correlator, Verdict};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const QUEUE: usize = 1000;
const TRIES: u32 = 12;
const MAX_MESSAGE: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Tells events of one source. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    source: EventSource,
    /// Boxed: a queue has room for some events from its start, and there may be thousands of recorders.
    sender: mpsc::Sender<Box<Event>>,
    dropped: std::sync::Arc<AtomicU64>,
}

impl Recorder {
    /// Starts the writer, which ends with `stop`. `host` is the node's name, or empty.
    pub fn start(rest: &Rest, component: &str, host: &str, stop: &CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(Objects::new(rest), receiver, stop.clone()));
        let source = EventSource {
            component: Some(component.to_string()),
            host: (!host.is_empty()).then(|| host.to_string()),
        };
        Recorder {
            source,
            sender,
            dropped: Default::default(),
        }
    }

    /// The same writer under another component's name.
    pub fn named(&self, component: &str) -> Self {
        let mut other = self.clone();
        other.source.component = Some(component.to_string());
        other
    }

    pub fn event<K: Kind>(&self, object: &K, kind: EventType, reason: &str, message: impl Into<String>) {
        self.event_for(&reference(&K::RESOURCE, object.meta()), kind, reason, message.into());
    }

    pub fn event_for(&self, object: &ObjectReference, kind: EventType, reason: &str, message: String) {
        self.send(self.make(object, kind, reason, message));
    }

    /// An event that also says what was being done (as the scheduler's do).
    pub fn event_with_action(
        &self,
        object: &ObjectReference,
        kind: EventType,
        reason: &str,
        action: &str,
        message: String,
    ) {
        let mut event = self.make(object, kind, reason, message);
        event.action = Some(action.to_string());
        self.send(event);
    }

    fn make(&self, object: &ObjectReference, kind: EventType, reason: &str, mut message: String) -> Event {
        let now = keelson_clock::now();
        if message.len() > MAX_MESSAGE {
            let mut end = MAX_MESSAGE - 3;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push_str("...");
        }
        let namespace = object
            .namespace
            .as_deref()
            .filter(|ns| !ns.is_empty())
            .unwrap_or("default");
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(object.name.as_deref().unwrap_or_default(), now)),
                namespace: Some(namespace.to_string()),
                ..Default::default()
            },
            involved_object: object.clone(),
            type_: Some(kind.as_str().to_string()),
            reason: Some(reason.to_string()),
            message: Some(message),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            source: Some(self.source.clone()),
            ..Default::default()
        }
    }

    fn send(&self, event: Event) {
        if self.sender.try_send(Box::new(event)).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(
                    dropped,
                    component = self.source.component,
                    "events were dropped: their queue is full or closed"
                );
            }
        }
    }
}

/// What an event refers to an object by.
pub fn reference(resource: &ResourceId, meta: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(resource.api_version()),
        kind: Some(resource.kind.to_string()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// Unique by the time, and still a valid name for the longest object names.
fn event_name(object: &str, now: Timestamp) -> String {
    let suffix = format!(".{:x}", now.as_nanosecond());
    let room = 253usize.saturating_sub(suffix.len());
    let mut end = object.len().min(room);
    while !object.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", object[..end].trim_end_matches(['.', '-']))
}

async fn write_all(events: Objects<Event>, mut receiver: mpsc::Receiver<Box<Event>>, stop: CancellationToken) {
    let mut correlator = Correlator::default();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = receiver.recv() => match event {
                Some(event) => event,
                None => return,
            },
        };
        let (key, verdict) = correlator.judge(*event, keelson_clock::now());
        let mut tries = 0;
        loop {
            let result = match &verdict {
                Verdict::Skip => break,
                // Not kept while there is nothing to write.
                Verdict::Create(event) => Box::pin(create(&events, event)).await,
                Verdict::Count(event) => match Box::pin(count(&events, event)).await {
                    Err(error) if is_not_found(&error) => Box::pin(create(&events, event)).await,
                    result => result,
                },
            };
            match result {
                Ok(written) => {
                    correlator.written(key, &written);
                    break;
                }
                Err(Error::Api(status)) => {
                    tracing::debug!(%status, "the server refused an event");
                    break;
                }
                Err(error) => {
                    tries += 1;
                    if tries >= TRIES {
                        tracing::warn!(%error, "an event could not be written and is given up");
                        break;
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(10)) => {}
                    }
                }
            }
        }
    }
}

async fn create(events: &Objects<Event>, event: &Event) -> crate::Result<Event> {
    let mut event = event.clone();
    event.meta_mut().resource_version = None;
    events.create(&event).await
}

async fn count(events: &Objects<Event>, event: &Event) -> crate::Result<Event> {
    let last = event
        .last_timestamp
        .as_ref()
        .map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let body = serde_json::json!({"count": event.count, "lastTimestamp": last, "message": event.message});
    events
        .patch(event.namespace(), event.name(), Patch::Strategic(&body))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay_valid() {
        let now = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_nanos(0x1234);
        assert_eq!(event_name("web", now), "web.1234");
        let long = event_name(&"a".repeat(300), now);
        assert_eq!(long.len(), 253);
        assert!(long.ends_with("a.1234"));
    }
}
