//! Patches of every type, and applying by several managers, of objects that exist.

use super::places::{self, Key, Place, To};
use super::{OPTIONS, case};
use crate::case::{Case, Request};
use crate::world::Seed;
use keelson_api::schema::FieldType;
use serde_json::{Value, json};

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
/// Of a place's values, how many are patched in.
const VALUES: usize = 4;

pub fn of(seed: &Seed) -> Vec<Case> {
    let mut out = Vec::new();
    let patch = |sub: &str, kind: &str, body: &Value| {
        Request::new("PATCH", format!("{}{sub}?{OPTIONS}", seed.path())).body(kind, body)
    };
    for (place, changes) in places::changes(&seed.object, seed) {
        let pointer = place.pointer();
        if matches!(pointer.as_str(), "/apiVersion" | "/kind") {
            continue;
        }
        let mut values: Vec<Value> = changes
            .iter()
            .filter_map(|c| match &c.to {
                To::Value(v) => Some(v.clone()),
                _ => None,
            })
            .collect();
        values.truncate(VALUES);
        values.insert(0, Value::Null);
        for value in &values {
            let what = format!("{pointer} to {}", short(value));
            if let Some(body) = in_maps(&place, value) {
                out.push(case(seed, format!("merge patch {what}"), patch("", MERGE, &body)));
            }
            if let Some(body) = place.alone(&seed.object, value.clone()) {
                out.push(case(
                    seed,
                    format!("strategic patch {what}"),
                    patch("", STRATEGIC, &body),
                ));
            }
            let body = json!([{"op": "replace", "path": pointer, "value": value}]);
            out.push(case(seed, format!("JSON patch {what}"), patch("", JSON, &body)));
        }
        for body in [
            json!([{"op": "remove", "path": pointer}]),
            json!([{"op": "test", "path": pointer, "value": "other"}, {"op": "add", "path": "/metadata/labels", "value": {}}]),
            json!([{"op": "copy", "from": pointer, "path": "/metadata/annotations"}]),
        ] {
            out.push(case(
                seed,
                format!("JSON patch {}", short(&body)),
                patch("", JSON, &body),
            ));
        }
        for body in directives(&place, &seed.object) {
            out.push(case(
                seed,
                format!("strategic patch {}", short(&body)),
                patch("", STRATEGIC, &body),
            ));
        }
        out.extend(applied(seed, &place));
    }
    let base =
        json!({"apiVersion": seed.object["apiVersion"], "kind": seed.object["kind"], "metadata": {"name": seed.name}});
    for (what, kind, body) in malformed(&base) {
        let request = Request::new("PATCH", format!("{}?{OPTIONS}", seed.path())).body(kind, body);
        out.push(case(seed, format!("patch {what}"), request));
    }
    out
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(100).collect()
}

/// A merge patch of one place; `None` if it is in a list.
fn in_maps(place: &Place, value: &Value) -> Option<Value> {
    place.path.iter().rev().try_fold(value.clone(), |inner, key| match key {
        Key::Name(name) => Some(json!({name: inner})),
        Key::Index(_) => None,
    })
}

/// Strategic directives at a place.
fn directives(place: &Place, object: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    let mut add = |value: Value| out.extend(place.alone(object, value));
    match (&place.ty, place.path.last()) {
        (FieldType::Struct(_), Some(Key::Name(_))) => {
            add(json!({"$patch": "delete"}));
            add(json!({"$patch": "replace"}));
            add(json!({"$patch": "other"}));
            add(json!({"$retainKeys": []}));
        }
        (FieldType::Struct(_), Some(Key::Index(_))) => {
            add(json!({"$patch": "delete"}));
            add(json!({"$patch": "replace", "name": "other"}));
        }
        (FieldType::List(_), Some(Key::Name(name))) => {
            add(json!([{"$patch": "replace"}]));
            let Some((_, above)) = place.path.split_last() else {
                return out;
            };
            let parent = Place {
                path: above.to_vec(),
                ..place.clone()
            };
            let items = place.value.clone().unwrap_or(json!([]));
            let reversed: Vec<Value> = items.as_array().into_iter().flatten().rev().cloned().collect();
            let known_by = place
                .field
                .as_ref()
                .map(|f| f.patch_merge_key.to_string())
                .unwrap_or_default();
            let order: Vec<Value> = reversed
                .iter()
                .map(|v| {
                    v.get(&known_by)
                        .map_or_else(|| v.clone(), |k| json!({known_by.clone(): k}))
                })
                .collect();
            for (directive, value) in [
                (format!("$setElementOrder/{name}"), json!(order)),
                (format!("$deleteFromPrimitiveList/{name}"), items),
            ] {
                let body = if above.is_empty() {
                    Some(json!({directive: value}))
                } else {
                    parent.alone(object, json!({directive: value}))
                };
                out.extend(body);
            }
        }
        _ => {}
    }
    out
}

