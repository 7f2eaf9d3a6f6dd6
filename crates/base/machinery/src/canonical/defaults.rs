//! Zero values that are always written, and constant defaults.

use crate::structural::prune;
use keelson_api::schema::{Field, FieldType, Omit, Schema, SchemaRef, TypeDef, TypeId};
use keelson_api::{Map, Value};

/// Fills a struct with what Go's encoder always writes: zero values of fields without `omitempty`, and structs that
/// `omitempty` doesn't touch.
pub(super) fn write_always(m: &mut Map, def: &TypeDef, schema: &Schema) {
    for field in &def.fields {
        let is_struct = !field.pointer && is_struct(&field.ty);
        match field.omit {
            Omit::Zero => {}
            Omit::Empty if is_struct => fill(m, field, schema),
            Omit::Empty => {}
            Omit::Never => {
                let collection = matches!(field.ty, FieldType::List(_) | FieldType::ListOf(_) | FieldType::Map(_));
                match m.get(&field.name) {
                    None => fill(m, field, schema),
                    // A typed round trip through protobuf doesn't tell an empty collection from an absent one.
                    Some(Value::Array(a)) if collection && a.is_empty() => {
                        m.insert(field.name.clone(), Value::Null);
                    }
                    Some(Value::Object(o)) if collection && o.is_empty() => {
                        m.insert(field.name.clone(), Value::Null);
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

/// Structs in Go, whatever they are in JSON: `omitempty` never drops them.
fn is_struct(ty: &FieldType) -> bool {
    matches!(
        ty,
        FieldType::Struct(_)
            | FieldType::Quantity
            | FieldType::IntOrString
            | FieldType::Time
            | FieldType::MicroTime
            | FieldType::Duration
            | FieldType::RawExtension
    )
}

fn fill(m: &mut Map, field: &Field, schema: &Schema) {
    if !m.contains_key(&field.name) {
        let zero = if field.pointer {
            Value::Null
        } else {
            zero_of(&field.ty, schema)
        };
        m.insert(field.name.clone(), zero);
    }
}

/// A type's zero value, as Go's encoder writes it.
pub(super) fn zero_of(ty: &FieldType, schema: &Schema) -> Value {
    match ty {
        FieldType::Bool => Value::Bool(false),
        FieldType::Int32
        | FieldType::Int64
        | FieldType::UInt32
        | FieldType::UInt64
        | FieldType::Float32
        | FieldType::Float64
        | FieldType::IntOrString => Value::Int(0),
        FieldType::String => Value::String(Default::default()),
        FieldType::Quantity => Value::from("0"),
        FieldType::Duration => Value::from("0s"),
        FieldType::Struct(id) => {
            let mut m = Map::new();
            write_always(&mut m, schema.get(*id), schema);
            Value::Object(m)
        }
        FieldType::Bytes
        | FieldType::Time
        | FieldType::MicroTime
        | FieldType::RawExtension
        | FieldType::FieldsV1
        | FieldType::Any
        | FieldType::List(_)
        | FieldType::ListOf(_)
        | FieldType::Map(_) => Value::Null,
    }
}

/// An object's zero value: what an empty struct of the type encodes to.
pub fn fill_zero(schema: &SchemaRef) -> Value {
    zero_of(&FieldType::Struct(schema.ty), &schema.schema)
}

/// Fills in constant defaults, however deep. A field that isn't a pointer counts as absent when it is zero.
pub fn apply_defaults(object: &mut Value, schema: &SchemaRef) {
    if let Some(s) = super::structural(schema) {
        prune::drop_nulls(object, s);
        prune::fill_defaults(object, s);
        return;
    }
    if let Value::Object(m) = object {
        defaults(m, schema.ty, &schema.schema);
    }
}

fn defaults(m: &mut Map, id: TypeId, schema: &Schema) {
    for field in schema.defaulted(id) {
        if let Some(default) = &field.default
            && is_absent(m, field)
        {
            m.insert(field.name.clone(), default.clone());
        }
        match m.get(&field.name) {
            // What lacks nothing may be shared with another object, and stays so.
            Some(v) if lacks(v, &field.ty, schema) => {
                if let Some(v) = m.get_mut(&field.name) {
                    descend(v, &field.ty, schema);
                }
            }
            Some(_) => {}
            None => {
                // An absent struct that isn't a pointer exists all the same.
                if let (FieldType::Struct(id), false) = (&field.ty, field.pointer) {
                    let mut below = Map::new();
                    defaults(&mut below, *id, schema);
                    if !below.is_empty() {
                        write_always(&mut below, schema.get(*id), schema);
                        m.insert(field.name.clone(), below);
                    }
                }
            }
        }
    }
}

fn descend(v: &mut Value, ty: &FieldType, schema: &Schema) {
    match (ty, v) {
        (FieldType::Struct(id), Value::Object(m)) => defaults(m, *id, schema),
        (FieldType::List(el), Value::Array(a)) => a.iter_mut().for_each(|v| descend(v, el, schema)),
        (FieldType::ListOf(def), Value::Array(a)) => a.iter_mut().for_each(|v| descend(v, &def.element, schema)),
        (FieldType::Map(el), Value::Object(m)) => m.values_mut().for_each(|v| descend(v, el, schema)),
        _ => {}
    }
}

/// Whether a default belongs somewhere in the value.
fn lacks(v: &Value, ty: &FieldType, schema: &Schema) -> bool {
    match (ty, v) {
        (FieldType::Struct(id), Value::Object(m)) => schema.defaulted(*id).any(|field| {
            (field.default.is_some() && is_absent(m, field))
                || match (m.get(&field.name), &field.ty) {
                    (Some(v), ty) => lacks(v, ty, schema),
                    (None, FieldType::Struct(id)) => !field.pointer && has_defaults(*id, schema),
                    (None, _) => false,
                }
        }),
        (FieldType::List(el), Value::Array(a)) => a.iter().any(|v| lacks(v, el, schema)),
        (FieldType::ListOf(def), Value::Array(a)) => a.iter().any(|v| lacks(v, &def.element, schema)),
        (FieldType::Map(el), Value::Object(m)) => m.values().any(|v| lacks(v, el, schema)),
        _ => false,
    }
}

/// Whether an empty struct of the type gets defaults.
fn has_defaults(id: TypeId, schema: &Schema) -> bool {
    schema.defaulted(id).any(|field| match field.ty {
        _ if field.default.is_some() => true,
        FieldType::Struct(id) => !field.pointer && has_defaults(id, schema),
        _ => false,
    })
}

fn is_absent(m: &Map, field: &Field) -> bool {
    match m.get(&field.name) {
        None | Some(Value::Null) => true,
        Some(v) => !field.pointer && plain_zero(v),
    }
}

fn plain_zero(v: &Value) -> bool {
    match v {
        Value::Bool(b) => !b,
        Value::Int(i) => *i == 0,
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}
