//! Protobuf messages straight to JSON text, by schema: the text that decoding and encoding would give, without the values
//! between. Every read of a built-in kind that isn't in protobuf passes through here.
//!
//! A message's fields are found first, each by where it stands in the bytes, and then written in the order of their names.
//! What is neither plain nor frequent (types that are any JSON) goes by way of values.

use super::json::{self, float};
use super::proto_decode::{Decoder, is_basic, is_zero};
use super::wire::{Datum, Reader, base64_encode, malformed};
use super::{DecodeError, MAX_DEPTH, json_written, proto_decode, proto_schema_props};
use crate::duration;
use crate::schema::{Field, FieldType, Omit, Schema, TypeDef, TypeId, Wire};
use crate::value::Value;

pub(super) struct Transcoder<'s, 'b, 'o> {
    schema: &'s Schema,
    depth: usize,
    /// Where the fields of the messages being written stand, innermost last.
    found: Vec<Option<Found<'b>>>,
    /// The entries of the maps being written.
    entries: Vec<(&'b str, Option<Datum<'b>>)>,
    out: &'o mut Vec<u8>,
}

#[derive(Clone, Copy)]
struct Found<'b> {
    number: u32,
    count: u32,
    /// The last of them, which counts where there is to be one.
    last: Datum<'b>,
    /// The message from the first of them on.
    from: &'b [u8],
}

impl<'s, 'b, 'o> Transcoder<'s, 'b, 'o> {
    pub fn new(schema: &'s Schema, out: &'o mut Vec<u8>) -> Self {
        Transcoder {
            schema,
            depth: 0,
            found: Vec::with_capacity(128),
            entries: Vec::new(),
            out,
        }
    }

    /// Writes the members of a whole object, each with a comma before it; its `metadata` says `revision`.
    pub fn object(&mut self, id: TypeId, bytes: &'b [u8], revision: u64) -> Result<(), DecodeError> {
        self.members(id, bytes, Some(revision), b',').map(drop)
    }

    /// Writes an object's `metadata` alone.
    pub fn metadata(&mut self, id: TypeId, bytes: &'b [u8], revision: u64) -> Result<(), DecodeError> {
        let def = self.schema.get(id);
        let Some((at, FieldType::Struct(meta))) = def.field_index("metadata").map(|i| (i, &def.fields[i].ty)) else {
            return Err(malformed("no metadata in the schema"));
        };
        let mut reader = Reader::new(bytes);
        let mut raw: &[u8] = b"";
        while let Some((number, datum)) = reader.next()? {
            if number == def.fields[at].number {
                raw = datum.bytes()?;
            }
        }
        self.depth = 1;
        self.message(*meta, raw, Some(revision)).map(drop)
    }

    /// Writes a message as an object. True: there is nothing in it but zero values.
    fn message(&mut self, id: TypeId, bytes: &'b [u8], revision: Option<u64>) -> Result<bool, DecodeError> {
        self.out.push(b'{');
        let zero = self.members(id, bytes, revision, 0)?;
        self.out.push(b'}');
        Ok(zero)
    }

