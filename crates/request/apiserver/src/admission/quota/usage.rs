//! What an object counts for, resource by resource.

use super::super::Review;
use keelson_api::quantity::{Format, Quantity};
use keelson_api::{GroupVersionResource, Object, Str, Value};
use keelson_registry::Operation;
use keelson_registry::meta::parse_time;
use keelson_registry::resources::pod_resources::{Amounts, amounts, total};

const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
pub const DEVICE_SUFFIX: &str = ".deviceclass.resource.k8s.io/devices";
/// Who asks for all devices that there are gets so many at most.
const MOST_DEVICES: i64 = 32;
/// What every class of devices can be asked for by, as an extended resource.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

fn count(n: usize) -> Quantity {
    Quantity::new(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi)
}

/// `count/pods`, `count/deployments.apps`.
fn object_count(r: &GroupVersionResource) -> String {
    format!("count/{}", r.group_resource())
}

fn is_core(r: &GroupVersionResource, resource: &str) -> bool {
    r.group.is_empty() && r.resource == resource
}

/// Whether the request can change what quotas count.
pub fn counts(review: &Review, new: &Object, old: Option<&Object>) -> bool {
    let r = &review.cx.def.gvr;
    let sub = review.cx.subresource.as_str();
    if r.group.is_empty() && matches!(r.resource.as_str(), "events" | "bindings") || r.group == "events.k8s.io" {
        return false;
    }
    let written = matches!(review.op, Operation::Create | Operation::Update);
    if is_core(r, "pods") {
        return match (sub, review.op) {
            ("", Operation::Create) => true,
            ("", Operation::Update) => old.is_some_and(|o| is_terminating(o) != is_terminating(new)),
            ("resize", Operation::Update) => true,
            _ => false,
        };
    }
    if !sub.is_empty() || !written {
        return false;
    }
    let measured_on_update =
        is_core(r, "services") || is_core(r, "persistentvolumeclaims") || r.resource == "resourceclaims";
    review.op == Operation::Create || measured_on_update
}

pub fn is_terminating(pod: &Object) -> bool {
    pod.at(&["spec", "activeDeadlineSeconds"])
        .and_then(Value::as_i64)
        .is_some_and(|s| s >= 0)
}

/// Whether `name` of a quota is about the resource.
pub fn measures(r: &GroupVersionResource, name: &str) -> bool {
    if name == object_count(r) {
        return true;
    }
    match (r.group.as_str(), r.resource.as_str()) {
        ("", "pods") => {
            let own = matches!(
                name,
                "pods"
                    | "cpu"
                    | "memory"
                    | "ephemeral-storage"
                    | "requests.cpu"
                    | "requests.memory"
                    | "requests.ephemeral-storage"
                    | "limits.cpu"
                    | "limits.memory"
                    | "limits.ephemeral-storage"
            );
            let extended = name
                .strip_prefix("requests.")
                .is_some_and(|n| n.contains('/') && (!n.contains("kubernetes.io/") || n.starts_with(IMPLICIT)));
            own || extended || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
        }
        ("", "services") => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        ("", "persistentvolumeclaims") => {
            let plain = |n: &str| matches!(n, "persistentvolumeclaims" | "requests.storage");
            plain(name) || name.split_once(CLASS_SUFFIX).is_some_and(|(_, n)| plain(n))
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => name == r.resource,
        ("resource.k8s.io", "resourceclaims") => name.ends_with(DEVICE_SUFFIX),
        _ => false,
    }
}

/// What the quota demands of every container when it counts CPU or memory.
pub fn required(r: &GroupVersionResource, counted: &[&Str], pod: &Object) -> Result<(), String> {
    if !is_core(r, "pods")
        || pod
            .at(&["spec", "resources"])
            .and_then(Value::as_object)
            .is_some_and(|m| !m.is_empty())
    {
        return Ok(());
    }
    let mut missing = Vec::new();
    for name in counted {
        let (list, resource) = match name.as_str() {
            "cpu" | "memory" => ("requests", name.as_str()),
            "requests.cpu" | "requests.memory" => ("requests", &name["requests.".len()..]),
            "limits.cpu" | "limits.memory" => ("limits", &name["limits.".len()..]),
            _ => continue,
        };
        let mut without: Vec<&str> = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|l| pod.at(&["spec", l]).and_then(Value::as_array).into_iter().flatten())
            .filter(|c| c.at(&["resources", list, resource]).is_none())
            .filter_map(|c| c.get("name").and_then(Value::as_str))
            .collect();
        if !without.is_empty() {
            without.sort_unstable();
            missing.push(format!("{name} for: {}", without.join(",")));
        }
    }
    missing.sort();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("must specify {}", missing.join("; ")))
    }
}

/// What the object counts for.
pub fn of(r: &GroupVersionResource, o: &Object) -> Amounts {
    let mut out = Amounts::from([(Str::from(object_count(r)), count(1))]);
    match (r.group.as_str(), r.resource.as_str()) {
        ("", "pods") => pod(o, &mut out),
        ("", "services") => service(o, &mut out),
        ("", "persistentvolumeclaims") => claim(o, &mut out),
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            out.insert(r.resource.clone(), count(1));
        }
        ("resource.k8s.io", "resourceclaims") => devices(o, &mut out),
        _ => {}
    }
    out
}

/// A pod whose end has come counts as an object only.
fn is_over(pod: &Object) -> bool {
    if matches!(pod.str_at(&["status", "phase"]), Some("Failed" | "Succeeded")) {
        return true;
    }
    let deleted = pod.deletion_timestamp().and_then(parse_time);
    // `deletionTimestamp` already holds the end of the grace period.
    matches!((deleted, pod.deletion_grace_period_seconds()), (Some(end), Some(_)) if end < keelson_clock::now())
}

