//! Parts of an encoded message, read or exchanged without decoding the rest of it.
//!
//! What the store holds says no revision: an object's revision is known only when it has been written. It stands in the
//! metadata, first in every message, so that all but a few dozen bytes are sent as they were stored.

use super::DecodeError;
use super::proto_decode::Decoder;
use super::wire::{Reader, Writer};
use crate::SchemaRef;
use crate::schema::{FieldType, Omit, TypeId, Wire};
use crate::value::Value;

/// The number of `metadata` in every object, and of `resourceVersion` in it.
const METADATA: u32 = 1;
const REVISION: u32 = 6;

/// A message in two parts.
pub struct Revised<'a> {
    pub head: Vec<u8>,
    pub rest: &'a [u8],
}

impl Revised<'_> {
    pub fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The message of an object, saying that it is of `revision`. `None` if it isn't in the form that it would be written in.
pub fn revised(message: &[u8], revision: u64) -> Option<Revised<'_>> {
    let mut reader = Reader::new(message);
    let (number, datum) = reader.next().ok()??;
    let metadata = datum.bytes().ok().filter(|_| number == METADATA)?;
    let after_metadata = reader.rest();
    // The metadata stands once, and so does the revision in it, where it belongs.
    if reader.next().ok()?.is_some_and(|(number, _)| number <= METADATA) {
        return None;
    }
    let (before, after) = around_revision(metadata)?;
    let text = revision.to_string();
    let mut w = Writer {
        out: Vec::with_capacity(before.len() + 32),
    };
    w.key(METADATA, 2);
    w.varint((before.len() + 2 + text.len() + after) as u64);
    w.out.extend_from_slice(before);
    w.field_bytes(REVISION, text.as_bytes());
    Some(Revised {
        head: w.out,
        rest: &message[message.len() - after_metadata.len() - after..],
    })
}

/// What stands before the revision, and how many bytes stand after it.
fn around_revision(metadata: &[u8]) -> Option<(&[u8], usize)> {
    let mut reader = Reader::new(metadata);
    loop {
        let before = metadata.len() - reader.rest().len();
        let (number, _) = reader.next().ok()??;
        if number > REVISION {
            return None;
        }
        if number == REVISION {
            let after = reader.rest().len();
            let again = reader.next().ok()?.is_some_and(|(number, _)| number <= REVISION);
            return (!again).then_some((&metadata[..before], after));
        }
    }
}

/// The same of the metadata alone: the message of a `PartialObjectMetadata`.
pub fn revised_metadata(message: &[u8], revision: u64) -> Option<Revised<'_>> {
    let mut reader = Reader::new(message);
    reader.next().ok()??;
    let after_metadata = reader.rest().len();
    let revised = revised(message, revision)?;
    Some(Revised {
        rest: &revised.rest[..revised.rest.len() - after_metadata],
        ..revised
    })
}

/// The value at a path of fields, as it is in the decoded message.
pub fn field_at(message: &[u8], schema: &SchemaRef, path: &[&str]) -> Result<Option<Value>, DecodeError> {
    let mut decoder = Decoder::new(&schema.schema);
    let (mut id, mut bytes) = (schema.ty, message);
    let Some((last, parents)) = path.split_last() else {
        return Ok(None);
    };
    for name in parents {
        let Some(field) = schema.schema.get(id).field(name) else {
            return Ok(None);
        };
        let FieldType::Struct(inner) = &field.ty else {
            return Ok(None);
        };
        let mut found = None;
        occurrences(schema, id, bytes, name, &mut |datum| {
            found = Some(datum.bytes()?);
            Ok(())
        })?;
        bytes = match found {
            Some(bytes) => bytes,
            // What Go holds by value is there even when nothing of it is set.
            None if !field.pointer && field.number != 0 && field.omit != Omit::Zero => b"",
            None => return Ok(None),
        };
        id = *inner;
    }
    let Some(field) = schema.schema.get(id).field(last) else {
        return Ok(None);
    };
    let mut value = None;
    occurrences(schema, id, bytes, last, &mut |datum| {
        value = Some(decoder.field(field, datum, value.take())?);
        Ok(())
    })?;
    Ok(decoder.finish(field, value))
}

/// Calls `f` for each time that a field of a message stands there, also in messages that are inlined.
fn occurrences<'b>(
    schema: &SchemaRef,
    id: TypeId,
    bytes: &'b [u8],
    name: &str,
    f: &mut dyn FnMut(super::wire::Datum<'b>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let def = schema.schema.get(id);
    let mut reader = Reader::new(bytes);
    while let Some((number, datum)) = reader.next()? {
        let Ok(at) = def.wire.binary_search_by_key(&number, |(n, _)| *n) else {
            continue;
        };
        match def.wire[at].1 {
            Wire::Field(i) if def.fields[i].name == name => f(datum)?,
            Wire::Inline(inner) if schema.schema.get(inner).field(name).is_some() => {
                occurrences(schema, inner, datum.bytes()?, name, f)?;
            }
            _ => {}
        }
    }
    Ok(())
}
