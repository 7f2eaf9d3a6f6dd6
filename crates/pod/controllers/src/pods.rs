//! What controllers need to know of pods: whether one counts, which go first, and how they are made from a template.

use crate::claim::Owner;
use crate::wire::controller_of;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use keelson_client::{ApiObject, Store, selection};
use std::cmp::Ordering;
use std::sync::Arc;

/// The index of objects without a controller, by namespace: those that may be adopted.
pub const ORPHANS: &str = "orphans";
/// The index of pods without one by their labels.
const LABELLED_ORPHANS: &str = "labelled-orphans";
/// The index of pods by node.
pub const BY_NODE: &str = "node";

pub fn index(store: &Store<Pod>) {
    store.index_controllers();
    store.add_index(ORPHANS, orphan_namespace);
    store.add_index(LABELLED_ORPHANS, |pod| match controller_of(pod.meta()) {
        None => selection::labelled(pod),
        Some(_) => Vec::new(),
    });
    store.add_index(BY_NODE, |pod| {
        node(pod).map(|n| vec![n.to_string()]).unwrap_or_default()
    });
}

pub fn orphan_namespace<K: ApiObject>(object: &K) -> Vec<String> {
    if controller_of(object.meta()).is_none() {
        vec![object.namespace().to_string()]
    } else {
        Vec::new()
    }
}

/// The pods an owner may claim: its own, and those without a controller in its namespace that its selector may match.
pub fn candidates(store: &Store<Pod>, owner: &Owner, selector: &LabelSelector) -> Vec<Arc<Pod>> {
    let mut pods = store.controlled_by(&owner.uid);
    pods.extend(orphans(store, &owner.namespace, selector));
    pods
}

/// Pods without a controller that a selector may match: by one label that it asks for, if it does.
pub fn orphans(store: &Store<Pod>, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Pod>> {
    match selection::pairs(selector).next() {
        Some((key, value)) => store.by_index(LABELLED_ORPHANS, &selection::place(namespace, key, value)),
        None => store.by_index(ORPHANS, namespace),
    }
}

pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts as running or about to: neither finished nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !pod.is_deleting()
}

/// Marked for deletion, but may still run.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_finished(pod) && pod.is_deleting()
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")
        .filter(|c| c.status == "True")?
        .last_transition_time
        .as_ref()
        .map(|t| t.0)
}

/// Ready for at least this many seconds.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod)
        && (min_ready_seconds <= 0
            || available_in(pod, min_ready_seconds, now).is_some_and(|d| d <= SignedDuration::ZERO))
}

/// How long until a ready pod becomes available.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    let at = ready_since(pod)? + SignedDuration::from_secs(min_ready_seconds.into());
    Some(at.duration_since(now))
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let init = status
        .and_then(|s| s.init_container_statuses.as_deref())
        .unwrap_or_default();
    containers
        .iter()
        .chain(init)
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let costs = pod.metadata.annotations.as_ref();
    costs
        .and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"))
        .and_then(|c| c.parse().ok())
        .unwrap_or(0)
}

/// Ages are compared by their order of magnitude, so that the choice among peers is spread.
fn magnitude(at: Option<Timestamp>, now: Timestamp) -> i32 {
    match at {
        Some(at) => {
            let age = now.duration_since(at).as_millis().max(1);
            age.ilog2() as i32
        }
        None => -1,
    }
}

/// Orders pods so that the first is the one to delete first. `rank` is the number of like pods on the pod's node.
pub fn deletion_order(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, rank_a), (b, rank_b)) = (a, b);
    let stage = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    node(a)
        .is_some()
        .cmp(&node(b).is_some())
        .then_with(|| stage(a).cmp(&stage(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| {
            if !is_ready(a) || !is_ready(b) || ready_since(a) == ready_since(b) {
                return Ordering::Equal;
            }
            let (ages_a, ages_b) = (magnitude(ready_since(a), now), magnitude(ready_since(b), now));
            ages_a.cmp(&ages_b).then_with(|| a.uid().cmp(b.uid()))
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
            if created(a) == created(b) {
                return Ordering::Equal;
            }
            magnitude(created(a), now)
                .cmp(&magnitude(created(b), now))
                .then_with(|| a.uid().cmp(b.uid()))
        })
}

/// A pod as the template describes it, owned by `owner`. The server completes its name.
pub fn from_template(template: &PodTemplateSpec, owner: &Owner) -> Pod {
    let meta = template.metadata.as_ref();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(owner.namespace.clone()),
            generate_name: Some(format!("{}-", owner.name)),
            labels: meta.and_then(|m| m.labels.clone()),
            annotations: meta.and_then(|m| m.annotations.clone()),
            finalizers: meta.and_then(|m| m.finalizers.clone()),
            owner_references: Some(vec![owner.reference()]),
            ..Default::default()
        },
        spec: Some(template.spec.clone().unwrap_or_default()),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn pod(node: &str, phase: &str, ready_at: Option<i64>, cost: Option<&str>) -> Pod {
        let time = |s: i64| Time(Timestamp::from_second(s).unwrap_or_default());
        Pod {
            metadata: ObjectMeta {
                annotations: cost
                    .map(|c| [("controller.kubernetes.io/pod-deletion-cost".to_string(), c.to_string())].into()),
                ..Default::default()
            },
            spec: Some(PodSpec {
                node_name: (!node.is_empty()).then(|| node.to_string()),
                ..Default::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.into()),
                conditions: ready_at.map(|at| {
                    vec![PodCondition {
                        type_: "Ready".into(),
                        status: "True".into(),
                        last_transition_time: Some(time(at)),
                        ..Default::default()
                    }]
                }),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let now = Timestamp::from_second(10_000).unwrap_or_default();
        let order = [
            pod("", "Pending", None, None),
            pod("n", "Pending", None, None),
            pod("n", "Running", None, None),
            pod("n", "Running", Some(9_000), Some("-5")),
            pod("n", "Running", Some(9_990), None),
            pod("n", "Running", Some(10), None),
            pod("n", "Running", Some(10), Some("7")),
        ];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(deletion_order((a, 0), (b, 0), now), i.cmp(&j), "{i} {j}");
            }
        }
        assert_eq!(
            deletion_order((&order[5], 3), (&order[4], 1), now),
            Ordering::Less,
            "crowded nodes first"
        );
    }

    #[test]
    fn availability_takes_time() {
        let now = Timestamp::from_second(100).unwrap_or_default();
        let pod = pod("n", "Running", Some(95), None);
        assert!(is_available(&pod, 0, now) && is_available(&pod, 5, now) && !is_available(&pod, 6, now));
        assert_eq!(available_in(&pod, 8, now).map(|d| d.as_secs()), Some(3));
    }
}
