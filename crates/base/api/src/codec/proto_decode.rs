//! Protobuf messages to values, by schema: the value is what Go's JSON encoder would write for the same object.
//!
//! That is: empty `omitempty` fields are absent, structs that aren't pointers are present, a nil list that is always
//! written is null.

use super::json::float;
use super::proto_only::Only;
use super::wire::{Datum, Reader, base64_encode, malformed};
use super::{DecodeError, MAX_DEPTH, proto, proto_schema_props};
use crate::schema::{Field, FieldType, Omit, Schema, TypeDef, TypeId, Wire};
use crate::time::{Time, ZERO_SECONDS};
use crate::value::{Map, Str, Value};
use crate::{Quantity, duration};

pub(super) struct Decoder<'s> {
    pub schema: &'s Schema,
    pub depth: usize,
    /// The fields of the messages being read, innermost last.
    slots: Vec<Option<Value>>,
    /// A field of the outermost message's members that is left out, by its message and number.
    skipped: Option<(&'s TypeDef, u32)>,
    only: Option<&'s Only>,
}

impl<'s> Decoder<'s> {
    pub fn new(schema: &'s Schema) -> Self {
        Decoder {
            schema,
            depth: 0,
            slots: Vec::with_capacity(128),
            skipped: None,
            only: None,
        }
    }

    /// Reads some fields only.
    pub fn only(self, only: &'s Only) -> Self {
        Decoder {
            only: Some(only),
            ..self
        }
    }

    /// Leaves out what an object of this type says of who owns its fields.
    pub fn without_managed_fields(self, id: TypeId) -> Self {
        let metadata = self.schema.get(id).field("metadata").map(|field| &field.ty);
        let skipped = match metadata {
            Some(FieldType::Struct(id)) => {
                let def = self.schema.get(*id);
                def.field("managedFields").map(|field| (def, field.number))
            }
            _ => None,
        };
        Decoder { skipped, ..self }
    }

