//! What Go calls types: upstream's decoders tell of a wrong value in these words.

use crate::schema::{Field, FieldType, Schema, TypeDef};

/// The name of a struct with its package: `v1.PodSpec`.
pub fn struct_name(def: &TypeDef) -> String {
    let mut parts = def.name.rsplit('.');
    let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{package}.{name}")
}

/// The name of the type of a field, or of what stands in its lists and maps; `ty` is a part of the field's type.
pub fn type_name(field: Option<&Field>, ty: &FieldType, schema: Option<&Schema>) -> String {
    match field.map(|f| own_name(f, ty)) {
        Some(name) if !name.is_empty() => name.to_string(),
        _ => plain_name(ty, schema),
    }
}

/// The part of a field's own type name that belongs to `ty`.
fn own_name<'a>(field: &'a Field, ty: &FieldType) -> &'a str {
    let (mut name, mut at) = (field.go_type.as_str(), &field.ty);
    while !std::ptr::eq(at, ty) {
        at = match at {
            FieldType::List(element) | FieldType::Map(element) => element,
            FieldType::ListOf(list) => &list.element,
            _ => return "",
        };
        let close = if name.starts_with("map[") || name.starts_with("[]") {
            name.find(']')
        } else {
            None
        };
        name = close.map_or("", |close| &name[close + 1..]);
    }
    name
}

fn plain_name(ty: &FieldType, schema: Option<&Schema>) -> String {
    match ty {
        // These read themselves: a quantity and an interface take anything.
        FieldType::Quantity => "resource.Quantity".into(),
        FieldType::IntOrString => "int32".into(),
        FieldType::Time | FieldType::MicroTime | FieldType::Duration => "string".into(),
        FieldType::RawExtension => "runtime.RawExtension".into(),
        FieldType::FieldsV1 => "v1.FieldsV1".into(),
        FieldType::Any => "interface {}".into(),
        FieldType::Struct(id) => schema.map_or_else(String::new, |s| struct_name(s.get(*id))),
        FieldType::List(element) => format!("[]{}", plain_name(element, schema)),
        FieldType::ListOf(list) => format!("[]{}", plain_name(&list.element, schema)),
        FieldType::Map(value) => format!("map[string]{}", plain_name(value, schema)),
        FieldType::Bytes => "[]uint8".into(),
        simple => kind_name(simple).into(),
    }
}

/// What Go's reflection calls the kind of a type.
pub fn kind_name(ty: &FieldType) -> &'static str {
    match ty {
        FieldType::Bool => "bool",
        FieldType::Int32 => "int32",
        FieldType::Int64 => "int64",
        FieldType::UInt32 => "uint32",
        FieldType::UInt64 => "uint64",
        FieldType::Float32 => "float32",
        FieldType::Float64 => "float64",
        FieldType::String => "string",
        FieldType::Bytes | FieldType::List(_) | FieldType::ListOf(_) => "slice",
        FieldType::Map(_) => "map",
        FieldType::Any => "interface",
        _ => "struct",
    }
}

/// The path to a struct's field as Go's decoder prints it, by the fields it went through.
pub fn path<'a>(fields: impl IntoIterator<Item = &'a Field>) -> String {
    let mut out = String::new();
    for name in fields.into_iter().flat_map(|f| [&f.embedded, &f.name]) {
        if !out.is_empty() && !name.is_empty() {
            out.push('.');
        }
        out.push_str(name);
    }
    out
}
