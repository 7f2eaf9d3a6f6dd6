//! The text of a patched object, which a refusal shows: what the patch went into has its members by name, all else stays as
//! upstream's encoder wrote it, by the order of Go's fields.

use keelson_api::codec::{MAX_DEPTH, json};
use keelson_api::{FieldType, SchemaRef, Value};
use std::collections::BTreeMap;

/// The places that a patch goes into, by key.
#[derive(Default)]
struct Touched {
    here: bool,
    below: BTreeMap<String, Touched>,
}

/// The patched object after a JSON patch that could be applied.
pub fn after_json_patch(patched: &Value, operations: &Value, schema: &SchemaRef) -> String {
    let mut touched = Touched {
        here: true,
        ..Touched::default()
    };
    for operation in operations.as_array().into_iter().flatten() {
        // Of other operations nobody has read it.
        let from = operation
            .get("op")
            .and_then(Value::as_str)
            .is_some_and(|op| matches!(op, "move" | "copy"))
            .then_some("from");
        for pointer in ["path"]
            .into_iter()
            .chain(from)
            .filter_map(|key| operation.get(key)?.as_str())
        {
            let Some((parents, _)) = pointer.rsplit_once('/') else {
                continue;
            };
            let mut at = &mut touched;
            for key in parents.split('/').skip(1).take(MAX_DEPTH) {
                at = at.below.entry(key.replace("~1", "/").replace("~0", "~")).or_default();
                at.here = true;
            }
        }
    }
    shown(patched, &touched, schema)
}

/// The patched object after a merge patch.
pub fn after_merge_patch(patched: &Value, patch: &Value, schema: &SchemaRef) -> String {
    shown(patched, &maps_of(patch), schema)
}

fn maps_of(patch: &Value) -> Touched {
    let Some(map) = patch.as_object() else {
        return Touched::default();
    };
    let maps = map.iter().filter(|(_, value)| value.as_object().is_some());
    Touched {
        here: true,
        below: maps.map(|(key, value)| (key.to_string(), maps_of(value))).collect(),
    }
}

fn shown(patched: &Value, touched: &Touched, schema: &SchemaRef) -> String {
    let mut writer = Writer {
        schema,
        out: Vec::new(),
    };
    writer.value(patched, Some(&FieldType::Struct(schema.ty)), Some(touched));
    String::from_utf8_lossy(&writer.out).into_owned()
}

struct Writer<'a> {
    schema: &'a SchemaRef,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, ty: Option<&FieldType>, touched: Option<&Touched>) {
        match value {
            Value::Object(map) => {
                let def = match ty {
                    Some(FieldType::Struct(id)) => Some(self.schema.schema.get(*id)),
                    _ => None,
                };
                let mut members: Vec<_> = map
                    .iter()
                    .map(|(key, value)| (key, value, def.and_then(|def| def.field(key))))
                    .collect();
                if !touched.is_some_and(|touched| touched.here) {
                    members.sort_by_key(|(_, _, field)| field.map_or(u16::MAX, |f| f.place));
                }
                let items = members.into_iter().map(|(key, value, field)| {
                    let inner = match ty {
                        Some(FieldType::Map(inner)) => Some(&**inner),
                        _ => field.map(|f| &f.ty),
                    };
                    let below = touched.and_then(|touched| touched.below.get(key.as_str()));
                    (Some(key.as_str()), value, inner, below)
                });
                self.block(b'{', b'}', items);
            }
            Value::Array(list) => {
                let inner = match ty {
                    Some(FieldType::List(inner)) => Some(&**inner),
                    _ => None,
                };
                let items = list.iter().enumerate().map(|(i, value)| {
                    let below = touched.and_then(|touched| touched.below.get(&i.to_string()));
                    (None, value, inner, below)
                });
                self.block(b'[', b']', items);
            }
            scalar => json::encode_into(scalar, &mut self.out),
        }
    }

    fn block<'v>(
        &mut self,
        open: u8,
        close: u8,
        items: impl Iterator<Item = (Option<&'v str>, &'v Value, Option<&'v FieldType>, Option<&'v Touched>)>,
    ) {
        self.out.push(open);
        for (i, (key, value, ty, touched)) in items.enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            if let Some(key) = key {
                json::encode_into(&Value::from(key), &mut self.out);
                self.out.push(b':');
            }
            self.value(value, ty, touched);
        }
        self.out.push(close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::builtin::builtin_kind_at;
    use keelson_api::value;

    #[test]
    fn what_a_patch_touches_is_sorted_and_the_rest_as_in_go() {
        let schema = builtin_kind_at("v1", "Pod").unwrap();
        let pod = value!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"b": "c"}, "uid": 5},
            "spec": {"restartPolicy": "Always", "containers": [{"image": "x", "name": "c"}]}});
        let touched = r#""metadata":{"labels":{"b":"c"},"name":"a","uid":5}"#;
        let spec = r#""spec":{"containers":[{"name":"c","image":"x"}],"restartPolicy":"Always"}"#;
        let want = format!(r#"{{"apiVersion":"v1","kind":"Pod",{touched},{spec}}}"#);
        let operations = value!([{"op": "replace", "path": "/metadata/uid", "value": 5}]);
        assert_eq!(after_json_patch(&pod, &operations, &schema), want);
        assert_eq!(
            after_merge_patch(&pod, &value!({"metadata": {"uid": 5}}), &schema),
            want
        );
        let untouched = after_json_patch(&pod, &value!([]), &schema);
        assert!(
            untouched.contains(r#""metadata":{"name":"a","uid":5,"labels":{"b":"c"}}"#),
            "{untouched}"
        );
    }

    #[test]
    fn long_paths_cost_no_more_than_they_are_long() {
        let schema = builtin_kind_at("v1", "Pod").unwrap();
        let from = "/".repeat(1 << 20);
        let operations = value!([{"op": "add", "path": "/metadata/uid", "value": 5, "from": from}]);
        let text = after_json_patch(&value!({"metadata": {"uid": 5}}), &operations, &schema);
        assert_eq!(text, r#"{"metadata":{"uid":5}}"#);
        let deep = (0..390).fold(value!({}), |inner, _| value!({"a": inner}));
        let branches: keelson_api::Map = (0..500)
            .map(|i| (keelson_api::Str::from(i.to_string()), deep.clone()))
            .collect();
        let patch = Value::Object(branches);
        after_merge_patch(&patch, &patch, &schema);
    }
}
