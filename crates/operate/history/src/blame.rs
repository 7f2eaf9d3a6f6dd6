//! Who wrote each field: its manager, as the object says; and who changed it last, as far as history goes back.

use crate::fields::leaves;
use crate::told::History;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blamed {
    pub field: String,
    /// Those who own it, and since when.
    pub managers: Vec<(String, String)>,
    /// The last change of it that is kept: its revision, time, user and client.
    pub last: Option<Last>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    pub revision: u64,
    pub time: String,
    pub user: String,
    pub client: String,
}

/// Of the newest state that history has, which may be of an object that is gone.
pub fn blame(history: &History) -> Vec<Blamed> {
    let states = std::iter::once(&history.before).chain(history.changes.iter().map(|change| &change.state));
    let Some(object) = states.filter_map(|state| state.object.as_ref()).next_back() else {
        return Vec::new();
    };
    let last = last(history);
    let owned = owned(object);
    let fields = leaves(object).into_keys().filter(|path| !is_identity(path));
    fields
        .map(|field| Blamed {
            managers: owned
                .iter()
                .filter(|entry| owns(&entry.fields, &field))
                .map(|entry| (entry.manager.clone(), entry.time.clone()))
                .collect(),
            last: last.get(&field).cloned(),
            field,
        })
        .collect()
}

/// What nobody changes.
fn is_identity(path: &str) -> bool {
    let fixed = [
        "apiVersion",
        "kind",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "metadata.creationTimestamp",
    ];
    fixed.contains(&path)
}

/// By field, its last change.
fn last(history: &History) -> BTreeMap<String, Last> {
    let mut found = BTreeMap::<String, Last>::new();
    let empty = Value::Null;
    let mut before = history.before.object.as_ref();
    let mut is_known = !history.before.is_unreadable();
    for change in &history.changes {
        let Some(after) = change.state.object.as_ref() else {
            is_known = !change.state.is_unreadable();
            if is_known {
                before = None;
            }
            continue;
        };
        let fields = crate::fields::changed(before.unwrap_or(&empty), after);
        before = Some(after);
        if !is_known {
            // Which of the changes since it could be read last it was can't be told.
            fields.iter().for_each(|field| drop(found.remove(field)));
            is_known = true;
            continue;
        }
        for field in fields {
            let client = change.agent.as_deref().and_then(|agent| agent.split(['/', ' ']).next());
            let last = Last {
                revision: change.revision,
                time: change.time.clone(),
                user: change.user.clone().unwrap_or_else(|| "?".into()),
                client: client.unwrap_or("?").into(),
            };
            found.insert(field, last);
        }
    }
    found
}

struct Owned {
    manager: String,
    time: String,
    fields: Vec<String>,
}

/// What each manager owns: paths as [`leaves`] names them, of fields or of what is above them.
fn owned(object: &Value) -> Vec<Owned> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_string();
    let read = |entry: &Value| {
        let mut fields = Vec::new();
        if let Some(set) = entry["fieldsV1"].as_object() {
            collect(String::new(), set, Some(object), &mut fields);
        }
        Owned {
            manager: match (text(entry, "manager"), text(entry, "subresource")) {
                (manager, sub) if sub.is_empty() => manager,
                (manager, sub) => format!("{manager} ({sub})"),
            },
            time: text(entry, "time"),
            fields,
        }
    };
    entries.into_iter().flatten().map(read).collect()
}

/// The leaves of a set of fields: `f:` a field, `k:` an item by its keys, `v:` an item by its value, `i:` by its place. `at` is what stands there.
fn collect(path: String, set: &Map<String, Value>, at: Option<&Value>, found: &mut Vec<String>) {
    for (name, set) in set {
        let Some(set) = set.as_object() else { continue };
        let (step, next) = match name.split_once(':') {
            Some(("f", field)) => (Step::Field(field.to_string()), at.and_then(|at| at.get(field))),
            Some(("k", keys)) => match serde_json::from_str::<Map<String, Value>>(keys) {
                Ok(keys) => item(at, |item| keys.iter().all(|(key, is)| item.get(key) == Some(is))),
                Err(_) => continue,
            },
            Some(("v", value)) => match serde_json::from_str::<Value>(value) {
                Ok(value) => item(at, |item| *item == value),
                Err(_) => continue,
            },
            Some(("i", place)) => match place.parse() {
                Ok(place) => (Step::Item(place), at.and_then(|at| at.get(place))),
                Err(_) => continue,
            },
            // The item itself.
            _ => continue,
        };
        if next.is_none() {
            continue;
        }
        let path = step.after(&path, at);
        match set.is_empty() {
            true => found.push(path),
            false => collect(path, set, next, found),
        }
    }
    // It itself is owned, not what it has.
    let is_empty = |at: &Value| at.as_object().is_some_and(Map::is_empty) || at.as_array().is_some_and(Vec::is_empty);
    if set.contains_key(".") && at.is_some_and(is_empty) {
        found.push(path);
    }
}

