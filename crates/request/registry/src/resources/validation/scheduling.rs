//! Where pods may go: affinity, tolerations, topology spread, taints.

use super::check::{Errs, count, s};
use crate::internal;
use keelson_api::{Map, Value};
use keelson_machinery::names;
use std::collections::{HashMap, HashSet};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(e: &mut Errs, a: &Map) {
    e.child(a, "nodeAffinity", |e, na| {
        e.child(na, REQUIRED, |e, selector| node_selector(e, selector, true));
        e.each(na, PREFERRED, |e, _, term| {
            weight(e, term);
            e.child(term, "preference", |e, t| node_term(e, t, false));
        });
    });
    for key in ["podAffinity", "podAntiAffinity"] {
        e.child(a, key, |e, pa| {
            e.each(pa, REQUIRED, |e, _, term| pod_term(e, term));
            e.each(pa, PREFERRED, |e, _, weighted| {
                weight(e, weighted);
                e.child(weighted, "podAffinityTerm", pod_term);
            });
        });
    }
}

fn weight(e: &mut Errs, term: &Map) {
    let w = term.int("weight").unwrap_or(0);
    if !(1..=100).contains(&w) {
        e.invalid("weight", w, "must be in the range 1-100");
    }
}

pub fn node_selector(e: &mut Errs, selector: &Map, values: bool) {
    if count(selector, "nodeSelectorTerms") == 0 {
        return e.required("nodeSelectorTerms", "must have at least one node selector term");
    }
    e.each(selector, "nodeSelectorTerms", |e, _, term| node_term(e, term, values));
}

