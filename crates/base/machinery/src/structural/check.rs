//! Whether a schema is structural: what the `NonStructuralSchema` condition says, and what creation refuses.

use super::{Additional, Structural};
use keelson_api::{Cause, Causes, Value};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Whether a schema has what can't be expressed structurally at all.
pub fn is_unreadable(schema: &Value) -> bool {
    FORBIDDEN.iter().any(|key| find_forbidden(schema, key).is_some())
}

const FORBIDDEN: [&str; 7] = [
    "$ref",
    "$schema",
    "id",
    "patternProperties",
    "dependencies",
    "additionalItems",
    "definitions",
];

/// Violations of structurality of an `openAPIV3Schema`, sorted by their text.
pub fn violations(schema: &Value, path: &str) -> Vec<Cause> {
    let mut c = Checker { out: Causes::default() };
    for key in FORBIDDEN {
        // These can't be expressed structurally at all; upstream reports them as one error of the whole schema.
        if let Some(found) = find_forbidden(schema, key) {
            let shown = if key == "$schema" { "schema" } else { key };
            return vec![Cause::invalid(
                path,
                &Value::from(found),
                &format!("OpenAPIV3Schema '{shown}' is not supported"),
            )];
        }
    }
    let s = Structural::parse(schema);
    c.node(&s, Level::Root, path);
    c.complete_checks(&s, Some(&s), path, path);
    let mut told: Vec<Cause> = c.out.into();
    told.sort_by_key(|c| format!("{}: {}", c.field, c.message));
    told
}

fn find_forbidden(schema: &Value, key: &str) -> Option<&'static str> {
    let m = schema.as_object()?;
    if m.contains_key(key) {
        return Some("");
    }
    let below = |v: &Value| find_forbidden(v, key);
    let in_map = |k: &str| m.obj(k).and_then(|p| p.values().find_map(below));
    let in_list = |k: &str| m.arr(k).and_then(|p| p.iter().find_map(below));
    in_map("properties")
        .or_else(|| m.get("items").and_then(below))
        .or_else(|| m.get("additionalProperties").and_then(below))
        .or_else(|| m.get("not").and_then(below))
        .or_else(|| ["allOf", "anyOf", "oneOf"].into_iter().find_map(in_list))
}

struct Checker {
    out: Causes,
}

fn sub(path: &str, key: &str) -> String {
    format!("{path}.{key}")
}

fn is_int_or_string(alternatives: &[Structural]) -> bool {
    let plain = |s: &Structural, ty: &str| {
        s.ty == ty && !s.nullable && s.properties.is_empty() && s.items.is_none() && s.checks.required.is_empty()
    };
    matches!(alternatives, [a, b] if plain(a, "integer") && plain(b, "string"))
}

impl Checker {
    fn node(&mut self, s: &Structural, level: Level, path: &str) {
        if s.ty == "array" && s.items.is_none() {
            self.out.push(Cause::required(sub(path, "items"), "must be specified"));
        }
        if let Some(items) = &s.items {
            self.node(items, Level::Item, &sub(path, "items"));
        }
        for (key, p) in &s.properties {
            self.node(p, Level::Field, &format!("{path}.properties[{key}]"));
        }
        if let Some(additional) = &s.additional {
            if level == Level::Root {
                self.out.push(Cause::forbidden(
                    sub(path, "additionalProperties"),
                    "must not be used at the root",
                ));
            }
            if let Additional::Schema(p) = additional {
                self.node(p, Level::Field, &sub(path, "additionalProperties"));
            }
        }
        self.extensions(s, path);
        let any = is_int_or_string(&s.checks.any_of);
        let first = s
            .checks
            .all_of
            .first()
            .is_some_and(|a| is_int_or_string(&a.checks.any_of));
        self.nested_checks(s, any && s.int_or_string, first && s.int_or_string, path);
        self.kind(s, level, path);
        self.metadata(s, level, path);
    }

    fn extensions(&mut self, s: &Structural, path: &str) {
        let why = "must be false if x-kubernetes-int-or-string is true";
        let mut refuse = |set: bool, name: &str| {
            if s.int_or_string && set {
                self.out.push(Cause::invalid(sub(path, name), &Value::Bool(true), why));
            }
        };
        refuse(s.preserve_unknown, "x-kubernetes-preserve-unknown-fields");
        refuse(s.embedded_resource, "x-kubernetes-embedded-resource");
    }