enum Step {
    Field(String),
    Item(usize),
}

fn item(at: Option<&Value>, is: impl Fn(&Value) -> bool) -> (Step, Option<&Value>) {
    let items = at.and_then(Value::as_array);
    let place = items.and_then(|items| items.iter().position(is));
    match (items, place) {
        (Some(items), Some(place)) => (Step::Item(place), items.get(place)),
        _ => (Step::Item(0), None),
    }
}

impl Step {
    /// The path as [`leaves`] writes it.
    fn after(self, path: &str, at: Option<&Value>) -> String {
        match self {
            Step::Field(name) => crate::fields::below(path, &name),
            Step::Item(place) => {
                let items = at.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                crate::fields::item(path, items, place)
            }
        }
    }
}

/// Whether the field is one of these, or below one that is owned as a whole.
fn owns(fields: &[String], field: &str) -> bool {
    fields.iter().any(|owned| {
        let rest = field.strip_prefix(owned.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nobody_is_blamed_for_what_can_not_be_told() {
        let object = |a: u32, b: u32| json!({"spec": {"a": a, "b": b}});
        let change =
            |revision: u32, object: Value| json!({"revision": revision, "time": "t", "user": "ana", "object": object});
        let mut history: History = serde_json::from_value(json!({
            "before": {"object": object(0, 0)}, "since": {"revision": 1, "time": "t"},
            "changes": [
                change(2, object(1, 1)),
                {"revision": 3, "time": "t", "unreadable": "no key", "object": null},
                change(4, object(2, 1))]}))
        .unwrap();
        let revisions = |history: &History| {
            let blamed = blame(history).into_iter();
            blamed
                .map(|blamed| blamed.last.map(|last| last.revision))
                .collect::<Vec<_>>()
        };
        assert_eq!(revisions(&history), [None, Some(2)]);
        history.changes.drain(..1);
        history.before = history.changes.remove(0).state;
        assert_eq!(revisions(&history), [None, None]);
    }

    #[test]
    fn fields_have_managers_and_a_last_change() {
        let object = |image: &str, replicas: u32| {
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "web", "labels": {"app.kubernetes.io/name": "web"}, "managedFields": [
                    {"manager": "kubectl", "operation": "Apply", "time": "t1", "fieldsV1": {
                        "f:metadata": {"f:labels": {"f:app.kubernetes.io/name": {}}},
                        "f:spec": {"f:template": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}},
                    {"manager": "first", "operation": "Update", "time": "t0", "fieldsV1": {"f:metadata": {"f:labels": {".": {}}}}},
                    {"manager": "hpa", "operation": "Update", "subresource": "scale", "time": "t2", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]},
                "spec": {"replicas": replicas, "template": {"containers": [{"name": "log", "image": "l"}, {"name": "web", "image": image}]}}})
        };
        let history: History = serde_json::from_value(json!({
            "before": {"object": object("a:1", 3)}, "since": {"revision": 1, "time": "t"},
            "changes": [
                {"revision": 5, "time": "t5", "user": "ana", "agent": "kubectl/v1", "object": object("a:2", 3)},
                {"revision": 6, "time": "t6", "user": "hpa", "agent": "controller/1", "object": object("a:2", 4)},
                {"revision": 7, "time": "t7", "object": object("a:2", 5)},
                {"revision": 8, "time": "t8", "deleted": true, "object": null}]}))
        .unwrap();
        let blamed: BTreeMap<String, Blamed> = blame(&history).into_iter().map(|b| (b.field.clone(), b)).collect();
        let managers = |field: &str| {
            blamed[field]
                .managers
                .iter()
                .map(|(m, _)| m.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(managers("metadata.labels[app.kubernetes.io/name]"), ["kubectl"]);
        assert_eq!(managers("spec.template.containers[name=web].image"), ["kubectl"]);
        assert!(managers("spec.template.containers[name=log].image").is_empty());
        assert_eq!(managers("spec.replicas"), ["hpa (scale)"]);
        assert_eq!(blamed["spec.replicas"].last.as_ref().unwrap().revision, 7);
        assert_eq!(blamed["spec.replicas"].last.as_ref().unwrap().user, "?");
        let image = blamed["spec.template.containers[name=web].image"]
            .last
            .as_ref()
            .unwrap();
        assert_eq!(
            (image.revision, image.user.as_str(), image.client.as_str()),
            (5, "ana", "kubectl")
        );
        assert!(blamed["metadata.labels[app.kubernetes.io/name]"].last.is_none());
        assert!(!blamed.contains_key("metadata.name"));
    }
}
