//! Validation of a custom resource against its schema: types, limits, formats, logical parts, list types.
//!
//! Messages are those of upstream's validator. On update, what hasn't changed isn't complained about (ratcheting).
//! Rules in CEL are evaluated elsewhere.

use super::{Additional, Checks, Structural, formats};
use crate::apply::fieldpath::equal_values;
use crate::go;
use crate::names;
use keelson_api::codec::json;
use keelson_api::{Cause, Causes, Map, Str, Value};
use std::collections::{BTreeSet, HashMap};

/// Everything wrong with an object; `old` is the object before an update.
pub fn validate(object: &Value, old: Option<&Value>, schema: &Structural) -> Vec<Cause> {
    let mut causes = Causes::default();
    embedded(object, schema, "", true, &mut causes);
    let mut v = Validator::default();
    v.value(object, old, schema, "");
    causes.append(v.causes);
    list_types(object, schema, "", &mut causes);
    causes.into()
}

/// Only types, limits and formats.
pub fn validate_value(v: &Value, schema: &Structural, path: &str) -> Vec<Cause> {
    let mut validator = Validator::default();
    validator.value(v, None, schema, path);
    validator.causes.into()
}

#[derive(Default)]
struct Validator {
    causes: Causes,
    /// How many checks passed: of alternatives that all fail, the one with the most is reported.
    passed: usize,
}

fn child(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_string()
    } else {
        format!("{path}.{key}")
    }
}

