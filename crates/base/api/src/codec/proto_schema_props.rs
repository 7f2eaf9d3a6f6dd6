//! The types of CRDs that are any JSON to clients and messages in protobuf: `JSON`, and the schema nodes that are
//! either a schema or something else.

use super::proto_decode::Decoder;
use super::proto_encode::Encoder;
use super::wire::{Reader, Writer, malformed};
use super::{DecodeError, EncodeError, Strictness, json};
use crate::schema::{Schema, TypeId};
use crate::value::{Map, Value};

const PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

fn props(schema: &Schema) -> Option<TypeId> {
    schema.lookup(PROPS)
}

pub(super) fn decode(d: &mut Decoder, format: &str, bytes: &[u8]) -> Result<Value, DecodeError> {
    let props = props(d.schema).ok_or_else(|| malformed("no JSONSchemaProps in the schema"))?;
    let mut reader = Reader::new(bytes);
    let mut schema = None;
    let mut allows = false;
    let mut list = Vec::new();
    let mut raw = None;
    while let Some((number, datum)) = reader.next()? {
        match (format, number) {
            ("JSON", 1) => raw = Some(datum.bytes()?),
            ("JSONSchemaPropsOrBool", 1) => allows = datum.varint()? != 0,
            ("JSONSchemaPropsOrBool", 2) | ("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray", 1) => {
                schema = Some(Value::Object(d.message(props, datum.bytes()?)?));
            }
            ("JSONSchemaPropsOrArray", 2) => list.push(Value::Object(d.message(props, datum.bytes()?)?)),
            ("JSONSchemaPropsOrStringArray", 2) => list.push(Value::String(datum.str()?.into())),
            _ => {}
        }
    }
    Ok(match format {
        "JSON" => match raw {
            Some(raw) if !raw.is_empty() => json::decode(raw, None, Strictness::Lenient)?.value,
            _ => Value::Null,
        },
        "JSONSchemaPropsOrBool" => schema.unwrap_or(Value::Bool(allows)),
        _ if !list.is_empty() => Value::Array(list),
        _ => schema.unwrap_or(Value::Null),
    })
}

pub(super) fn encode(e: &mut Encoder, format: &str, value: Option<&Value>, w: &mut Writer) -> Result<(), EncodeError> {
    let no_props = || EncodeError("no JSONSchemaProps in the schema".into());
    let refuse = |v: &Value| EncodeError(format!("a {} has no place in a {format}", v.type_name()));
    let mut schema = |number, map: &Map, w: &mut Writer| {
        let id = props(e.schema).ok_or_else(no_props)?;
        w.field_message(number, |w| e.message(id, map, None, w))
    };
    match (format, value) {
        ("JSON", value) => {
            if let Some(v) = value {
                w.field_bytes(1, &json::encode(v));
            }
        }
        ("JSONSchemaPropsOrBool", Some(Value::Object(map))) => {
            w.field_varint(1, 1);
            schema(2, map, w)?;
        }
        ("JSONSchemaPropsOrBool", Some(Value::Bool(b))) => w.field_varint(1, u64::from(*b)),
        ("JSONSchemaPropsOrBool", None) => w.field_varint(1, 0),
        ("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray", Some(Value::Object(map))) => schema(1, map, w)?,
        ("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray", Some(Value::Array(items))) => {
            for item in items {
                match item {
                    Value::Object(map) if format == "JSONSchemaPropsOrArray" => schema(2, map, w)?,
                    Value::String(s) if format == "JSONSchemaPropsOrStringArray" => w.field_bytes(2, s.as_bytes()),
                    other => return Err(refuse(other)),
                }
            }
        }
        (_, None | Some(Value::Null)) => {}
        (_, Some(v)) => return Err(refuse(v)),
    }
    Ok(())
}