    /// `before`: what stands before the first member, if anything. `revision` is for the metadata: of the outermost message's
    /// member of that name, and of that member itself.
    fn members(&mut self, id: TypeId, bytes: &'b [u8], revision: Option<u64>, before: u8) -> Result<bool, DecodeError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(DecodeError("exceeded max depth".into()));
        }
        let def = self.schema.get(id);
        let first = self.found.len();
        self.found.resize(first + def.fields.len(), None);
        self.find(def, def, bytes, first)?;
        let (mut zero, mut separator) = (true, before);
        for (i, field) in def.fields.iter().enumerate() {
            let found = self.found[first + i].take();
            let says = revision.filter(|_| self.depth == 2 && field.name == "resourceVersion");
            if found.is_none() && says.is_none() && is_absent(field) {
                continue;
            }
            let start = self.out.len();
            if separator != 0 {
                self.out.push(separator);
            }
            self.out.push(b'"');
            self.out.extend_from_slice(field.name.as_bytes());
            self.out.extend_from_slice(b"\":");
            if let Some(revision) = says {
                self.out.push(b'"');
                json::write_int(revision as i64, self.out);
                self.out.push(b'"');
                (zero, separator) = (false, b',');
                continue;
            }
            let inner = revision.filter(|_| self.depth == 1 && field.name == "metadata");
            let is_zero = match found {
                Some(found) => self.present(field, found, inner)?,
                None if field.pointer => self.text("null", true),
                None => self.zero(&field.ty, inner)?,
            };
            if omitted(field, is_zero) {
                self.out.truncate(start);
            } else {
                zero &= is_zero;
                separator = b',';
            }
        }
        self.found.truncate(first);
        self.depth -= 1;
        Ok(zero)
    }

    /// Finds the fields of `def` for the slots of `outer`, the type that `def` is or is inlined into.
    fn find(&mut self, def: &'s TypeDef, outer: &'s TypeDef, bytes: &'b [u8], first: usize) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        // Fields come in rising order, so the next is most often found at once.
        let mut at = 0;
        let mut inlined = 0u128;
        loop {
            let from = reader.rest();
            let Some((number, datum)) = reader.next()? else {
                return Ok(());
            };
            if def.wire.get(at).is_none_or(|(n, _)| *n != number) {
                match def.wire.binary_search_by_key(&number, |(n, _)| *n) {
                    Ok(found) => at = found,
                    Err(_) => continue,
                }
            }
            match def.wire[at].1 {
                Wire::Inline(id) => {
                    let this = u32::try_from(at)
                        .ok()
                        .and_then(|at| 1u128.checked_shl(at))
                        .unwrap_or(u128::MAX);
                    if inlined & this != 0 {
                        return Err(malformed("an embedded message stands twice"));
                    }
                    inlined |= this;
                    self.find(self.schema.get(id), outer, datum.bytes()?, first)?;
                }
                Wire::Field(i) => {
                    let slot = match std::ptr::eq(def, outer) {
                        true => Some(i),
                        false => outer.field_index(&def.fields[i].name),
                    };
                    let Some(slot) = slot else { continue };
                    let new = Found {
                        number,
                        count: 1,
                        last: datum,
                        from,
                    };
                    let found = self.found[first + slot].get_or_insert(Found { count: 0, ..new });
                    found.last = datum;
                    found.count += 1;
                }
            }
        }
    }

    fn text(&mut self, text: &str, zero: bool) -> bool {
        self.out.extend_from_slice(text.as_bytes());
        zero
    }
    fn quoted(&mut self, text: &str) -> bool {
        json::write_string(text, self.out);
        text.is_empty()
    }
    fn value(&mut self, value: &Value) -> bool {
        json::encode_into(value, self.out);
        is_zero(value)
    }
    fn int(&mut self, n: i64) -> bool {
        json::write_int(n, self.out);
        n == 0
    }

    /// Writes a field that is there.
    fn present(&mut self, field: &'s Field, found: Found<'b>, revision: Option<u64>) -> Result<bool, DecodeError> {
        match &field.ty {
            FieldType::List(element) if field.format == "itemsMessage" => self.items(element, found.last.bytes()?),
            FieldType::List(element) => {
                self.out.push(b'[');
                let start = self.out.len();
                self.each(found, |this, datum| {
                    if let (Datum::Bytes(b), FieldType::Int32 | FieldType::Int64 | FieldType::Bool) =
                        (datum, &**element)
                    {
                        let mut packed = Reader::new(b);
                        while let Some(v) = packed.packed()? {
                            this.comma(start);
                            this.scalar(element, Datum::Varint(v), "", None)?;
                        }
                        return Ok(());
                    }
                    this.comma(start);
                    if let (FieldType::Struct(id), Some((api_version, kind))) = (&**element, &field.element_kind) {
                        return this.object_of_kind(*id, datum.bytes()?, api_version, kind);
                    }
                    this.scalar(element, datum, &field.format, None).map(drop)
                })?;
                let empty = self.out.len() == start;
                self.out.push(b']');
                Ok(empty)
            }
            FieldType::Map(value) => self.map(value, found, &field.format),
            ty => self.scalar(ty, found.last, &field.format, revision),
        }
    }

    /// Writes a message with the kind that it doesn't say itself.
    fn object_of_kind(
        &mut self,
        id: TypeId,
        bytes: &'b [u8],
        api_version: &str,
        kind: &str,
    ) -> Result<(), DecodeError> {
        self.text("{\"apiVersion\":", false);
        self.quoted(api_version);
        self.text(",\"kind\":", false);
        self.quoted(kind);
        self.members(id, bytes, None, b',')?;
        self.out.push(b'}');
        Ok(())
    }

    fn comma(&mut self, start: usize) {
        if self.out.len() > start {
            self.out.push(b',');
        }
    }

    /// Every occurrence of a field.
    fn each(
        &mut self,
        found: Found<'b>,
        mut f: impl FnMut(&mut Self, Datum<'b>) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut reader = Reader::new(found.from);
        let mut left = found.count;
        while left > 0
            && let Some((number, datum)) = reader.next()?
        {
            if number == found.number {
                left -= 1;
                f(self, datum)?;
            }
        }
        Ok(())
    }

    /// A named list that is a message of its own: its elements are field 1.
    fn items(&mut self, element: &'s FieldType, bytes: &'b [u8]) -> Result<bool, DecodeError> {
        self.out.push(b'[');
        let start = self.out.len();
        let mut reader = Reader::new(bytes);
        while let Some((number, datum)) = reader.next()? {
            if number == 1 {
                self.comma(start);
                self.scalar(element, datum, "", None)?;
            }
        }
        let empty = self.out.len() == start;
        self.out.push(b']');
        Ok(empty)
    }

    fn map(&mut self, ty: &'s FieldType, found: Found<'b>, format: &str) -> Result<bool, DecodeError> {
        let first = self.entries.len();
        self.each(found, |this, datum| {
            let mut reader = Reader::new(datum.bytes()?);
            let (mut key, mut value) = ("", None);
            while let Some((number, datum)) = reader.next()? {
                match number {
                    1 => key = datum.str()?,
                    2 => value = Some(datum),
                    _ => {}
                }
            }
            this.entries.push((key, value));
            Ok(())
        })?;
        // Of equal keys the last wins.
        if !self.entries[first..].is_sorted_by(|a, b| a.0 < b.0) {
            let mut entries = self.entries.split_off(first);
            entries.sort_by_key(|(key, _)| *key);
            entries.reverse();
            entries.dedup_by_key(|(key, _)| *key);
            entries.reverse();
            self.entries.extend(entries);
        }
        self.out.push(b'{');
        let mut zero = true;
        for i in first..self.entries.len() {
            let (key, value) = self.entries[i];
            if i > first {
                self.out.push(b',');
            }
            self.quoted(key);
            self.out.push(b':');
            zero &= match (value, ty) {
                (Some(datum), FieldType::List(element)) => self.items(element, datum.bytes()?)?,
                (Some(datum), _) => self.scalar(ty, datum, format, None)?,
                (None, _) => self.zero(ty, None)?,
            };
        }
        self.entries.truncate(first);
        self.out.push(b'}');
        Ok(zero)
    }

    fn scalar(
        &mut self,
        ty: &'s FieldType,
        datum: Datum<'b>,
        format: &str,
        revision: Option<u64>,
    ) -> Result<bool, DecodeError> {
        Ok(match ty {
            FieldType::String => self.quoted(datum.str()?),
            FieldType::Struct(id) => self.message(*id, datum.bytes()?, revision)?,
            FieldType::Bool => match datum.varint()? {
                0 => self.text("false", true),
                _ => self.text("true", false),
            },
            FieldType::Int32 => self.int((datum.varint()? as i32).into()),
            FieldType::Int64 => self.int(datum.varint()? as i64),
            FieldType::UInt32 => self.int((datum.varint()? as u32).into()),
            FieldType::UInt64 => match i64::try_from(datum.varint()?) {
                Ok(n) => self.int(n),
                Err(_) => return Err(malformed("integer overflow")),
            },
            FieldType::Float64 | FieldType::Float32 => match datum {
                Datum::Fixed64(bits) => self.value(&float(f64::from_bits(bits))),
                Datum::Fixed32(bits) => self.value(&float(f32::from_bits(bits).into())),
                _ => return Err(malformed("wrong wireType")),
            },
            FieldType::Bytes => {
                let bytes = datum.bytes()?;
                self.out.push(b'"');
                self.out.extend_from_slice(base64_encode(bytes).as_bytes());
                self.out.push(b'"');
                bytes.is_empty()
            }
            FieldType::Quantity => self.value(&proto_decode::quantity(datum.bytes()?)?),
            FieldType::Time | FieldType::MicroTime => self.value(&proto_decode::time(ty, datum.bytes()?)?),
            FieldType::Duration => {
                let nanos = proto_decode::first_varint(datum.bytes()?)?;
                self.quoted(&duration::format(nanos as i64))
            }
            FieldType::IntOrString => self.value(&proto_decode::int_or_string(datum.bytes()?)?),
            FieldType::RawExtension | FieldType::FieldsV1 => match proto_decode::first_bytes(datum.bytes()?)? {
                Some(raw) => match json_written::as_we_write(raw) {
                    Some(zero) => {
                        self.out.extend_from_slice(raw);
                        zero
                    }
                    None => {
                        let value = Decoder::new(self.schema).raw(raw)?;
                        self.value(&value)
                    }
                },
                None => self.text("null", true),
            },
            FieldType::Any => {
                let value = proto_schema_props::decode(&mut Decoder::new(self.schema), format, datum.bytes()?)?;
                self.value(&value)
            }
            FieldType::List(_) | FieldType::ListOf(_) | FieldType::Map(_) => {
                return Err(malformed("nested lists and maps have no protobuf form"));
            }
        })
    }

    /// Writes a type's zero value.
    fn zero(&mut self, ty: &'s FieldType, revision: Option<u64>) -> Result<bool, DecodeError> {
        Ok(match ty {
            FieldType::Bool => self.text("false", true),
            FieldType::Int32
            | FieldType::Int64
            | FieldType::UInt32
            | FieldType::UInt64
            | FieldType::Float32
            | FieldType::Float64
            | FieldType::IntOrString => self.text("0", true),
            FieldType::String => self.text("\"\"", true),
            FieldType::Quantity => self.text("\"0\"", false),
            FieldType::Duration => self.text("\"0s\"", false),
            FieldType::Struct(id) => self.message(*id, b"", revision)?,
            _ => self.text("null", true),
        })
    }
}

/// A field that isn't written when it isn't there.
fn is_absent(field: &Field) -> bool {
    (field.number == 0 && field.inline_number == 0)
        || match field.pointer {
            true => field.omit != Omit::Never,
            false => field.omit == Omit::Empty && is_basic(&field.ty),
        }
}

fn omitted(field: &Field, zero: bool) -> bool {
    !field.pointer
        && match field.omit {
            Omit::Never => false,
            // Go's omitempty never drops structs, whatever they are in JSON.
            Omit::Empty => zero && is_basic(&field.ty),
            Omit::Zero => zero,
        }
}