fn pod(o: &Object, out: &mut Amounts) {
    if is_over(o) {
        return;
    }
    out.insert("pods".into(), count(1));
    for (name, q) in total(o, "requests") {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                out.insert(format!("requests.{name}").into(), q);
                out.insert(name, q);
            }
            n if n.starts_with("hugepages-") => {
                out.insert(format!("requests.{name}").into(), q);
                out.insert(name, q);
            }
            n if n.contains('/') => {
                out.insert(format!("requests.{name}").into(), q);
            }
            _ => {}
        }
    }
    for (name, q) in total(o, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            out.insert(format!("limits.{name}").into(), q);
        }
    }
}

fn service(o: &Object, out: &mut Amounts) {
    let ports = o
        .at(&["spec", "ports"])
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    out.insert("services".into(), count(1));
    let (mut node_ports, mut balancers) = (0, 0);
    match o.str_at(&["spec", "type"]) {
        Some("NodePort") => node_ports = ports.len(),
        Some("LoadBalancer") => {
            balancers = 1;
            let suppressed = o
                .at(&["spec", "allocateLoadBalancerNodePorts"])
                .and_then(Value::as_bool)
                == Some(false);
            let explicit = |p: &&Value| p.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0;
            node_ports = if suppressed {
                ports.iter().filter(explicit).count()
            } else {
                ports.len()
            };
        }
        _ => {}
    }
    out.insert("services.nodeports".into(), count(node_ports));
    out.insert("services.loadbalancers".into(), count(balancers));
}

fn claim(o: &Object, out: &mut Amounts) {
    let class = o
        .annotation("volume.beta.kubernetes.io/storage-class")
        .or_else(|| o.str_at(&["spec", "storageClassName"]));
    let class = class.filter(|c| !c.is_empty());
    let mut put = |name: &str, q: Quantity| {
        if let Some(c) = class {
            out.insert(format!("{c}{CLASS_SUFFIX}{name}").into(), q);
        }
        out.insert(name.into(), q);
    };
    put("persistentvolumeclaims", count(1));
    let requested = amounts(o.at(&["spec", "resources", "requests"]).and_then(Value::as_object));
    if let Some(asked) = requested.get("storage") {
        let allocated = amounts(o.at(&["status", "allocatedResources"]).and_then(Value::as_object));
        let q = allocated.get("storage").copied().map_or(*asked, |a| a.max(*asked));
        put("requests.storage", q);
    }
}

/// Devices that a claim may get of each class: of alternatives the worst.
fn devices(o: &Object, out: &mut Amounts) {
    let requests = o.at(&["spec", "devices", "requests"]).and_then(Value::as_array);
    for request in requests.into_iter().flatten() {
        let exact = request.get("exactly").unwrap_or(request);
        let ways = request.get("firstAvailable").and_then(Value::as_array);
        let mut most = Amounts::new();
        for way in std::iter::once(exact).chain(ways.into_iter().flatten()) {
            let Some(class) = way.get("deviceClassName").and_then(Value::as_str) else {
                continue;
            };
            let n = match way.get("allocationMode").and_then(Value::as_str) {
                Some("All") => MOST_DEVICES,
                _ => way.get("count").and_then(Value::as_i64).unwrap_or(1),
            };
            let key = Str::from(format!("{class}{DEVICE_SUFFIX}"));
            let q = Quantity::new(n, Format::DecimalSi);
            most.entry(key).and_modify(|m| *m = (*m).max(q)).or_insert(q);
        }
        for (key, q) in most {
            out.entry(key).and_modify(|sum| sum.add(q)).or_insert(q);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn a_pod_counts_for_requests_and_limits() {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let o = Object::try_from(value!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m", "example.com/dongle": "2"}, "limits": {"memory": "1Gi"}}},
        ]}}))
        .unwrap();
        let usage = of(&pods, &o);
        let shown = |k: &str| usage.get(k).map(ToString::to_string);
        assert_eq!(shown("requests.cpu").as_deref(), Some("100m"));
        assert_eq!(shown("requests.example.com/dongle").as_deref(), Some("2"));
        assert_eq!(shown("limits.memory").as_deref(), Some("1Gi"));
        assert_eq!(shown("count/pods").as_deref(), Some("1"));
        assert!(measures(&pods, "requests.example.com/dongle") && !measures(&pods, "services"));
        assert!(measures(&pods, "requests.deviceclass.resource.kubernetes.io/gpu"));
        assert!(!measures(&pods, "requests.kubernetes.io/gpu"));
        let missing = required(&pods, &[&"limits.cpu".into(), &"requests.memory".into()], &o).unwrap_err();
        assert_eq!(missing, "must specify limits.cpu for: a; requests.memory for: a");
    }

    #[test]
    fn a_claim_counts_for_the_worst_of_its_alternatives() {
        let claims = GroupVersionResource::new("resource.k8s.io", "v1", "resourceclaims");
        let way = |class: &str, n: i64| value!({"name": "w", "deviceClassName": class, "allocationMode": "ExactCount", "count": n});
        let all = value!({"name": "w", "deviceClassName": "nic", "allocationMode": "All"});
        let ways = value!([(way("gpu", 4)), (way("gpu", 3)), (all)]);
        let requests = value!([{"name": "a", "exactly": (way("gpu", 2))}, {"name": "b", "firstAvailable": ways}]);
        let o = Object::try_from(value!({"spec": {"devices": {"requests": requests}}})).unwrap();
        let usage = of(&claims, &o);
        let shown = |class: &str| usage.get(&*format!("{class}{DEVICE_SUFFIX}")).map(ToString::to_string);
        assert_eq!(
            (shown("gpu").as_deref(), shown("nic").as_deref()),
            (Some("6"), Some("32"))
        );
    }
}
