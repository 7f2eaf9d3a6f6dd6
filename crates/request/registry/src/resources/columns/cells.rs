//! What the cells of many kinds share: ages, lists, containers, selectors.

use super::pod;
use keelson_api::{Map, Object, Value};
use std::cell::OnceCell;

/// A column and how its cell is computed.
#[derive(Debug)]
pub struct Col {
    pub name: &'static str,
    pub kind: &'static str,
    pub format: &'static str,
    pub priority: i32,
    pub cell: fn(&Row) -> Value,
}

pub const fn text(name: &'static str, cell: fn(&Row) -> Value) -> Col {
    Col {
        name,
        kind: "string",
        format: "",
        priority: 0,
        cell,
    }
}
pub const fn number(name: &'static str, cell: fn(&Row) -> Value) -> Col {
    Col {
        name,
        kind: "integer",
        format: "",
        priority: 0,
        cell,
    }
}
pub const fn flag(name: &'static str, cell: fn(&Row) -> Value) -> Col {
    Col {
        name,
        kind: "boolean",
        format: "",
        priority: 0,
        cell,
    }
}
/// Shown in wide tables only.
pub const fn wide(name: &'static str, cell: fn(&Row) -> Value) -> Col {
    Col {
        name,
        kind: "string",
        format: "",
        priority: 1,
        cell,
    }
}
pub const NAME: Col = Col {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    cell: |r| r.object.name().into(),
};
pub const AGE: Col = text("Age", |r| r.since(r.object.creation_timestamp()).into());

pub const NONE: &str = "<none>";
pub const UNSET: &str = "<unset>";
pub const UNKNOWN: &str = "<unknown>";

/// An object at a moment.
pub struct Row<'a> {
    pub object: &'a Object,
    pub now: jiff::Timestamp,
    /// What several cells of a pod say parts of.
    pub pod: OnceCell<pod::Summary>,
}

impl<'a> Row<'a> {
    pub fn new(object: &'a Object, now: jiff::Timestamp) -> Self {
        let pod = OnceCell::new();
        Row { object, now, pod }
    }
    pub fn at(&self, path: &str) -> Option<&'a Value> {
        let mut parts = path.split('.');
        let first = self.object.get(parts.next()?)?;
        parts.try_fold(first, |v, key| v.get(key))
    }
    pub fn str(&self, path: &str) -> &'a str {
        self.at(path).and_then(Value::as_str).unwrap_or_default()
    }
    pub fn str_or(&self, path: &str, absent: &str) -> Value {
        match self.str(path) {
            "" => absent.into(),
            s => s.into(),
        }
    }
    pub fn int(&self, path: &str) -> i64 {
        self.at(path).and_then(Value::as_i64).unwrap_or(0)
    }
    pub fn bool(&self, path: &str) -> bool {
        self.at(path).and_then(Value::as_bool).unwrap_or(false)
    }
    pub fn list(&self, path: &str) -> &'a [Value] {
        self.at(path)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
    pub fn strings(&self, path: &str) -> Vec<&'a str> {
        self.list(path).iter().filter_map(Value::as_str).collect()
    }
    pub fn map(&self, path: &str) -> Option<&'a Map> {
        self.at(path).and_then(Value::as_object)
    }
    /// How long ago a time was, in words.
    pub fn since(&self, time: &str) -> String {
        match time.parse::<jiff::Timestamp>() {
            Ok(t) => human(self.now.as_second() - t.as_second()),
            Err(_) => UNKNOWN.into(),
        }
    }
    /// Names of the template's containers, and their images.
    pub fn containers(&self, template: &str) -> (String, String) {
        let containers = self.list(&format!("{template}.spec.containers"));
        let each = |key: &str| {
            containers
                .iter()
                .filter_map(|c| c.get(key).and_then(Value::as_str))
                .collect::<Vec<_>>()
                .join(",")
        };
        (each("name"), each("image"))
    }
}

/// A duration of seconds, two units at most, coarser the longer it is.
pub fn human(seconds: i64) -> String {
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..=-2 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(hours / 24, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{}d", hours / 24),
        63_072_000..252_288_000 => pair(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// At most three, then how many more.
pub fn some(items: &[String]) -> String {
    match items.len() {
        0 => NONE.into(),
        n if n > 3 => format!("{} + {} more...", items[..3].join(","), n - 3),
        _ => items.join(","),
    }
}

pub fn joined(items: &[&str], empty: &str) -> Value {
    if items.is_empty() {
        empty.into()
    } else {
        items.join(",").into()
    }
}

/// A label selector as text: `app=web,tier in (a,b)`.
pub fn selector(value: Option<&Value>) -> String {
    let Some(map) = value.and_then(Value::as_object) else {
        return NONE.into();
    };
    let has_form = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    let labels = if has_form { map.obj("matchLabels") } else { Some(map) };
    let mut parts: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    for e in map
        .arr("matchExpressions")
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
    {
        let key = e.str("key").unwrap_or_default();
        let values: Vec<&str> = e
            .arr("values")
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        parts.push(match e.str("operator") {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_string(),
        });
    }
    if parts.is_empty() { NONE.into() } else { parts.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_get_coarser() {
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (599, "9m59s"),
            (3599, "59m"),
            (10_860, "3h1m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (70_000_000, "2y80d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
