//! What of a store's changes a watch shows, and in how many answers.

use crate::digest::encoded;
use crate::etcd::mvccpb;
use crate::serve::pb::WatchCreateRequest;
use crate::serve::pb::watch_create_request::FilterType;
use crate::{Event, EventKind, Revision};
use prost::Message;

/// Changes in an answer, and their bytes: as many revisions as fit, one at least.
const EVENTS: usize = 1000;
const BYTES: usize = 1 << 20;

pub(super) struct Shown {
    /// Earlier ones aren't.
    start: Revision,
    puts: bool,
    deletes: bool,
    prev: bool,
}

impl Shown {
    pub(super) fn of(create: &WatchCreateRequest, start: Revision) -> Shown {
        let hides = |kind: FilterType| create.filters.contains(&(kind as i32));
        Shown {
            start,
            puts: !hides(FilterType::Noput),
            deletes: !hides(FilterType::Nodelete),
            prev: create.prev_kv,
        }
    }

    /// In answers, each with the revision of its last change. All of a revision is in one.
    pub(super) fn answers(&self, events: Vec<Event>) -> Vec<(Revision, Vec<mvccpb::Event>)> {
        let mut answers: Vec<(Revision, Vec<mvccpb::Event>)> = Vec::new();
        let mut bytes = 0;
        for event in events {
            let revision = event.revision();
            let is_shown = match event.kind {
                EventKind::Put => self.puts,
                EventKind::Delete => self.deletes,
            };
            if !is_shown || revision < self.start {
                continue;
            }
            let event = self.event(event);
            let size = event.encoded_len();
            match answers.last_mut() {
                Some((last, answer)) if *last == revision || (answer.len() < EVENTS && bytes + size <= BYTES) => {
                    *last = revision;
                    answer.push(event);
                    bytes += size;
                }
                _ => {
                    answers.push((revision, vec![event]));
                    bytes = size;
                }
            }
        }
        answers
    }

    fn event(&self, event: Event) -> mvccpb::Event {
        let kind = match event.kind {
            EventKind::Put => mvccpb::event::EventType::Put,
            EventKind::Delete => mvccpb::event::EventType::Delete,
        };
        mvccpb::Event {
            r#type: kind as i32,
            kv: Some(encoded(event.kv)),
            prev_kv: event.prev.filter(|_| self.prev).map(encoded),
        }
    }
}

/// Parts of an answer that is longer than `most`, for a client that puts them together again.
pub(super) fn fragments(events: Vec<mvccpb::Event>, most: usize) -> Vec<Vec<mvccpb::Event>> {
    let mut parts: Vec<Vec<mvccpb::Event>> = vec![Vec::new()];
    let mut bytes = 0;
    for event in events {
        let size = event.encoded_len();
        match parts.last_mut() {
            Some(part) if part.is_empty() || bytes + size < most => {
                part.push(event);
                bytes += size;
            }
            _ => {
                parts.push(vec![event]);
                bytes = size;
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyValue;

    fn event(key: &str, revision: Revision, kind: EventKind, size: usize) -> Event {
        Event {
            kind,
            kv: KeyValue {
                value: vec![7; size].into(),
                ..KeyValue::gone(key.to_string().into(), revision)
            },
            prev: Some(KeyValue::gone(key.to_string().into(), 1)),
        }
    }

    #[test]
    fn revisions_stay_together_and_answers_small() {
        let shown = Shown::of(&WatchCreateRequest::default(), 3);
        let mut events = vec![event("early", 2, EventKind::Put, 1)];
        events.extend((0..3000).map(|n| event(&n.to_string(), 3, EventKind::Put, 1)));
        events.push(event("b", 4, EventKind::Delete, 0));
        events.extend((5..8).map(|revision| event("large", revision, EventKind::Put, 700 << 10)));
        let answers: Vec<_> = shown
            .answers(events)
            .into_iter()
            .map(|(at, events)| (at, events.len()))
            .collect();
        assert_eq!(answers, [(3, 3000), (5, 2), (6, 1), (7, 1)]);
    }

    #[test]
    fn what_is_filtered_is_not_shown() {
        let events = || vec![event("a", 3, EventKind::Put, 1), event("a", 4, EventKind::Delete, 0)];
        for (filters, seen) in [
            (vec![], vec![3, 4]),
            (vec![0], vec![4]),
            (vec![1], vec![3]),
            (vec![0, 1], vec![]),
        ] {
            let create = WatchCreateRequest {
                filters,
                prev_kv: true,
                ..Default::default()
            };
            let answers = Shown::of(&create, 1).answers(events());
            let all = answers.into_iter().flat_map(|(_, events)| events);
            let all: Vec<_> = all.map(|e| (e.kv.unwrap().mod_revision, e.prev_kv.is_some())).collect();
            assert_eq!(all, seen.into_iter().map(|n| (n, true)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn fragments_are_small_and_whole() {
        let shown = Shown::of(&WatchCreateRequest::default(), 1);
        let events: Vec<_> = (0..10).map(|n| event(&n.to_string(), 3, EventKind::Put, 300)).collect();
        let (_, events) = shown.answers(events).remove(0);
        let parts = fragments(events.clone(), 1000);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
        assert_eq!(parts.concat(), events);
        assert_eq!(fragments(events.clone(), 10).len(), 10, "one at least");
        assert_eq!(fragments(events, 1 << 20).len(), 1);
    }
}