fn json_type(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Int(_) => "integer",
        Value::Float(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Validator {
    fn type_error(&mut self, path: &str, want: &str, have: &str) {
        let message = format!("{path} in body must be of type {want}: {}", go::go_quote(have));
        self.causes
            .push(Cause::type_invalid(path, &Value::from(have), &message));
    }
    fn invalid(&mut self, path: &str, v: &Value, what: &str) {
        self.causes
            .push(Cause::invalid(path, v, &format!("{path} in body {what}")));
    }
    /// A complaint that upstream doesn't attach to a field.
    fn composite(&mut self, message: String) {
        self.causes.push(Cause::invalid("<nil>", &Value::from(""), &message));
    }

    fn value(&mut self, v: &Value, old: Option<&Value>, s: &Structural, path: &str) {
        if old.is_some_and(|old| equal_values(old, v)) {
            return;
        }
        let before = self.causes.len();
        let types: &[&str] = if s.int_or_string {
            &["integer", "string"]
        } else {
            std::slice::from_ref(&"")
        };
        let wanted = if s.int_or_string {
            "integer,string".to_string()
        } else {
            s.ty.to_string()
        };
        if v.is_null() {
            if !wanted.is_empty() && !s.nullable {
                self.type_error(path, &wanted, "null");
            }
            return;
        }
        self.kind(v, s, types, &wanted, path);
        if self.causes.len() == before {
            self.passed += 1;
        }
        self.logic(v, old, s, path);
        match v {
            Value::String(text) => self.string(v, text, &s.checks, path),
            Value::Int(_) | Value::Float(_) => self.number(v, &s.checks, path),
            Value::Array(a) => self.array(a, old, s, path),
            Value::Object(m) => self.object(m, old, s, path),
            _ => {}
        }
        if let Some(enums) = &s.checks.enums
            && !enums.iter().any(|e| equal_values(e, v))
        {
            let shown: Vec<String> = enums
                .iter()
                .map(|e| {
                    e.as_str()
                        .map_or_else(|| serde_json::to_string(e).unwrap_or_default(), str::to_string)
                })
                .collect();
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            self.causes.push(Cause::not_supported(path, v, &shown));
        }
    }

    fn kind(&mut self, v: &Value, s: &Structural, types: &[&str], wanted: &str, path: &str) {
        let have = json_type(v);
        let whole = matches!(v, Value::Float(f) if f.fract() == 0.0);
        if wanted.is_empty() {
            return;
        }
        let fits = |t: &str| t == have || (t == "number" && have == "integer") || (t == "integer" && whole);
        let ok = if s.int_or_string {
            types.iter().any(|t| fits(t))
        } else {
            fits(wanted)
        };
        if !ok {
            self.type_error(path, wanted, have);
        }
    }

    fn string(&mut self, v: &Value, text: &str, c: &Checks, path: &str) {
        let length = text.chars().count() as i64;
        if let Some(max) = c.max_length.filter(|max| length > *max) {
            self.causes.push(Cause::too_long(path, max.max(0) as usize));
        }
        if let Some(min) = c.min_length.filter(|min| length < *min) {
            self.invalid(path, v, &format!("should be at least {min} chars long"));
        }
        if let Some(re) = &c.regex
            && !re.is_match(text)
        {
            self.invalid(path, v, &format!("should match '{}'", c.pattern));
        }
        if !c.format.is_empty() && !formats::matches(&c.format, text) {
            let message = format!("{path} in body must be of type {}: {}", c.format, go::go_quote(text));
            self.causes.push(Cause::type_invalid(path, v, &message));
        }
    }

    fn number(&mut self, v: &Value, c: &Checks, path: &str) {
        let n = v.as_f64().unwrap_or(0.0);
        if let Some(of) = c.multiple_of.filter(|of| *of > 0.0 && (n / of).fract() != 0.0) {
            self.invalid(path, v, &format!("should be a multiple of {}", go::go_float(of)));
        }
        if let Some(max) = c.maximum.filter(|max| n > *max || (c.exclusive_maximum && n == *max)) {
            let or = if c.exclusive_maximum {
                "less than"
            } else {
                "less than or equal to"
            };
            self.invalid(path, v, &format!("should be {or} {}", go::go_float(max)));
        }
        if let Some(min) = c.minimum.filter(|min| n < *min || (c.exclusive_minimum && n == *min)) {
            let or = if c.exclusive_minimum {
                "greater than"
            } else {
                "greater than or equal to"
            };
            self.invalid(path, v, &format!("should be {or} {}", go::go_float(min)));
        }
        let in_range = match (c.format.as_str(), v) {
            ("int32", Value::Int(i)) => i32::try_from(*i).is_ok(),
            ("int32" | "int64", Value::Float(f)) => f.abs() < if c.format == "int32" { 2147483648.0 } else { 9.2e18 },
            ("float", _) => n.abs() <= f64::from(f32::MAX),
            _ => true,
        };
        if !in_range {
            let message = format!("Checked value must be of type integer with format {} in body", c.format);
            self.causes.push(Cause::invalid(path, v, &message));
        }
    }

    fn array(&mut self, a: &[Value], old: Option<&Value>, s: &Structural, path: &str) {
        if let Some(items) = &s.items {
            let before = OldItems::of(old, s);
            for (i, v) in a.iter().enumerate() {
                self.value(v, before.get(v), items, &format!("{path}[{i}]"));
            }
        }
        let n = a.len() as i64;
        if let Some(max) = s.checks.max_items.filter(|max| n > *max) {
            self.causes.push(too_many(path, n, max));
        }
        if let Some(min) = s.checks.min_items.filter(|min| n < *min) {
            self.invalid(path, &Value::Int(n), &format!("should have at least {min} items"));
        }
        if s.checks.unique_items && (1..a.len()).any(|i| a[..i].iter().any(|v| equal_values(v, &a[i]))) {
            self.invalid(path, &Value::from(""), "shouldn't contain duplicates");
        }
    }

    fn object(&mut self, m: &Map, old: Option<&Value>, s: &Structural, path: &str) {
        let n = m.len() as i64;
        if let Some(min) = s.checks.min_properties.filter(|min| n < *min) {
            self.invalid(path, &Value::Int(n), &format!("should have at least {min} properties"));
        }
        if let Some(max) = s.checks.max_properties.filter(|max| n > *max) {
            self.causes.push(too_many(path, n, max));
        }
        for (key, v) in m {
            let before = old.and_then(|o| o.get(key));
            match (s.properties.get(key), &s.additional) {
                (Some(p), _) => self.value(v, before, p, &child(path, key)),
                (None, Some(Additional::Schema(p))) => self.value(v, before, p, &child(path, key)),
                (None, Some(Additional::Allowed(false))) => {
                    let message = format!("{path}.{key} in body is a forbidden property");
                    self.causes
                        .push(Cause::invalid(path, &Value::from(key.as_str()), &message));
                }
                _ => {}
            }
        }
        for key in s.checks.required.iter().filter(|k| !m.contains_key(k)) {
            self.causes.push(Cause::required(child(path, key), ""));
        }
    }

    fn attempt(&self, v: &Value, s: &Structural, path: &str) -> Validator {
        let mut trial = Validator::default();
        trial.value(v, None, s, path);
        trial
    }

    fn logic(&mut self, v: &Value, old: Option<&Value>, s: &Structural, path: &str) {
        let c = &s.checks;
        if !c.any_of.is_empty() {
            let trials: Vec<Validator> = c.any_of.iter().map(|s| self.attempt(v, s, path)).collect();
            if !trials.iter().any(|t| t.causes.is_empty()) {
                self.composite(format!("\"{path}\" must validate at least one schema (anyOf)"));
                self.causes.append(best(trials));
            }
        }
        if !c.one_of.is_empty() {
            let trials: Vec<Validator> = c.one_of.iter().map(|s| self.attempt(v, s, path)).collect();
            let valid = trials.iter().filter(|t| t.causes.is_empty()).count();
            if valid != 1 {
                let found = if valid == 0 {
                    "Found none valid".into()
                } else {
                    format!("Found {valid} valid alternatives")
                };
                self.composite(format!(
                    "\"{path}\" must validate one and only one schema (oneOf). {found}"
                ));
                if valid == 0 {
                    self.causes.append(best(trials));
                }
            }
        }
        if !c.all_of.is_empty() {
            let mut valid = 0;
            for s in &c.all_of {
                let before = self.causes.len();
                self.value(v, old, s, path);
                valid += usize::from(self.causes.len() == before);
            }
            if valid != c.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                self.composite(format!("\"{path}\" must validate all the schemas (allOf){none}"));
            }
        }
        if let Some(not) = &c.not
            && self.attempt(v, not, path).causes.is_empty()
        {
            self.composite(format!("\"{path}\" must not validate the schema (not)"));
        }
    }
}

fn best(trials: Vec<Validator>) -> Causes {
    // The first among equals, as upstream keeps it.
    let mut best: Option<Validator> = None;
    for t in trials {
        if best.as_ref().is_none_or(|b| t.passed > b.passed) {
            best = Some(t);
        }
    }
    best.map(|b| b.causes).unwrap_or_default()
}

fn too_many(path: &str, have: i64, max: i64) -> Cause {
    let items = if max == 1 { "item" } else { "items" };
    Cause::new(
        "FieldValueTooMany",
        path,
        format!("Too many: {have}: must have at most {max} {items}"),
    )
}

/// The elements of an old list, by what elements are told by: known only in lists with keys.
struct OldItems<'a> {
    keys: &'a [Str],
    items: HashMap<Vec<u8>, &'a Value>,
}

