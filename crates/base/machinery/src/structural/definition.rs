//! Validation of a CustomResourceDefinition as a whole.
//!
//! Where all versions agree upstream moves schemas, subresources, columns and selectable fields to the top of the spec
//! before it validates; paths in messages say so.

use super::{Structural, check, formats, prune, validate};
use crate::cel::rules;
use crate::names;
use keelson_api::{Cause, Map, Value};
use std::collections::BTreeSet;

/// Everything wrong with a definition; `old` is the definition before an update.
pub fn validate(crd: &Value, old: Option<&Value>) -> Vec<Cause> {
    let empty = Map::new();
    let spec = crd.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let mut v = Validator { out: Vec::new() };
    v.name(crd, spec);
    v.spec(spec, old);
    v.stored_versions(crd, spec);
    if let Some(old) = old {
        v.unchanged(crd, old);
    } else {
        v.approval(crd, spec);
    }
    v.out
}

/// Warnings about a definition: formats nobody checks.
pub fn warnings(crd: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(unknown_formats).unwrap_or_default();
    unknown_formats(crd)
        .into_iter()
        .filter(|f| !before.contains(f))
        .map(|f| format!("unrecognized format {}", crate::go::go_quote(&f)))
        .collect()
}

fn unknown_formats(crd: &Value) -> BTreeSet<String> {
    fn walk(s: &Structural, out: &mut BTreeSet<String>) {
        let format = s.checks.format.as_str();
        let known = match s.ty.as_str() {
            "" | "string" => formats::is_supported(format),
            "integer" => matches!(format, "int32" | "int64"),
            "number" => matches!(format, "float" | "double"),
            _ => false,
        };
        if !format.is_empty() && !known {
            out.insert(format.to_string());
        }
        s.properties.values().for_each(|p| walk(p, out));
        s.items.iter().for_each(|p| walk(p, out));
        s.additional_schema().into_iter().for_each(|p| walk(p, out));
    }
    let mut out = BTreeSet::new();
    for v in versions(crd.get("spec").and_then(Value::as_object)) {
        if let Some(s) = schema(v) {
            walk(&Structural::parse(s), &mut out);
        }
    }
    out
}

fn versions(spec: Option<&Map>) -> impl Iterator<Item = &Map> {
    spec.and_then(|s| s.arr("versions"))
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
}

fn schema(version: &Map) -> Option<&Value> {
    version
        .get("schema")?
        .get("openAPIV3Schema")
        .filter(|s| s.as_object().is_some())
}

struct Validator {
    out: Vec<Cause>,
}

fn text(s: &str) -> Value {
    Value::from(s)
}

