//! What decoding does to a custom resource: unknown fields are dropped and reported, nulls where none is allowed are
//! dropped, defaults are filled in.

use super::{Additional, Structural};
use crate::canonical::Path;
use keelson_api::codec::has_room;
use keelson_api::{Map, Value};

fn is_meta(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata")
}

/// Drops fields that the schema doesn't know; gives back their paths (as far as [`has_room`] has it), sorted. The root is
/// a resource.
pub fn prune(object: &mut Value, schema: &Structural) -> Vec<String> {
    let mut p = Pruner {
        path: Path::default(),
        unknown: Vec::new(),
    };
    p.value(object, Some(schema), true);
    p.unknown.sort();
    p.unknown
}

/// Drops unknown fields of a value that is no resource; whether there were any.
pub fn prune_value(v: &mut Value, schema: &Structural) -> bool {
    let mut p = Pruner {
        path: Path::default(),
        unknown: Vec::new(),
    };
    p.value(v, Some(schema), false);
    !p.unknown.is_empty()
}

struct Pruner {
    path: Path,
    unknown: Vec<String>,
}

impl Pruner {
    fn value(&mut self, v: &mut Value, schema: Option<&Structural>, root: bool) {
        match v {
            Value::Object(m) => self.map(m, schema, root),
            Value::Array(a) => {
                let items = schema.and_then(|s| s.items.as_deref());
                // Elements under "preserve unknown" without a schema of their own stay whole.
                let preserved = schema.is_some_and(|s| s.preserve_unknown) && items.is_none();
                if preserved {
                    return;
                }
                for (i, el) in a.iter_mut().enumerate() {
                    self.path.index(i);
                    self.value(el, items, false);
                    self.path.pop();
                }
            }
            _ => {}
        }
    }

    fn map(&mut self, m: &mut Map, schema: Option<&Structural>, root: bool) {
        let preserve = schema.is_some_and(|s| s.preserve_unknown);
        let embedded = root || schema.is_some_and(|s| s.embedded_resource);
        let mut at = std::mem::take(m);
        at.retain(|key, v| {
            if embedded && is_meta(key) {
                return true;
            }
            let property = schema.and_then(|s| s.properties.get(key));
            let additional = schema.and_then(|s| s.additional.as_ref());
            let below = match (property, additional) {
                (Some(p), _) => Some(p),
                (None, Some(Additional::Schema(s))) => Some(&**s),
                // `additionalProperties: true` keeps the key; what is below has no schema.
                (None, Some(Additional::Allowed(true))) => None,
                (None, _) => {
                    if preserve {
                        return true;
                    }
                    if has_room(&self.unknown) {
                        self.unknown.push(self.path.child(key));
                    }
                    return false;
                }
            };
            self.path.key(key);
            if below.is_some() || !preserve {
                self.value(v, below, false);
            }
            self.path.pop();
            true
        });
        *m = at;
    }
}

fn null_not_allowed(v: &Value, schema: Option<&Structural>) -> bool {
    v.is_null() && schema.is_some_and(|s| !s.nullable)
}

/// Drops nulls of properties that allow none and have no default.
pub fn drop_nulls(v: &mut Value, schema: &Structural) {
    match v {
        Value::Object(m) => m.retain(|key, v| {
            let (below, keep_null) = match schema.properties.get(key) {
                Some(p) => (Some(p), p.nullable || p.default.is_some()),
                // Upstream leaves the nulls of unnamed keys for defaulting.
                None => (schema.additional_schema(), true),
            };
            if v.is_null() {
                return keep_null || below.is_none();
            }
            if let Some(below) = below {
                drop_nulls(v, below);
            }
            true
        }),
        Value::Array(a) => {
            if let Some(items) = &schema.items {
                a.iter_mut().for_each(|v| drop_nulls(v, items));
            }
        }
        _ => {}
    }
}