impl<'a> OldItems<'a> {
    fn of(old: Option<&'a Value>, s: &'a Structural) -> Self {
        let mut found = OldItems {
            keys: &s.list_map_keys,
            items: HashMap::new(),
        };
        let list = old.and_then(Value::as_array).filter(|_| s.list_type == "map");
        for o in list.into_iter().flatten() {
            found.items.entry(found.name(o)).or_insert(o);
        }
        found
    }
    fn name(&self, item: &Value) -> Vec<u8> {
        let values = self.keys.iter().map(|k| item.get(k).cloned().unwrap_or_default());
        json::encode(&Value::Array(values.collect()))
    }
    /// The element that `item` stands in the place of.
    fn get(&self, item: &Value) -> Option<&'a Value> {
        if self.items.is_empty() {
            return None;
        }
        self.items.get(&self.name(item)).copied()
    }
}

/// Uniqueness in lists of type `set` and `map`.
fn list_types(v: &Value, s: &Structural, path: &str, out: &mut Causes) {
    match v {
        Value::Object(m) => {
            for (key, v) in m {
                if let Some(p) = s.properties.get(key) {
                    list_types(v, p, &child(path, key), out);
                } else if let Some(p) = s.additional_schema() {
                    list_types(v, p, &format!("{path}[{key}]"), out);
                }
            }
        }
        Value::Array(a) => {
            match s.list_type.as_str() {
                "set" => {
                    for i in repeated(a.iter().map(|v| serde_json::to_string(v).unwrap_or_default())) {
                        out.push(Cause::duplicate(format!("{path}[{i}]"), &a[i]));
                    }
                }
                "map" => {
                    if let Some(i) = a.iter().position(|v| !v.is_null() && v.as_object().is_none()) {
                        let why = "must be an object for an array of list-type map";
                        out.push(Cause::invalid(format!("{path}[{i}]"), &a[i], why));
                    } else {
                        let keys: Vec<Value> = a.iter().map(|v| map_key(v, s)).collect();
                        for i in repeated(keys.iter().map(|k| serde_json::to_string(k).unwrap_or_default())) {
                            out.push(Cause::duplicate(format!("{path}[{i}]"), &keys[i]));
                        }
                    }
                }
                _ => {}
            }
            if let Some(items) = &s.items {
                for (i, v) in a.iter().enumerate() {
                    list_types(v, items, &format!("{path}[{i}]"), out);
                }
            }
        }
        _ => {}
    }
}