    pub fn message(&mut self, id: TypeId, bytes: &[u8]) -> Result<Map, DecodeError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(DecodeError("exceeded max depth".into()));
        }
        let def = self.schema.get(id);
        let first = self.slots.len();
        self.slots.resize_with(first + def.fields.len(), || None);
        self.fields((id, def), def, bytes, first)?;
        self.depth -= 1;
        let filled = self.slots[first..].iter().flatten().count();
        let mut pairs = Vec::with_capacity(filled + 2);
        for (i, field) in def.fields.iter().enumerate() {
            let slot = self.slots[first + i].take();
            if let Some(value) = self.finish(field, slot) {
                pairs.push((field.name.clone(), value));
            }
        }
        self.slots.truncate(first);
        Ok(Map::from_sorted(pairs))
    }

    /// Reads the fields of `def` into the slots of `outer`, the type that `def` is or is inlined into.
    fn fields(
        &mut self,
        (id, def): (TypeId, &'s TypeDef),
        outer: &'s TypeDef,
        bytes: &[u8],
        first: usize,
    ) -> Result<(), DecodeError> {
        let only = self.only.and_then(|only| only.of(id));
        let mut reader = Reader::new(bytes);
        // Fields come in rising order, so the next is most often found at once.
        let mut at = 0;
        while let Some((number, datum)) = reader.next()? {
            if self
                .skipped
                .is_some_and(|(of, n)| n == number && self.depth == 2 && std::ptr::eq(of, def))
            {
                continue;
            }
            if def.wire.get(at).is_none_or(|(n, _)| *n != number) {
                match def.wire.binary_search_by_key(&number, |(n, _)| *n) {
                    Ok(found) => at = found,
                    Err(_) => continue,
                }
            }
            match def.wire[at].1 {
                Wire::Inline(id) => self.fields((id, self.schema.get(id)), outer, datum.bytes()?, first)?,
                Wire::Field(_) if only.is_some_and(|only| !only.contains(&number)) => {}
                Wire::Field(i) => {
                    let field = &def.fields[i];
                    let slot = if std::ptr::eq(def, outer) {
                        Some(i)
                    } else {
                        outer.field_index(&field.name)
                    };
                    if let Some(slot) = slot {
                        let so_far = self.slots[first + slot].take();
                        self.slots[first + slot] = Some(self.field(field, datum, so_far)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// The value of a field after one more occurrence of it.
    pub fn field(&mut self, field: &'s Field, datum: Datum, so_far: Option<Value>) -> Result<Value, DecodeError> {
        match &field.ty {
            FieldType::List(element) if field.format == "itemsMessage" => self.items_message(element, datum.bytes()?),
            FieldType::List(element) => {
                let mut list = match so_far {
                    Some(Value::Array(list)) => list,
                    _ => Vec::new(),
                };
                match (datum, &**element) {
                    (Datum::Bytes(b), FieldType::Int32 | FieldType::Int64 | FieldType::Bool) => {
                        let mut packed = Reader::new(b);
                        while let Some(v) = packed.packed()? {
                            list.push(self.scalar(element, Datum::Varint(v), "")?);
                        }
                    }
                    _ => list.push(self.scalar(element, datum, &field.format)?),
                }
                if let (Some((api_version, kind)), Some(Value::Object(last))) = (&field.element_kind, list.last_mut()) {
                    last.insert("apiVersion", api_version.clone());
                    last.insert("kind", kind.clone());
                }
                Ok(Value::Array(list))
            }
            FieldType::Map(value) => {
                let (key, value) = self.map_entry(value, datum.bytes()?, &field.format)?;
                let mut map = match so_far {
                    Some(Value::Object(map)) => map,
                    _ => Map::new(),
                };
                // To insert each in its place would take a client's word for the order they come in.
                map.append(key, value);
                Ok(Value::Object(map))
            }
            ty => self.scalar(ty, datum, &field.format),
        }
    }

    /// A named list that is a message of its own: its elements are field 1.
    fn items_message(&mut self, element: &'s FieldType, bytes: &[u8]) -> Result<Value, DecodeError> {
        let mut reader = Reader::new(bytes);
        let mut out = Vec::new();
        while let Some((number, datum)) = reader.next()? {
            if number == 1 {
                out.push(self.scalar(element, datum, "")?);
            }
        }
        Ok(Value::Array(out))
    }

    fn map_entry(&mut self, ty: &'s FieldType, bytes: &[u8], format: &str) -> Result<(Str, Value), DecodeError> {
        let mut reader = Reader::new(bytes);
        let (mut key, mut value) = (Str::default(), None);
        while let Some((number, datum)) = reader.next()? {
            match (number, ty) {
                (1, _) => key = datum.str()?.into(),
                (2, FieldType::List(element)) => value = Some(self.items_message(element, datum.bytes()?)?),
                (2, _) => value = Some(self.scalar(ty, datum, format)?),
                _ => {}
            }
        }
        let value = match value {
            Some(v) => v,
            None => self.zero(ty),
        };
        Ok((key, value))
    }

    fn scalar(&mut self, ty: &'s FieldType, datum: Datum, format: &str) -> Result<Value, DecodeError> {
        Ok(match ty {
            FieldType::String => Value::String(datum.str()?.into()),
            FieldType::Struct(id) => Value::Object(self.message(*id, datum.bytes()?)?),
            FieldType::Bool => Value::Bool(datum.varint()? != 0),
            FieldType::Int32 => Value::Int((datum.varint()? as i32).into()),
            FieldType::Int64 => Value::Int(datum.varint()? as i64),
            FieldType::UInt32 => Value::Int((datum.varint()? as u32).into()),
            FieldType::UInt64 => match i64::try_from(datum.varint()?) {
                Ok(i) => Value::Int(i),
                Err(_) => return Err(malformed("integer overflow")),
            },
            FieldType::Float64 | FieldType::Float32 => match datum {
                Datum::Fixed64(bits) => float(f64::from_bits(bits)),
                Datum::Fixed32(bits) => float(f32::from_bits(bits).into()),
                _ => return Err(malformed("wrong wireType")),
            },
            FieldType::Bytes => Value::String(base64_encode(datum.bytes()?).into()),
            FieldType::Quantity => quantity(datum.bytes()?)?,
            FieldType::Time | FieldType::MicroTime => time(ty, datum.bytes()?)?,
            FieldType::Duration => {
                let nanos = first_varint(datum.bytes()?)?;
                Value::String(duration::format(nanos as i64).into())
            }
            FieldType::IntOrString => int_or_string(datum.bytes()?)?,
            FieldType::RawExtension | FieldType::FieldsV1 => match first_bytes(datum.bytes()?)? {
                Some(raw) if *ty == FieldType::FieldsV1 => self.schema.field_sets.read(raw, |raw| self.raw(raw))?,
                Some(raw) => self.raw(raw)?,
                None => Value::Null,
            },
            FieldType::Any => proto_schema_props::decode(self, format, datum.bytes()?)?,
            FieldType::List(_) | FieldType::ListOf(_) | FieldType::Map(_) => {
                return Err(malformed("nested lists and maps have no protobuf form"));
            }
        })
    }

    /// The content of a RawExtension: JSON, or an enveloped object.
    pub fn raw(&mut self, raw: &[u8]) -> Result<Value, DecodeError> {
        if raw.starts_with(proto::MAGIC) {
            let envelope = proto::open(raw)?;
            return match crate::builtin::builtin_kind_at(envelope.api_version, envelope.kind) {
                Some(schema) => envelope.decode(&schema).map(|o| o.into()),
                None => Err(malformed(&format!(
                    "no type for {}, Kind={}",
                    envelope.api_version, envelope.kind
                ))),
            };
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        super::json::decode(raw, None, super::Strictness::Lenient).map(|d| d.value)
    }

    /// What Go's encoder makes of a field that holds `value`, or nothing.
    pub fn finish(&self, field: &'s Field, value: Option<Value>) -> Option<Value> {
        let value = match value {
            Some(Value::Object(map)) if matches!(field.ty, FieldType::Map(_)) => Value::Object(map.in_order()),
            Some(v) => v,
            None if field.number == 0 && field.inline_number == 0 => return None,
            None if field.pointer => return (field.omit == Omit::Never).then_some(Value::Null),
            None => self.zero(&field.ty),
        };
        if field.pointer {
            return Some(value);
        }
        let omitted = match field.omit {
            Omit::Never => false,
            // Go's omitempty never drops structs, whatever they are in JSON.
            Omit::Empty => is_basic(&field.ty) && is_zero(&value),
            Omit::Zero => is_zero(&value),
        };
        (!omitted).then_some(value)
    }

    /// The JSON of a type's zero value.
    fn zero(&self, ty: &'s FieldType) -> Value {
        match ty {
            FieldType::Bool => Value::Bool(false),
            FieldType::Int32
            | FieldType::Int64
            | FieldType::UInt32
            | FieldType::UInt64
            | FieldType::Float32
            | FieldType::Float64
            | FieldType::IntOrString => Value::Int(0),
            FieldType::String => Value::String(Str::default()),
            FieldType::Quantity => Value::String(Str::const_new("0")),
            FieldType::Duration => Value::String(Str::const_new("0s")),
            FieldType::Struct(id) => {
                let fields = &self.schema.get(*id).fields;
                let pairs = fields
                    .iter()
                    .filter_map(|f| Some((f.name.clone(), self.finish(f, None)?)))
                    .collect();
                Value::Object(Map::from_sorted(pairs))
            }
            _ => Value::Null,
        }
    }
}

pub(super) fn is_basic(ty: &FieldType) -> bool {
    matches!(
        ty,
        FieldType::Bool
            | FieldType::Int32
            | FieldType::Int64
            | FieldType::UInt32
            | FieldType::UInt64
            | FieldType::Float32
            | FieldType::Float64
            | FieldType::String
    )
}

pub(super) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Int(i) => *i == 0,
        Value::Float(f) => *f == 0.0,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.values().all(is_zero),
    }
}

pub(super) fn first_bytes(message: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    let mut reader = Reader::new(message);
    let mut out = None;
    while let Some((number, datum)) = reader.next()? {
        if number == 1 {
            out = Some(datum.bytes()?);
        }
    }
    Ok(out)
}

pub(super) fn first_varint(message: &[u8]) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(message);
    let mut out = 0;
    while let Some((number, datum)) = reader.next()? {
        if number == 1 {
            out = datum.varint()?;
        }
    }
    Ok(out)
}

pub(super) fn quantity(message: &[u8]) -> Result<Value, DecodeError> {
    let text = match first_bytes(message)? {
        Some(b) => std::str::from_utf8(b).map_err(|_| malformed("string is not valid UTF-8"))?,
        None => "0",
    };
    // An empty text is what Go writes for no quantity.
    let text = if text.is_empty() { "0" } else { text };
    Quantity::normalize(text)
        .map(Value::String)
        .map_err(|e| DecodeError(e.to_string()))
}

pub(super) fn time(ty: &FieldType, message: &[u8]) -> Result<Value, DecodeError> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let mut t = Time::default();
    let mut reader = Reader::new(message);
    while let Some((number, datum)) = reader.next()? {
        match number {
            1 => t.seconds = datum.varint()? as i64,
            2 => t.nanos = datum.varint()? as u32,
            _ => {}
        }
    }
    if t.seconds == ZERO_SECONDS {
        return Ok(Value::Null);
    }
    // Beyond years of four digits Go cannot write a time either.
    if !(ZERO_SECONDS..253_402_300_800).contains(&t.seconds) || t.nanos >= 1_000_000_000 {
        return Err(malformed("time out of range"));
    }
    let text = if *ty == FieldType::MicroTime {
        t.rfc3339_micro()
    } else {
        t.rfc3339()
    };
    Ok(Value::String(text.into()))
}

pub(super) fn int_or_string(message: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_string, mut int, mut string) = (false, 0, "");
    let mut reader = Reader::new(message);
    while let Some((number, datum)) = reader.next()? {
        match number {
            1 => is_string = datum.varint()? == 1,
            2 => int = datum.varint()? as i32,
            3 => string = datum.str()?,
            _ => {}
        }
    }
    Ok(if is_string {
        Value::String(string.into())
    } else {
        Value::Int(int.into())
    })
}
