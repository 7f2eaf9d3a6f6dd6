//! Values to protobuf messages, by schema, byte for byte as upstream's generated code writes them.
//!
//! Whoever has written an object before says so: what another shares with it is copied from its message.

use super::proto_before::{Before, Known};
use super::wire::{Writer, base64_decode};
use super::{EncodeError, MAX_DEPTH, json, proto_schema_props};
use crate::schema::{Field, FieldType, Schema, TypeId, Wire, prefix};
use crate::time::{Time, ZERO_SECONDS};
use crate::value::{Map, Value};
use crate::{Quantity, duration};

pub(super) struct Encoder<'s> {
    pub schema: &'s Schema,
    pub depth: usize,
    /// Per field of the messages being written: one more than its place in the map, or 0.
    places: Vec<u32>,
}

fn wrong(field: &str, value: &Value) -> EncodeError {
    EncodeError(format!(
        "{field}: a {} has no place here in protobuf",
        value.type_name()
    ))
}

impl<'s> Encoder<'s> {
    pub fn new(schema: &'s Schema) -> Self {
        Encoder {
            schema,
            depth: 0,
            places: Vec::with_capacity(128),
        }
    }

    /// `known`: what was written of another value in this place.
    pub fn message(&mut self, id: TypeId, map: &Map, known: Option<Known>, w: &mut Writer) -> Result<(), EncodeError> {
        if let Some(written) = known.and_then(|known| known.of_map(map)) {
            w.out.extend_from_slice(written);
            return Ok(());
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(EncodeError("exceeded max depth".into()));
        }
        let def = self.schema.get(id);
        let first = self.places.len();
        self.places.resize(first + def.fields.len(), 0);
        let mut i = 0;
        // Both are sorted by name.
        for (place, (key, value)) in map.iter().enumerate() {
            if value.is_null() {
                continue;
            }
            let wanted = prefix(key.as_bytes());
            while i < def.prefixes.len()
                && (def.prefixes[i] < wanted || (def.prefixes[i] == wanted && def.fields[i].name < *key))
            {
                i += 1;
            }
            if i < def.prefixes.len() && def.prefixes[i] == wanted && def.fields[i].name == *key {
                self.places[first + i] = place as u32 + 1;
                i += 1;
            }
        }
        let mut before = Before::new(known);
        for (number, wire) in &def.wire {
            match wire {
                // Inlined messages aren't pointers: they are written even when nothing in them is set.
                Wire::Inline(inner) => {
                    let known = before.inlined(*number);
                    w.field_message(*number, |w| self.message(*inner, map, known, w))?;
                }
                Wire::Field(i) => {
                    let i = *i;
                    let field = &def.fields[i];
                    let place = self.places[first + i] as usize;
                    let value = if place == 0 { None } else { map.nth(place - 1) };
                    self.field(field, value, &mut before, w)?;
                }
            }
        }
        self.places.truncate(first);
        self.depth -= 1;
        Ok(())
    }

    fn field(
        &mut self,
        field: &'s Field,
        value: Option<&Value>,
        before: &mut Before,
        w: &mut Writer,
    ) -> Result<(), EncodeError> {
        let number = field.number;
        match (&field.ty, value) {
            (FieldType::List(element), Some(Value::Array(items))) => {
                if field.format == "itemsMessage" {
                    return w.field_message(number, |w| {
                        items
                            .iter()
                            .try_for_each(|v| self.scalar(1, element, Some(v), None, field, w))
                    });
                }
                let mut old = before.items(field);
                for v in items {
                    let known = old.next().and_then(|old| before.next(number, old, v));
                    self.scalar(number, element, Some(v), known, field, w)?;
                }
                Ok(())
            }
            (FieldType::Map(ty), Some(Value::Object(map))) => {
                if before.copies_all(field, map, w) {
                    return Ok(());
                }
                map.iter().try_for_each(|(k, v)| {
                    w.field_message(number, |w| {
                        w.field_bytes(1, k.as_bytes());
                        self.map_value(ty, v, field, w)
                    })
                })
            }
            (FieldType::List(_) | FieldType::Map(_) | FieldType::Bytes, None) => Ok(()),
            (_, None) if field.pointer => Ok(()),
            (ty, value) => {
                let known = value.and_then(|v| before.next_of(field, v));
                self.scalar(number, ty, value, known, field, w)
            }
        }
    }

    fn map_value(&mut self, ty: &'s FieldType, v: &Value, field: &'s Field, w: &mut Writer) -> Result<(), EncodeError> {
        match (ty, v) {
            (FieldType::List(element), Value::Array(items)) => w.field_message(2, |w| {
                items
                    .iter()
                    .try_for_each(|item| self.scalar(1, element, Some(item), None, field, w))
            }),
            (FieldType::List(_), _) => w.field_message(2, |_| Ok(())),
            // Go leaves out nil bytes of a map.
            (FieldType::Bytes, Value::Null) => Ok(()),
            _ => self.scalar(2, ty, Some(v).filter(|v| !v.is_null()), None, field, w),
        }
    }

