//! Which events are written, counted or left out: pure, given the time.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

const REMEMBERED: usize = 4096;
const COMBINE_AT: usize = 10;
const COMBINE_WITHIN: SignedDuration = SignedDuration::from_secs(600);
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

pub enum Verdict {
    Skip,
    Create(Event),
    /// Already written under this name: raise its count.
    Count(Event),
}

/// Forgets the oldest entries beyond a bound.
struct Bounded<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Hash + Eq + Clone, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Bounded {
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<K: Hash + Eq + Clone, V: Default> Bounded<K, V> {
    fn entry(&mut self, key: K) -> &mut V {
        if !self.entries.contains_key(&key) {
            if self.order.len() >= REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.entries.entry(key).or_default()
    }
}

#[derive(Default)]
struct Similar {
    messages: HashSet<String>,
    last: Option<Timestamp>,
}

#[derive(Default)]
struct Written {
    count: i32,
    name: String,
    first: Option<Time>,
}

#[derive(Default)]
struct Bucket {
    used: f64,
    at: Option<Timestamp>,
}

#[derive(Default)]
pub struct Correlator {
    similar: Bounded<String, Similar>,
    written: Bounded<String, Written>,
    buckets: Bounded<String, Bucket>,
}

impl Correlator {
    /// What to do with an event; the key goes to [`Correlator::written`] once it is done.
    pub fn judge(&mut self, event: Event, now: Timestamp) -> (String, Verdict) {
        let (mut event, key) = self.combine(event, now);
        let known = self.written.entry(key.clone());
        let again = known.count > 0;
        if again {
            event.metadata.name = Some(known.name.clone());
            event.first_timestamp = known.first.clone();
            event.count = Some(known.count + 1);
        }
        if self.is_spam(&event, now) {
            return (key, Verdict::Skip);
        }
        (
            key,
            if again {
                Verdict::Count(event)
            } else {
                Verdict::Create(event)
            },
        )
    }

    pub fn written(&mut self, key: String, event: &Event) {
        let known = self.written.entry(key);
        known.count = event.count.unwrap_or(1);
        known.name = event.metadata.name.clone().unwrap_or_default();
        known.first = event.first_timestamp.clone();
    }

    fn combine(&mut self, event: Event, now: Timestamp) -> (Event, String) {
        let group = key(
            &event,
            &[
                text(&event.reason),
                text(&event.reporting_component),
                text(&event.reporting_instance),
            ],
        );
        let field = text(&event.involved_object.field_path);
        let single = key(&event, &[field, text(&event.reason), text(&event.message)]);
        let similar = self.similar.entry(group.clone());
        if similar
            .last
            .is_some_and(|last| now.duration_since(last) > COMBINE_WITHIN)
        {
            similar.messages.clear();
        }
        similar.last = Some(now);
        similar.messages.insert(text(&event.message).to_string());
        if similar.messages.len() < COMBINE_AT {
            return (event, single);
        }
        // Enough is known to combine; more messages needn't be kept.
        if let Some(any) = similar.messages.iter().next().cloned() {
            similar.messages.remove(&any);
        }
        let combined = Event {
            metadata: ObjectMeta {
                name: event.metadata.name.clone(),
                namespace: event.metadata.namespace.clone(),
                ..Default::default()
            },
            message: Some(format!("(combined from similar events): {}", text(&event.message))),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..event
        };
        (combined, group)
    }

    fn is_spam(&mut self, event: &Event, now: Timestamp) -> bool {
        let bucket = self.buckets.entry(key(event, &[]));
        if let Some(at) = bucket.at {
            let refilled = now.duration_since(at).as_secs_f64().max(0.0) * REFILL_PER_SECOND;
            bucket.used = (bucket.used - refilled).max(0.0);
        }
        bucket.at = Some(now);
        if bucket.used + 1.0 > BURST {
            return true;
        }
        bucket.used += 1.0;
        false
    }
}

fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

/// Source, object and type, and what else tells events apart.
fn key(event: &Event, more: &[&str]) -> String {
    let object = &event.involved_object;
    let source = event.source.as_ref();
    let mut parts = vec![
        source.map_or("", |s| text(&s.component)),
        source.map_or("", |s| text(&s.host)),
        text(&object.kind),
        text(&object.namespace),
        text(&object.name),
        text(&object.uid),
        text(&object.api_version),
        text(&event.type_),
    ];
    parts.extend(more);
    parts.join("\0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(format!("pod.{message}")),
                ..Default::default()
            },
            message: Some(message.to_string()),
            reason: Some("Failed".into()),
            count: Some(1),
            ..Default::default()
        }
    }

    fn tell(correlator: &mut Correlator, message: &str, now: Timestamp) -> String {
        let (key, verdict) = correlator.judge(event(message), now);
        match verdict {
            Verdict::Skip => "skip".to_string(),
            Verdict::Create(event) => {
                correlator.written(key, &event);
                format!("create {}", event.message.unwrap_or_default())
            }
            Verdict::Count(event) => {
                correlator.written(key, &event);
                format!(
                    "{} x{}",
                    event.message.unwrap_or_default(),
                    event.count.unwrap_or_default()
                )
            }
        }
    }

    #[test]
    fn the_same_event_is_counted() {
        let mut correlator = Correlator::default();
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(tell(&mut correlator, "a", now), "create a");
        assert_eq!(tell(&mut correlator, "a", now), "a x2");
        assert_eq!(tell(&mut correlator, "a", now), "a x3");
        assert_eq!(tell(&mut correlator, "b", now), "create b");
    }

    #[test]
    fn similar_events_are_combined_then_limited() {
        let mut correlator = Correlator::default();
        let now = Timestamp::UNIX_EPOCH;
        for n in 0..9 {
            assert_eq!(tell(&mut correlator, &n.to_string(), now), format!("create {n}"));
        }
        assert_eq!(
            tell(&mut correlator, "9", now),
            "create (combined from similar events): 9"
        );
        assert_eq!(
            tell(&mut correlator, "10", now),
            "(combined from similar events): 10 x2"
        );
        for _ in 11..25 {
            assert_ne!(tell(&mut correlator, "x", now), "skip");
        }
        assert_eq!(tell(&mut correlator, "y", now), "skip");
        let later = now + SignedDuration::from_secs(301);
        assert_ne!(tell(&mut correlator, "y", later), "skip");
    }
}