/// Fills in defaults, however deep.
pub fn fill_defaults(v: &mut Value, schema: &Structural) {
    match v {
        Value::Object(m) => {
            for (key, p) in &schema.properties {
                let Some(default) = &p.default else { continue };
                let absent = m.get(key).is_none_or(|v| null_not_allowed(v, Some(p)));
                if absent {
                    m.insert(key.clone(), default.clone());
                }
            }
            for (key, v) in m.iter_mut() {
                let Some(below) = schema.properties.get(key).or(schema.additional_schema()) else {
                    continue;
                };
                if !schema.properties.contains_key(key) && null_not_allowed(v, Some(below)) {
                    *v = below.default.clone().unwrap_or_default();
                }
                fill_defaults(v, below);
            }
        }
        Value::Array(a) => {
            let Some(items) = &schema.items else { return };
            for v in a {
                if null_not_allowed(v, Some(items)) {
                    *v = items.default.clone().unwrap_or_default();
                }
                fill_defaults(v, items);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::codec::MOST_FINDINGS;
    use keelson_api::value;

    fn schema() -> Structural {
        Structural::parse(
            &value!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "a": {"type": "string", "default": "A"},
                "b": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "known": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
                "c": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string", "default": "K"}}}},
                "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"v": {"type": "integer", "default": 7}}}},
                "n": {"type": "string", "nullable": true, "default": "N"},
                "o": {"type": "string"},
                "e": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}
            }}}}),
        )
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let mut v = value!({"apiVersion": "x/v1", "kind": "K", "metadata": {"name": "n"}, "zip": 1, "spec": {
            "a": "x", "zap": {"deep": 1},
            "b": {"anything": {"goes": 1}, "known": {"x": 1, "y": 2}},
            "c": [{"k": "1"}, {"k": "2", "z": 1}],
            "m": {"q": {"v": 1, "w": 2}},
            "e": {"apiVersion": "v1", "kind": "P", "metadata": {"q": 1}, "spec": {"no": 1}, "other": 1}
        }});
        let unknown = prune(&mut v, &schema());
        assert_eq!(
            unknown,
            [
                "spec.b.known.y",
                "spec.c[1].z",
                "spec.e.other",
                "spec.e.spec.no",
                "spec.m.q.w",
                "spec.zap",
                "zip"
            ]
        );
        assert_eq!(
            v,
            value!({"apiVersion": "x/v1", "kind": "K", "metadata": {"name": "n"}, "spec": {
                "a": "x", "b": {"anything": {"goes": 1}, "known": {"x": 1}}, "c": [{"k": "1"}, {"k": "2"}],
                "m": {"q": {"v": 1}}, "e": {"apiVersion": "v1", "kind": "P", "metadata": {"q": 1}, "spec": {}}}})
        );
    }

    #[test]
    fn not_every_unknown_field_is_named() {
        let zip = |i: usize| (format!("zip{i}"), 1i64);
        let mut v = Value::Object((0..1000).map(zip).collect());
        assert_eq!(prune(&mut v, &schema()).len(), MOST_FINDINGS);
        assert_eq!(v, value!({}));
        let long = |i: usize| (format!("{i}{}", "x".repeat(1 << 18)), 1i64);
        let mut v = Value::Object((0..9).map(long).collect());
        assert_eq!(prune(&mut v, &schema()).len(), 4);
        assert_eq!(v, value!({}));
    }

    #[test]
    fn defaults_fill_nested_places_and_nulls() {
        let mut v = value!({"spec": {"a": null, "c": [{}, {"k": "x"}], "m": {"q": {}}, "n": null, "o": null}});
        drop_nulls(&mut v, &schema());
        fill_defaults(&mut v, &schema());
        assert_eq!(
            v,
            value!({"spec": {"a": "A", "c": [{"k": "K"}, {"k": "x"}], "m": {"q": {"v": 7}}, "n": null}})
        );
        let mut v = value!({});
        fill_defaults(&mut v, &schema());
        assert_eq!(v, value!({}));
    }
}
