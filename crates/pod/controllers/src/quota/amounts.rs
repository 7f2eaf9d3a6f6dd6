//! What objects use, resource by resource, and which quotas count them. Pure.

use crate::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, Pod, ResourceQuota, ResourceRequirements, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use keelson_api::quantity::{Format, Quantity};
use std::collections::BTreeMap;

pub type Amounts = BTreeMap<String, Quantity>;

const CLASS: &str = ".storageclass.storage.k8s.io/";
pub const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// Who asks for all devices that there are gets so many at most.
const MOST_DEVICES: i64 = 32;

pub fn read(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    let parsed = list
        .into_iter()
        .flatten()
        .filter_map(|(name, text)| Some((name.clone(), Quantity::parse(&text.0).ok()?)));
    parsed.collect()
}

pub fn write(amounts: &Amounts) -> BTreeMap<String, Text> {
    amounts
        .iter()
        .map(|(name, quantity)| (name.clone(), Text(quantity.to_string())))
        .collect()
}

pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, quantity) in more {
        sum.entry(name.clone())
            .and_modify(|q| q.add(*quantity))
            .or_insert(*quantity);
    }
}

fn raise(most: &mut Amounts, other: &Amounts) {
    for (name, quantity) in other {
        most.entry(name.clone())
            .and_modify(|q| *q = (*q).max(*quantity))
            .or_insert(*quantity);
    }
}

fn count(n: usize) -> Quantity {
    Quantity::new(n as i64, Format::DecimalSi)
}

#[derive(Clone, Copy)]
enum Side {
    Requests,
    Limits,
}

fn side(resources: Option<&ResourceRequirements>, side: Side) -> Amounts {
    read(match side {
        Side::Requests => resources.and_then(|r| r.requests.as_ref()),
        Side::Limits => resources.and_then(|r| r.limits.as_ref()),
    })
}

/// What a pod needs at its busiest: its containers together with the sidecars, or an init container with those before it.
fn total(pod: &Pod, which: Side) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let of = |c: &Container| side(c.resources.as_ref(), which);
    let mut running = Amounts::new();
    spec.containers.iter().for_each(|c| add(&mut running, &of(c)));
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &of(container));
            raise(&mut most, &sidecars);
        } else {
            let mut now = of(container);
            add(&mut now, &sidecars);
            raise(&mut most, &now);
        }
    }
    add(&mut running, &sidecars);
    raise(&mut running, &most);
    // What the pod asks for as a whole takes the place of the sum.
    for (name, quantity) in side(spec.resources.as_ref(), which) {
        running.insert(name, quantity);
    }
    let overhead = read(spec.overhead.as_ref());
    if matches!(which, Side::Requests) {
        add(&mut running, &overhead);
    } else {
        for (name, quantity) in overhead {
            running.entry(name).and_modify(|q| q.add(quantity));
        }
    }
    running
}

/// What a pod asks for.
pub fn requests(pod: &Pod) -> Amounts {
    total(pod, Side::Requests)
}

/// A pod that has ended, or whose time to end has run out, uses nothing.
fn is_over(pod: &Pod, now: Timestamp) -> bool {
    let overdue = pod.metadata.deletion_grace_period_seconds.is_some()
        && pod.metadata.deletion_timestamp.as_ref().is_some_and(|t| t.0 < now);
    pods::is_finished(pod) || overdue
}

pub fn pod(pod: &Pod, now: Timestamp) -> Amounts {
    let mut used = Amounts::from([("count/pods".to_string(), count(1))]);
    if is_over(pod, now) {
        return used;
    }
    used.insert("pods".into(), count(1));
    for (name, quantity) in total(pod, Side::Requests) {
        let measured =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if measured || name.contains('/') {
            used.insert(format!("requests.{name}"), quantity);
        }
        if measured {
            used.insert(name, quantity);
        }
    }
    for (name, quantity) in total(pod, Side::Limits) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), quantity);
        }
    }
    used
}

pub fn service(service: &Service) -> Amounts {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let (node_ports, balancers) = match spec.and_then(|s| s.type_.as_deref()) {
        Some("NodePort") => (ports.len(), 0),
        Some("LoadBalancer") if spec.and_then(|s| s.allocate_load_balancer_node_ports) == Some(false) => {
            (ports.iter().filter(|p| p.node_port.unwrap_or(0) != 0).count(), 1)
        }
        Some("LoadBalancer") => (ports.len(), 1),
        _ => (0, 0),
    };
    [
        ("services", 1),
        ("count/services", 1),
        ("services.nodeports", node_ports),
        ("services.loadbalancers", balancers),
    ]
    .map(|(name, n)| (name.to_string(), count(n)))
    .into()
}

