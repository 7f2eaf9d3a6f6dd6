//! What becomes of each object.

use super::{Object, clean, differences};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Kept,
    /// Becomes what it was.
    Updated,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create,
    /// With what differs.
    Update(Vec<String>),
    /// It is there, and the same.
    Same,
    /// It is there and stays, with what differs.
    Kept(Vec<String>),
    /// It doesn't go back, and why.
    Left(&'static str),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub object: Object,
    pub step: Step,
    /// The uid of the one that is there.
    pub live: Option<String>,
}

/// What others need comes first.
const FIRST: [&str; 9] = [
    "namespaces",
    "serviceaccounts",
    "secrets",
    "configmaps",
    "limitranges",
    "resourcequotas",
    "roles.rbac.authorization.k8s.io",
    "persistentvolumeclaims",
    "services",
];

/// In the order in which it is done.
pub fn plan(backup: Vec<Object>, live: &[Object], existing: Existing) -> Vec<Planned> {
    let there: BTreeMap<_, _> = live.iter().map(|object| (object.key(), object)).collect();
    let selecting: BTreeSet<String> = backup
        .iter()
        .filter(|object| selects(object))
        .map(|o| o.name().to_string())
        .collect();
    let mut planned: Vec<_> = backup
        .into_iter()
        .map(|object| {
            let live = there.get(&object.key());
            Planned {
                step: step(&object, live.copied(), &selecting, existing),
                live: live.map(|live| live.uid().to_string()),
                object,
            }
        })
        .collect();
    let depths = depths(&planned);
    planned.sort_by_cached_key(|planned| {
        let object = &planned.object;
        let rank = FIRST
            .iter()
            .position(|first| *first == object.resource)
            .unwrap_or(FIRST.len());
        let depth = depths.get(object.uid()).copied().unwrap_or_default();
        let (resource, namespace, name) = object.key();
        (
            depth,
            rank,
            resource.to_string(),
            namespace.to_string(),
            name.to_string(),
        )
    });
    planned
}

/// How many owners stand above each, by uid: who is owned comes after.
fn depths(planned: &[Planned]) -> BTreeMap<String, usize> {
    let by_uid: BTreeMap<&str, &Object> = planned.iter().map(|p| (p.object.uid(), &p.object)).collect();
    let mut depths = BTreeMap::new();
    for object in by_uid.values() {
        let (mut depth, mut at) = (0, *object);
        // Who owns itself is nobody's.
        while depth < 8 {
            let Some(owner) = at.owners().find_map(|o| by_uid.get(o["uid"].as_str()?).copied()) else {
                break;
            };
            (depth, at) = (depth + 1, owner);
        }
        depths.insert(object.uid().to_string(), depth);
    }
    depths
}

fn selects(object: &Object) -> bool {
    let selector = object.value.pointer("/spec/selector").and_then(Value::as_object);
    object.resource == "services" && selector.is_some_and(|selector| !selector.is_empty())
}

fn step(object: &Object, live: Option<&Object>, selecting: &BTreeSet<String>, existing: Existing) -> Step {
    if let Some(why) = left(object, selecting) {
        return Step::Left(why);
    }
    let Some(live) = live else { return Step::Create };
    let differ = differences(object.resource == "secrets", &clean(live), &clean(object));
    match (differ.is_empty(), existing) {
        (true, _) => Step::Same,
        (false, Existing::Updated) => Step::Update(differ),
        (false, Existing::Kept) => Step::Kept(differ),
    }
}

/// Why it doesn't go back: because somebody makes it, or it was of that moment.
fn left(object: &Object, selecting: &BTreeSet<String>) -> Option<&'static str> {
    let kind = object.resource.as_str();
    Some(match kind {
        _ if object.value.pointer("/metadata/deletionTimestamp").is_some() => "it was being deleted",
        "events" | "events.events.k8s.io" => "it tells of what happened then",
        "leases.coordination.k8s.io" => "its holder writes it",
        "pods" if object.has_controller() => "its controller makes it",
        "jobs.batch" if object.has_controller() => "its controller makes it when it is due",
        "pods" | "jobs.batch" if has_ended(object) => "it had ended",
        "pods" if object.annotation("kubernetes.io/config.mirror").is_some() => "a node's own file makes it",
        "endpoints" if selecting.contains(object.name()) => "its service makes it",
        "endpointslices.discovery.k8s.io" if object.label("endpointslice.kubernetes.io/managed-by").is_some() => {
            "a controller makes it"
        }
        "configmaps" if object.name() == "kube-root-ca.crt" => "a controller makes it",
        "secrets" if object.value["type"] == "kubernetes.io/service-account-token" => "its token was another account's",
        _ => return None,
    })
}

