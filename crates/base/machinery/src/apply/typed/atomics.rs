//! Which parts of a value would replace what is there as a whole.

use super::super::fieldpath::PathElement;
use super::{Atom, root_atom};
use keelson_api::{SchemaRef, Value};

/// The paths of all atomic lists, maps and structs in a value, in its order.
pub fn atomics(v: &Value, schema: &SchemaRef) -> Vec<String> {
    let mut out = Vec::new();
    walk(v, root_atom(schema), String::new(), &mut out);
    out
}

fn walk(v: &Value, atom: Atom, path: String, out: &mut Vec<String>) {
    match v {
        Value::Object(m) => {
            let Some(map) = atom.map else { return };
            if map.atomic {
                out.push(path.clone());
            }
            for (key, v) in m {
                // Upstream follows fields only, not the members of maps.
                let named = map.def.is_some_and(|d| d.field(key).is_some());
                if let (true, Some(ty)) = (named, map.at(key)) {
                    walk(
                        v,
                        ty.resolve(),
                        format!("{path}{}", PathElement::Field(key.clone())),
                        out,
                    );
                }
            }
        }
        Value::Array(items) => {
            let Some(list) = atom.list else { return };
            if !list.associative {
                out.push(path.clone());
            }
            for (i, item) in items.iter().enumerate() {
                walk(
                    item,
                    list.element.resolve(),
                    format!("{path}{}", PathElement::Index(i as i64)),
                    out,
                );
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::{builtin, value};

    #[test]
    fn atomic_parts_are_named() {
        let schema = builtin::builtin_kind_at("apps/v1", "Deployment").unwrap();
        let v = value!({"spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {
            "containers": [{"name": "a", "args": ["x"]}]
        }}}});
        assert_eq!(
            atomics(&v, &schema),
            [".spec.selector", ".spec.template.spec.containers[0].args"]
        );
    }
}
