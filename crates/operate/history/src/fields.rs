//! Fields by their paths: `spec.template.spec.containers[name=web].image`.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What changes with every write, and says nothing.
const EVERY: [&str; 3] = [
    "metadata.managedFields",
    "metadata.resourceVersion",
    "metadata.generation",
];
/// By what the items of lists are known, where they have it: so an item that moves is the same one.
const KEYS: [&str; 6] = ["name", "key", "uid", "type", "ip", "containerPort"];

/// Every field that has a value of its own, and the value.
pub(crate) fn leaves(object: &Value) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    walk(String::new(), object, &mut found);
    found.retain(|path, _| !EVERY.iter().any(|every| path.starts_with(every)));
    found
}

fn walk<'a>(path: String, value: &'a Value, found: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                walk(below(&path, name), value, found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (place, value) in items.iter().enumerate() {
                walk(item(&path, items, place), value, found);
            }
        }
        _ => {
            found.insert(path, value);
        }
    }
}

pub(crate) fn below(path: &str, name: &str) -> String {
    match (path.is_empty(), plain(name)) {
        (true, _) => name.to_string(),
        (false, true) => format!("{path}.{name}"),
        (false, false) => format!("{path}[{name}]"),
    }
}

pub(crate) fn item(path: &str, items: &[Value], place: usize) -> String {
    let key = key_of(items).and_then(|key| Some((key, items.get(place)?.get(key)?)));
    match key {
        Some((key, Value::String(text))) => format!("{path}[{key}={text}]"),
        Some((key, other)) => format!("{path}[{key}={other}]"),
        None => format!("{path}[{place}]"),
    }
}

fn plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// The first key by which all items are told apart.
fn key_of(items: &[Value]) -> Option<&'static str> {
    KEYS.into_iter().find(|key| {
        let mut seen = BTreeSet::new();
        items.iter().all(|item| {
            item.get(key)
                .is_some_and(|is| !is.is_object() && seen.insert(is.to_string()))
        })
    })
}

/// Paths of what is in one and not, or otherwise, in the other.
pub fn changed(before: &Value, after: &Value) -> Vec<String> {
    let (before, after) = (leaves(before), leaves(after));
    let gone = before.keys().filter(|path| !after.contains_key(*path));
    let other = after.iter().filter(|(path, value)| before.get(*path) != Some(value));
    let paths: BTreeSet<&String> = gone.chain(other.map(|(path, _)| path)).collect();
    paths.into_iter().cloned().collect()
}

/// A few of many, for one line.
pub(crate) fn short(paths: &[String], most: usize) -> String {
    let mut text = paths
        .iter()
        .take(most)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if paths.len() > most {
        text += &format!(" and {} more", paths.len() - most);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_are_told_by_path_and_items_by_name() {
        let before = json!({
            "metadata": {"name": "a", "resourceVersion": "1", "generation": 1, "annotations": {"example.com/a": "x"}, "managedFields": [{"time": "1"}]},
            "spec": {"replicas": 3, "containers": [{"name": "web", "image": "a:1"}, {"name": "log", "image": "b:1"}], "args": ["a", "b"]}});
        let after = json!({
            "metadata": {"name": "a", "resourceVersion": "2", "generation": 2, "managedFields": [{"time": "2"}]},
            "spec": {"replicas": 5, "containers": [{"name": "log", "image": "b:1"}, {"name": "web", "image": "a:2"}], "args": ["a", "c"], "paused": true}});
        assert_eq!(
            changed(&before, &after),
            [
                "metadata.annotations[example.com/a]",
                "spec.args[1]",
                "spec.containers[name=web].image",
                "spec.paused",
                "spec.replicas"
            ]
        );
        assert!(changed(&after, &after).is_empty());
        let twice = json!({"items": [{"name": "a", "v": 1}, {"name": "a", "v": 2}]});
        assert!(leaves(&twice).contains_key("items[1].v"));
        assert_eq!(
            short(&changed(&before, &after), 2),
            "metadata.annotations[example.com/a], spec.args[1] and 3 more"
        );
    }
}
