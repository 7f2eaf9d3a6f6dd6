//! The message of an object as it was: what hasn't been changed since is copied from it.
//!
//! The encoder writes the same bytes for the same map of the same type wherever it stands, and fields in the order of their
//! numbers, so that the message is read along with the one that is being written.

use super::wire::{Datum, Reader, Writer};
use crate::schema::Field;
use crate::value::{Map, Value};

/// A map, and the message that was written of it.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    map: &'a Map,
    message: &'a [u8],
}

impl<'a> Known<'a> {
    pub fn new(map: &'a Map, message: &'a [u8]) -> Self {
        Known { map, message }
    }
    /// What was written of a map, if it is this one.
    pub fn of_map(self, map: &Map) -> Option<&'a [u8]> {
        self.map.is_shared_with(map).then_some(self.message)
    }
}

/// The fields of a known message, in their order.
pub(super) struct Before<'a> {
    map: Option<&'a Map>,
    reader: Reader<'a>,
    /// The field that stands next: its number, all its bytes and what is in it.
    ahead: Option<(u32, &'a [u8], Datum<'a>)>,
}

impl<'a> Before<'a> {
    pub fn new(known: Option<Known<'a>>) -> Self {
        let mut before = Before {
            map: known.map(|known| known.map),
            reader: Reader::new(known.map_or(b"", |known| known.message)),
            ahead: None,
        };
        before.read();
        before
    }

    fn read(&mut self) {
        let rest = self.reader.rest();
        self.ahead = self.reader.next().ok().flatten().map(|(number, datum)| {
            let whole = &rest[..rest.len() - self.reader.rest().len()];
            (number, whole, datum)
        });
    }

    /// The next field if it has this number.
    fn take(&mut self, number: u32) -> Option<(&'a [u8], Datum<'a>)> {
        while self.ahead.is_some_and(|(ahead, ..)| ahead < number) {
            self.read();
        }
        let (_, whole, datum) = self.ahead.filter(|(ahead, ..)| *ahead == number)?;
        self.read();
        Some((whole, datum))
    }

    /// The value that the field had.
    fn value(&self, field: &Field) -> Option<&'a Value> {
        self.map?.get(&field.name)
    }

    /// The items that a list had.
    pub fn items(&self, field: &Field) -> std::slice::Iter<'a, Value> {
        let items = self.value(field).and_then(Value::as_array);
        items.map_or(&[][..], |items| items).iter()
    }

    /// What is known of a value's place: `old` stood there, and its message comes next.
    pub fn next(&mut self, number: u32, old: &'a Value, new: &Value) -> Option<Known<'a>> {
        match (new, old, self.take(number)?.1) {
            (Value::Object(_), Value::Object(map), Datum::Bytes(message)) => Some(Known { map, message }),
            _ => None,
        }
    }

    /// The same of a field that isn't repeated.
    pub fn next_of(&mut self, field: &Field, new: &Value) -> Option<Known<'a>> {
        let Value::Object(_) = new else { return None };
        let old = self.value(field)?;
        self.next(field.number, old, new)
    }

    /// The same of a message whose fields stand inline in the map.
    pub fn inlined(&mut self, number: u32) -> Option<Known<'a>> {
        let map = self.map?;
        match self.take(number)?.1 {
            Datum::Bytes(message) => Some(Known { map, message }),
            _ => None,
        }
    }

    /// Copies all entries of a map field if they are what they were.
    pub fn copies_all(&mut self, field: &Field, map: &Map, w: &mut Writer) -> bool {
        let old = self.value(field).and_then(Value::as_object);
        let is_known = old.is_some_and(|old| old.is_shared_with(map) && !map.is_empty());
        while is_known && let Some((whole, _)) = self.take(field.number) {
            w.out.extend_from_slice(whole);
        }
        is_known
    }
}
