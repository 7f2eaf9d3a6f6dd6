//! The schema of a version: what each node may say, and that its defaults are valid themselves.

use super::{Validator, text};
use crate::cel::rules;
use crate::structural::{Structural, check, prune, validate};
use keelson_api::{Cause, Map, Value};
use std::collections::BTreeSet;

/// What the root of a schema may not say where the status has its own.
const LOST: [&str; 18] = [
    "nullable",
    "default",
    "enum",
    "maxProperties",
    "minProperties",
    "allOf",
    "oneOf",
    "anyOf",
    "not",
    "additionalProperties",
    "patternProperties",
    "dependencies",
    "additionalItems",
    "definitions",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
];
/// What it may, by upstream's names.
const KEPT: [&str; 22] = [
    "Description",
    "Type",
    "Format",
    "Title",
    "Maximum",
    "ExclusiveMaximum",
    "Minimum",
    "ExclusiveMinimum",
    "MaxLength",
    "MinLength",
    "Pattern",
    "MaxItems",
    "MinItems",
    "UniqueItems",
    "MultipleOf",
    "Required",
    "Items",
    "Properties",
    "ExternalDocs",
    "Example",
    "XPreserveUnknownFields",
    "XValidations",
];

impl Validator {
    pub(super) fn schema(&mut self, s: &Value, path: &str, status: bool, unchanged: bool) {
        if s.get("nullable").and_then(Value::as_bool) == Some(true) {
            self.out.push(Cause::forbidden(
                format!("{path}.nullable"),
                "nullable cannot be true at the root",
            ));
        }
        if status {
            self.root_beside_status(s, path);
        }
        let parsed = Structural::parse(s);
        let before = self.out.len();
        self.node(s, path);
        self.rules(&parsed, path);
        // What can't be read structurally isn't looked at any further.
        if self.out.len() > before && check::is_unreadable(s) {
            return;
        }
        let violations = check::violations(s, path);
        match violations.is_empty() {
            true => self.defaults(&parsed, path),
            false => self.out.extend(violations),
        }
        if self.out.len() == before && !unchanged {
            self.out.extend(rules::check(&parsed, path));
        }
    }

