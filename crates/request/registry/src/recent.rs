//! What the server has written in the last seconds: the cache, which the store tells of it, and the next update of the same
//! object needn't read what was known when it was written.
//!
//! A value is known by its place in memory, which is held meanwhile, so that whoever asks has the very bytes that were written.
//! Stores that hand out copies (etcd's, sealed values) find nothing here, and read.

use bytes::Bytes;
use keelson_api::Object;
use keelson_cache::Attributes;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How long something is kept: what follows a write follows soon.
const KEPT: Duration = Duration::from_secs(5);
/// The most bytes of values; their objects take some times as much.
const MOST_BYTES: usize = 1 << 20;

#[derive(Default)]
pub struct Recent(Mutex<Values>);

#[derive(Default)]
struct Values {
    known: HashMap<Place, Known>,
    /// Oldest first.
    order: VecDeque<(Place, Instant)>,
    bytes: usize,
}

type Place = (usize, usize);

struct Known {
    value: Bytes,
    attributes: Attributes,
    object: Option<Object>,
}

fn place(value: &[u8]) -> Place {
    (value.as_ptr().addr(), value.len())
}

impl Recent {
    /// Before a value goes to the store. `object`: what reading it would give, without a revision.
    pub fn note(&self, value: &Bytes, attributes: Attributes, object: Option<Object>) {
        let now = Instant::now();
        let known = Known {
            value: value.clone(),
            attributes,
            object,
        };
        // What is forgotten is dropped when the lock is free.
        let _forgotten = {
            let mut values = self.0.lock();
            values.bytes += value.len();
            values.order.push_back((place(value), now));
            values.known.insert(place(value), known);
            values.forget(now)
        };
    }
    /// What selectors see of a value.
    pub fn attributes(&self, value: &[u8]) -> Option<Attributes> {
        Some(self.0.lock().known.get(&place(value))?.attributes.clone())
    }
    /// The object that a value is of, without a revision.
    pub fn object(&self, value: &[u8]) -> Option<Object> {
        self.0.lock().known.get(&place(value))?.object.clone()
    }
}

impl Values {
    fn forget(&mut self, now: Instant) -> Vec<Known> {
        let mut forgotten = Vec::new();
        while let Some((place, since)) = self.order.front()
            && (self.bytes > MOST_BYTES || now.duration_since(*since) > KEPT)
        {
            if let Some(known) = self.known.remove(place) {
                self.bytes -= known.value.len();
                forgotten.push(known);
            }
            self.order.pop_front();
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(recent: &Recent, value: &Bytes) {
        recent.note(value, Attributes::default(), Some(Object::new()));
    }

    #[test]
    fn a_value_is_known_by_its_place_and_no_copy_is() {
        let (recent, value) = (Recent::default(), Bytes::from(vec![1u8; 100]));
        note(&recent, &value);
        assert!(recent.object(&value.clone()).is_some());
        assert!(recent.attributes(&value).is_some());
        let copy = value.to_vec();
        assert!(recent.object(&copy).is_none());
        assert!(recent.object(&value[..99]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn little_is_kept_and_not_for_long() {
        let recent = Recent::default();
        let values: Vec<Bytes> = (0..3).map(|_| Bytes::from(vec![0u8; MOST_BYTES / 2])).collect();
        values.iter().for_each(|v| note(&recent, v));
        assert!(recent.object(&values[0]).is_none() && recent.object(&values[1]).is_some());
        tokio::time::advance(2 * KEPT).await;
        let last = Bytes::from(vec![1u8]);
        note(&recent, &last);
        assert!(recent.object(&values[2]).is_none() && recent.object(&last).is_some());
        assert_eq!(recent.0.lock().bytes, 1);
    }
}
