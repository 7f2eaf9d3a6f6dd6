//! What of an object that is already there has to change.

use crate::authz::rule::{self, Rule};
use keelson_api::{Object, Str, Value};

/// Brings `found` up to `wanted`; false when nothing changed.
pub fn update(found: &mut Object, wanted: &Object) -> bool {
    match wanted.kind() {
        "ClusterRole" | "Role" if updates_itself(found) => update_role(found, wanted),
        "ClusterRoleBinding" | "RoleBinding" if updates_itself(found) => update_binding(found, wanted),
        "FlowSchema" | "PriorityLevelConfiguration"
            if found.annotation("apf.kubernetes.io/autoupdate-spec") == Some("true") =>
        {
            replace(found, wanted, &["spec"])
        }
        "Endpoints" => replace(found, wanted, &["subsets"]),
        "EndpointSlice" => replace(found, wanted, &["endpoints"]) | replace(found, wanted, &["ports"]),
        "ServiceCIDR" if gains_family(found, wanted) => replace(found, wanted, &["spec"]),
        "ConfigMap" => replace(found, wanted, &["data"]),
        _ => false,
    }
}

/// A cluster of one family that is told to have two. Everything else about its ranges stays.
fn gains_family(found: &Object, wanted: &Object) -> bool {
    let cidrs = |object: &Object| object.at(&["spec", "cidrs"]).and_then(Value::as_array).cloned();
    let (now, then) = (cidrs(found).unwrap_or_default(), cidrs(wanted).unwrap_or_default());
    now.len() == 1 && then.len() == 2 && now[0] == then[0]
}

fn updates_itself(found: &Object) -> bool {
    found.annotation("rbac.authorization.kubernetes.io/autoupdate") != Some("false")
}

fn update_role(found: &mut Object, wanted: &Object) -> bool {
    let mut changed = add_labels(found, wanted);
    if wanted.get("aggregationRule").is_some_and(|v| !v.is_null()) {
        // A controller fills in the rules.
        return replace(found, wanted, &["aggregationRule"]) | changed;
    }
    let lacking = rule::compact(rule::missing(&Rule::list_of(found), &Rule::list_of(wanted)));
    if !lacking.is_empty() {
        let mut rules = found.arr("rules").cloned().unwrap_or_default();
        rules.extend(lacking.iter().map(Rule::to_value));
        found.insert("rules", rules);
        changed = true;
    }
    changed
}

fn update_binding(found: &mut Object, wanted: &Object) -> bool {
    let mut changed = add_labels(found, wanted);
    let mut subjects = found.arr("subjects").cloned().unwrap_or_default();
    for subject in wanted.arr("subjects").into_iter().flatten() {
        if !subjects.iter().any(|s| covers(s, subject)) {
            subjects.push(subject.clone());
            changed = true;
        }
    }
    if changed {
        found.insert("subjects", subjects);
    }
    changed
}

fn add_labels(found: &mut Object, wanted: &Object) -> bool {
    let missing: Vec<(Str, Value)> = wanted
        .labels()
        .into_iter()
        .flatten()
        .filter(|(k, v)| found.labels().and_then(|l| l.get(k)) != Some(v))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let changed = !missing.is_empty();
    for (key, value) in missing {
        found.meta_mut().object_mut("labels").insert(key, value);
    }
    changed
}

/// Replaces a part, unless all that is wanted stands there already (defaults beside it don't count).
fn replace(found: &mut Object, wanted: &Object, path: &[&str]) -> bool {
    let Some(value) = wanted.at(path) else { return false };
    if found.at(path).is_some_and(|there| covers(there, value)) {
        return false;
    }
    found.set_at(path, value.clone());
    true
}

/// Whether all of `wanted` is in `there`.
fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(t), Value::Object(w)) => w.iter().all(|(k, v)| t.get(k).is_some_and(|t| covers(t, v))),
        (Value::Array(t), Value::Array(w)) => t.len() == w.len() && t.iter().zip(w).all(|(t, w)| covers(t, w)),
        (t, w) => t == w,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn object(v: Value) -> Object {
        Object::try_from(v).unwrap()
    }

    #[test]
    fn missing_rules_come_back_and_added_ones_stay() {
        let rule = |verbs: &[&str]| value!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs});
        let role = |rules: Vec<Value>| {
            let mut o = object(value!({"kind": "ClusterRole", "metadata": {"name": "r"}}));
            o.insert("rules", rules);
            o
        };
        let wanted = role(vec![rule(&["get", "list"])]);
        let mut found = role(vec![rule(&["get", "delete"])]);
        assert!(update(&mut found, &wanted));
        assert_eq!(found.arr("rules").unwrap().len(), 2);
        assert!(!update(&mut found, &wanted));
        let mut off = role(vec![]);
        off.set_at(
            &["metadata", "annotations", "rbac.authorization.kubernetes.io/autoupdate"],
            "false",
        );
        assert!(!update(&mut off, &wanted));
    }

    #[test]
    fn defaults_beside_what_is_wanted_change_nothing() {
        let wanted = object(value!({"kind": "Endpoints", "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}));
        let mut found =
            object(value!({"kind": "Endpoints", "subsets": [{"addresses": [{"ip": "10.0.0.1", "x": 1}], "y": 2}]}));
        assert!(!update(&mut found, &wanted));
        found.set_at(&["subsets"], Vec::<Value>::new());
        assert!(update(&mut found, &wanted));
    }

    #[test]
    fn the_range_of_services_gains_a_family_and_changes_in_nothing_else() {
        let range = |cidrs: &[&str]| {
            let cidrs: Vec<Value> = cidrs.iter().map(|cidr| (*cidr).into()).collect();
            object(value!({"kind": "ServiceCIDR", "spec": {"cidrs": cidrs}}))
        };
        let both = range(&["10.96.0.0/16", "fd00:96::/112"]);
        let mut found = range(&["10.96.0.0/16"]);
        assert!(update(&mut found, &both));
        assert!(found == both && !update(&mut found, &both));
        assert!(!update(&mut found, &range(&["10.96.0.0/16"])), "it never loses one");
        assert!(!update(&mut range(&["10.97.0.0/16"]), &both));
        assert!(!update(&mut range(&["fd00:96::/112"]), &both), "nor another first one");
    }
}