impl Validator {
    fn name(&mut self, crd: &Value, spec: &Map) {
        let name = crd
            .at(&["metadata", "name"])
            .and_then(Value::as_str)
            .unwrap_or_default();
        let plural = spec
            .get("names")
            .and_then(|n| n.get("plural"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        let required = format!("{plural}.{}", spec.str("group").unwrap_or_default());
        if name != required {
            let why = "must be spec.names.plural+\".\"+spec.group";
            self.out.push(Cause::invalid("metadata.name", &text(name), why));
        }
    }

    fn spec(&mut self, spec: &Map, old: Option<&Value>) {
        let group = spec.str("group").unwrap_or_default();
        let errs = names::dns1123_subdomain(group);
        if group.is_empty() {
            self.out.push(Cause::required("spec.group", ""));
        } else if !errs.is_empty() {
            self.out
                .push(Cause::invalid("spec.group", &text(group), &errs.join(",")));
        } else if !group.contains('.') {
            self.out.push(Cause::invalid(
                "spec.group",
                &text(group),
                "should be a domain with at least one dot",
            ));
        }
        self.one_of(
            "spec.scope",
            spec.str("scope").unwrap_or_default(),
            &["Cluster", "Namespaced"],
        );
        let preserve = spec.bool("preserveUnknownFields").unwrap_or(false);
        if preserve && old.is_none_or(|o| o.at(&["spec", "preserveUnknownFields"]) != Some(&Value::Bool(true))) {
            let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
            self.out
                .push(Cause::invalid("spec.preserveUnknownFields", &Value::Bool(true), why));
        }
        self.versions(spec, old);
        let empty = Map::new();
        let names = spec.obj("names").unwrap_or(&empty);
        for key in ["plural", "singular", "kind", "listKind"] {
            if names.str(key).unwrap_or_default().is_empty() {
                self.out.push(Cause::required(format!("spec.names.{key}"), ""));
            }
        }
        self.names(names, "spec.names");
        if let Some(c) = spec.obj("conversion") {
            self.conversion(c);
        }
    }

    fn one_of(&mut self, path: &str, value: &str, accepted: &[&str]) {
        if value.is_empty() {
            self.out.push(Cause::required(path, ""));
        } else if !accepted.contains(&value) {
            self.out.push(Cause::not_supported(path, &text(value), accepted));
        }
    }

    fn versions(&mut self, spec: &Map, old: Option<&Value>) {
        let list: Vec<&Map> = versions(Some(spec)).collect();
        let shared = |key: &str| list.windows(2).all(|w| w[0].get(key) == w[1].get(key));
        let mut seen = BTreeSet::new();
        let mut unique = true;
        for (i, v) in list.iter().enumerate() {
            let at = format!("spec.versions[{i}]");
            let name = v.str("name").unwrap_or_default();
            unique &= seen.insert(name);
            let errs = names::dns1035_label(name);
            if !errs.is_empty() {
                self.out
                    .push(Cause::invalid(format!("{at}.name"), &text(name), &errs.join(",")));
            }
            self.deprecation(v, &at);
            if schema(v).is_none() {
                self.out
                    .push(Cause::required(format!("{at}.schema.openAPIV3Schema"), ""));
            }
            let path = |key: &str, shared_key: &str| {
                if shared(key) {
                    format!("spec.{shared_key}")
                } else {
                    format!("{at}.{key}")
                }
            };
            if let Some(s) = schema(v).filter(|_| i == 0 || !shared("schema")) {
                let before = old.and_then(|o| {
                    versions(o.get("spec").and_then(Value::as_object)).find(|v| v.str("name") == Some(name))
                });
                let unchanged = before.and_then(schema) == Some(s);
                let status = v.get("subresources").and_then(|s| s.get("status")).is_some();
                self.schema(
                    s,
                    &format!("{}.openAPIV3Schema", path("schema", "validation")),
                    status,
                    unchanged,
                );
            }
            if i > 0 && shared("subresources") && shared("additionalPrinterColumns") && shared("selectableFields") {
                continue;
            }
            self.subresources(v, &path("subresources", "subresources"));
            self.columns(v, &path("additionalPrinterColumns", "additionalPrinterColumns"));
            self.selectable(v, &path("selectableFields", "selectableFields"));
        }
        let shown = || Value::Array(list.iter().map(|v| Value::Object((*v).clone())).collect());
        if !unique {
            self.out.push(Cause::invalid(
                "spec.versions",
                &shown(),
                "must contain unique version names",
            ));
        }
        if list.iter().filter(|v| v.bool("storage") == Some(true)).count() != 1 {
            let why = "must have exactly one version marked as storage version";
            self.out.push(Cause::invalid("spec.versions", &shown(), why));
        }
    }

    fn deprecation(&mut self, v: &Map, at: &str) {
        let Some(warning) = v.str("deprecationWarning") else {
            return;
        };
        let mut refuse = |why: &str| {
            self.out
                .push(Cause::invalid(format!("{at}.deprecationWarning"), &text(warning), why));
        };
        if v.bool("deprecated") != Some(true) {
            refuse("can only be set for deprecated versions");
        } else if warning.len() > 256 {
            refuse("must be <= 256 characters long");
        } else if warning.is_empty() {
            refuse("must not be an empty string");
        } else if warning.chars().any(char::is_control) {
            refuse("must only contain printable UTF-8 characters");
        }
    }

    fn schema(&mut self, s: &Value, path: &str, status: bool, unchanged: bool) {
        if s.get("nullable").and_then(Value::as_bool) == Some(true) {
            self.out.push(Cause::forbidden(
                format!("{path}.nullable"),
                "nullable cannot be true at the root",
            ));
        }
        if status && s.get("type").and_then(Value::as_str).is_some_and(|t| t != "object") {
            let why =
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            self.out.push(Cause::invalid(
                format!("{path}.type"),
                s.get("type").unwrap_or(&Value::Null),
                why,
            ));
        }
        let parsed = Structural::parse(s);
        let before = self.out.len();
        self.node(s, path);
        let violations = check::violations(s, path);
        self.out.extend(violations);
        if self.out.len() > before {
            return;
        }
        self.defaults(&parsed, path);
        if !unchanged {
            self.out.extend(rules::check(&parsed, path));
        }
    }

    /// What each node of a schema may say.
    fn node(&mut self, s: &Value, path: &str) {
        let Some(m) = s.as_object() else { return };
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
        let additional = m.get("additionalProperties").filter(|a| **a != Value::Bool(false));
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
                    &["atomic", "map", "set"],
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
        let required: Vec<&str> = items
            .arr("required")
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for key in keys {
            let property = items.obj("properties").and_then(|p| p.get(key));
            let Some(property) = property else {
                let value = Value::Array(vec![text(key)]);
                self.out.push(Cause::invalid(
                    at_keys.clone(),
                    &value,
                    "entries must all be names of item properties",
                ));
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
            self.out.extend(validate::validate_value(&filled, s, &at));
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

    fn subresources(&mut self, v: &Map, path: &str) {
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
            self.simple_path(&at, value);
            if !value.starts_with(under) {
                let why = format!("should be a json path under {}", under.trim_end_matches('.'));
                self.out.push(Cause::invalid(at, &text(value), &why));
            }
        }
        if let Some(value) = scale.str("labelSelectorPath").filter(|s| !s.is_empty()) {
            let at = format!("{path}.scale.labelSelectorPath");
            self.simple_path(&at, value);
            if !value.starts_with(".spec.") && !value.starts_with(".status.") {
                self.out.push(Cause::invalid(
                    at,
                    &text(value),
                    "should be a json path under either .spec or .status",
                ));
            }
        }
    }

    fn simple_path(&mut self, at: &str, value: &str) {
        if value.contains('[') {
            self.out.push(Cause::invalid(
                at,
                &text(value),
                "must be a json path in the dot notation",
            ));
        } else if !value.starts_with('.') {
            self.out.push(Cause::invalid(
                at,
                &text(value),
                "must be a simple json path starting with .",
            ));
        }
    }

    fn columns(&mut self, v: &Map, path: &str) {
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
            if get("jsonPath").is_empty() {
                self.out.push(Cause::required(format!("{at}.JSONPath"), ""));
            }
        }
    }

    fn selectable(&mut self, v: &Map, path: &str) {
        let parsed = schema(v).map(Structural::parse);
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
                .and_then(|fields| fields.iter().try_fold(parsed.as_ref()?, |s, f| s.properties.get(*f)));
            match (fields.as_ref().and_then(|f| f.first().copied()), found) {
                (Some("metadata"), _) => self.out.push(refuse("must not point to fields in metadata")),
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

    fn names(&mut self, names: &Map, path: &str) {
        let label = |v: &str| names::dns1035_label(v);
        for key in ["plural", "singular"] {
            let v = names.str(key).unwrap_or_default();
            let errs = label(v);
            if !v.is_empty() && !errs.is_empty() {
                self.out
                    .push(Cause::invalid(format!("{path}.{key}"), &text(v), &errs.join(",")));
            }
        }
        for key in ["kind", "listKind"] {
            let v = names.str(key).unwrap_or_default();
            let errs = label(&v.to_lowercase());
            if !v.is_empty() && !errs.is_empty() {
                let why = format!("may have mixed case, but should otherwise match: {}", errs.join(","));
                self.out.push(Cause::invalid(format!("{path}.{key}"), &text(v), &why));
            }
        }
        let kind = names.str("kind").unwrap_or_default();
        if !kind.is_empty() && names.str("listKind") == Some(kind) {
            let why = "kind and listKind may not be the same";
            self.out
                .push(Cause::invalid(format!("{path}.listKind"), &text(kind), why));
        }
        for key in ["shortNames", "categories"] {
            for (i, v) in names.arr(key).into_iter().flatten().enumerate() {
                let errs = label(v.as_str().unwrap_or_default());
                if !errs.is_empty() {
                    self.out
                        .push(Cause::invalid(format!("{path}.{key}[{i}]"), v, &errs.join(",")));
                }
            }
        }
    }

    fn conversion(&mut self, c: &Map) {
        let at = "spec.conversion";
        let strategy = c.str("strategy").unwrap_or_default();
        self.one_of(&format!("{at}.strategy"), strategy, &["None", "Webhook"]);
        let webhook = c.obj("webhook");
        if strategy != "Webhook" {
            if webhook.is_some_and(|w| w.get("clientConfig").is_some()) {
                let why = "should not be set when strategy is not set to Webhook";
                self.out
                    .push(Cause::forbidden(format!("{at}.webhookClientConfig"), why));
            }
            return;
        }
        let Some(client) = webhook.and_then(|w| w.obj("clientConfig")) else {
            let why = "required when strategy is set to Webhook";
            self.out.push(Cause::required(format!("{at}.webhookClientConfig"), why));
            return;
        };
        if client.get("url").is_some() == client.get("service").is_some() {
            let why = "exactly one of url or service is required";
            self.out.push(Cause::required(format!("{at}.webhookClientConfig"), why));
        }
        let reviews: Vec<&Value> = webhook
            .and_then(|w| w.arr("conversionReviewVersions"))
            .into_iter()
            .flatten()
            .collect();
        if reviews.is_empty() {
            self.out
                .push(Cause::required(format!("{at}.conversionReviewVersions"), ""));
        } else if !reviews.iter().any(|v| matches!(v.as_str(), Some("v1" | "v1beta1"))) {
            let value = Value::Array(reviews.into_iter().cloned().collect());
            let why = "must include at least one of v1, v1beta1";
            self.out
                .push(Cause::invalid(format!("{at}.conversionReviewVersions"), &value, why));
        }
    }

    fn stored_versions(&mut self, crd: &Value, spec: &Map) {
        let at = "status.storedVersions";
        let stored: Vec<&str> = crd
            .at(&["status", "storedVersions"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let shown = || Value::Array(stored.iter().map(|s| text(s)).collect());
        if stored.is_empty() {
            self.out
                .push(Cause::invalid(at, &shown(), "must have at least one stored version"));
            return;
        }
        let names: Vec<&str> = versions(Some(spec)).filter_map(|v| v.str("name")).collect();
        for v in versions(Some(spec))
            .filter(|v| v.bool("storage") == Some(true))
            .filter_map(|v| v.str("name"))
        {
            if !stored.contains(&v) {
                self.out.push(Cause::invalid(
                    at,
                    &shown(),
                    &format!("must have the storage version {v}"),
                ));
            }
        }
        for (i, v) in stored.iter().enumerate().filter(|(_, v)| !names.contains(v)) {
            let why = format!(
                "missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {v} and removes {v} from status.storedVersions"
            );
            self.out.push(Cause::invalid(format!("{at}[{i}]"), &text(v), &why));
        }
    }

    fn unchanged(&mut self, crd: &Value, old: &Value) {
        let established = old
            .at(&["status", "conditions"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .any(|c| {
                c.get("type").and_then(Value::as_str) == Some("Established")
                    && c.get("status").and_then(Value::as_str) == Some("True")
            });
        let mut fixed = vec![vec!["spec", "group"], vec!["spec", "names", "plural"]];
        if established {
            fixed.extend([vec!["spec", "scope"], vec!["spec", "names", "kind"]]);
        }
        for path in fixed {
            if crd.at(&path) != old.at(&path) {
                let value = crd.at(&path).cloned().unwrap_or_default();
                self.out
                    .push(Cause::invalid(path.join("."), &value, "field is immutable"));
            }
        }
    }

    /// Groups of the community's own need an approval.
    fn approval(&mut self, crd: &Value, spec: &Map) {
        let group = spec.str("group").unwrap_or_default();
        if !is_protected(group) {
            return;
        }
        const KEY: &str = "api-approved.kubernetes.io";
        let annotation = crd.at(&["metadata", "annotations", KEY]).and_then(Value::as_str);
        let at = format!("metadata.annotations[{KEY}]");
        match approval(annotation) {
            Approval::Missing => self.out.push(Cause::required(at, &approval_reason(annotation))),
            Approval::Invalid => {
                self.out.push(Cause::invalid(
                    at,
                    &text(annotation.unwrap_or_default()),
                    &approval_reason(annotation),
                ));
            }
            Approval::Approved | Approval::Bypassed => {}
        }
    }
}

/// What the approval annotation of a definition in a protected group says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Missing,
    Invalid,
    Bypassed,
    Approved,
}

/// Whether a group belongs to the Kubernetes community.
pub fn is_protected(group: &str) -> bool {
    let under = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    under("k8s.io") || under("kubernetes.io")
}

pub fn approval(annotation: Option<&str>) -> Approval {
    match annotation {
        None | Some("") => Approval::Missing,
        Some(a) if a.starts_with("unapproved") => Approval::Bypassed,
        Some(a) => {
            let url = a.strip_prefix("https://").or(a.strip_prefix("http://"));
            if url.is_some_and(|u| !u.split('/').next().unwrap_or_default().is_empty()) {
                Approval::Approved
            } else {
                Approval::Invalid
            }
        }
    }
}

/// The words for an approval's state.
pub fn approval_reason(annotation: Option<&str>) -> String {
    const KEY: &str = "api-approved.kubernetes.io";
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let a = annotation.unwrap_or_default();
    match approval(annotation) {
        Approval::Missing => {
            format!("protected groups must have approval annotation \"{KEY}\", {SEE}")
        }
        Approval::Invalid => {
            format!(
                "protected groups must have approval annotation \"{KEY}\" with either a URL or a reason starting with \"unapproved\", {SEE}"
            )
        }
        Approval::Bypassed => format!("not approved: {}", crate::go::go_quote(a)),
        Approval::Approved => format!("approved in {a}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn crd(schema: Value) -> Value {
        value!({"metadata": {"name": "tabs.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            "conversion": {"strategy": "None"}}, "status": {"storedVersions": ["v1"]}})
    }
    fn texts(crd: &Value) -> Vec<String> {
        validate(crd, None)
            .into_iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn a_good_definition_passes() {
        assert_eq!(
            texts(&crd(
                value!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}}}})
            )),
            Vec::<String>::new()
        );
    }

    #[test]
    fn bad_ones_are_told_why() {
        let object = value!({"type": "object"});
        let mut c = crd(object.clone());
        c.set_at(&["metadata", "name"], "other");
        c.set_at(&["spec", "scope"], "Galaxy");
        c.set_at(&["spec", "names", "listKind"], "Tab");
        assert_eq!(
            texts(&c),
            [
                "metadata.name: Invalid value: \"other\": must be spec.names.plural+\".\"+spec.group",
                "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
                "spec.names.listKind: Invalid value: \"Tab\": kind and listKind may not be the same",
            ]
        );
        let c = crd(value!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}));
        assert_eq!(
            texts(&c),
            [
                "spec.validation.openAPIV3Schema.properties[a].default: Invalid value: \"string\": spec.validation.openAPIV3Schema.properties[a].default in body must be of type integer: \"string\""
            ]
        );
        let c = crd(value!({"type": "object", "properties": {"a": {}}}));
        assert_eq!(
            texts(&c),
            [
                "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields"
            ]
        );
        let c = crd(value!({"type": "object", "x-kubernetes-validations": [{"rule": "self.z == 1"}]}));
        assert!(texts(&c)[0].contains("undefined field 'z'"));
    }

    #[test]
    fn what_is_stored_stays_listed_and_names_stay() {
        let old = crd(value!({"type": "object"}));
        let mut new = old.clone();
        new.set_at(
            &["status", "storedVersions"],
            vec![Value::from("v0"), Value::from("v1")],
        );
        new.set_at(&["spec", "names", "plural"], "tobs");
        let got: Vec<String> = validate(&new, Some(&old)).into_iter().map(|c| c.field).collect();
        assert_eq!(got, ["metadata.name", "status.storedVersions[0]", "spec.names.plural"]);
    }

    #[test]
    fn formats_nobody_knows_are_warned_of() {
        let c = crd(
            value!({"type": "object", "properties": {"a": {"type": "string", "format": "zip"}, "b": {"type": "string", "format": "date"}}}),
        );
        assert_eq!(warnings(&c, None), ["unrecognized format \"zip\""]);
        assert!(warnings(&c, Some(&c)).is_empty());
    }
}