/// What ran to its end would run once more.
fn has_ended(object: &Object) -> bool {
    let status = &object.value["status"];
    let conditions = status["conditions"].as_array();
    let is_over = |condition: &Value| {
        condition["status"] == "True" && (condition["type"] == "Complete" || condition["type"] == "Failed")
    };
    match object.resource.as_str() {
        "pods" => status["phase"] == "Succeeded" || status["phase"] == "Failed",
        _ => conditions.into_iter().flatten().any(is_over),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(resource: &str, name: &str, extra: Value) -> Object {
        let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": format!("{resource}/{name}")}});
        for (field, content) in extra.as_object().unwrap() {
            match (value.get_mut(field).and_then(Value::as_object_mut), content.as_object()) {
                (Some(into), Some(from)) => into.extend(from.clone()),
                _ => value[field] = content.clone(),
            }
        }
        let resource = resource.to_string();
        Object { resource, value }
    }

    #[test]
    fn what_somebody_makes_is_left_to_them() {
        let controlled = json!({"metadata": {"ownerReferences": [{"uid": "x", "controller": true}]}});
        let cases = [
            (object("pods", "a", controlled), true),
            (object("pods", "b", json!({})), false),
            (
                object(
                    "pods",
                    "m",
                    json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
                ),
                true,
            ),
            (object("pods", "done", json!({"status": {"phase": "Succeeded"}})), true),
            (object("pods", "runs", json!({"status": {"phase": "Running"}})), false),
            (
                object(
                    "jobs.batch",
                    "done",
                    json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}),
                ),
                true,
            ),
            (
                object(
                    "jobs.batch",
                    "runs",
                    json!({"status": {"conditions": [{"type": "Suspended", "status": "True"}]}}),
                ),
                false,
            ),
            (
                object(
                    "jobs.batch",
                    "nightly-1",
                    json!({"metadata": {"ownerReferences": [{"uid": "c", "controller": true}]}}),
                ),
                true,
            ),
            (object("configmaps", "kube-root-ca.crt", json!({})), true),
            (object("configmaps", "mine", json!({})), false),
            (
                object("secrets", "t", json!({"type": "kubernetes.io/service-account-token"})),
                true,
            ),
            (object("secrets", "s", json!({"type": "Opaque"})), false),
            (object("events", "e", json!({})), true),
            (object("endpoints", "web", json!({})), true),
            (object("endpoints", "by-hand", json!({})), false),
            (
                object("services", "web", json!({"spec": {"selector": {"a": "b"}}})),
                false,
            ),
            (object("services", "by-hand", json!({"spec": {}})), false),
            (
                object(
                    "deployments.apps",
                    "gone",
                    json!({"metadata": {"deletionTimestamp": "t"}}),
                ),
                true,
            ),
        ];
        let expected: BTreeMap<String, bool> = cases.iter().map(|(o, left)| (o.uid().to_string(), *left)).collect();
        let objects = cases.into_iter().map(|(object, _)| object).collect();
        for planned in plan(objects, &[], Existing::Kept) {
            let is_left = matches!(planned.step, Step::Left(_));
            assert_eq!(is_left, expected[planned.object.uid()], "{planned:?}");
        }
    }

    #[test]
    fn what_is_there_stays_unless_it_is_to_become_what_it_was() {
        let was = object("deployments.apps", "web", json!({"spec": {"replicas": 5}}));
        let now = object(
            "deployments.apps",
            "web",
            json!({"spec": {"replicas": 3}, "status": {}, "metadata": {"uid": "other"}}),
        );
        let step = |live: &[Object], existing| plan(vec![was.clone()], live, existing).remove(0);
        assert_eq!(step(&[], Existing::Kept).step, Step::Create);
        assert_eq!(step(std::slice::from_ref(&was), Existing::Updated).step, Step::Same);
        let differ = vec!["spec.replicas: 3 -> 5".to_string()];
        let kept = step(std::slice::from_ref(&now), Existing::Kept);
        assert_eq!(
            (kept.step, kept.live.as_deref()),
            (Step::Kept(differ.clone()), Some("other"))
        );
        assert_eq!(step(&[now], Existing::Updated).step, Step::Update(differ));
    }

    #[test]
    fn what_others_need_comes_first() {
        let owned = |by: &str| json!({"metadata": {"ownerReferences": [{"uid": by}]}});
        let objects = vec![
            object("configmaps", "of-the-set", owned("replicasets.apps/set")),
            object("replicasets.apps", "set", owned("deployments.apps/web")),
            object("deployments.apps", "web", json!({})),
            object("persistentvolumeclaims", "data", json!({})),
            object("secrets", "s", json!({})),
            object("namespaces", "n", json!({})),
            object("configmaps", "own", owned("configmaps/own")),
        ];
        let planned = plan(objects, &[], Existing::Kept);
        let order: Vec<_> = planned.iter().map(|p| p.object.name()).collect();
        assert_eq!(order, ["n", "s", "data", "web", "set", "of-the-set", "own"]);
    }
}
