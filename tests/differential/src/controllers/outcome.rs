//! What is left of a scenario, and what differs between two sides' outcomes.

use crate::case::Case;
use crate::compare::{self, Difference, Group};
use crate::controllers::mask::Mask;
use crate::controllers::player::text;
use crate::controllers::seen::Of;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// By version, kind and name; those with the same drawn name stand together.
    pub objects: BTreeMap<String, Vec<Value>>,
    pub events: BTreeSet<String>,
    /// Pods of StatefulSets as they came and went.
    pub order: Vec<String>,
    pub notes: Vec<String>,
}

impl Outcome {
    pub fn new(of: &Of, notes: Vec<String>) -> Outcome {
        let mask = Mask::new(of);
        let mut out = Outcome {
            order: of.order.clone(),
            notes: notes.iter().map(|n| mask.text(n)).collect(),
            ..Outcome::default()
        };
        for object in of.objects.values().filter(|o| o["kind"] != "Event") {
            let object = mask.object(object);
            let key = format!(
                "{} {} {}",
                text(&object, "/apiVersion"),
                text(&object, "/kind"),
                text(&object, "/metadata/name")
            );
            out.objects.entry(key).or_default().push(object);
        }
        for alike in out.objects.values_mut() {
            alike.sort_by_cached_key(|o| (o["spec"].to_string(), o.to_string()));
        }
        out.events = of
            .ever
            .iter()
            .filter(|o| o["kind"] == "Event")
            .map(|e| event(&mask.object(e)))
            .collect();
        out
    }
}

/// An event in a line, without how often it was.
fn event(e: &Value) -> String {
    let of = &e["involvedObject"];
    let component = match text(e, "/reportingComponent") {
        "" => text(e, "/source/component"),
        said => said,
    };
    let line = json!([
        e["type"],
        e["reason"],
        component,
        of["apiVersion"],
        of["kind"],
        of["name"],
        of["fieldPath"],
        e["message"]
    ]);
    line.to_string()
}

/// All that differs.
pub fn differences(scenario: &str, ours: &Outcome, peer: &Outcome) -> Vec<Difference> {
    let mut out = Vec::new();
    let mut add = |kind: &str, field: &str, sort: &str, ours: String, peer: String| {
        let group = Group {
            kind: kind.into(),
            field: field.into(),
            sort: sort.replace(scenario, "SCENARIO"),
        };
        out.push(Difference { group, ours, peer });
    };
    let keys: BTreeSet<&String> = ours.objects.keys().chain(peer.objects.keys()).collect();
    let none = Vec::new();
    for key in keys {
        let (a, b) = (
            ours.objects.get(key).unwrap_or(&none),
            peer.objects.get(key).unwrap_or(&none),
        );
        let kind = key.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
        if a.len() != b.len() {
            let sort = if a.len() > b.len() {
                "ours has more"
            } else {
                "the peer has more"
            };
            let shown = |o: &[Value]| format!("{}: {}", o.len(), Value::from(o.to_vec()));
            add(&kind, "", sort, shown(a), shown(b));
            continue;
        }
        for (a, b) in a.iter().zip(b) {
            let case = Case {
                kind: kind.clone(),
                what: String::new(),
                steps: Vec::new(),
            };
            for d in compare::values(&case, a, b) {
                add(&d.group.kind, &d.group.field, &d.group.sort, d.ours, d.peer);
            }
        }
    }
    for only in ours.events.difference(&peer.events) {
        add("event", &about(only), "only ours tells it", only.clone(), String::new());
    }
    for only in peer.events.difference(&ours.events) {
        add(
            "event",
            &about(only),
            "only the peer tells it",
            String::new(),
            only.clone(),
        );
    }
    if ours.order != peer.order {
        add(
            "order",
            "pods of a StatefulSet",
            "value",
            ours.order.join(", "),
            peer.order.join(", "),
        );
    }
    if ours.notes != peer.notes {
        add("note", "", "value", ours.notes.join("\n"), peer.notes.join("\n"));
    }
    out
}

/// Type, reason, component and kind of an event.
fn about(line: &str) -> String {
    let parts: Vec<Value> = serde_json::from_str(line).unwrap_or_default();
    let part = |n: usize| parts.get(n).and_then(Value::as_str).unwrap_or_default();
    format!("{} {} {} of {}", part(0), part(1), part(2), part(4))
}
