//! Whether a value conforms to its type, as far as apply needs it.

use super::super::fieldpath::PathElement;
use super::{Atom, Scalar, TypedErrors, list_item, root_atom};
use crate::go;
use keelson_api::{SchemaRef, Value};
use std::collections::BTreeSet;

/// Checks an object; duplicates in associative lists are let pass if the caller says so.
pub fn validate(v: &Value, schema: &SchemaRef, allow_duplicates: bool) -> Result<(), TypedErrors> {
    walk(v, root_atom(schema), allow_duplicates).into_result()
}

fn walk(v: &Value, atom: Atom, allow_duplicates: bool) -> TypedErrors {
    let atom = atom.deduce(Some(v));
    if let Some(map) = atom.map {
        let m = match v {
            Value::Null => return TypedErrors::default(),
            Value::Object(m) => m,
            other => return TypedErrors::one(format!("expected map, got {}", wrapped(other))),
        };
        let mut errs = TypedErrors::default();
        for (key, v) in m {
            let pe = PathElement::Field(key.clone());
            let Some(ty) = map.at(key) else {
                errs.extend(TypedErrors::one("field not declared in schema").prefixed(&pe));
                return errs;
            };
            errs.extend(walk(v, ty.resolve(), allow_duplicates).prefixed(&pe));
        }
        return errs;
    }
    if let Some(scalar) = atom.scalar {
        return check_scalar(scalar, Some(v), "");
    }
    let Some(list) = atom.list else {
        return TypedErrors::one("schema error: invalid atom: inlined");
    };
    let items = match v {
        Value::Null => return TypedErrors::default(),
        Value::Array(a) => a,
        other => return TypedErrors::one(format!("expected list, got {}", wrapped(other))),
    };
    let mut errs = TypedErrors::default();
    let mut seen = BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        let pe = if list.associative {
            match list_item(&list, item) {
                Ok(pe) => pe,
                Err(e) => {
                    errs.extend(TypedErrors::one(format!("element {i}: {e}")));
                    return errs;
                }
            }
        } else {
            PathElement::Index(i as i64)
        };
        if list.associative && !seen.insert(pe.clone()) && !allow_duplicates {
            errs.extend(TypedErrors::one(format!("duplicate entries for key {pe}")));
        }
        errs.extend(walk(item, list.element.resolve(), allow_duplicates).prefixed(&pe));
    }
    errs
}

/// A value as upstream's wrapper prints with `%v`.
fn wrapped(v: &Value) -> String {
    format!("&{{{}}}", go::go_value(v))
}

pub(super) fn check_scalar(scalar: Scalar, v: Option<&Value>, prefix: &str) -> TypedErrors {
    let Some(v) = v else { return TypedErrors::default() };
    let message = match (scalar, v) {
        (_, Value::Null) => return TypedErrors::default(),
        (Scalar::Numeric, Value::Int(_) | Value::Float(_)) => return TypedErrors::default(),
        (Scalar::String, Value::String(_)) => return TypedErrors::default(),
        (Scalar::Boolean, Value::Bool(_)) => return TypedErrors::default(),
        (Scalar::Untyped, Value::Int(_) | Value::Float(_) | Value::String(_) | Value::Bool(_)) => {
            return TypedErrors::default();
        }
        (Scalar::Numeric, other) => format!("{prefix}expected numeric (int or float), got {}", go_type(other)),
        (Scalar::String, other) => {
            format!(
                "{prefix}expected string, got &value.valueUnstructured{{Value:{}}}",
                go_syntax(other)
            )
        }
        (Scalar::Boolean, other) => format!("{prefix}expected boolean, got {}", wrapped(other)),
        (Scalar::Untyped, other) => format!("{prefix}expected any scalar, got {}", wrapped(other)),
    };
    TypedErrors::one(message)
}

fn go_type(v: &Value) -> &'static str {
    match v {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int64",
        Value::Float(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// `%#v` of a decoded value.
fn go_syntax(v: &Value) -> String {
    match v {
        Value::Null => "interface {}(nil)".into(),
        Value::String(s) => go::go_quote(s),
        Value::Array(a) => format!(
            "[]interface {{}}{{{}}}",
            a.iter().map(go_syntax).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(m) => {
            let pairs: Vec<String> = m
                .iter()
                .map(|(k, v)| format!("{}:{}", go::go_quote(k), go_syntax(v)))
                .collect();
            format!("map[string]interface {{}}{{{}}}", pairs.join(", "))
        }
        other => go::go_value(other),
    }
}