fn map_key(v: &Value, s: &Structural) -> Value {
    let pairs = s
        .list_map_keys
        .iter()
        .filter_map(|k| v.get(k).map(|v| (k.clone(), v.clone())));
    Value::Object(pairs.collect())
}

/// The index of the second occurrence of each text that occurs more than once.
fn repeated(texts: impl Iterator<Item = String>) -> Vec<usize> {
    let (mut once, mut twice) = (BTreeSet::new(), BTreeSet::new());
    let mut out = Vec::new();
    for (i, t) in texts.enumerate() {
        if once.contains(&t) {
            if twice.insert(t) {
                out.push(i);
            }
        } else {
            once.insert(t);
        }
    }
    out
}

/// `apiVersion` and `kind` of the root and of embedded resources.
fn embedded(v: &Value, s: &Structural, path: &str, root: bool, out: &mut Causes) {
    match v {
        Value::Object(m) => {
            if root || s.embedded_resource {
                type_meta(m, path, out);
            }
            for (key, v) in m {
                if let Some(p) = s.properties.get(key) {
                    embedded(v, p, &child(path, key), false, out);
                } else if let Some(p) = s.additional_schema() {
                    embedded(v, p, &format!("{path}[{key}]"), false, out);
                }
            }
        }
        Value::Array(a) => {
            if let Some(items) = &s.items {
                a.iter()
                    .enumerate()
                    .for_each(|(i, v)| embedded(v, items, &format!("{path}[{i}]"), false, out));
            }
        }
        _ => {}
    }
}

fn type_meta(m: &Map, path: &str, out: &mut Causes) {
    for key in ["apiVersion", "kind"] {
        let at = child(path, key);
        match m.get(key) {
            None => out.push(Cause::required(at, "")),
            Some(Value::String(s)) if s.is_empty() => {
                out.push(Cause::invalid(at, &Value::from(""), "must not be empty"))
            }
            Some(v @ Value::String(s)) if key == "apiVersion" => {
                if s.matches('/').count() > 1 {
                    out.push(Cause::invalid(at, v, &format!("unexpected GroupVersion string: {s}")));
                }
            }
            Some(v @ Value::String(s)) => {
                let errs = names::dns1035_label(&s.to_lowercase());
                if !errs.is_empty() {
                    let why = format!("may have mixed case, but should otherwise match: {}", errs.join(","));
                    out.push(Cause::invalid(at, v, &why));
                }
            }
            Some(v) => out.push(Cause::invalid(at, v, "must be a string")),
        }
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
