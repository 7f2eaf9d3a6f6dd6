//! What the server has written in the last seconds: the cache, which the store tells of it, needn't read what was known when
//! it was written.
//!
//! A value is known by its place in memory, which is held meanwhile, so that whoever asks has the very bytes that were written.
//! Stores that hand out copies (etcd's, sealed values) find nothing here, and read.
//!
//! An object is kept with its value if it is in the form that reading gives: the next update begins with that form. What the server
//! itself puts together needn't be (an empty text that is left out when it is written), and then the value is read again.

use bytes::Bytes;
use keelson_api::Object;
use keelson_cache::Attributes;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How long something is kept: what follows a write follows soon.
const KEPT: Duration = Duration::from_secs(5);
/// The most bytes of values; objects take some ten times as much.
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
    since: Instant,
    value: Bytes,
    attributes: Attributes,
    object: Option<Object>,
}

/// An object as it was written, and the value that it was written to.
#[derive(Clone, Debug)]
pub struct Written {
    pub object: Object,
    pub value: Bytes,
}

fn place(value: &[u8]) -> Place {
    (value.as_ptr().addr(), value.len())
}

impl Recent {
    /// Before a value goes to the store. `object`: what reading it gives. `before`: a value that it takes the place of, which nobody
    /// will ask for any more.
    pub fn note(&self, value: &Bytes, attributes: Attributes, object: Option<Object>, before: Option<&Bytes>) {
        let now = Instant::now();
        let known = Known {
            since: now,
            value: value.clone(),
            attributes,
            object,
        };
        // What is forgotten is dropped when the lock is free.
        let _forgotten = {
            let mut values = self.0.lock();
            let replaced = before.and_then(|before| values.remove(place(before)));
            values.order.push_back((place(value), now));
            let noted = values.known.insert(place(value), known);
            if noted.is_none() {
                values.bytes += value.len();
            }
            (replaced, noted, values.forget(now))
        };
    }
    /// What selectors see of a value.
    pub fn attributes(&self, value: &[u8]) -> Option<Attributes> {
        Some(self.0.lock().known.get(&place(value))?.attributes.clone())
    }
    /// What reading a value gives.
    pub fn written(&self, value: &[u8]) -> Option<Written> {
        let values = self.0.lock();
        let known = values.known.get(&place(value))?;
        Some(Written {
            object: known.object.clone()?,
            value: known.value.clone(),
        })
    }
}

impl Values {
    fn remove(&mut self, place: Place) -> Option<Known> {
        let known = self.known.remove(&place)?;
        self.bytes -= known.value.len();
        Some(known)
    }

    fn forget(&mut self, now: Instant) -> Vec<Known> {
        let mut forgotten = Vec::new();
        while let Some((place, since)) = self.order.front()
            && (self.bytes > MOST_BYTES || now.duration_since(*since) > KEPT)
        {
            // It may have been noted again since.
            let is_last = self.known.get(place).is_some_and(|known| known.since == *since);
            let place = *place;
            if is_last {
                forgotten.extend(self.remove(place));
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
        recent.note(value, Attributes::default(), None, None);
    }

    #[test]
    fn a_value_is_known_by_its_place_and_no_copy_is() {
        let (recent, value) = (Recent::default(), Bytes::from(vec![1u8; 100]));
        note(&recent, &value);
        assert!(recent.attributes(&value.clone()).is_some());
        let copy = value.to_vec();
        assert!(recent.attributes(&copy).is_none());
        assert!(recent.attributes(&value[..99]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn little_is_kept_and_not_for_long() {
        let recent = Recent::default();
        let values: Vec<Bytes> = (0..3).map(|_| Bytes::from(vec![0u8; MOST_BYTES / 2])).collect();
        values.iter().for_each(|v| note(&recent, v));
        assert!(recent.attributes(&values[0]).is_none() && recent.attributes(&values[1]).is_some());
        tokio::time::advance(2 * KEPT).await;
        let last = Bytes::from(vec![1u8]);
        note(&recent, &last);
        assert!(recent.attributes(&values[2]).is_none() && recent.attributes(&last).is_some());
        assert_eq!(recent.0.lock().bytes, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_takes_the_place_of_is_forgotten() {
        let recent = Recent::default();
        let values: Vec<Bytes> = (0..100).map(|_| Bytes::from(vec![0u8; MOST_BYTES / 3])).collect();
        note(&recent, &values[0]);
        let others = &values[1..];
        note(&recent, &others[0]);
        for pair in others.windows(2) {
            recent.note(&pair[1], Attributes::default(), Some(Object::new()), Some(&pair[0]));
            assert!(recent.attributes(&pair[0]).is_none() && recent.written(&pair[1]).is_some());
        }
        assert!(recent.attributes(&values[0]).is_some() && recent.written(&values[0]).is_none());
        assert_eq!(recent.0.lock().bytes, 2 * (MOST_BYTES / 3));
        tokio::time::advance(2 * KEPT).await;
        note(&recent, &Bytes::from(vec![1u8]));
        assert_eq!(recent.0.lock().bytes, 1);
        assert_eq!(recent.0.lock().order.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_is_noted_again_counts_once() {
        let (recent, value) = (Recent::default(), Bytes::from(vec![0u8; MOST_BYTES / 2]));
        for _ in 0..10 {
            note(&recent, &value);
            tokio::time::advance(KEPT / 2).await;
        }
        assert!(recent.attributes(&value).is_some());
        assert_eq!(recent.0.lock().bytes, value.len());
        tokio::time::advance(2 * KEPT).await;
        note(&recent, &Bytes::from(vec![1u8]));
        assert_eq!(recent.0.lock().bytes, 1);
    }
}
