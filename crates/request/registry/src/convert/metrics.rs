//! Metrics of autoscalers as `v1` keeps those that it has no field for: JSON in annotations, in the order of Go's fields.

use keelson_api::codec::json;
use keelson_api::{Map, Value, value};

/// A member's name and its JSON, if it is there.
type Member = (&'static str, Option<String>);

fn object(members: &[Member]) -> String {
    let each = members
        .iter()
        .filter_map(|(key, value)| Some(format!("\"{key}\":{}", value.as_deref()?)));
    format!("{{{}}}", each.collect::<Vec<_>>().join(","))
}

pub fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn encoded(value: &Value) -> String {
    String::from_utf8_lossy(&json::encode(value)).into_owned()
}

/// The JSON of what stands at a path.
fn at(value: &Value, path: &[&str]) -> Option<String> {
    value.at(path).filter(|v| !v.is_null()).map(encoded)
}

/// The same where `v1` always says something.
fn at_or(value: &Value, path: &[&str], absent: &str) -> Option<String> {
    Some(at(value, path).unwrap_or_else(|| format!("\"{absent}\"")))
}

fn selector(value: &Value, path: &[&str]) -> Option<String> {
    let selector = value.at(path)?;
    Some(object(&[
        ("matchLabels", at(selector, &["matchLabels"])),
        ("matchExpressions", at(selector, &["matchExpressions"])),
    ]))
}

fn reference(source: &Value) -> Option<String> {
    let target = source.get("describedObject").cloned().unwrap_or_else(|| value!({}));
    Some(object(&[
        ("kind", at_or(&target, &["kind"], "")),
        ("name", at_or(&target, &["name"], "")),
        ("apiVersion", at(&target, &["apiVersion"])),
    ]))
}

const KINDS: [&str; 5] = ["object", "pods", "resource", "containerResource", "external"];

/// A metric that is wanted (`target`) or was seen (`current`), as `v1` writes it.
fn metric(m: &Value, write: fn(&str, &Value) -> String) -> String {
    let mut members: Vec<Member> = vec![("type", at_or(m, &["type"], ""))];
    members.extend(KINDS.map(|kind| (kind, m.get(kind).map(|source| write(kind, source)))));
    object(&members)
}

pub fn wanted(m: &Value) -> String {
    metric(m, |kind, s| match kind {
        "object" => object(&[
            ("target", reference(s)),
            ("metricName", at_or(s, &["metric", "name"], "")),
            ("targetValue", at_or(s, &["target", "value"], "0")),
            ("selector", selector(s, &["metric", "selector"])),
            ("averageValue", at(s, &["target", "averageValue"])),
        ]),
        "pods" => object(&[
            ("metricName", at_or(s, &["metric", "name"], "")),
            ("targetAverageValue", at_or(s, &["target", "averageValue"], "0")),
            ("selector", selector(s, &["metric", "selector"])),
        ]),
        "external" => object(&[
            ("metricName", at_or(s, &["metric", "name"], "")),
            ("metricSelector", selector(s, &["metric", "selector"])),
            ("targetValue", at(s, &["target", "value"])),
            ("targetAverageValue", at(s, &["target", "averageValue"])),
        ]),
        kind => object(&[
            ("name", at_or(s, &["name"], "")),
            ("targetAverageUtilization", at(s, &["target", "averageUtilization"])),
            ("targetAverageValue", at(s, &["target", "averageValue"])),
            ("container", container(kind, s)),
        ]),
    })
}

pub fn seen(m: &Value) -> String {
    metric(m, |kind, s| match kind {
        "object" => object(&[
            ("target", reference(s)),
            ("metricName", at_or(s, &["metric", "name"], "")),
            ("currentValue", at_or(s, &["current", "value"], "0")),
            ("selector", selector(s, &["metric", "selector"])),
            ("averageValue", at(s, &["current", "averageValue"])),
        ]),
        "pods" => object(&[
            ("metricName", at_or(s, &["metric", "name"], "")),
            ("currentAverageValue", at_or(s, &["current", "averageValue"], "0")),
            ("selector", selector(s, &["metric", "selector"])),
        ]),
        "external" => object(&[
            ("metricName", at_or(s, &["metric", "name"], "")),
            ("metricSelector", selector(s, &["metric", "selector"])),
            ("currentValue", at_or(s, &["current", "value"], "0")),
            ("currentAverageValue", at(s, &["current", "averageValue"])),
        ]),
        kind => object(&[
            ("name", at_or(s, &["name"], "")),
            ("currentAverageUtilization", at(s, &["current", "averageUtilization"])),
            ("currentAverageValue", at_or(s, &["current", "averageValue"], "0")),
            ("container", container(kind, s)),
        ]),
    })
}

fn container(kind: &str, source: &Value) -> Option<String> {
    (kind == "containerResource")
        .then(|| at_or(source, &["container"], ""))
        .flatten()
}

pub fn condition(c: &Value) -> String {
    object(&[
        ("type", at_or(c, &["type"], "")),
        ("status", at_or(c, &["status"], "")),
        (
            "lastTransitionTime",
            Some(at(c, &["lastTransitionTime"]).unwrap_or_else(|| "null".into())),
        ),
        ("reason", at(c, &["reason"])),
        ("message", at(c, &["message"])),
        ("observedGeneration", at(c, &["observedGeneration"])),
    ])
}

fn copy(from: &Value, key: &str, to: &mut Value, path: &[&str]) {
    if let Some(v) = from.get(key).filter(|v| !v.is_null()) {
        to.set_at(path, v.clone());
    }
}

fn is_zero(v: Option<&Value>) -> bool {
    v.is_none_or(|v| matches!(v, Value::String(s) if s == "0") || v.as_i64() == Some(0))
}

/// What `v1` wrote of a metric that is wanted, as `v2` has it.
pub fn read_wanted(m: &Value) -> Value {
    read(m, |kind, s, out| {
        let has = |key: &str| s.get(key).is_some_and(|v| !v.is_null());
        let ty = match kind {
            "object" if has("averageValue") => "AverageValue",
            "object" => "Value",
            "external" if has("targetValue") => "Value",
            "resource" | "containerResource" if has("targetAverageUtilization") => "Utilization",
            _ => "AverageValue",
        };
        out.set_at(&["target", "type"], ty);
        match kind {
            "object" => {
                if !has("averageValue") {
                    out.set_at(
                        &["target", "value"],
                        s.get("targetValue").cloned().unwrap_or_else(|| "0".into()),
                    );
                } else if !is_zero(s.get("targetValue")) {
                    copy(s, "targetValue", out, &["target", "value"]);
                }
                copy(s, "averageValue", out, &["target", "averageValue"]);
            }
            "pods" => {
                let value = s.get("targetAverageValue").cloned().unwrap_or_else(|| "0".into());
                out.set_at(&["target", "averageValue"], value);
            }
            _ => {
                copy(s, "targetValue", out, &["target", "value"]);
                copy(s, "targetAverageValue", out, &["target", "averageValue"]);
                copy(s, "targetAverageUtilization", out, &["target", "averageUtilization"]);
            }
        }
    })
}

/// The same of one that was seen.
pub fn read_seen(m: &Value) -> Value {
    read(m, |kind, s, out| {
        let or_zero = |key: &str| {
            s.get(key)
                .filter(|v| !v.is_null())
                .cloned()
                .unwrap_or_else(|| "0".into())
        };
        match kind {
            "object" => {
                out.set_at(&["current", "value"], or_zero("currentValue"));
                copy(s, "averageValue", out, &["current", "averageValue"]);
            }
            "external" => {
                out.set_at(&["current", "value"], or_zero("currentValue"));
                copy(s, "currentAverageValue", out, &["current", "averageValue"]);
            }
            _ => {
                out.set_at(&["current", "averageValue"], or_zero("currentAverageValue"));
                copy(s, "currentAverageUtilization", out, &["current", "averageUtilization"]);
            }
        }
    })
}

fn read(m: &Value, amounts: fn(&str, &Value, &mut Value)) -> Value {
    let mut out = value!({"type": ""});
    copy(m, "type", &mut out, &["type"]);
    for kind in KINDS {
        let Some(s) = m.get(kind).filter(|s| s.as_object().is_some()) else {
            continue;
        };
        let mut source = Value::Object(Map::new());
        if matches!(kind, "resource" | "containerResource") {
            copy(s, "name", &mut source, &["name"]);
            copy(s, "container", &mut source, &["container"]);
        } else {
            source.set_at(&["metric", "name"], "");
            copy(s, "metricName", &mut source, &["metric", "name"]);
            copy(s, "selector", &mut source, &["metric", "selector"]);
            copy(s, "metricSelector", &mut source, &["metric", "selector"]);
            copy(s, "target", &mut source, &["describedObject"]);
        }
        amounts(kind, s, &mut source);
        out.set_at(&[kind], source);
    }
    out
}

/// A behaviour is kept as Go writes upstream's internal type; its reader takes names in any case.
pub fn read_behavior(v: &Value) -> Value {
    match v {
        Value::Object(map) => {
            let members = map.iter().filter(|(_, v)| !v.is_null()).map(|(key, v)| {
                let mut key = key.to_string();
                if let Some(first) = key.get_mut(..1) {
                    first.make_ascii_lowercase();
                }
                (keelson_api::Str::from(key), read_behavior(v))
            });
            Value::Object(Map::from_iter(members))
        }
        Value::Array(items) => Value::Array(items.iter().map(read_behavior).collect()),
        other => other.clone(),
    }
}
