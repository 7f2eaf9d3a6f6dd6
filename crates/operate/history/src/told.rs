//! What the server tells of an object's changes, and what of it stands in a line.

use crate::fields::{changed, short};
use serde::Deserialize;
use serde_json::Value;

/// `GET /keelson/history/…/NAME`
#[derive(Clone, Debug, Deserialize)]
pub struct History {
    /// What it was before the first change.
    pub before: State,
    #[serde(default)]
    pub changes: Vec<Change>,
    /// There were earlier ones.
    #[serde(default)]
    pub more: bool,
    pub since: Since,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct State {
    #[serde(default)]
    pub object: Option<Value>,
    /// Why it can't be shown.
    #[serde(default)]
    pub unreadable: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Change {
    pub revision: u64,
    pub time: String,
    /// It happened before that time: nobody looked.
    #[serde(default)]
    pub late: bool,
    #[serde(default)]
    pub deleted: bool,
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub agent: Option<String>,
    #[serde(default)]
    pub verb: Option<String>,
    #[serde(flatten)]
    pub state: State,
}

/// From where on everything is kept.
#[derive(Clone, Debug, Deserialize)]
pub struct Since {
    pub revision: u64,
    pub time: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub revision: String,
    pub time: String,
    pub user: String,
    pub client: String,
    pub verb: String,
    pub what: String,
}

/// So many fields are named in a row.
const NAMED: usize = 4;

impl History {
    /// The newest state that wasn't being deleted, and the last revision at which it stood; `None` in its place: it stands still. There is none to
    /// tell behind one that can't be read: it may be that one.
    pub fn last_whole(&self) -> Option<(Option<u64>, &Value)> {
        let states = std::iter::once(&self.before).chain(self.changes.iter().map(|change| &change.state));
        let ends = self
            .changes
            .iter()
            .map(|change| Some(change.revision - 1))
            .chain([None]);
        let all = states.zip(ends).collect::<Vec<_>>();
        let known = all.into_iter().rev().take_while(|(state, _)| !state.is_unreadable());
        let mut objects = known.filter_map(|(state, end)| state.object.as_ref().map(|object| (end, object)));
        objects.find(|(_, object)| is_whole(object))
    }

    /// What it is now.
    pub fn now(&self) -> Option<&Value> {
        let last = self.changes.last().map_or(&self.before, |change| &change.state);
        last.object.as_ref()
    }
}

impl State {
    pub(crate) fn is_unreadable(&self) -> bool {
        self.object.is_none() && self.unreadable.is_some()
    }
}

pub(crate) fn is_whole(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_none()
}

/// The oldest first.
pub fn rows(history: &History) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut before = &history.before;
    if history.before.object.is_some() || history.before.unreadable.is_some() {
        let created = history.before.object.as_ref();
        let created = created.and_then(|object| object.pointer("/metadata/creationTimestamp"));
        let created = created.and_then(Value::as_str).unwrap_or("some time ago");
        rows.push(Row {
            revision: "-".into(),
            time: match history.more {
                true => "-".into(),
                false => format!("< {}", seconds(&history.since.time)),
            },
            user: "-".into(),
            client: "-".into(),
            verb: "-".into(),
            what: match history.more {
                true => format!("(there are earlier changes; it was created {created})"),
                false => format!("(was there; created {created})"),
            },
        });
    }
    for change in &history.changes {
        let manager = manager(before.object.as_ref(), change.state.object.as_ref());
        let (name, operation) = manager.unwrap_or_default();
        let unknown = || "?".to_string();
        rows.push(Row {
            revision: change.revision.to_string(),
            time: match change.late {
                true => format!("<= {}", seconds(&change.time)),
                false => seconds(&change.time),
            },
            user: change.user.clone().unwrap_or_else(unknown),
            client: match (&change.agent, name.is_empty()) {
                (Some(agent), true) => client(agent),
                (Some(agent), false) if client(agent) != name => format!("{} as {name}", client(agent)),
                (_, false) => name,
                (None, true) => unknown(),
            },
            verb: change.verb.clone().unwrap_or_else(|| match before.object {
                _ if change.deleted => "delete".into(),
                None if before.unreadable.is_none() && change.state.object.is_some() => "create".into(),
                _ if operation.is_empty() => unknown(),
                _ => operation,
            }),
            what: what(before, change),
        });
        before = &change.state;
    }
    rows
}

/// The part of a user agent that names the program.
fn client(agent: &str) -> String {
    agent.split(['/', ' ']).next().unwrap_or(agent).to_string()
}

fn seconds(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => format!("{time:.0}"),
        Err(_) => time.to_string(),
    }
}

