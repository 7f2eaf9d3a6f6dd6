//! What the expressions of mutating policies yield: objects written as `Object{…}`, and JSON patches.

use super::value::Val;
use keelson_api::{Map, Value};

/// Whether each `Object.…{}` stands where its name says: `Object{spec: Object.spec{…}}`. All that don't are named.
pub fn check_type_names(v: &Val) -> Result<(), String> {
    let mut errs = Vec::new();
    if let Val::Struct(name, _) = v {
        walk(v, name, &mut errs);
    }
    if errs.is_empty() { Ok(()) } else { Err(errs.join("\n")) }
}

fn walk(v: &Val, expected: &str, errs: &mut Vec<String>) {
    match v {
        Val::Struct(name, fields) => {
            if name.as_ref() != expected {
                errs.push(format!(
                    "unexpected type name {name:?}, expected {expected:?}, which matches field name path from root Object type"
                ));
            }
            for (field, v) in fields.iter() {
                walk(v, &format!("{expected}.{field}"), errs);
            }
        }
        Val::List(items) | Val::United(items, _) => items.iter().for_each(|v| walk(v, expected, errs)),
        Val::Map(m) => m.values().for_each(|v| walk(v, expected, errs)),
        Val::Optional(Some(v)) => walk(v, expected, errs),
        _ => {}
    }
}

/// The operations of a list of `JSONPatch{…}`.
pub fn patch_operations(v: &Val) -> Result<Vec<Value>, String> {
    const WHOLE: &str = "type mismatch: JSONPatchType.expression should evaluate to array";
    let items = v.items().ok_or(WHOLE)?;
    items.iter().map(operation).collect()
}

fn operation(v: &Val) -> Result<Value, String> {
    let fields = match v {
        Val::Struct(name, fields) if name.as_ref() == "JSONPatch" => fields,
        other => {
            return Err(format!(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of {}",
                other.type_name()
            ));
        }
    };
    let mut op = Map::new();
    for key in ["op", "path", "from"] {
        match fields.get(key) {
            None if key == "from" => {}
            None => drop(op.insert(key, "")),
            Some(v) => {
                let text = v
                    .as_str()
                    .ok_or_else(|| format!("unexpected type for JSONPatchType '{key}' field"))?;
                if key != "from" || !text.is_empty() {
                    op.insert(key, text);
                }
            }
        }
    }
    if let Some(v) = fields.get("value") {
        check_type_names(v).map_err(|e| format!("type mismatch: {e}"))?;
        let json = v.to_json();
        let why = "JSONPath valueExpression evaluated to a type that could not marshal to JSON";
        op.insert("value", json.map_err(|e| format!("{why}: {e}"))?);
    }
    Ok(Value::Object(op))
}

#[cfg(test)]
mod tests {
    use super::super::{Env, PER_CALL_LIMIT, compile};
    use super::*;
    use keelson_api::value;
    use std::collections::BTreeMap;

    fn with<T>(source: &str, f: impl FnOnce(&Val) -> T) -> T {
        let program = compile(source, &Env::default()).unwrap();
        let none: BTreeMap<&str, Val> = BTreeMap::new();
        f(&program.eval(&none, PER_CALL_LIMIT).0.unwrap())
    }

    #[test]
    fn objects_must_stand_where_their_names_say() {
        let check = |s: &str| with(s, check_type_names);
        assert_eq!(check("Object{spec: Object.spec{replicas: 1}}"), Ok(()));
        assert_eq!(
            check("Object{spec: Object.spec{containers: [Object.spec.containers{name: 'a'}]}}"),
            Ok(())
        );
        assert_eq!(
            check("Object{spec: Object.wrong{}}"),
            Err("unexpected type name \"Object.wrong\", expected \"Object.spec\", which matches field name path from root Object type".into())
        );
    }

    #[test]
    fn patches_become_operations() {
        let source = "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('x/y'), value: Object.spec{n: 1}}, JSONPatch{op: 'move', from: '/a', path: '/b'}]";
        assert_eq!(
            with(source, patch_operations).unwrap(),
            vec![
                value!({"op": "add", "path": "/a/x~1y", "value": {"n": 1}}),
                value!({"op": "move", "path": "/b", "from": "/a"}),
            ]
        );
    }
}
