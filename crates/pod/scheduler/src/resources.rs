//! How much a pod asks for, and how much there is.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use keelson_api::quantity::Quantity;
use std::collections::BTreeMap;

type List = BTreeMap<String, Text>;

/// What scoring assumes of a container that asks for nothing, so that such pods spread too.
const ASSUMED_MILLI_CPU: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 << 20;

/// Amounts of the resources that are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Extended resources, huge pages and the like.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    pub fn of(list: &List) -> Resources {
        let mut resources = Resources::default();
        for (name, text) in list {
            *resources.slot(name) = amount(name, text);
        }
        resources.other.remove("pods");
        resources.other.retain(|_, amount| *amount != 0);
        resources
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.milli_cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral_storage,
            other => self.other.entry(other.to_owned()).or_default(),
        }
    }

    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            other => self.other.get(other).copied().unwrap_or(0),
        }
    }

    /// Adds a pod to a node's sum. Even an absurd amount can be taken away again.
    pub fn add(&mut self, other: &Resources) {
        self.each(other, |mine, theirs| *mine = mine.wrapping_add(theirs));
    }
    pub fn sub(&mut self, other: &Resources) {
        self.each(other, |mine, theirs| *mine = mine.wrapping_sub(theirs));
    }
    /// Adds within a pod, up to the most there can be: containers that ask for more than that together fit nowhere.
    fn grow(&mut self, other: &Resources) {
        self.each(other, |mine, theirs| *mine = mine.saturating_add(theirs));
    }
    /// Of each resource the larger amount.
    pub fn max(&mut self, other: &Resources) {
        self.each(other, |mine, theirs| *mine = (*mine).max(theirs));
    }
    fn each(&mut self, other: &Resources, f: impl Fn(&mut i64, i64)) {
        f(&mut self.milli_cpu, other.milli_cpu);
        f(&mut self.memory, other.memory);
        f(&mut self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.other {
            f(self.other.entry(name.clone()).or_default(), *amount);
        }
    }
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.other.values().all(|n| *n == 0)
    }
}

/// Text that can't be read counts as nothing: the API server lets none in.
fn amount(name: &str, text: &Text) -> i64 {
    let Ok(quantity) = Quantity::parse(&text.0) else {
        return 0;
    };
    if name == "cpu" {
        quantity.milli_value()
    } else {
        quantity.value()
    }
}

/// How many pods a node takes.
pub fn pod_count(list: &List) -> usize {
    list.get("pods").map_or(0, |text| amount("pods", text).max(0) as usize)
}

fn requests(requirements: Option<&ResourceRequirements>) -> Resources {
    requirements
        .and_then(|r| r.requests.as_ref())
        .map(Resources::of)
        .unwrap_or_default()
}

/// What the pod occupies of its node: the containers that run together, or the init container that needs most with the
/// sidecars started before it, whichever is more; with what the pod as a whole asks for, and its overhead.
pub fn of_pod(pod: &Pod) -> Resources {
    total(pod, |container| container_requests(pod, container))
}

/// The same for scoring: who asks for no CPU or memory is assumed to need some. (milli CPU, memory)
pub fn assumed(pod: &Pod) -> (i64, i64) {
    let resources = total(pod, |container| {
        let mut requests = container_requests(pod, container);
        let asked = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        if asked.is_none_or(|r| !r.contains_key("cpu")) {
            requests.milli_cpu = ASSUMED_MILLI_CPU;
        }
        if asked.is_none_or(|r| !r.contains_key("memory")) {
            requests.memory = ASSUMED_MEMORY;
        }
        requests
    });
    (resources.milli_cpu, resources.memory)
}

/// While a running pod is being resized it occupies the most of what is wanted, granted and in use.
fn container_requests(pod: &Pod, container: &Container) -> Resources {
    let mut wanted = requests(container.resources.as_ref());
    let status = pod.status.as_ref();
    let lists = [
        status.and_then(|s| s.container_statuses.as_ref()),
        status.and_then(|s| s.init_container_statuses.as_ref()),
    ];
    let granted = lists.into_iter().flatten().flatten().find(|s| s.name == container.name);
    let Some(granted) = granted else { return wanted };
    let is_infeasible = status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"));
    let mut most = requests(granted.resources.as_ref());
    if let Some(allocated) = &granted.allocated_resources {
        most.max(&Resources::of(allocated));
    }
    if is_infeasible && !most.is_zero() {
        return most;
    }
    wanted.max(&most);
    wanted
}

fn total(pod: &Pod, of_container: impl Fn(&Container) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running.grow(&of_container(container));
    }
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let requests = of_container(container);
        let mut needed = sidecars.clone();
        needed.grow(&requests);
        if container.restart_policy.as_deref() == Some("Always") {
            running.grow(&requests);
            sidecars.grow(&requests);
        }
        starting.max(&needed);
    }
    running.max(&starting);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        for (name, text) in whole {
            *running.slot(name) = amount(name, text);
        }
    }
    if let Some(overhead) = &spec.overhead {
        running.grow(&Resources::of(overhead));
    }
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    #[test]
    fn init_containers_and_sidecars_count_as_they_run() {
        let cpu = |n: &str| json!({"requests": {"cpu": n}});
        let of = of_pod(&pod(json!({
            "containers": [{"name": "a", "resources": cpu("100m")}, {"name": "b", "resources": cpu("200m")}],
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": cpu("50m")},
                {"name": "init", "resources": cpu("400m")},
            ],
            "overhead": {"cpu": "10m", "memory": "1Mi"},
        })));
        // init with the sidecar beside it (450m) is more than the containers and the sidecar (350m).
        assert_eq!((of.milli_cpu, of.memory), (460, 1 << 20));
    }

    #[test]
    fn what_is_too_much_together_is_not_taken_for_little() {
        let container = |name: &str| json!({"name": name, "resources": {"requests": {"memory": "5Ei"}}});
        let of = of_pod(&pod(json!({"containers": [container("a"), container("b")]})));
        assert_eq!(of.memory, i64::MAX);
    }

    #[test]
    fn who_asks_for_nothing_is_assumed_to_need_some() {
        let pod = pod(json!({"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}));
        assert_eq!(of_pod(&pod).milli_cpu, 1000);
        assert_eq!(assumed(&pod), (1100, 400 << 20));
    }

    #[test]
    fn a_resize_counts_the_larger_amount() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "1500m"}}}]},
        }))
        .unwrap();
        assert_eq!(of_pod(&pod).milli_cpu, 2000);
    }
}
