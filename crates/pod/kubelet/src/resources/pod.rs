//! What a whole pod asks for: sums over its containers, the peak of its init phase, pod-level amounts and overhead.
//! Pure.

use super::quantity::{self, ResourceList};
use crate::pods;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

fn requests(c: &Container) -> ResourceList {
    c.resources
        .as_ref()
        .and_then(|r| r.requests.clone())
        .unwrap_or_default()
}

fn limits(c: &Container) -> ResourceList {
    c.resources.as_ref().and_then(|r| r.limits.clone()).unwrap_or_default()
}

/// Requests of the whole pod, overhead included.
pub fn pod_requests(pod: &Pod) -> ResourceList {
    let mut sum = aggregate(pod, requests);
    if let Some(level) = pod_level(pod).and_then(|r| r.requests.as_ref()) {
        override_supported(&mut sum, level);
    }
    add_overhead(&mut sum, pod, false);
    sum
}

/// Limits of the whole pod; overhead is added only where a limit exists.
pub fn pod_limits(pod: &Pod) -> ResourceList {
    let mut sum = aggregate(pod, limits);
    if let Some(level) = pod_level(pod).and_then(|r| r.limits.as_ref()) {
        override_supported(&mut sum, level);
    }
    add_overhead(&mut sum, pod, true);
    sum
}

/// The pod-level resources, when any supported amount is set there.
pub fn pod_level(pod: &Pod) -> Option<&ResourceRequirements> {
    pods::spec(pod).resources.as_ref().filter(|r| {
        r.requests
            .iter()
            .chain(r.limits.iter())
            .flat_map(|l| l.keys())
            .any(|k| is_supported(k))
    })
}

fn is_supported(name: &str) -> bool {
    name == "cpu" || name == "memory" || name.starts_with("hugepages-")
}

fn override_supported(sum: &mut ResourceList, level: &ResourceList) {
    for (name, q) in level.iter().filter(|(n, _)| is_supported(n)) {
        sum.insert(name.clone(), q.clone());
    }
}

/// The steady state is all main containers and sidecars together; the start may peak higher in one init container.
fn aggregate(pod: &Pod, of: impl Fn(&Container) -> ResourceList) -> ResourceList {
    let mut sum = ResourceList::new();
    for c in pods::containers(pod) {
        quantity::add(&mut sum, &of(c));
    }
    let mut sidecars = ResourceList::new();
    let mut peak = ResourceList::new();
    for c in pods::init_containers(pod) {
        let mut now = of(c);
        if pods::is_sidecar(c) {
            quantity::add(&mut sum, &now);
            quantity::add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            quantity::add(&mut now, &sidecars);
        }
        quantity::raise(&mut peak, &now);
    }
    quantity::raise(&mut sum, &peak);
    sum
}

fn add_overhead(sum: &mut ResourceList, pod: &Pod, only_existing: bool) {
    let Some(overhead) = &pods::spec(pod).overhead else {
        return;
    };
    let overhead: ResourceList = overhead
        .iter()
        .filter(|(name, _)| !only_existing || sum.contains_key(*name))
        .map(|(n, q)| (n.clone(), q.clone()))
        .collect();
    quantity::add(sum, &overhead);
}

/// The limit that holds for one container: its own, else the pod's.
pub fn effective_limit<'a>(
    pod: &'a Pod,
    c: &'a Container,
    name: &str,
) -> Option<&'a k8s_openapi::apimachinery::pkg::api::resource::Quantity> {
    c.resources
        .as_ref()
        .and_then(|r| r.limits.as_ref()?.get(name))
        .filter(|q| !quantity::amount(q).is_zero())
        .or_else(|| pod_level(pod)?.limits.as_ref()?.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(v: serde_json::Value) -> Pod {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn sidecars_count_in_both_phases() {
        let p = pod(serde_json::json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m"}}}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "500m"}}}],
            "overhead": {"cpu": "50m"}}}));
        assert_eq!(pod_requests(&p)["cpu"].0, "650m");
    }

    #[test]
    fn pod_level_amounts_win() {
        let p = pod(
            serde_json::json!({"spec": {"resources": {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m"}}}]}}),
        );
        assert_eq!(pod_requests(&p)["cpu"].0, "2");
        assert_eq!(
            effective_limit(&p, &pods::containers(&p)[0], "memory").unwrap().0,
            "1Gi"
        );
    }
}