/// Devices that a claim may get of each class: of alternatives the worst.
pub fn devices(claim: &ResourceClaim) -> Amounts {
    let number = |mode: Option<&str>, count: Option<i64>| match mode {
        Some("ExactCount") => count.unwrap_or(0),
        Some("All") => MOST_DEVICES,
        _ => 0,
    };
    let of = |class: &str, n: i64| Amounts::from([(format!("{class}{DEVICES}"), Quantity::new(n, Format::DecimalSi))]);
    let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    let mut used = Amounts::new();
    for request in devices.into_iter().flat_map(|d| d.requests.iter().flatten()) {
        let mut most = Amounts::new();
        if let Some(r) = &request.exactly {
            raise(
                &mut most,
                &of(&r.device_class_name, number(r.allocation_mode.as_deref(), r.count)),
            );
        }
        for r in request.first_available.iter().flatten() {
            raise(
                &mut most,
                &of(&r.device_class_name, number(r.allocation_mode.as_deref(), r.count)),
            );
        }
        add(&mut used, &most);
    }
    used
}

pub fn claim(claim: &PersistentVolumeClaim) -> Amounts {
    let spec = claim.spec.as_ref();
    let annotated = claim
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let class = annotated
        .or(spec.and_then(|s| s.storage_class_name.as_ref()))
        .filter(|c| !c.is_empty());
    let mut used = Amounts::from([("count/persistentvolumeclaims".to_string(), count(1))]);
    let mut put = |name: &str, quantity: Quantity| {
        if let Some(class) = class {
            used.insert(format!("{class}{CLASS}{name}"), quantity);
        }
        used.insert(name.to_string(), quantity);
    };
    put("persistentvolumeclaims", count(1));
    let asked = read(
        spec.and_then(|s| s.resources.as_ref())
            .and_then(|r| r.requests.as_ref()),
    );
    if let Some(asked) = asked.get("storage") {
        let allocated = read(claim.status.as_ref().and_then(|s| s.allocated_resources.as_ref()));
        put(
            "requests.storage",
            allocated.get("storage").map_or(*asked, |a| (*a).max(*asked)),
        );
    }
    used
}

/// The scopes of a quota, as name, operator and values.
fn scopes(quota: &ResourceQuota) -> Vec<(&str, &str, &[String])> {
    let Some(spec) = &quota.spec else { return Vec::new() };
    let plain = spec
        .scopes
        .iter()
        .flatten()
        .map(|s| (s.as_str(), "Exists", &[] as &[String]));
    let selected = spec
        .scope_selector
        .iter()
        .flat_map(|s| s.match_expressions.iter().flatten());
    plain
        .chain(selected.map(|e| {
            (
                e.scope_name.as_str(),
                e.operator.as_str(),
                e.values.as_deref().unwrap_or_default(),
            )
        }))
        .collect()
}

fn selects(operator: &str, values: &[String], value: Option<&str>) -> bool {
    let value = value.filter(|v| !v.is_empty());
    let listed = value.is_some_and(|v| values.iter().any(|x| x == v));
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

pub fn has_scopes(quota: &ResourceQuota) -> bool {
    !scopes(quota).is_empty()
}

pub fn counts_pod(quota: &ResourceQuota, pod: &Pod) -> bool {
    let spec = pod.spec.clone().unwrap_or_default();
    let terminating = spec.active_deadline_seconds.is_some_and(|s| s >= 0);
    scopes(quota).into_iter().all(|(scope, operator, values)| match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => selects(operator, values, spec.priority_class_name.as_deref()),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    })
}

pub fn counts_claim(quota: &ResourceQuota, claim: &PersistentVolumeClaim) -> bool {
    let class = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.as_deref());
    scopes(quota)
        .into_iter()
        .all(|(scope, operator, values)| scope == "VolumeAttributesClass" && selects(operator, values, class))
}

