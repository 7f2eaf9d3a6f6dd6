//! Validation of a CustomResourceDefinition as a whole.
//!
//! Where all versions agree upstream moves schemas, subresources, columns and selectable fields to the top of the spec
//! before it validates; paths in messages say so.

mod approval;
mod offers;
mod rules;
mod schema;

use super::{Structural, formats};
use crate::names;
use keelson_api::{Cause, Causes, Map, Value};
use std::collections::BTreeSet;

pub use approval::{Approval, approval, approval_reason, is_protected};

/// How a value of one of upstream's internal types, which is named, is shown.
pub type Shown = fn(&str, Option<&Value>) -> String;

/// Everything wrong with a definition; `old` is the definition before an update.
pub fn validate(crd: &Value, old: Option<&Value>, shown: Shown) -> Vec<Cause> {
    let empty = Map::new();
    let spec = crd.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let mut v = Validator {
        out: Causes::default(),
        shown,
    };
    v.spec(spec, old);
    v.stored_versions(crd, spec);
    v.accepted(crd);
    if let Some(old) = old {
        v.unchanged(crd, old);
    } else {
        v.approval(crd, spec);
    }
    v.out.into()
}

/// What is wrong with a definition's status: the names that were accepted.
pub fn validate_status(crd: &Value) -> Vec<Cause> {
    let mut v = Validator {
        out: Causes::default(),
        shown: |_, _| String::new(),
    };
    v.accepted(crd);
    v.out.into()
}

/// What is wrong with the name of a definition besides its form.
pub fn name_errors(crd: &Value, name: &str) -> Vec<String> {
    let of = |path: &[&str]| crd.at(path).and_then(Value::as_str).unwrap_or_default();
    let wanted = format!("{}.{}", of(&["spec", "names", "plural"]), of(&["spec", "group"]));
    match name == wanted {
        true => Vec::new(),
        false => vec!["must be spec.names.plural+\".\"+spec.group".into()],
    }
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
    out: Causes,
    shown: Shown,
}

fn text(s: &str) -> Value {
    Value::from(s)
}

impl Validator {
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
            // The first is the one that older clients see.
            if i == 0 && !name.is_empty() && !errs.is_empty() {
                self.out
                    .push(Cause::invalid("spec.version", &text(name), &errs.join(",")));
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
        let at_top = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];
        let at_top: Vec<&str> = at_top.into_iter().filter(|key| shared(key)).collect();
        let own = |v: &Map| {
            let mut own = v.clone();
            own.retain(|key, _| !at_top.contains(&key));
            Value::Object(own)
        };
        let all = (!list.is_empty()).then(|| Value::Array(list.iter().map(|v| own(v)).collect()));
        let mut refuse = |why: &str| {
            let shown = (self.shown)("[]apiextensions.CustomResourceDefinitionVersion", all.as_ref());
            self.out.push(Cause::invalid_shown("spec.versions", &shown, why));
        };
        if !unique {
            refuse("must contain unique version names");
        }
        if list.iter().filter(|v| v.bool("storage") == Some(true)).count() != 1 {
            refuse("must have exactly one version marked as storage version");
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

    fn accepted(&mut self, crd: &Value) {
        if let Some(names) = crd.at(&["status", "acceptedNames"]).and_then(Value::as_object) {
            self.names(names, "status.acceptedNames");
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
            self.out.push(Cause::invalid(
                at,
                &Value::Null,
                "must have at least one stored version",
            ));
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
        validate(crd, None, |_, _| String::new())
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
        assert_eq!(name_errors(&c, "other"), ["must be spec.names.plural+\".\"+spec.group"]);
        c.set_at(&["spec", "scope"], "Galaxy");
        c.set_at(&["spec", "names", "listKind"], "Tab");
        assert_eq!(
            texts(&c),
            [
                "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
                "spec.names.listKind: Invalid value: \"Tab\": kind and listKind may not be the same",
            ]
        );
        let c = crd(value!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}));
        assert_eq!(
            texts(&c),
            [
                "spec.validation.openAPIV3Schema.properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\""
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
        let got: Vec<String> = validate(&new, Some(&old), |_, _| String::new())
            .into_iter()
            .map(|c| c.field)
            .collect();
        assert_eq!(got, ["status.storedVersions[0]", "spec.names.plural"]);
    }

    #[test]
    fn names_that_were_accepted_are_names() {
        let mut c = crd(value!({"type": "object"}));
        c.set_at(
            &["status", "acceptedNames"],
            value!({"plural": "a b", "kind": "Tab", "listKind": "Tab"}),
        );
        let fields: Vec<String> = validate_status(&c).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["status.acceptedNames.plural", "status.acceptedNames.listKind"]);
    }

    #[test]
    fn a_status_of_its_own_leaves_the_root_to_what_is_said_of_it_there() {
        let told = |schema: Value| {
            let mut c = crd(schema);
            c.at_mut(&["spec", "versions"]).and_then(Value::as_array_mut).unwrap()[0]
                .set_at(&["subresources", "status"], Map::new());
            texts(&c)
        };
        assert_eq!(
            told(value!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object"}}})),
            [""; 0]
        );
        let refused = told(value!({"type": "object", "minProperties": 1}));
        assert!(
            refused.len() == 1 && refused[0].contains("fields are allowed at the root of the schema"),
            "{refused:?}"
        );
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
