//! `application/vnd.kubernetes.protobuf`: objects in their envelope (`k8s\0` and a `runtime.Unknown`), and watch frames.
//!
//! `apiVersion` and `kind` of an object stand in the envelope only; items of a list have none.

use super::proto_before::Known;
use super::proto_decode::Decoder;
use super::proto_encode::Encoder;
use super::proto_json::Transcoder;
pub use super::proto_only::Only;
pub use super::proto_parts::{Revised, field_at, revised, revised_metadata};
pub use super::proto_same::reads_back;
use super::wire::{Reader, Writer};
use super::{DecodeError, EncodeError};
use crate::value::Map;
use crate::{Object, SchemaRef};

/// What every enveloped object begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// An envelope that has been opened; the object in it is still a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_type: &'a str,
    pub content_encoding: &'a str,
}

/// Opens an envelope.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let Some(unknown) = bytes.strip_prefix(MAGIC) else {
        return Err(DecodeError(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into(),
        ));
    };
    let mut out = Envelope {
        api_version: "",
        kind: "",
        raw: b"",
        content_type: "",
        content_encoding: "",
    };
    let mut reader = Reader::new(unknown);
    while let Some((number, datum)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader::new(datum.bytes()?);
                while let Some((number, datum)) = meta.next()? {
                    match number {
                        1 => out.api_version = datum.str()?,
                        2 => out.kind = datum.str()?,
                        _ => {}
                    }
                }
            }
            2 => out.raw = datum.bytes()?,
            3 => out.content_encoding = datum.str()?,
            4 => out.content_type = datum.str()?,
            _ => {}
        }
    }
    Ok(out)
}

impl Envelope<'_> {
    /// Decodes the message in the envelope by the schema of its kind.
    pub fn decode(&self, schema: &SchemaRef) -> Result<Object, DecodeError> {
        self.object(decode_message(self.raw, schema)?)
    }

    /// The same without `metadata.managedFields`, which is half of many objects.
    pub fn decode_without_managed_fields(&self, schema: &SchemaRef) -> Result<Object, DecodeError> {
        let mut decoder = Decoder::new(&schema.schema).without_managed_fields(schema.ty);
        self.object(decoder.message(schema.ty, self.raw)?)
    }

    /// Some of the object's fields; others are absent, or zero where they are never absent.
    pub fn decode_only(&self, only: &Only) -> Result<Object, DecodeError> {
        let schema = &only.schema;
        let mut decoder = Decoder::new(&schema.schema).only(only);
        self.object(decoder.message(schema.ty, self.raw)?)
    }

    fn object(&self, mut map: Map) -> Result<Object, DecodeError> {
        if !self.kind.is_empty() {
            map.insert("kind", self.kind);
        }
        if !self.api_version.is_empty() {
            map.insert("apiVersion", self.api_version);
        }
        Ok(Object(map))
    }
}

/// Decodes a message without an envelope.
pub fn decode_message(bytes: &[u8], schema: &SchemaRef) -> Result<Map, DecodeError> {
    Decoder::new(&schema.schema).message(schema.ty, bytes)
}

