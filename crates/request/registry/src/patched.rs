//! The text of a patched object, which a refusal shows: what the patch went into has its members by name, all else stays as
//! upstream's encoder wrote it, by the order of Go's fields.

use keelson_api::codec::json;
use keelson_api::{FieldType, SchemaRef, Value};
use std::collections::BTreeSet;

/// The places that a patch goes into, as paths of keys.
type Touched = BTreeSet<Vec<String>>;

/// The patched object after a JSON patch.
pub fn after_json_patch(patched: &Value, operations: &Value, schema: &SchemaRef) -> String {
    let mut touched = Touched::from([Vec::new()]);
    for operation in operations.as_array().into_iter().flatten() {
        for pointer in ["path", "from"].iter().filter_map(|key| operation.get(key)?.as_str()) {
            let keys: Vec<String> = pointer
                .split('/')
                .skip(1)
                .map(|key| key.replace("~1", "/").replace("~0", "~"))
                .collect();
            touched.extend((0..keys.len()).map(|n| keys[..n].to_vec()));
        }
    }
    shown(patched, &touched, schema)
}

/// The patched object after a merge patch.
pub fn after_merge_patch(patched: &Value, patch: &Value, schema: &SchemaRef) -> String {
    let mut touched = Touched::new();
    maps_of(patch, &mut Vec::new(), &mut touched);
    shown(patched, &touched, schema)
}

fn maps_of(patch: &Value, at: &mut Vec<String>, touched: &mut Touched) {
    let Some(map) = patch.as_object() else { return };
    touched.insert(at.clone());
    for (key, value) in map.iter() {
        at.push(key.to_string());
        maps_of(value, at, touched);
        at.pop();
    }
}

fn shown(patched: &Value, touched: &Touched, schema: &SchemaRef) -> String {
    let mut writer = Writer {
        schema,
        touched,
        at: Vec::new(),
        out: Vec::new(),
    };
    writer.value(patched, Some(&FieldType::Struct(schema.ty)));
    String::from_utf8_lossy(&writer.out).into_owned()
}

struct Writer<'a> {
    schema: &'a SchemaRef,
    touched: &'a Touched,
    at: Vec<String>,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, ty: Option<&FieldType>) {
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
                if !self.touched.contains(&self.at) {
                    members.sort_by_key(|(_, _, field)| field.map_or(u16::MAX, |f| f.place));
                }
                let items = members.into_iter().map(|(key, value, field)| {
                    let inner = match ty {
                        Some(FieldType::Map(inner)) => Some(&**inner),
                        _ => field.map(|f| &f.ty),
                    };
                    (key.to_string(), value, inner)
                });
                self.block(b'{', b'}', items, true);
            }
            Value::Array(list) => {
                let inner = match ty {
                    Some(FieldType::List(inner)) => Some(&**inner),
                    _ => None,
                };
                let items = list.iter().enumerate().map(|(i, value)| (i.to_string(), value, inner));
                self.block(b'[', b']', items, false);
            }
            scalar => json::encode_into(scalar, &mut self.out),
        }
    }

    fn block<'v>(
        &mut self,
        open: u8,
        close: u8,
        items: impl Iterator<Item = (String, &'v Value, Option<&'v FieldType>)>,
        keyed: bool,
    ) {
        self.out.push(open);
        for (i, (key, value, ty)) in items.enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            if keyed {
                json::encode_into(&Value::from(key.as_str()), &mut self.out);
                self.out.push(b':');
            }
            self.at.push(key);
            self.value(value, ty);
            self.at.pop();
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
}
