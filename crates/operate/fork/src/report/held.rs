//! What holds something back: pods that stay on a node that is to be emptied, budgets, and what controllers were refused.

use super::{Picture, Stay, Warning, controller, text};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels::{Labels, matches};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const BUDGETS: &str = "poddisruptionbudgets.policy";
/// Nothing measures what pods use in a copy.
const UNMEASURED: &str = "horizontal-pod-autoscaler";
/// Of pods it is told why they wait.
const SCHEDULING: &str = "FailedScheduling";

pub fn stays(before: &Picture, after: &Picture) -> Vec<Stay> {
    let closed = |node: &Value| node["spec"]["unschedulable"] == true;
    let newly = after.of("nodes").filter(|(key, node)| {
        let was = before.get(key).is_some_and(closed);
        closed(node) && !was
    });
    let nodes: BTreeSet<&str> = newly.map(|(key, _)| key.name.as_str()).collect();
    let pods = after
        .of("pods")
        .filter(|(_, pod)| nodes.contains(text(pod, "/spec/nodeName")) && goes(pod));
    pods.map(|(key, pod)| Stay {
        node: text(pod, "/spec/nodeName").to_owned(),
        pod: format!("{}/{}", key.namespace, key.name),
        budgets: holding(after, &key.namespace, pod),
    })
    .collect()
}

/// Whether whoever empties a node evicts it.
fn goes(pod: &Value) -> bool {
    let is_over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
    let of_node = controller(pod).is_some_and(|owner| owner["kind"] == "DaemonSet" || owner["kind"] == "Node");
    !is_over && !of_node
}

fn holding(picture: &Picture, namespace: &str, pod: &Value) -> Vec<String> {
    let labels: Labels = serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap_or_default();
    let holds = |budget: &Value| {
        let selector: Option<LabelSelector> = serde_json::from_value(budget["spec"]["selector"].clone()).ok();
        allowed(budget) == 0 && matches(selector.as_ref(), Some(&labels))
    };
    let budgets = picture
        .of(BUDGETS)
        .filter(|(key, budget)| key.namespace == namespace && holds(budget));
    budgets
        .map(|(key, budget)| format!("{} ({})", key.name, stands(budget)))
        .collect()
}

fn allowed(budget: &Value) -> i64 {
    budget["status"]["disruptionsAllowed"].as_i64().unwrap_or_default()
}

fn stands(budget: &Value) -> String {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or_default();
    format!(
        "{} healthy, {} needed",
        number("currentHealthy"),
        number("desiredHealthy")
    )
}

pub fn budgets(before: &Picture, after: &Picture) -> Vec<String> {
    let none_left = after.of(BUDGETS).filter(|(key, budget)| {
        let was = before.get(key).map(allowed);
        let watches = budget["status"]["expectedPods"].as_i64().is_some_and(|pods| pods > 0);
        allowed(budget) == 0 && watches && was != Some(0)
    });
    none_left
        .map(|(key, budget)| format!("{}/{} ({})", key.namespace, key.name, stands(budget)))
        .collect()
}

pub fn warnings(before: &Picture, after: &Picture) -> Vec<Warning> {
    let mut told: BTreeMap<(String, String), String> = BTreeMap::new();
    let events = after.of("events").filter(|(key, event)| {
        let was = before.get(key);
        event["type"] == "Warning" && was.is_none_or(|was| was["count"] != event["count"])
    });
    for (_, event) in events {
        let (reason, from) = (text(event, "/reason"), text(event, "/source/component"));
        let from = if from.is_empty() {
            text(event, "/reportingComponent")
        } else {
            from
        };
        if reason == SCHEDULING || from == UNMEASURED {
            continue;
        }
        let about = &event["involvedObject"];
        let (kind, namespace) = (text(about, "/kind").to_ascii_lowercase(), text(about, "/namespace"));
        let name = text(about, "/name");
        let about = match namespace.is_empty() {
            true => format!("{kind} {name}"),
            false => format!("{kind} {namespace}/{name}"),
        };
        told.insert((about, reason.to_owned()), text(event, "/message").to_owned());
    }
    let warning = |((about, reason), message)| Warning { about, reason, message };
    told.into_iter().map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_holds_a_node_back_is_named() {
        let node = |closed: bool| json!({"metadata": {"name": "n1"}, "spec": {"unschedulable": closed}});
        let pod = |name: &str, owner: &str| {
            json!({"metadata": {"name": name, "namespace": "n", "labels": {"app": "db"},
                "ownerReferences": [{"kind": owner, "name": "x", "controller": true}]}, "spec": {"nodeName": "n1"}})
        };
        let budget = |allowed: i64| {
            json!({"metadata": {"name": "db", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"app": "db"}}},
                "status": {"disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 2, "expectedPods": 2}})
        };
        let picture = |closed, allowed| {
            let mut picture = Picture::default();
            picture.add("nodes", node(closed));
            picture.add("pods", pod("db-0", "StatefulSet"));
            picture.add("pods", pod("agent", "DaemonSet"));
            picture.add(BUDGETS, budget(allowed));
            picture
        };
        let stay = Stay {
            node: "n1".into(),
            pod: "n/db-0".into(),
            budgets: vec!["db (2 healthy, 2 needed)".into()],
        };
        assert_eq!(stays(&picture(false, 1), &picture(true, 0)), [stay]);
        assert_eq!(stays(&picture(true, 0), &picture(true, 0)), []);
        assert_eq!(
            budgets(&picture(false, 1), &picture(true, 0)),
            ["n/db (2 healthy, 2 needed)"]
        );
        assert!(budgets(&picture(false, 0), &picture(true, 0)).is_empty());
    }

    #[test]
    fn new_complaints_are_told_once() {
        let event = |name: &str, reason: &str, count: i64| {
            json!({"metadata": {"name": name, "namespace": "n"}, "type": "Warning", "reason": reason, "message": "quota", "count": count,
                "involvedObject": {"kind": "ReplicaSet", "namespace": "n", "name": "web-1"}})
        };
        let mut before = Picture::default();
        before.add("events", event("old", "Old", 1));
        let mut after = before.clone();
        after.add("events", event("a", "FailedCreate", 3));
        after.add("events", event("b", "FailedCreate", 1));
        after.add("events", event("c", SCHEDULING, 1));
        let told = warnings(&before, &after);
        assert_eq!(told.len(), 1);
        assert_eq!(
            (told[0].about.as_str(), told[0].reason.as_str()),
            ("replicaset n/web-1", "FailedCreate")
        );
    }
}