/// Writes a message's members as JSON, each with a comma before it and all but `kind` and `apiVersion`, which no message has.
/// The object says that it is of `revision`. After an error `out` is as it was.
pub fn json_members(bytes: &[u8], schema: &SchemaRef, revision: u64, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let start = out.len();
    let written = Transcoder::new(&schema.schema, out).object(schema.ty, bytes, revision);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// The same of an object's `metadata` alone, an object.
pub fn json_metadata(bytes: &[u8], schema: &SchemaRef, revision: u64, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let start = out.len();
    let written = Transcoder::new(&schema.schema, out).metadata(schema.ty, bytes, revision);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// What [`envelope`] puts before and after a message of `length` bytes.
pub fn envelope_around(api_version: &str, kind: &str, length: usize) -> (Vec<u8>, &'static [u8]) {
    let mut w = Writer {
        out: Vec::with_capacity(64),
    };
    w.out.extend_from_slice(MAGIC);
    write_type_meta(api_version, kind, &mut w);
    w.key(2, 2);
    w.varint(length as u64);
    (w.out, b"\x1a\0\x22\0")
}

/// Begins a field of `length` bytes.
pub fn begin_field(number: u32, length: usize, out: &mut Vec<u8>) {
    let mut w = Writer {
        out: std::mem::take(out),
    };
    w.key(number, 2);
    w.varint(length as u64);
    *out = w.out;
}

/// Encodes a message without an envelope.
pub fn encode_message(map: &Map, schema: &SchemaRef) -> Result<Vec<u8>, EncodeError> {
    let mut w = Writer {
        out: Vec::with_capacity(1024),
    };
    Encoder::new(&schema.schema).message(schema.ty, map, None, &mut w)?;
    Ok(w.out)
}

/// Encodes an object in its envelope; `apiVersion` and `kind` are the object's own.
pub fn encode(map: &Map, schema: &SchemaRef) -> Result<Vec<u8>, EncodeError> {
    encode_after(map, schema, None)
}

/// The same of what has become of an object that was encoded before, and is `before`, to these bytes: what both share is copied.
pub fn encode_after(map: &Map, schema: &SchemaRef, before: Option<(&Map, &[u8])>) -> Result<Vec<u8>, EncodeError> {
    let text = |key| map.str(key).unwrap_or_default();
    let known = before.and_then(|(map, bytes)| Some(Known::new(map, open(bytes).ok()?.raw)));
    let mut w = Writer {
        out: Vec::with_capacity(before.map_or(1024, |(_, bytes)| bytes.len() + 256)),
    };
    w.out.extend_from_slice(MAGIC);
    seal(text("apiVersion"), text("kind"), &mut w, |w| {
        Encoder::new(&schema.schema).message(schema.ty, map, known, w)
    })?;
    Ok(w.out)
}

/// Puts an encoded message into an envelope.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let (head, tail) = envelope_around(api_version, kind, message.len());
    [&head, message, tail].concat()
}

fn write_type_meta(api_version: &str, kind: &str, w: &mut Writer) {
    let mut meta = Writer::default();
    meta.field_bytes(1, api_version.as_bytes());
    meta.field_bytes(2, kind.as_bytes());
    w.field_bytes(1, &meta.out);
}

fn seal(
    api_version: &str,
    kind: &str,
    w: &mut Writer,
    write: impl FnOnce(&mut Writer) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    write_type_meta(api_version, kind, w);
    w.field_message(2, write)?;
    w.field_bytes(3, b"");
    w.field_bytes(4, b"");
    Ok(())
}

/// The frame of a watch event: a length of four bytes, then a `WatchEvent` that holds the enveloped object.
pub fn watch_frame(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Writer {
        out: Vec::with_capacity(object.len() + 16),
    };
    raw.field_bytes(1, object);
    let mut w = Writer {
        out: Vec::with_capacity(object.len() + 32),
    };
    w.out.extend_from_slice(&[0; 4]);
    w.field_bytes(1, event_type.as_bytes());
    w.field_bytes(2, &raw.out);
    let len = (w.out.len() - 4) as u32;
    w.out[..4].copy_from_slice(&len.to_be_bytes());
    w.out
}

/// The event type and enveloped object of a watch frame's content (what follows its length).
pub fn open_watch_event(bytes: &[u8]) -> Result<(&str, &[u8]), DecodeError> {
    let (mut event_type, mut object): (&str, &[u8]) = ("", b"");
    let mut reader = Reader::new(bytes);
    while let Some((number, datum)) = reader.next()? {
        match number {
            1 => event_type = datum.str()?,
            2 => {
                let mut raw = Reader::new(datum.bytes()?);
                while let Some((number, datum)) = raw.next()? {
                    if number == 1 {
                        object = datum.bytes()?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok((event_type, object))
}
