//! Which objects a quota is for.

use super::usage::is_terminating;
use keelson_api::{GroupVersionResource, Object, Value};
use keelson_registry::resources::qos_class;

/// Whether the object is in all scopes of the quota.
pub fn matches(quota: &Object, o: &Object, r: &GroupVersionResource) -> bool {
    let plain = quota
        .at(&["spec", "scopes"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let selected = quota
        .at(&["spec", "scopeSelector", "matchExpressions"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    plain
        .filter_map(Value::as_str)
        .all(|scope| in_scope(scope, "Exists", &[], o, r))
        && selected.into_iter().all(|e| {
            let text = |key: &str| e.get(key).and_then(Value::as_str).unwrap_or_default();
            let values: Vec<&str> = e
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            in_scope(text("scopeName"), text("operator"), &values, o, r)
        })
}

fn in_scope(scope: &str, operator: &str, values: &[&str], o: &Object, r: &GroupVersionResource) -> bool {
    if r.group.is_empty() && r.resource == "persistentvolumeclaims" {
        let class = o.str_at(&["spec", "volumeAttributesClassName"]).unwrap_or_default();
        return scope == "VolumeAttributesClass" && selects(operator, values, class);
    }
    if !(r.group.is_empty() && r.resource == "pods") {
        return false;
    }
    match scope {
        "Terminating" => is_terminating(o),
        "NotTerminating" => !is_terminating(o),
        "BestEffort" => qos_class(o) == "BestEffort",
        "NotBestEffort" => qos_class(o) != "BestEffort",
        "PriorityClass" => selects(
            operator,
            values,
            o.str_at(&["spec", "priorityClassName"]).unwrap_or_default(),
        ),
        "CrossNamespacePodAffinity" => crosses_namespaces(o),
        _ => false,
    }
}

fn selects(operator: &str, values: &[&str], value: &str) -> bool {
    match operator {
        "In" => !value.is_empty() && values.contains(&value),
        "NotIn" => value.is_empty() || !values.contains(&value),
        "Exists" => !value.is_empty(),
        "DoesNotExist" => value.is_empty(),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Object) -> bool {
    ["podAffinity", "podAntiAffinity"].into_iter().any(|kind| {
        let terms = |key: &str| {
            pod.at(&["spec", "affinity", kind, key])
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        };
        let crossing = |t: &Value| {
            t.get("namespaces")
                .and_then(Value::as_array)
                .is_some_and(|n| !n.is_empty())
                || t.get("namespaceSelector").is_some_and(|s| !s.is_null())
        };
        terms("requiredDuringSchedulingIgnoredDuringExecution").any(crossing)
            || terms("preferredDuringSchedulingIgnoredDuringExecution")
                .filter_map(|t| t.get("podAffinityTerm"))
                .any(crossing)
    })
}
