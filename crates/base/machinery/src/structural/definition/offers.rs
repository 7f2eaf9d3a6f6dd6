//! What a version offers beside its schema: subresources, columns, selectable fields.

use super::{Validator, schema, text};
use crate::structural::Structural;
use keelson_api::{Cause, Map, Value};
use std::collections::BTreeSet;

impl Validator {
    pub(super) fn subresources(&mut self, v: &Map, path: &str) {
        let Some(scale) = v
            .get("subresources")
            .and_then(|s| s.get("scale"))
            .and_then(Value::as_object)
        else {
            return;
        };
        for (key, under) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
            let at = format!("{path}.scale.{key}");
            let value = scale.str(key).unwrap_or_default();
            if value.is_empty() {
                self.out.push(Cause::required(at, ""));
                continue;
            }
            if self.simple_path(&at, value) && !value.starts_with(under) {
                let why = format!("should be a json path under {}", under.trim_end_matches('.'));
                self.out.push(Cause::invalid(at, &text(value), &why));
            }
        }
        if let Some(value) = scale.str("labelSelectorPath").filter(|s| !s.is_empty()) {
            let at = format!("{path}.scale.labelSelectorPath");
            let simple = self.simple_path(&at, value);
            if simple && !value.starts_with(".spec.") && !value.starts_with(".status.") {
                self.out.push(Cause::invalid(
                    at,
                    &text(value),
                    "should be a json path under either .spec or .status",
                ));
            }
        }
    }

    /// Tells of a path that isn't one; upstream is content with a dot to begin with.
    fn simple_path(&mut self, at: &str, value: &str) -> bool {
        let simple = value.starts_with('.');
        if !simple {
            let why = "must be a simple json path starting with .";
            self.out.push(Cause::invalid(at, &text(value), why));
        }
        simple
    }

    pub(super) fn columns(&mut self, v: &Map, path: &str) {
        for (i, c) in v.arr("additionalPrinterColumns").into_iter().flatten().enumerate() {
            let Some(c) = c.as_object() else { continue };
            let at = format!("{path}[{i}]");
            let get = |key: &str| c.str(key).unwrap_or_default();
            if get("name").is_empty() {
                self.out.push(Cause::required(format!("{at}.name"), ""));
            }
            let types = "must be one of boolean,date,integer,number,string";
            match get("type") {
                "boolean" | "date" | "integer" | "number" | "string" => {}
                "" => self.out.push(Cause::required(format!("{at}.type"), types)),
                other => self.out.push(Cause::invalid(format!("{at}.type"), &text(other), types)),
            }
            let format = get("format");
            let known = [
                "byte",
                "date",
                "date-time",
                "double",
                "float",
                "int32",
                "int64",
                "password",
            ];
            if !format.is_empty() && !known.contains(&format) {
                let why = format!("must be one of {}", known.join(","));
                self.out
                    .push(Cause::invalid(format!("{at}.format"), &text(format), &why));
            }
            match get("jsonPath") {
                "" => self.out.push(Cause::required(format!("{at}.JSONPath"), "")),
                path => {
                    self.simple_path(&format!("{at}.JSONPath"), path);
                }
            }
        }
    }

    pub(super) fn selectable(&mut self, v: &Map, path: &str) {
        let Some(parsed) = schema(v).map(Structural::parse) else {
            if v.arr("selectableFields").is_some_and(|list| !list.is_empty()) {
                let why = "may only be set when validations.schema is included";
                self.out.push(Cause::invalid(path, &text(""), why));
            }
            return;
        };
        let mut seen = BTreeSet::new();
        for (i, f) in v.arr("selectableFields").into_iter().flatten().enumerate() {
            let at = format!("{path}[{i}].jsonPath");
            let value = f.get("jsonPath").and_then(Value::as_str).unwrap_or_default();
            if value.is_empty() {
                self.out.push(Cause::required(at, ""));
                continue;
            }
            let refuse = |why: &str| Cause::invalid(at.clone(), &text(value), why);
            let fields = value.strip_prefix('.').map(|p| p.split('.').collect::<Vec<_>>());
            let found = fields
                .as_ref()
                .and_then(|fields| fields.iter().try_fold(&parsed, |s, f| s.properties.get(*f)));
            match (fields.as_ref().and_then(|f| f.first().copied()), found) {
                (Some("metadata"), _) => self.out.push(refuse("must not point to fields in metadata")),
                (None, _) => {
                    let word = value.split(['.', '[']).next().unwrap_or_default();
                    self.out
                        .push(refuse(&format!("is an invalid path: expected [ or . but got: {word}")));
                }
                (_, None) => self
                    .out
                    .push(refuse("is an invalid path: does not refer to a valid field")),
                (_, Some(s)) if !matches!(s.ty.as_str(), "string" | "boolean" | "integer") => {
                    self.out.push(refuse(
                        "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                    ));
                }
                _ => {}
            }
            if !seen.insert(value) {
                self.out.push(Cause::duplicate(at, &text(value)));
            }
        }
        if seen.len() > 8 {
            let why = format!("Too many: {}: must have at most 8 items", seen.len());
            self.out.push(Cause::new("FieldValueTooMany", path, why));
        }
    }
}
