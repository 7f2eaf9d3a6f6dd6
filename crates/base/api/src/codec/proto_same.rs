//! Whether an object is what reading its message gives: then whoever has written it knows what stands there.
//!
//! It isn't where something is left out that is written as zero, or is there and is left out when it is read (an empty text, an
//! unknown field), or is written in another way (a quantity that isn't normal). Doubt is a no.

use super::json::{float, scalar_text};
use super::proto_decode::{Decoder, is_basic, is_zero};
use crate::SchemaRef;
use crate::schema::{Field, FieldType, Omit, TypeDef};
use crate::value::{Map, Value};

/// Deeper sets of fields may be too deep to be read.
const DEEPEST: usize = 64;
/// No time at all in Go; what stands before it can't be read.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// `known`: an object that is what reading gives, of which whatever `object` shares with it needn't be looked at.
pub fn reads_back(object: &Map, schema: &SchemaRef, known: Option<&Map>) -> bool {
    let same = Same(Decoder::new(&schema.schema));
    same.members(schema.def(), object, known, true)
}

struct Same<'s>(Decoder<'s>);

impl<'s> Same<'s> {
    fn members(&self, def: &'s TypeDef, map: &Map, known: Option<&Map>, is_root: bool) -> bool {
        if known.is_some_and(|known| known.is_shared_with(map)) {
            return true;
        }
        // Both are sorted by name.
        let mut left = map.iter().peekable();
        let all = def.fields.iter().all(|field| {
            let value = left.next_if(|(key, _)| **key == field.name).map(|(_, value)| value);
            // The envelope has them.
            if is_root && matches!(field.name.as_str(), "apiVersion" | "kind") {
                return value.is_none_or(|v| v.as_str().is_some_and(|text| !text.is_empty()));
            }
            self.member(field, value, known.and_then(|known| known.get(&field.name)))
        });
        all && left.next().is_none()
    }

    fn member(&self, field: &'s Field, value: Option<&Value>, known: Option<&Value>) -> bool {
        if field.number == 0 && field.inline_number == 0 {
            return value.is_none();
        }
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return match field.omit {
                Omit::Never if field.pointer => value.is_some(),
                _ if field.pointer => value.is_none(),
                Omit::Empty | Omit::Zero if is_basic(&field.ty) => value.is_none(),
                _ if field.ty == FieldType::Any => false,
                _ => self.0.finish(field, None).as_ref() == value,
            };
        };
        let is_left_out = !field.pointer
            && match field.omit {
                Omit::Never => false,
                Omit::Empty => is_basic(&field.ty) && is_zero(value),
                Omit::Zero => is_zero(value),
            };
        if is_left_out {
            return false;
        }
        match (&field.ty, value) {
            (FieldType::List(element), Value::Array(items)) => {
                let is_plain = field.format != "itemsMessage" && field.element_kind.is_none();
                let known = known.and_then(Value::as_array);
                let mut items = items.iter().enumerate();
                is_plain && items.len() > 0 && items.all(|(i, v)| self.value(element, v, known.and_then(|k| k.get(i))))
            }
            (FieldType::Map(element), Value::Object(map)) => {
                let known = known.and_then(Value::as_object);
                let is_known = known.is_some_and(|known| known.is_shared_with(map));
                is_known || !map.is_empty() && map.values().all(|v| self.value(element, v, None))
            }
            (ty, value) => self.value(ty, value, known),
        }
    }

    fn value(&self, ty: &'s FieldType, value: &Value, known: Option<&Value>) -> bool {
        match (ty, value) {
            (FieldType::String | FieldType::IntOrString, Value::String(_)) => true,
            (FieldType::Bool, Value::Bool(_)) | (FieldType::Int64, Value::Int(_)) => true,
            (FieldType::Int32 | FieldType::IntOrString, Value::Int(i)) => i32::try_from(*i).is_ok(),
            (FieldType::UInt32, Value::Int(i)) => u32::try_from(*i).is_ok(),
            (FieldType::UInt64, Value::Int(i)) => *i >= 0,
            (FieldType::Float32 | FieldType::Float64, Value::Int(_) | Value::Float(_)) => {
                value.as_f64().is_some_and(|f| float(f) == *value)
            }
            (FieldType::Struct(id), Value::Object(map)) => {
                self.members(self.0.schema.get(*id), map, known.and_then(Value::as_object), false)
            }
            (FieldType::FieldsV1, Value::Object(set)) => is_set(set, DEEPEST),
            (FieldType::Time | FieldType::MicroTime, Value::String(text)) if text.as_str() <= NO_TIME => false,
            (
                FieldType::Quantity | FieldType::Bytes | FieldType::Duration | FieldType::Time | FieldType::MicroTime,
                Value::String(text),
            ) => scalar_text(ty, text).is_ok_and(|normal| normal == *text),
            _ => false,
        }
    }
}

