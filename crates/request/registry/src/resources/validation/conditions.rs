//! Conditions of the common form, and the kind whose status is little else.

use super::Rules;
use super::check::{Errs, IMMUTABLE, s};
use keelson_api::{Map, Object, Value};
use keelson_machinery::names::{self, regex_error};
use std::collections::HashSet;

const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";

/// The conditions in `m`, each of a type of its own and whole.
pub fn conditions(e: &mut Errs, m: &Map) {
    let mut seen = HashSet::new();
    e.each(m, "conditions", |e, _, c| {
        if !seen.insert(s(c, "type").to_string()) {
            e.duplicate("", s(c, "type"));
        }
        condition(e, c);
    });
}

fn condition(e: &mut Errs, c: &Map) {
    match s(c, "type") {
        "" => e.required("type", "is required"),
        kind => e.format("type", kind, names::label_key),
    }
    e.one_of(c, "status", &STATUSES);
    if let Some(n) = c.int("observedGeneration").filter(|n| *n < 0) {
        e.invalid("observedGeneration", n, "must be greater than or equal to zero");
    }
    if s(c, "lastTransitionTime").is_empty() {
        e.required("lastTransitionTime", "");
    }
    match s(c, "reason") {
        "" => e.required("reason", ""),
        reason => {
            e.format("reason", reason, reason_errors);
            if reason.len() > 1024 {
                e.too_long("reason", 1024);
            }
        }
    }
    if s(c, "message").len() > 32 * 1024 {
        e.too_long("message", 32 * 1024);
    }
}

fn reason_errors(reason: &str) -> Vec<String> {
    let bytes = reason.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':');
    let fine = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(inner)
        && bytes.last().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    if fine {
        return Vec::new();
    }
    let examples = ["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"];
    vec![regex_error(REASON, "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", &examples)]
}

pub const MIGRATION: Rules = Rules {
    object: |_, o, e| migration(o, e),
    update: |_, new, old, e| {
        if !crate::strategy::same(new.get("spec"), old.get("spec")) {
            // As upstream's internal type has it.
            let shown = new.at(&["spec", "resource"]).cloned().unwrap_or(Value::Null);
            let mut spec = Map::new();
            spec.insert("Resource", shown);
            e.invalid("spec", Value::Object(spec), IMMUTABLE);
        }
    },
    status: |_, new, old, e| migration_status(new, old, e),
    ..Rules::SUBDOMAIN
};

/// Several complaints about one value are one here.
fn joined(e: &mut Errs, key: &str, value: &str, check: fn(&str) -> Vec<String>) {
    let msgs = check(value);
    if !msgs.is_empty() {
        e.invalid(key, value, &msgs.join(","));
    }
}

fn migration(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let resource = o.at(&["spec", "resource"]).and_then(Value::as_object).unwrap_or(&empty);
    e.within("spec.resource", |e| {
        match s(resource, "resource") {
            "" => e.required("resource", "resource is required to be set"),
            name => joined(e, "resource", name, names::dns1035_label),
        }
        if !s(resource, "group").is_empty() {
            joined(e, "group", s(resource, "group"), names::dns1123_subdomain);
        }
    });
}

fn migration_status(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (n, o) = (new.obj("status").unwrap_or(&empty), old.obj("status").unwrap_or(&empty));
    e.within("status", |e| {
        let (now, was) = (s(n, "resourceVersion"), s(o, "resourceVersion"));
        if !now.is_empty() && (now.starts_with('0') || !now.bytes().all(|b| b.is_ascii_digit())) {
            e.invalid(
                "resourceVersion",
                now,
                &format!("resource version is not well formed: {now}"),
            );
        }
        conditions(e, n);
        if !was.is_empty() && now != was {
            e.invalid("resourceVersion", now, IMMUTABLE);
        }
        let is = |m: &Map, kind: &str| {
            let list = m.arr("conditions").into_iter().flatten();
            list.filter_map(Value::as_object)
                .find(|c| s(c, "type") == kind)
                .is_some_and(|c| s(c, "status") == "True")
        };
        let mut wrong = |why: &str| {
            let shown = n.get("conditions").cloned().unwrap_or(Value::Null);
            e.invalid("conditions", shown, why);
        };
        if is(n, "Succeeded") && is(n, "Failed") {
            wrong("Both success and failed conditions cannot be true at the same time");
        }
        if is(o, "Succeeded") && !is(n, "Succeeded") {
            wrong("Success condition cannot be set to false once it is true");
        }
        if is(o, "Failed") && !is(n, "Failed") {
            wrong("Failed condition cannot be set to false once it is true");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn reasons_are_words() {
        for (reason, fine) in [
            ("A", true),
            ("ReasonA:ReasonB", true),
            ("a_", true),
            ("1", false),
            ("A:", false),
            ("A b", false),
        ] {
            assert_eq!(reason_errors(reason).is_empty(), fine, "{reason}");
        }
    }

    #[test]
    fn a_condition_is_whole_and_once() {
        let whole =
            value!({"type": "A", "status": "True", "reason": "R", "lastTransitionTime": "2024-01-01T00:00:00Z"});
        let told = |list: Value| {
            let mut e = Errs::default();
            let m = value!({"conditions": (list)});
            conditions(&mut e, m.as_object().unwrap_or(&Map::new()));
            super::super::tests::shown(e.list.into())
        };
        assert!(told(Value::Array(vec![whole.clone()])).is_empty());
        assert_eq!(
            told(Value::Array(vec![whole.clone(), whole])),
            ["conditions[1]: Duplicate value: \"A\""]
        );
        assert_eq!(told(value!([{"type": "a b/", "status": "true"}])).len(), 6);
    }
}
