//! Taking fields out of a value, or everything else.

use super::super::fieldpath::{PathElement, Set};
use super::{Atom, list_item, root_atom};
use keelson_api::{Map, SchemaRef, Value};

/// The object without the fields and list items in the set.
pub fn remove(v: &Value, set: &Set, schema: &SchemaRef) -> Value {
    walk(v, set, root_atom(schema), false)
}

/// Only the fields and list items in the set.
pub fn extract(v: &Value, set: &Set, schema: &SchemaRef) -> Value {
    walk(v, set, root_atom(schema), true)
}

fn walk(v: &Value, set: &Set, atom: Atom, extracting: bool) -> Value {
    let whole = || if extracting { v.clone() } else { Value::Null };
    let atom = atom.deduce(Some(v));
    if let Some(map) = atom.map {
        let Value::Object(m) = v else { return Value::Null };
        if m.is_empty() || map.atomic {
            return whole();
        }
        let mut out = Map::with_capacity(m.len());
        for (key, v) in m {
            let pe = PathElement::Field(key.clone());
            let below = map.at(key).map(|t| t.resolve()).unwrap_or_default();
            if set.has_member(&pe) {
                if extracting {
                    out.push(key.clone(), walk(v, set, below, true));
                }
                continue;
            }
            let subset = set.with_prefix(&pe);
            if !subset.is_empty() {
                out.push(key.clone(), walk(v, subset, below, extracting));
            } else if !extracting {
                out.push(key.clone(), v.clone());
            }
        }
        return if out.is_empty() {
            Value::Null
        } else {
            Value::Object(out)
        };
    }
    if atom.scalar.is_some() {
        return v.clone();
    }
    let (Some(list), Value::Array(items)) = (atom.list, v) else {
        return Value::Null;
    };
    if items.is_empty() || !list.associative {
        return whole();
    }
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let Ok(pe) = list_item(&list, item) else {
            if !extracting {
                out.push(item.clone());
            }
            continue;
        };
        let exact = set.has_member(&pe);
        let subset = set.with_prefix(&pe);
        let inner = || walk(item, subset, list.element.resolve(), extracting);
        match (extracting, exact, subset.is_empty()) {
            (true, _, false) => out.push(inner()),
            (true, true, true) => out.push(item.clone()),
            (true, false, true) | (false, true, _) => {}
            (false, false, false) => out.push(inner()),
            (false, false, true) => out.push(item.clone()),
        }
    }
    if out.is_empty() { Value::Null } else { Value::Array(out) }
}
