//! Sets of fields that were read lately, as managed fields have them: objects that are made alike say the same of who owns what.
//!
//! A set that is read again is the one in memory, and is written as the bytes that it was read from. Only sets that are written
//! as they read are kept.

use super::{DecodeError, json};
use crate::value::{Map, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most bytes of sets of one generation; values take some ten times as much.
const MOST_BYTES: usize = 128 << 10;
/// The longest set that is kept.
const LONGEST: usize = 8 << 10;

#[derive(Debug, Default)]
pub(crate) struct FieldSets(Mutex<Sets>);

/// When the young are many they become the old, and the old are forgotten.
#[derive(Debug, Default)]
struct Sets {
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    sets: HashMap<Arc<[u8]>, Map>,
    /// The bytes of each by its place in memory.
    places: HashMap<usize, Arc<[u8]>>,
    bytes: usize,
}

impl FieldSets {
    /// The set that bytes say, which `decode` reads if they aren't known.
    pub fn read(
        &self,
        raw: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<Value, DecodeError>,
    ) -> Result<Value, DecodeError> {
        if raw.len() > LONGEST {
            return decode(raw);
        }
        if let Some(known) = self.lock().find(raw) {
            return Ok(Value::Object(known));
        }
        let value = decode(raw)?;
        if let Value::Object(set) = &value
            && json::encode(&value) == raw
        {
            // What is forgotten is dropped when the lock is free.
            let _forgotten = self.lock().keep(raw.into(), set.clone());
        }
        Ok(value)
    }
    /// The bytes that a set was read from.
    pub fn written(&self, set: &Value) -> Option<Arc<[u8]>> {
        let place = set.as_object()?.place()?;
        let sets = self.lock();
        let known = sets.young.places.get(&place).or(sets.old.places.get(&place));
        known.cloned()
    }
    fn lock(&self) -> MutexGuard<'_, Sets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sets {
    fn find(&mut self, raw: &[u8]) -> Option<Map> {
        if let Some(known) = self.young.sets.get(raw) {
            return Some(known.clone());
        }
        let (raw, known) = self.old.sets.get_key_value(raw)?;
        let (raw, known) = (raw.clone(), known.clone());
        // It isn't in both, so that nothing is forgotten by this but what was old; and the young don't grow past their bound by it.
        if self.young.bytes + raw.len() <= MOST_BYTES {
            self.old.places.remove(&known.place()?);
            self.old.sets.remove(&raw);
            self.young.keep(raw, known.clone());
        }
        Some(known)
    }
    fn keep(&mut self, raw: Arc<[u8]>, set: Map) -> Option<Generation> {
        let is_full = self.young.bytes + raw.len() > MOST_BYTES;
        let forgotten = is_full.then(|| std::mem::replace(&mut self.old, std::mem::take(&mut self.young)));
        self.young.keep(raw, set);
        forgotten
    }
}

impl Generation {
    fn keep(&mut self, raw: Arc<[u8]>, set: Map) {
        // Another may have read the same meanwhile; values of the one that goes must not be known by their place any more.
        if let Some(place) = set.place()
            && !self.sets.contains_key(&raw)
        {
            self.bytes += raw.len();
            self.places.insert(place, raw.clone());
            self.sets.insert(raw, set);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sets: &FieldSets, text: &str) -> Map {
        let decode = |raw: &[u8]| json::decode(raw, None, Default::default()).map(|d| d.value);
        match sets.read(text.as_bytes(), decode) {
            Ok(Value::Object(set)) => set,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_set_that_is_read_again_is_the_same_in_memory_and_written_as_it_was_read() {
        let sets = FieldSets::default();
        let text = r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}}}}"#;
        let first = read(&sets, text);
        assert!(read(&sets, text).is_shared_with(&first));
        assert_eq!(sets.written(&first.clone().into()).as_deref(), Some(text.as_bytes()));
        let mut changed = first.clone();
        changed.insert("f:spec", Map::new());
        assert!(sets.written(&changed.into()).is_none());
        assert!(sets.written(&Map::new().into()).is_none());
    }

    #[test]
    fn what_would_be_written_otherwise_is_not_kept() {
        let sets = FieldSets::default();
        let spaced = read(&sets, r#"{ "f:a": {} }"#);
        assert!(sets.written(&spaced.into()).is_none());
    }

    #[test]
    fn little_is_kept_and_what_is_in_use_longest() {
        let sets = FieldSets::default();
        let used = r#"{"f:used":{}}"#;
        let first = read(&sets, used);
        let long = "x".repeat(4000);
        for i in 0..200 {
            read(&sets, &format!(r#"{{"f:{long}{i}":{{}}}}"#));
            assert!(read(&sets, used).is_shared_with(&first));
        }
        let held = sets.lock();
        for generation in [&held.young, &held.old] {
            assert!(generation.bytes <= MOST_BYTES);
            assert_eq!(generation.sets.len(), generation.places.len());
        }
    }

    #[test]
    fn reading_all_that_is_kept_again_keeps_no_more() {
        let sets = FieldSets::default();
        let long = "x".repeat(4000);
        let texts: Vec<String> = (0..100).map(|i| format!(r#"{{"f:{long}{i}":{{}}}}"#)).collect();
        for known in 1..texts.len() {
            texts[..known].iter().rev().for_each(|text| drop(read(&sets, text)));
            let held = sets.lock();
            assert!(held.young.bytes.max(held.old.bytes) <= MOST_BYTES);
        }
    }
}
