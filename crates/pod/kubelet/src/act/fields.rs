//! Values of a pod's fields and resources for environment variables and downward API files. Pure.

use crate::pods;
use crate::resources::quantity::{self, ResourceList};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What only the node knows when a field is read.
pub struct NodeFacts<'a> {
    pub host_ips: &'a [String],
    pub pod_ips: &'a [String],
    pub allocatable: &'a ResourceList,
}

/// The text of a field such as `metadata.labels['a']` or `status.podIP`.
pub fn field(pod: &Pod, path: &str, facts: &NodeFacts) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    if let Some((list, key)) = subscript(path) {
        let map = match list {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => text(&pods::spec(pod).node_name),
        "spec.serviceAccountName" => text(&pods::spec(pod).service_account_name),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (list, rest) = path.split_once("['")?;
    Some((list, rest.strip_suffix("']")?))
}

/// One `key="value"` a line, sorted, with the value escaped.
pub fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", quote(v)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A double-quoted string as Go writes it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The amount of a resource, divided as the selector says; a missing limit is the pod's, or what the node has.
pub fn resource(
    pod: &Pod,
    default: Option<&Container>,
    selector: &ResourceFieldSelector,
    allocatable: &ResourceList,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match (named, default) {
        (Some(name), _) => pods::containers(pod)
            .iter()
            .chain(pods::init_containers(pod))
            .find(|c| c.name == name)
            .ok_or_else(|| format!("container {name} not found"))?,
        (None, Some(c)) => c,
        (None, None) => return Err("container name is missing".into()),
    };
    let (part, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("Unsupported container resource : {}", selector.resource))?;
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref()?.get(name));
    let requests = container
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref()?.get(name));
    let nonzero = |q: &&Quantity| !quantity::amount(q).is_zero();
    // What a pod as a whole may have bounds its containers where they have no bound of their own.
    let of_pod = pod
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref()?.limits.as_ref()?.get(name));
    let of_pod = of_pod.filter(|q| matches!(name, "cpu" | "memory") && nonzero(q));
    let amount = match part {
        "limits" if matches!(name, "cpu" | "memory" | "ephemeral-storage") => limits
            .filter(nonzero)
            .or_else(|| allocatable.get(name).map(|all| of_pod.unwrap_or(all))),
        "limits" => limits,
        "requests" => requests,
        _ => return Err(format!("Unsupported container resource : {}", selector.resource)),
    };
    // CPU is told in thousandths at the finest.
    let (units, one): (fn(&Quantity) -> i64, i64) = if name == "cpu" {
        (quantity::milli, 1000)
    } else {
        (quantity::value, 1)
    };
    let divisor = selector.divisor.as_ref().map(units).filter(|d| *d > 0).unwrap_or(one);
    // Rounded up, as a quota that is cut is a quota exceeded.
    let amount = amount.map_or(0, units).max(0);
    Ok(amount.unsigned_abs().div_ceil(divisor.unsigned_abs()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": {
            "limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}}))
        .unwrap();
        let allocatable: ResourceList = serde_json::from_value(json!({"cpu": "4", "memory": "8Gi"})).unwrap();
        let get = |r: &str, d: &str| {
            let s = serde_json::from_value(json!({"resource": r, "divisor": d})).unwrap();
            resource(&pod, Some(&pods::containers(&pod)[0]), &s, &allocatable).unwrap()
        };
        assert_eq!(get("limits.cpu", "1"), "2");
        assert_eq!(get("limits.cpu", "1m"), "1250");
        assert_eq!(get("limits.memory", "1Mi"), "64");
        assert_eq!(get("requests.cpu", "0"), "1");
        assert_eq!(get("requests.memory", "1"), "0");
    }

    #[test]
    fn a_missing_limit_is_the_pods_or_the_nodes() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"resources": {"limits": {"memory": "64Mi", "cpu": "0"}},
            "containers": [{"name": "c"}]}}))
        .unwrap();
        let allocatable: ResourceList = serde_json::from_value(json!({"cpu": "4", "memory": "8Gi"})).unwrap();
        let get = |r: &str| {
            let s = serde_json::from_value(json!({"containerName": "c", "resource": r})).unwrap();
            resource(&pod, None, &s, &allocatable).unwrap()
        };
        assert_eq!(
            (get("limits.memory"), get("limits.cpu")),
            ("67108864".into(), "4".into())
        );
        assert_eq!(get("requests.memory"), "0", "a request has no such default");
    }

    #[test]
    fn maps_are_sorted_and_quoted() {
        let m = BTreeMap::from([("b".to_owned(), "x\"\n".to_owned()), ("a".to_owned(), String::new())]);
        assert_eq!(format_map(Some(&m)), "a=\"\"\nb=\"x\\\"\\n\"");
    }
}