fn is_best_effort(pod: &Pod) -> bool {
    if let Some(class) = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        return class == "BestEffort";
    }
    let compute = |amounts: Amounts| {
        amounts
            .iter()
            .any(|(name, q)| (name == "cpu" || name == "memory") && !q.is_zero())
    };
    !compute(total(pod, Side::Requests)) && !compute(total(pod, Side::Limits))
}

fn crosses_namespaces(pod: &Pod) -> bool {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let to = affinity.and_then(|a| a.pod_affinity.as_ref());
    let from = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let required = to
        .iter()
        .flat_map(|a| a.required_during_scheduling_ignored_during_execution.iter().flatten())
        .chain(
            from.iter()
                .flat_map(|a| a.required_during_scheduling_ignored_during_execution.iter().flatten()),
        );
    let preferred = to
        .iter()
        .flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
        .chain(
            from.iter()
                .flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten()),
        );
    let mut terms = required.chain(preferred.map(|w| &w.pod_affinity_term));
    terms.any(|t| t.namespaces.as_ref().is_some_and(|n| !n.is_empty()) || t.namespace_selector.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_client::ApiObject;

    fn a_pod(spec: &str) -> Pod {
        Pod::decode(format!(r#"{{"metadata":{{}},"spec":{{{spec}}}}}"#).as_bytes()).expect("valid")
    }

    #[test]
    fn a_pod_counts_at_its_busiest() {
        let p = a_pod(
            r#""initContainers":[{"name":"side","restartPolicy":"Always","resources":{"requests":{"cpu":"100m"}}},
                {"name":"big","resources":{"requests":{"cpu":"1","memory":"10Mi"}}}],
               "containers":[{"name":"a","resources":{"requests":{"cpu":"300m","memory":"1Gi","ex.io/gpu":"2"},"limits":{"memory":"2Gi"}}}]"#,
        );
        let used = pod(&p, Timestamp::UNIX_EPOCH);
        let text = |name: &str| used.get(name).map(|q| q.to_string());
        assert_eq!(text("cpu").as_deref(), Some("1100m"));
        assert_eq!(text("requests.memory").as_deref(), Some("1Gi"));
        assert_eq!(text("requests.ex.io/gpu").as_deref(), Some("2"));
        assert_eq!(text("limits.memory").as_deref(), Some("2Gi"));
        assert_eq!((text("pods").as_deref(), text("ex.io/gpu")), (Some("1"), None));
    }

    #[test]
    fn a_claim_counts_for_the_worst_of_its_alternatives() {
        let claim = |requests: &str| -> ResourceClaim {
            let text = format!(r#"{{"metadata":{{}},"spec":{{"devices":{{"requests":[{requests}]}}}}}}"#);
            ResourceClaim::decode(text.as_bytes()).expect("valid")
        };
        let one = r#"{"name":"a","exactly":{"deviceClassName":"gpu","allocationMode":"ExactCount","count":2}}"#;
        let ways = r#"{"name":"b","firstAvailable":[{"name":"x","deviceClassName":"gpu","allocationMode":"ExactCount","count":4},
            {"name":"y","deviceClassName":"gpu","allocationMode":"ExactCount","count":3},
            {"name":"z","deviceClassName":"nic","allocationMode":"All"}]}"#;
        let used = devices(&claim(&format!("{one},{ways}")));
        let text = |class: &str| used.get(&format!("{class}{DEVICES}")).map(|q| q.to_string());
        assert_eq!(
            (text("gpu").as_deref(), text("nic").as_deref()),
            (Some("6"), Some("32"))
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = |scopes: &str| {
            ResourceQuota::decode(format!(r#"{{"metadata":{{}},"spec":{{{scopes}}}}}"#).as_bytes()).expect("valid")
        };
        let (idle, ends) = (
            a_pod(r#""containers":[]"#),
            a_pod(r#""containers":[],"activeDeadlineSeconds":5,"priorityClassName":"high""#),
        );
        assert!(counts_pod(&quota(""), &idle));
        assert!(counts_pod(&quota(r#""scopes":["Terminating","BestEffort"]"#), &ends));
        assert!(!counts_pod(&quota(r#""scopes":["Terminating"]"#), &idle));
        let high = quota(
            r#""scopeSelector":{"matchExpressions":[{"scopeName":"PriorityClass","operator":"In","values":["high"]}]}"#,
        );
        assert!(counts_pod(&high, &ends) && !counts_pod(&high, &idle));
    }
}