fn what(before: &State, change: &Change) -> String {
    if change.deleted {
        return "deleted".into();
    }
    let is_unknown = before.is_unreadable();
    let (before, after) = match (&before.object, &change.state.object) {
        (_, None) => {
            return format!(
                "(can't be read: {})",
                change.state.unreadable.as_deref().unwrap_or("it isn't told why")
            );
        }
        (None, Some(_)) if is_unknown => return "(what it was can't be read)".into(),
        (None, Some(_)) => return "created".into(),
        (Some(before), Some(after)) => (before, after),
    };
    if is_whole(before) && !is_whole(after) {
        return "is being deleted".into();
    }
    let paths = changed(before, after);
    match paths.is_empty() {
        true => "(who owns fields)".into(),
        false => short(&paths, NAMED),
    }
}

/// Who has owned fields since the change: its manager, and how.
fn manager(before: Option<&Value>, after: Option<&Value>) -> Option<(String, String)> {
    let entries = |object: Option<&Value>| -> Vec<Value> {
        let entries = object.and_then(|object| object.pointer("/metadata/managedFields"));
        entries.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let known = entries(before);
    let mut new = entries(after)
        .into_iter()
        .filter(|entry| !known.contains(entry))
        .collect::<Vec<_>>();
    // Others lose fields to who wrote last.
    new.sort_by_key(|entry| entry["time"].as_str().unwrap_or_default().to_string());
    let entry = new.pop()?;
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_string();
    let operation = match (text("operation").as_str(), text("subresource").as_str()) {
        (operation, "") => operation.to_lowercase(),
        (operation, sub) => format!("{} {sub}", operation.to_lowercase()),
    };
    Some((text("manager"), operation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(replicas: u32, managers: &[(&str, &str)]) -> Value {
        let entries: Vec<_> = managers
            .iter()
            .map(|(m, t)| json!({"manager": m, "operation": "Update", "time": t}))
            .collect();
        json!({"metadata": {"name": "a", "creationTimestamp": "c", "managedFields": entries}, "spec": {"replicas": replicas}})
    }

    fn history() -> History {
        let mut deleting = object(5, &[("kubectl", "2"), ("hpa", "1")]);
        deleting["metadata"]["deletionTimestamp"] = "t".into();
        serde_json::from_value(json!({
            "before": {"object": object(3, &[("kubectl", "1")])},
            "since": {"revision": 9, "time": "2026-03-01T00:00:00Z"},
            "changes": [
                {"revision": 10, "time": "2026-03-01T00:00:01.5Z", "user": "ana", "agent": "kubectl/v1.37 (linux)", "verb": "patch",
                 "object": object(5, &[("kubectl", "2")])},
                {"revision": 12, "time": "2026-03-01T00:00:02Z", "late": true, "object": object(5, &[("kubectl", "2"), ("hpa", "1")])},
                {"revision": 13, "time": "2026-03-01T00:00:03Z", "user": "bob", "agent": "curl/8", "verb": "delete", "object": deleting},
                {"revision": 14, "time": "2026-03-01T00:00:04Z", "deleted": true, "object": null},
                {"revision": 20, "time": "2026-03-01T00:00:05Z", "user": "bob", "agent": "curl/8", "verb": "create", "unreadable": "no key"}]}))
        .unwrap()
    }

    #[test]
    fn a_change_is_a_row() {
        let rows = rows(&history());
        let lines: Vec<_> = rows
            .iter()
            .map(|r| {
                [&r.revision, &r.time, &r.user, &r.client, &r.verb, &r.what]
                    .map(String::as_str)
                    .join(" | ")
            })
            .collect();
        assert_eq!(
            lines,
            [
                "- | < 2026-03-01T00:00:00Z | - | - | - | (was there; created c)",
                "10 | 2026-03-01T00:00:01Z | ana | kubectl | patch | spec.replicas",
                "12 | <= 2026-03-01T00:00:02Z | ? | hpa | update | (who owns fields)",
                "13 | 2026-03-01T00:00:03Z | bob | curl | delete | is being deleted",
                "14 | 2026-03-01T00:00:04Z | ? | ? | delete | deleted",
                "20 | 2026-03-01T00:00:05Z | bob | curl | create | (can't be read: no key)",
            ]
        );
    }

    #[test]
    fn what_follows_one_that_can_not_be_read_is_not_said_to_be_new() {
        let mut history = history();
        let mut next = history.changes[0].clone();
        (next.revision, next.verb) = (21, None);
        history.changes.push(next);
        let rows = rows(&history);
        let last = rows.last().unwrap();
        assert_eq!(
            (last.verb.as_str(), last.what.as_str()),
            ("update", "(what it was can't be read)")
        );
    }

    #[test]
    fn what_comes_back_is_what_was_before_the_deletion_began() {
        let mut history = history();
        assert!(history.last_whole().is_none(), "what it was last can't be read");
        history.changes.pop();
        let (revision, object) = history.last_whole().unwrap();
        assert_eq!((revision, &object["spec"]["replicas"]), (Some(12), &json!(5)));
        history.changes.drain(..2);
        assert_eq!(history.last_whole().unwrap().1["spec"]["replicas"], 3);
        history.changes.clear();
        assert_eq!(history.last_whole().unwrap().0, None);
        history.before.object = None;
        assert!(history.last_whole().is_none());
        assert!(history.now().is_none());
    }
}