    fn kind(&mut self, s: &Structural, level: Level, path: &str) {
        let at = sub(path, "type");
        if s.embedded_resource && s.ty != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            self.out.push(if s.ty.is_empty() {
                Cause::required(at, why)
            } else {
                Cause::invalid(at, &Value::String(s.ty.clone()), why)
            });
        } else if s.ty.is_empty() && !s.int_or_string && !s.preserve_unknown {
            let why = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            };
            self.out.push(Cause::required(at, why));
        }
        if s.embedded_resource && s.additional.is_some() {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            self.out.push(Cause::forbidden(sub(path, "additionalProperties"), why));
        }
        if level == Level::Root && !s.ty.is_empty() && s.ty != "object" {
            self.out.push(Cause::invalid(
                sub(path, "type"),
                &Value::String(s.ty.clone()),
                "must be object at the root",
            ));
        }
    }

    fn metadata(&mut self, s: &Structural, level: Level, path: &str) {
        let resource = level == Level::Root || s.embedded_resource;
        let mut must_be = |key: &str, ty: &str| {
            if let Some(p) = s.properties.get(key).filter(|p| resource && p.ty != ty) {
                let at = format!("{path}.properties[{key}].type");
                self.out.push(Cause::invalid(
                    at,
                    &Value::String(p.ty.clone()),
                    &format!("must be {ty}"),
                ));
            }
        };
        must_be("kind", "string");
        must_be("apiVersion", "string");
        must_be("metadata", "object");
        if let Some(p) = s.properties.get("metadata").filter(|_| level == Level::Root) {
            let only_names = p.properties.keys().all(|k| k == "name" || k == "generateName");
            let bare = p.items.is_none()
                && p.additional.is_none()
                && p.title.is_empty()
                && p.description.is_empty()
                && !p.nullable
                && !p.preserve_unknown
                && !p.embedded_resource
                && p.checks.required.is_empty();
            if !(only_names && bare) {
                let why =
                    "must not specify anything other than name and generateName, but metadata is implicitly specified";
                self.out
                    .push(Cause::forbidden(format!("{path}.properties[metadata]"), why));
            }
        }
        if s.embedded_resource && !s.preserve_unknown && s.properties.is_empty() {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            self.out.push(Cause::required(sub(path, "properties"), why));
        }
    }

    fn nested_checks(&mut self, s: &Structural, skip_any: bool, skip_first_all: bool, path: &str) {
        let c = &s.checks;
        if !skip_any {
            for (i, n) in c.any_of.iter().enumerate() {
                self.nested(n, false, &format!("{path}.anyOf[{i}]"));
            }
        }
        for (i, n) in c.all_of.iter().enumerate() {
            self.nested(n, skip_first_all && i == 0, &format!("{path}.allOf[{i}]"));
        }
        for (i, n) in c.one_of.iter().enumerate() {
            self.nested(n, false, &format!("{path}.oneOf[{i}]"));
        }
        if let Some(n) = &c.not {
            self.nested(n, false, &sub(path, "not"));
        }
        if !c.pattern.is_empty()
            && let Err(e) = regex::Regex::new(&c.pattern)
        {
            let why = format!("must be a valid regular expression, but isn't: {e}");
            self.out.push(Cause::invalid(
                sub(path, "pattern"),
                &Value::String(c.pattern.clone()),
                &why,
            ));
        }
    }

    /// What may not stand inside logical parts.
    fn nested(&mut self, s: &Structural, skip_any: bool, path: &str) {
        self.nested_checks(s, skip_any, false, path);
        if let Some(items) = &s.items {
            self.nested(items, false, &sub(path, "items"));
        }
        for (key, p) in &s.properties {
            self.nested(p, false, &format!("{path}.properties[{key}]"));
        }
        let mut refuse = |bad: bool, key: &str, why: &str| {
            if bad {
                self.out
                    .push(Cause::forbidden(sub(path, key), &format!("{why} to be structural")));
            }
        };
        refuse(!s.ty.is_empty(), "type", "must be empty");
        refuse(s.additional.is_some(), "additionalProperties", "must be undefined");
        refuse(s.default.is_some(), "default", "must be undefined");
        refuse(!s.title.is_empty(), "title", "must be empty");
        refuse(!s.description.is_empty(), "description", "must be empty");
        refuse(s.nullable, "nullable", "must be false");
        refuse(
            s.preserve_unknown,
            "x-kubernetes-preserve-unknown-fields",
            "must be false",
        );
        refuse(s.embedded_resource, "x-kubernetes-embedded-resource", "must be false");
        refuse(s.int_or_string, "x-kubernetes-int-or-string", "must be false");
        refuse(
            !s.list_map_keys.is_empty(),
            "x-kubernetes-list-map-keys",
            "must be empty",
        );
        refuse(!s.list_type.is_empty(), "x-kubernetes-list-type", "must be undefined");
        refuse(!s.map_type.is_empty(), "x-kubernetes-map-type", "must be undefined");
        refuse(!s.rules.is_empty(), "x-kubernetes-validations", "must be empty");
        if s.properties.contains_key("metadata") {
            let at = format!("{path}.properties[metadata]");
            self.out
                .push(Cause::forbidden(at, "must not be specified in a nested context"));
        }
    }

    /// Everything the logical parts speak of must be declared outside of them.
    fn complete_checks(&mut self, v: &Structural, s: Option<&Structural>, at: &str, from: &str) {
        let c = &v.checks;
        if let Some(n) = &c.not {
            self.complete(n, s, at, &sub(from, "not"));
        }
        for (key, list) in [("allOf", &c.all_of), ("anyOf", &c.any_of), ("oneOf", &c.one_of)] {
            for (i, n) in list.iter().enumerate() {
                self.complete(n, s, at, &format!("{from}.{key}[{i}]"));
            }
        }
    }

    fn complete(&mut self, v: &Structural, s: Option<&Structural>, at: &str, from: &str) {
        let Some(s) = s else {
            self.out
                .push(Cause::required(at, &format!("because it is defined in {from}")));
            return;
        };
        self.complete_checks(v, Some(s), at, from);
        if let Some(items) = &v.items {
            self.complete(items, s.items.as_deref(), &sub(at, "items"), &sub(from, "items"));
        }
        for (key, p) in &v.properties {
            let (at, from) = (format!("{at}.properties[{key}]"), format!("{from}.properties[{key}]"));
            self.complete(p, s.properties.get(key), &at, &from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn texts(schema: Value) -> Vec<String> {
        violations(&schema, "spec.versions[0].schema.openAPIV3Schema")
            .into_iter()
            .map(|c| {
                format!(
                    "{}: {}",
                    c.field.replace("spec.versions[0].schema.openAPIV3Schema", "S"),
                    c.message
                )
            })
            .collect()
    }

    #[test]
    fn structural_schemas_pass() {
        assert!(
            texts(value!({"type": "object", "properties": {
                "metadata": {"type": "object", "properties": {"name": {"type": "string", "pattern": "^a"}}},
                "p": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "a": {"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
                "anyOf": [{"properties": {"p": {"minimum": 1}}}]}))
            .is_empty()
        );
    }

    #[test]
    fn violations_are_named() {
        assert_eq!(
            texts(value!({})),
            ["S.type: Required value: must not be empty at the root"]
        );
        assert_eq!(
            texts(
                value!({"type": "object", "properties": {"a": {}, "b": {"type": "array"}, "c": {"type": "object"}},
                "allOf": [{"type": "object", "properties": {"z": {"minimum": 1}}}]})
            ),
            [
                "S.allOf[0].type: Forbidden: must be empty to be structural",
                "S.properties[a].type: Required value: must not be empty for specified object fields",
                "S.properties[b].items: Required value: must be specified",
                "S.properties[z]: Required value: because it is defined in spec.versions[0].schema.openAPIV3Schema.allOf[0].properties[z]",
            ]
        );
        assert_eq!(
            texts(
                value!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}})
            ),
            [
                "S.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified"
            ]
        );
        assert_eq!(
            texts(value!({"type": "object", "properties": {"a": {"$ref": "x"}}})),
            ["S: Invalid value: \"\": OpenAPIV3Schema '$ref' is not supported"]
        );
    }
}
