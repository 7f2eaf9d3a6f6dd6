//! `matchLabelKeys` and `mismatchLabelKeys`: what a new pod's own labels add to its selectors of other pods.
//!
//! This happens once, when the pod is made. Whoever reads a pod (the scheduler above all) finds it in the selector and need not
//! know the keys. A selector that is absent selects nothing, and stays absent.

use keelson_api::{Map, Object, Value, value};

const TERMS: &[&str] = &[
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
];

pub fn merge(pod: &mut Object) {
    let labels = pod.labels().cloned().unwrap_or_default();
    for kind in ["podAffinity", "podAntiAffinity"] {
        for list in TERMS {
            for term in maps(pod.at_mut(&["spec", "affinity", kind, list])) {
                match term.get_mut("podAffinityTerm") {
                    Some(term) => term.as_object_mut().into_iter().for_each(|t| merge_into(t, &labels)),
                    None => merge_into(term, &labels),
                }
            }
        }
    }
    for constraint in maps(pod.at_mut(&["spec", "topologySpreadConstraints"])) {
        merge_into(constraint, &labels);
    }
}

fn maps(list: Option<&mut Value>) -> impl Iterator<Item = &mut Map> {
    let list = list.and_then(Value::as_array_mut).into_iter().flatten();
    list.filter_map(Value::as_object_mut)
}

fn merge_into(term: &mut Map, labels: &Map) {
    let mut rules = Vec::new();
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term.arr(list).into_iter().flatten().filter_map(Value::as_str) {
            if let Some(value) = labels.str(key) {
                rules.push(value!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    let Some(Value::Object(selector)) = term.get_mut("labelSelector") else {
        return;
    };
    if rules.is_empty() {
        return;
    }
    let all = selector.entry_or_insert_with("matchExpressions", || Value::Array(Vec::new()));
    match all.as_array_mut() {
        Some(all) => all.extend(rules),
        None => *all = Value::Array(rules),
    }
}