fn node_term(e: &mut Errs, term: &Map, values: bool) {
    e.each(term, "matchExpressions", |e, _, x| {
        match (s(x, "operator"), count(x, "values")) {
            ("In" | "NotIn", 0) => e.required("values", "must be specified when `operator` is 'In' or 'NotIn'"),
            ("Exists" | "DoesNotExist", 1..) => {
                e.forbidden(
                    "values",
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            ("Gt" | "Lt", n) if n != 1 => {
                e.required(
                    "values",
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt", _) => {}
            (other, _) => e.invalid("operator", other, "not a valid selector operator"),
        }
        e.format("key", s(x, "key"), names::label_key);
        if values {
            e.each_str(x, "values", |e, _, v| e.format("", v, names::label_value));
        }
    });
    e.each(term, "matchFields", |e, _, x| {
        match (s(x, "operator"), count(x, "values")) {
            ("In" | "NotIn", n) if n != 1 => {
                e.required(
                    "values",
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                );
            }
            ("In" | "NotIn", _) => {}
            (other, _) => e.invalid("operator", other, "not a valid selector operator"),
        }
        if s(x, "key") == "metadata.name" {
            e.each_str(x, "values", |e, _, v| e.format("", v, names::dns1123_subdomain));
        } else {
            e.invalid("key", s(x, "key"), "not a valid field selector key");
        }
    });
}

fn pod_term(e: &mut Errs, term: &Map) {
    e.label_selector(term, "labelSelector");
    e.label_selector(term, "namespaceSelector");
    for ns in term.arr("namespaces").into_iter().flatten().filter_map(Value::as_str) {
        e.format("namespace", ns, names::dns1123_label);
    }
    match_label_keys(e, term);
    if s(term, "topologyKey").is_empty() {
        e.required("topologyKey", "can not be empty");
    }
    e.format("topologyKey", s(term, "topologyKey"), names::label_key);
}

fn match_label_keys(e: &mut Errs, term: &Map) {
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        if count(term, list) > 0 && !term.contains_key("labelSelector") {
            e.forbidden(list, "must not be specified when labelSelector is not set");
        } else {
            e.each_str(term, list, |e, _, key| e.format("", key, names::label_key));
        }
    }
    let keys = |list: &str| -> Vec<String> {
        let keys = term.arr(list).into_iter().flatten().filter_map(Value::as_str);
        keys.map(str::to_owned).collect()
    };
    selected_twice(e, term, &keys("matchLabelKeys"));
    let others: HashSet<String> = keys("mismatchLabelKeys").into_iter().collect();
    e.each_str(term, "matchLabelKeys", |e, _, key| {
        if others.contains(key) {
            e.invalid("", key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    });
}

/// A key of `matchLabelKeys` that the selector has more than once: a new pod's own label has been added to it already.
/// Upstream names the term with the key's place in the list, not the list.
fn selected_twice(e: &mut Errs, term: &Map, keys: &[String]) {
    let Some(selector) = term.obj("labelSelector") else {
        return;
    };
    let labels = selector.obj("matchLabels").into_iter().flat_map(Map::keys);
    let mut seen: HashSet<&str> = labels.map(|key| key.as_ref()).collect();
    // Of a key that stands there twice the last place counts.
    let places: HashMap<&str, usize> = keys.iter().enumerate().map(|(i, key)| (key.as_str(), i)).collect();
    let rules = selector.arr("matchExpressions").into_iter().flatten();
    for key in rules.filter_map(|rule| rule.get("key")?.as_str()) {
        if let Some(i) = places.get(key).filter(|_| seen.contains(key)) {
            let why = "exists in both matchLabelKeys and labelSelector";
            e.within(&format!("[{i}]"), |e| e.invalid("", key, why));
        }
        seen.insert(key);
    }
}

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub fn tolerations(e: &mut Errs, owner: &Map) {
    e.each(owner, "tolerations", |e, _, t| {
        let (key, operator, value) = (s(t, "key"), s(t, "operator"), s(t, "value"));
        if !key.is_empty() {
            e.format("key", key, names::label_key);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            e.invalid("operator", operator, why);
        }
        if t.contains_key("tolerationSeconds") && s(t, "effect") != "NoExecute" {
            e.invalid(
                "effect",
                s(t, "effect"),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "Equal" | "" => {
                let errs = names::label_value(value);
                if !errs.is_empty() {
                    e.invalid("operator", value, &errs.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                e.invalid("operator", value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Lt" | "Gt" => e.not_supported("operator", operator, &["Equal", "Exists", "Lt", "Gt"]),
            other => e.not_supported("operator", other, &["Equal", "Exists"]),
        }
        let effect = s(t, "effect");
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            e.not_supported("effect", effect, EFFECTS);
        }
    });
}

/// The taints of a node; upstream reports them under `metadata.taints`.
pub fn taints(e: &mut Errs, spec: &Map) {
    let mut seen = HashSet::new();
    let Some(list) = spec.arr("taints") else { return };
    for (i, t) in list.iter().enumerate() {
        let Some(t) = t.as_object() else { continue };
        e.within(&format!("metadata.taints[{i}]"), |e| {
            e.format("key", s(t, "key"), names::label_key);
            let errs = names::label_value(s(t, "value"));
            if !errs.is_empty() {
                e.invalid("value", s(t, "value"), &errs.join(";"));
            }
            let effect = s(t, "effect");
            if effect.is_empty() {
                e.required("effect", "");
            } else if !EFFECTS.contains(&effect) {
                e.not_supported("effect", effect, EFFECTS);
            }
            if !seen.insert((s(t, "key"), effect)) {
                let shown = internal::shown("core.Taint", Some(&Value::Object(t.clone())));
                e.duplicate_shown("", &format!("{shown}: taints must be unique by key and effect pair"));
            }
        });
    }
}

pub fn spread(e: &mut Errs, spec: &Map) {
    let all: Vec<(&str, &str)> = spec
        .arr("topologySpreadConstraints")
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .map(|c| (s(c, "topologyKey"), s(c, "whenUnsatisfiable")))
        .collect();
    e.each(spec, "topologySpreadConstraints", |e, i, c| {
        let skew = c.int("maxSkew").unwrap_or(0);
        if skew <= 0 {
            e.invalid("maxSkew", skew, "must be greater than zero");
        }
        let (key, action) = (s(c, "topologyKey"), s(c, "whenUnsatisfiable"));
        if key.is_empty() {
            e.required("topologyKey", "can not be empty");
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action) {
            e.not_supported("whenUnsatisfiable", action, &actions);
        }
        if all.iter().skip(i + 1).any(|c| *c == (key, action)) {
            e.duplicate("{topologyKey, whenUnsatisfiable}", format!("{{{key}, {action}}}"));
        }
        if let Some(n) = c.int("minDomains") {
            if n <= 0 {
                e.invalid("minDomains", n, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                e.invalid("minDomains", n, &why);
            }
        }
        e.optional_one_of(c, "nodeAffinityPolicy", &["Honor", "Ignore"]);
        e.optional_one_of(c, "nodeTaintsPolicy", &["Honor", "Ignore"]);
        match_label_keys(e, c);
        e.label_selector(c, "labelSelector");
    });
}