/// Maps all the way down.
fn is_set(set: &Map, depth: usize) -> bool {
    let below = |v: &Value| v.as_object().is_some_and(|below| is_set(below, depth - 1));
    depth > 0 && set.values().all(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;
    use crate::builtin::builtin_kind_at;
    use crate::codec::proto;

    const GOLDEN: &str = include_str!("../../tests/golden.txt");
    /// All changes of longer ones would take long.
    const LONGEST: usize = 4000;

    /// What comes of one change somewhere in a value, for each place and each of some changes.
    fn changed(value: &Value, found: &mut dyn FnMut(Option<Value>)) {
        const SOME: [fn() -> Option<Value>; 6] = [
            || None,
            || Some(Value::Null),
            || Some("".into()),
            || Some("1.0".into()),
            || Some(Value::Int(0)),
            || Some(Value::Array(Vec::new())),
        ];
        SOME.iter().for_each(|some| found(some()));
        match value {
            Value::Object(map) => {
                found(Some(Map::new().into()));
                for (key, below) in map {
                    changed(below, &mut |now| {
                        let mut map = map.clone();
                        match now {
                            Some(now) => map.insert(key.clone(), now),
                            None => map.remove(key),
                        };
                        found(Some(map.into()));
                    });
                }
                let mut more = map.clone();
                more.insert("unknown", "x");
                found(Some(more.into()));
            }
            Value::Array(items) => {
                if let Some(first) = items.first() {
                    changed(first, &mut |now| {
                        let rest = items[1..].iter().cloned();
                        found(Some(now.into_iter().chain(rest).collect::<Vec<_>>().into()));
                    });
                }
            }
            _ => {}
        }
    }

    fn read(object: &Map, schema: &SchemaRef) -> Option<(Object, Vec<u8>)> {
        let bytes = proto::encode(object, schema).ok()?;
        Some((proto::open(&bytes).ok()?.decode(schema).ok()?, bytes))
    }

    /// Of objects as Go writes them, and of all that one change makes of them.
    #[test]
    fn what_is_said_to_read_back_does_and_what_is_shared_is_written_as_it_stands() {
        let (mut same, mut others, mut doubted) = (0, 0, 0);
        for line in GOLDEN.lines().filter(|line| line.len() < LONGEST) {
            let mut columns = line.split('\t');
            let (api_version, kind) = columns.next().unwrap().rsplit_once(',').unwrap();
            let Some(schema) = builtin_kind_at(api_version, kind) else {
                continue;
            };
            let mut object = Object::try_from(serde_json::from_str::<Value>(columns.next().unwrap()).unwrap()).unwrap();
            object.set_gvk(api_version, kind);
            let Some((original, bytes)) = read(&object, &schema) else {
                continue;
            };
            let known = reads_back(&original, &schema, None).then_some(&original.0);
            changed(&original.0.clone().into(), &mut |now| {
                let Some(Value::Object(now)) = now else { return };
                let said = reads_back(&now, &schema, None);
                assert!(
                    known.is_none() || said == reads_back(&now, &schema, known),
                    "{kind}: {now:?}"
                );
                let Some((back, written)) = read(&now, &schema) else {
                    return;
                };
                assert!(!said || back.0 == now, "{kind}: {now:?} is read as {back:?}");
                match (said, back.0 == now) {
                    (true, _) => same += 1,
                    (_, true) => doubted += 1,
                    _ => others += 1,
                }
                let again = proto::encode_after(&now, &schema, Some((&original, &bytes))).unwrap();
                assert_eq!(again, written, "{kind}: {now:?}");
            });
        }
        assert!(
            same > 1000 && others > 1000 && doubted < same / 5,
            "{same} {others} {doubted}"
        );
    }
}