    /// Writes a value, or the zero value when there is none.
    fn scalar(
        &mut self,
        number: u32,
        ty: &'s FieldType,
        value: Option<&Value>,
        known: Option<Known>,
        field: &'s Field,
        w: &mut Writer,
    ) -> Result<(), EncodeError> {
        let value = value.filter(|v| !v.is_null());
        let refuse = |v: &Value| Err(wrong(&field.name, v));
        match ty {
            FieldType::String => match value {
                Some(Value::String(s)) => w.field_bytes(number, s.as_bytes()),
                Some(v) => return refuse(v),
                None => w.field_bytes(number, b""),
            },
            FieldType::Struct(id) => {
                static EMPTY: Map = Map::new();
                let map = match value {
                    Some(Value::Object(m)) => m,
                    Some(v) => return refuse(v),
                    None => &EMPTY,
                };
                w.field_message(number, |w| self.message(*id, map, known, w))?;
            }
            FieldType::Bool => match value {
                Some(Value::Bool(b)) => w.field_varint(number, u64::from(*b)),
                Some(v) => return refuse(v),
                None => w.field_varint(number, 0),
            },
            FieldType::Int32 | FieldType::Int64 | FieldType::UInt32 | FieldType::UInt64 => {
                match value.map(|v| v.as_i64().ok_or(v)) {
                    Some(Ok(i)) => w.field_varint(number, i as u64),
                    Some(Err(v)) => return refuse(v),
                    None => w.field_varint(number, 0),
                }
            }
            FieldType::Float32 | FieldType::Float64 => match value.map(|v| v.as_f64().ok_or(v)) {
                Some(Ok(f)) => w.field_fixed64(number, f.to_bits()),
                Some(Err(v)) => return refuse(v),
                None => w.field_fixed64(number, 0),
            },
            FieldType::RawExtension | FieldType::FieldsV1 => w.field_message(number, |w| {
                let written = value.and_then(Value::as_object).zip(known);
                if let Some(written) = written.and_then(|(map, known)| known.of_map(map)) {
                    w.out.extend_from_slice(written);
                    return Ok(());
                }
                let known = value.and_then(|v| self.schema.field_sets.written(v));
                match (value, known) {
                    (Some(_), Some(known)) => w.field_bytes(1, &known),
                    (Some(v), None) => w.field_bytes(1, &json::encode(v)),
                    (None, _) => {}
                }
                Ok(())
            })?,
            FieldType::Any => w.field_message(number, |w| proto_schema_props::encode(self, &field.format, value, w))?,
            FieldType::List(_) | FieldType::ListOf(_) | FieldType::Map(_) => {
                return Err(EncodeError(format!(
                    "{}: nested lists and maps have no protobuf form",
                    field.name
                )));
            }
            FieldType::IntOrString => int_or_string(number, value, w)?,
            _ => {
                let text = match value {
                    Some(Value::String(s)) => Some(s.as_str()),
                    Some(v) => return refuse(v),
                    None => None,
                };
                self.text_scalar(number, ty, text, w)
                    .map_err(|e| EncodeError(format!("{}: {e}", field.name)))?;
            }
        }
        Ok(())
    }

    /// Scalars that are a text in JSON and something else in protobuf.
    fn text_scalar(
        &mut self,
        number: u32,
        ty: &FieldType,
        text: Option<&str>,
        w: &mut Writer,
    ) -> Result<(), EncodeError> {
        let said = |e: &dyn std::fmt::Display| EncodeError(e.to_string());
        match ty {
            FieldType::Bytes => {
                let bytes = base64_decode(text.unwrap_or_default());
                w.field_bytes(
                    number,
                    &bytes.map_err(|at| said(&format!("illegal base64 data at input byte {at}")))?,
                );
                Ok(())
            }
            FieldType::Quantity => {
                let text = Quantity::normalize(text.unwrap_or("0")).map_err(|e| said(&e))?;
                w.field_message(number, |w| {
                    w.field_bytes(1, text.as_bytes());
                    Ok(())
                })
            }
            FieldType::Duration => {
                let nanos = text.map_or(Ok(0), duration::parse).map_err(|e| said(&e))?;
                w.field_message(number, |w| {
                    w.field_varint(1, nanos as u64);
                    Ok(())
                })
            }
            _ => {
                let time = match text {
                    None => Time::from_seconds(ZERO_SECONDS),
                    Some(t) if *ty == FieldType::MicroTime => Time::parse_micro(t).map_err(|e| said(&e))?,
                    Some(t) => Time {
                        nanos: 0,
                        ..Time::parse(t).map_err(|e| said(&e))?
                    },
                };
                w.field_message(number, |w| {
                    if !time.is_zero() {
                        w.field_varint(1, time.seconds as u64);
                        w.field_varint(2, time.nanos.into());
                    }
                    Ok(())
                })
            }
        }
    }
}

fn int_or_string(number: u32, value: Option<&Value>, w: &mut Writer) -> Result<(), EncodeError> {
    let (kind, int, text) = match value {
        None => (0, 0, ""),
        Some(Value::String(s)) => (1, 0, s.as_str()),
        Some(v) => match v.as_i64() {
            Some(i) => (0, i, ""),
            None => return Err(wrong("an integer or string", v)),
        },
    };
    w.field_message(number, |w| {
        w.field_varint(1, kind);
        w.field_varint(2, int as u64);
        w.field_bytes(3, text.as_bytes());
        Ok(())
    })
}