/// One field by other managers: as it is, changed, and by force.
fn applied(seed: &Seed, place: &Place) -> Vec<Case> {
    let mut out = Vec::new();
    let Some(value) = place.value.clone() else { return out };
    if place.path.iter().any(|k| *k == Key::Name("name".into())) && place.path.len() == 2 {
        return out;
    }
    let changed = match &value {
        Value::String(text) => json!(format!("{text}x")),
        Value::Number(n) => json!(n.as_i64().unwrap_or(0).saturating_add(1)),
        Value::Bool(b) => json!(!b),
        Value::Array(_) => json!([]),
        _ => json!({}),
    };
    for (what, value, options) in [
        ("as it is", &value, "fieldManager=other"),
        ("changed", &changed, "fieldManager=other"),
        ("changed by force", &changed, "fieldManager=other&force=true"),
    ] {
        let Some(mut body) = place.alone(&seed.object, value.clone()) else {
            continue;
        };
        identify(&mut body, seed);
        let path = format!("{}?dryRun=All&{options}", seed.path());
        let request = Request::new("PATCH", path).body(APPLY, body);
        out.push(case(seed, format!("apply {} {what}", place.pointer()), request));
    }
    out
}

fn identify(body: &mut Value, seed: &Seed) {
    body["apiVersion"] = seed.object["apiVersion"].clone();
    body["kind"] = seed.object["kind"].clone();
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
    body["metadata"]["name"] = json!(seed.name);
}

/// What is no patch.
fn malformed(base: &Value) -> Vec<(&'static str, &'static str, String)> {
    let with = |at: &str, value: Value| {
        let mut body = base.clone();
        body["metadata"][at] = value;
        body.to_string()
    };
    vec![
        ("merge, empty", MERGE, String::new()),
        ("merge, a list", MERGE, "[]".into()),
        ("merge, no JSON", MERGE, "{".into()),
        ("merge, nothing", MERGE, "{}".into()),
        (
            "merge, unknown fields",
            MERGE,
            r#"{"notAField":1,"spec":{"notAField":1}}"#.into(),
        ),
        (
            "merge, twice",
            MERGE,
            r#"{"metadata":{"labels":{"a":"1"},"labels":{"a":"2"}}}"#.into(),
        ),
        ("merge, another kind", MERGE, r#"{"kind":"Other"}"#.into()),
        ("merge, another name", MERGE, r#"{"metadata":{"name":"other"}}"#.into()),
        (
            "merge, another namespace",
            MERGE,
            r#"{"metadata":{"namespace":"other"}}"#.into(),
        ),
        ("merge, another uid", MERGE, r#"{"metadata":{"uid":"other"}}"#.into()),
        (
            "merge, an old revision",
            MERGE,
            r#"{"metadata":{"resourceVersion":"1"}}"#.into(),
        ),
        ("strategic, empty", STRATEGIC, String::new()),
        ("strategic, a list", STRATEGIC, "[]".into()),
        ("strategic, nothing", STRATEGIC, "{}".into()),
        (
            "strategic, wrong labels",
            STRATEGIC,
            r#"{"metadata":{"labels":"invalid"}}"#.into(),
        ),
        (
            "strategic, unknown fields",
            STRATEGIC,
            r#"{"notAField":1,"spec":{"notAField":1}}"#.into(),
        ),
        ("JSON, nothing", JSON, "[]".into()),
        ("JSON, a map", JSON, "{}".into()),
        (
            "JSON, an unknown op",
            JSON,
            r#"[{"op":"eat","path":"/metadata"}]"#.into(),
        ),
        ("JSON, no path", JSON, r#"[{"op":"remove"}]"#.into()),
        (
            "JSON, nowhere",
            JSON,
            r#"[{"op":"remove","path":"/nowhere/at/all"}]"#.into(),
        ),
        (
            "JSON, a wrong index",
            JSON,
            r#"[{"op":"add","path":"/metadata/finalizers/7","value":"a.b/c"}]"#.into(),
        ),
        ("of no type", "application/json", "{}".into()),
        ("of an unknown type", "application/strange-patch", "{}".into()),
        ("apply, nothing", APPLY, "{}".into()),
        ("apply, empty", APPLY, String::new()),
        ("apply, no YAML", APPLY, "{a: b: c".into()),
        ("apply, only itself", APPLY, base.to_string()),
        ("apply, a list", APPLY, "[]".into()),
        (
            "apply, managed fields",
            APPLY,
            with("managedFields", json!([{"manager": "a"}])),
        ),
        ("apply, another name", APPLY, with("name", json!("other"))),
        ("apply, another namespace", APPLY, with("namespace", json!("other"))),
        (
            "apply, a uid",
            APPLY,
            with("uid", json!("0a0a0a0a-1111-2222-3333-444444444444")),
        ),
        ("apply, an old revision", APPLY, with("resourceVersion", json!("1"))),
        ("apply, an unknown field", APPLY, with("notAField", json!("1"))),
        ("apply, labels of numbers", APPLY, with("labels", json!({"a": 1}))),
        (
            "apply, a finalizer twice",
            APPLY,
            with("finalizers", json!(["a.b/c", "a.b/c"])),
        ),
    ]
}
