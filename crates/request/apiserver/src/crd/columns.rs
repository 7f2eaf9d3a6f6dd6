//! The columns that a definition adds to its resources' tables.

use keelson_api::{Object, Time, Value};
use keelson_machinery::jsonpath::JsonPath;
use keelson_registry::columns::{Cells, Column, Columns};
use std::sync::Arc;

#[derive(Debug)]
struct CustomCells(Vec<(JsonPath, String)>);

/// The columns of a version: the name, then what is declared; without a declaration, the age.
pub fn of(version: &Value) -> Columns {
    let mut columns = vec![Column::new(
        "Name",
        "string",
        "name",
        0,
        "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
    )];
    let mut cells = Vec::new();
    let declared = version
        .get("additionalPrinterColumns")
        .and_then(Value::as_array)
        .filter(|c| !c.is_empty());
    for c in declared.into_iter().flatten() {
        let text = |key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default();
        let Some(path) = JsonPath::parse(text("jsonPath")) else {
            continue;
        };
        let priority = c
            .get("priority")
            .and_then(Value::as_i64)
            .and_then(|p| i32::try_from(p).ok())
            .unwrap_or(0);
        let description = match text("description") {
            "" => format!(
                "Custom resource definition column (in JSONPath format): {}",
                text("jsonPath")
            ),
            d => d.to_string(),
        };
        columns.push(Column::new(
            text("name"),
            text("type"),
            text("format"),
            priority,
            &description,
        ));
        cells.push((path, text("type").to_string()));
    }
    if declared.is_none() {
        columns.push(Column::new("Age", "date", "", 0, "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"));
        cells.extend(JsonPath::parse(".metadata.creationTimestamp").map(|p| (p, "date".to_string())));
    }
    Columns {
        columns,
        cells: Arc::new(CustomCells(cells)),
    }
}

impl Cells for CustomCells {
    fn cells(&self, object: &Object, now: jiff::Timestamp) -> Vec<Value> {
        let root = Value::Object(object.0.clone());
        let mut out = vec![Value::from(object.name())];
        for (path, kind) in &self.0 {
            let found = path.find(&root);
            out.push(match found.as_slice() {
                [] => Value::Null,
                [one] => cell(one, kind, now),
                many => Value::from(many.iter().map(|v| shown(v)).collect::<Vec<_>>().join(",")),
            });
        }
        out
    }
}

fn shown(v: &Value) -> String {
    match v {
        Value::String(s) => s.to_string(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

/// A value as its column's type has it; null where it has another type.
fn cell(v: &Value, kind: &str, now: jiff::Timestamp) -> Value {
    match (kind, v) {
        ("integer", Value::Int(_)) | ("boolean", Value::Bool(_)) | ("number", Value::Int(_) | Value::Float(_)) => {
            v.clone()
        }
        ("integer", Value::Float(f)) => Value::Int(*f as i64),
        ("integer" | "boolean" | "number", _) => Value::Null,
        ("date", Value::String(s)) => match Time::parse(s) {
            Ok(t) => Value::from(age(now.as_second().saturating_sub(t.seconds))),
            Err(_) => Value::from("<invalid>"),
        },
        ("date", _) => Value::Null,
        (_, Value::Null) => Value::Null,
        (_, v) => Value::from(shown(v)),
    }
}

/// A duration as kubectl shows ages.
pub fn age(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86400);
    let with = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{small_unit}")
        }
    };
    match s {
        0..=119 => format!("{s}s"),
        120..=599 => with(m, "m", s % 60, "s"),
        600..=10799 => format!("{m}m"),
        10800..=28799 => with(h, "h", m % 60, "m"),
        28800..=172_799 => format!("{h}h"),
        172_800..=691_199 => with(d, "d", h % 24, "h"),
        691_200..=63_071_999 => format!("{d}d"),
        63_072_000..=252_287_999 => with(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn cells_follow_the_columns_types() {
        let c = of(&value!({"additionalPrinterColumns": [
            {"name": "R", "type": "integer", "jsonPath": ".spec.r"}, {"name": "S", "type": "string", "jsonPath": ".spec.s"},
            {"name": "N", "type": "string", "jsonPath": ".nope"}, {"name": "L", "type": "string", "jsonPath": ".spec.l[*]"},
            {"name": "A", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}));
        let o = Object::try_from(
            value!({"metadata": {"name": "n", "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"r": 3, "s": true, "l": ["a", "b"]}}),
        )
        .unwrap();
        let now = "2030-01-01T00:05:10Z".parse().unwrap();
        assert_eq!(
            c.cells.cells(&o, now),
            [
                Value::from("n"),
                Value::Int(3),
                Value::from("true"),
                Value::Null,
                Value::from("a,b"),
                Value::from("5m10s")
            ]
        );
        assert_eq!(of(&value!({})).columns.len(), 2);
    }

    #[test]
    fn ages() {
        for (s, want) in [
            (5, "5s"),
            (125, "2m5s"),
            (3600, "60m"),
            (10800, "3h"),
            (90000, "25h"),
            (200_000, "2d7h"),
            (864_000, "10d"),
        ] {
            assert_eq!(age(s), want);
        }
    }
}