    /// Where the status has a schema of its own, which is cut out of this one, the root says only what is not lost so.
    fn root_beside_status(&mut self, s: &Value, path: &str) {
        let is_said = |key: &str| s.get(key).is_some_and(|v| !v.is_null() && v != &Value::Bool(false));
        let refused = |keys: &[&str]| keys.iter().any(|key| is_said(key));
        let ty = s.get("type").and_then(Value::as_str).unwrap_or_default();
        // As upstream goes through the fields, up to the first that is wrong.
        if refused(&["id", "$schema", "$ref"]) || matches!(ty, "" | "object") && refused(&LOST) {
            let why = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                KEPT.join(" ")
            );
            let shown = (self.shown)("apiextensions.JSONSchemaProps", Some(s));
            self.out.push(Cause::invalid_shown(path, &shown, &why));
        } else if !matches!(ty, "" | "object") {
            let why =
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            self.out.push(Cause::invalid(format!("{path}.type"), &text(ty), why));
        }
    }

    /// What each node of a schema may say.
    fn node(&mut self, s: &Value, path: &str) {
        let Some(m) = s.as_object() else { return };
        let has = |key: &str| match m.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Object(o)) => !o.is_empty() || key == "dependencies",
            Some(Value::String(text)) => !text.is_empty() || key == "$ref",
            Some(_) => true,
        };
        for key in [
            "id",
            "additionalItems",
            "patternProperties",
            "definitions",
            "dependencies",
            "$ref",
        ] {
            if has(key) {
                let why = format!("{key} is not supported");
                self.out.push(Cause::forbidden(format!("{path}.{key}"), &why));
            }
        }
        let ty = m.str("type").unwrap_or_default();
        if !matches!(
            ty,
            "" | "object" | "array" | "string" | "integer" | "number" | "boolean"
        ) {
            let types = ["array", "boolean", "integer", "number", "object", "string"];
            self.out
                .push(Cause::not_supported(format!("{path}.type"), &text(ty), &types));
        }
        if m.bool("uniqueItems") == Some(true) {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.out.push(Cause::forbidden(format!("{path}.uniqueItems"), why));
        }
        let properties = m.obj("properties").filter(|p| !p.is_empty());
        let additional = m.get("additionalProperties").filter(|a| **a != Value::Bool(true));
        if additional.is_some() && properties.is_some() {
            let why = "additionalProperties and properties are mutual exclusive";
            self.out
                .push(Cause::forbidden(format!("{path}.additionalProperties"), why));
        }
        if m.get("additionalProperties") == Some(&Value::Bool(false)) {
            let why = "additionalProperties cannot be set to false";
            self.out
                .push(Cause::forbidden(format!("{path}.additionalProperties"), why));
        }
        if m.bool("x-kubernetes-preserve-unknown-fields") == Some(false) {
            let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
            self.out
                .push(Cause::invalid(at, &Value::Bool(false), "must be true or undefined"));
        }
        self.map_type(m, ty, path);
        self.list_type(m, ty, path);
        for (key, p) in properties.into_iter().flatten() {
            self.node(p, &format!("{path}.properties[{key}]"));
        }
        for key in ["items", "additionalProperties", "not"] {
            if let Some(p) = m.get(key) {
                self.node(p, &format!("{path}.{key}"));
            }
        }
        for key in ["allOf", "anyOf", "oneOf"] {
            for (i, p) in m.arr(key).into_iter().flatten().enumerate() {
                self.node(p, &format!("{path}.{key}[{i}]"));
            }
        }
    }

    fn map_type(&mut self, m: &Map, ty: &str, path: &str) {
        let Some(kind) = m.str("x-kubernetes-map-type") else {
            return;
        };
        let why = "must be object if x-kubernetes-map-type is specified";
        match ty {
            "object" => {}
            "" => self.out.push(Cause::required(format!("{path}.type"), why)),
            other => self.out.push(Cause::invalid(format!("{path}.type"), &text(other), why)),
        }
        if !matches!(kind, "atomic" | "granular") {
            let at = format!("{path}.x-kubernetes-map-type");
            self.out
                .push(Cause::not_supported(at, &text(kind), &["atomic", "granular"]));
        }
    }

    fn list_type(&mut self, m: &Map, ty: &str, path: &str) {
        let keys: Vec<&str> = m
            .arr("x-kubernetes-list-map-keys")
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let at_type = format!("{path}.x-kubernetes-list-type");
        let at_keys = format!("{path}.x-kubernetes-list-map-keys");
        let kind = m.str("x-kubernetes-list-type");
        if let Some(kind) = kind {
            let why = "must be array if x-kubernetes-list-type is specified";
            match ty {
                "array" => {}
                "" => self.out.push(Cause::required(format!("{path}.type"), why)),
                other => self.out.push(Cause::invalid(format!("{path}.type"), &text(other), why)),
            }
            if !matches!(kind, "atomic" | "set" | "map") {
                self.out.push(Cause::not_supported(
                    at_type.clone(),
                    &text(kind),
                    &["atomic", "set", "map"],
                ));
            }
        }
        if !keys.is_empty() && kind != Some("map") {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            self.out.push(match kind {
                None => Cause::required(at_type, why),
                Some(k) => Cause::invalid(at_type, &text(k), why),
            });
        }
        if kind != Some("map") {
            return;
        }
        if keys.is_empty() {
            self.out.push(Cause::required(
                at_keys.clone(),
                "must not be empty if x-kubernetes-list-type is map",
            ));
        }
        let Some(items) = m.obj("items") else {
            self.out.push(Cause::required(
                format!("{path}.items"),
                "must have a schema if x-kubernetes-list-type is map",
            ));
            return;
        };
        if items.str("type") != Some("object") {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            let value = text(items.str("type").unwrap_or_default());
            self.out.push(Cause::invalid(format!("{path}.items.type"), &value, why));
        }
        let all_keys = m.get("x-kubernetes-list-map-keys").cloned().unwrap_or_default();
        if items.str("type") == Some("object") {
            let mut seen = BTreeSet::new();
            for _ in keys.iter().filter(|key| !seen.insert(**key)) {
                let why = "must not contain duplicate entries";
                self.out.add(|| Cause::invalid(at_keys.clone(), &all_keys, why));
            }
        }
        let required: Vec<&str> = items
            .arr("required")
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for key in keys {
            let property = items.obj("properties").and_then(|p| p.get(key));
            let Some(property) = property else {
                let why = "entries must all be names of item properties";
                self.out.add(|| Cause::invalid(at_keys.clone(), &all_keys, why));
                continue;
            };
            let at = format!("{path}.items.properties[{key}]");
            if matches!(property.get("type").and_then(Value::as_str), Some("array" | "object")) {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.out
                    .push(Cause::invalid(format!("{at}.type"), &text("object"), why));
            }
            if !required.contains(&key) && property.get("default").is_none() {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.out.push(Cause::required(format!("{at}.default"), why));
            }
            if property.get("nullable").and_then(Value::as_bool) == Some(true) {
                let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.out.push(Cause::forbidden(format!("{at}.nullable"), why));
            }
        }
    }

    /// Defaults must themselves be valid.
    fn defaults(&mut self, s: &Structural, path: &str) {
        if let Some(default) = &s.default {
            let at = format!("{path}.default");
            let mut pruned = default.clone();
            let unknown = prune::prune_value(&mut pruned, s);
            if unknown {
                let why = "must not have unknown fields";
                self.out.push(Cause::invalid(at.clone(), default, why));
            }
            let mut filled = pruned;
            prune::fill_defaults(&mut filled, s);
            // Upstream's words have no path, for the field has it.
            let told = validate::validate_value(&filled, s, "");
            self.out
                .extend(told.into_iter().map(|c| keelson_api::Cause { field: at.clone(), ..c }));
        }
        for (key, p) in &s.properties {
            self.defaults(p, &format!("{path}.properties[{key}]"));
        }
        if let Some(p) = &s.items {
            self.defaults(p, &format!("{path}.items"));
        }
        if let Some(p) = s.additional_schema() {
            self.defaults(p, &format!("{path}.additionalProperties"));
        }
    }
}
