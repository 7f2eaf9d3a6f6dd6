//! An object without what a cluster gives.

use super::Object;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Of metadata: what the server writes.
const GIVEN: [&str; 9] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "ownerReferences",
];
/// Who bound a claim, where and by which driver: binding does it anew.
const BOUND: [&str; 5] = [
    "pv.kubernetes.io/bind-completed",
    "pv.kubernetes.io/bound-by-controller",
    "volume.kubernetes.io/selected-node",
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
];
/// Of whom a job's pods were.
const JOBS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

/// Owners are put back by [`owned`].
pub fn clean(object: &Object) -> Value {
    let mut value = object.value.clone();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !GIVEN.contains(&name.as_str()));
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    match object.resource.as_str() {
        "services" => service(object, &mut value),
        "persistentvolumeclaims" => {
            without(value.pointer_mut("/metadata/annotations"), &BOUND);
            without(value.pointer_mut("/spec"), &["volumeName"]);
        }
        "jobs.batch" => job(&mut value),
        "pods" => pod(&mut value),
        "namespaces" => without(value.pointer_mut("/spec"), &["finalizers"]),
        _ => {}
    }
    value
}

fn without(from: Option<&mut Value>, names: &[&str]) {
    if let Some(map) = from.and_then(Value::as_object_mut) {
        map.retain(|name, _| !names.contains(&name.as_str()));
    }
}

/// Addresses are given anew, but for none at all. Ports of nodes stay if the user wrote them, as `kubectl apply` notes it.
fn service(object: &Object, value: &mut Value) {
    let headless = value.pointer("/spec/clusterIP").is_some_and(|ip| ip == "None");
    let written = object.annotation("kubectl.kubernetes.io/last-applied-configuration");
    let written = written.and_then(Value::as_str).unwrap_or_default();
    let keeps_ports = written.contains("\"nodePort\"");
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if !headless {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    spec.remove("healthCheckNodePort");
    if !keeps_ports {
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        ports
            .into_iter()
            .flatten()
            .for_each(|port| without(Some(port), &["nodePort"]));
    }
}

fn job(value: &mut Value) {
    if value
        .pointer("/spec/manualSelector")
        .is_some_and(|manual| manual == true)
    {
        return;
    }
    without(value.pointer_mut("/spec"), &["selector"]);
    without(value.pointer_mut("/metadata/labels"), &JOBS);
    without(value.pointer_mut("/spec/template/metadata/labels"), &JOBS);
}

/// Where it ran, and the token that it had, are given anew.
fn pod(value: &mut Value) {
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    spec.remove("nodeName");
    spec.remove("ephemeralContainers");
    let token = |entry: &Value| {
        entry["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("kube-api-access-"))
    };
    let keep = |from: &mut Map<String, Value>, list: &str| {
        if let Some(list) = from.get_mut(list).and_then(Value::as_array_mut) {
            list.retain(|entry| !token(entry));
        }
    };
    keep(spec, "volumes");
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            keep(container, "volumeMounts");
        }
    }
}

/// With its owners as they are now: `now` has, for uids of the backup, those in the cluster. Others are left out; says how many.
pub fn owned(object: &Object, mut cleaned: Value, now: &BTreeMap<String, String>) -> (Value, usize) {
    let mut lost = 0;
    let owners = object.owners().filter_map(|owner| {
        let uid = owner["uid"].as_str().and_then(|uid| now.get(uid));
        lost += usize::from(uid.is_none());
        let mut owner = owner.clone();
        owner["uid"] = Value::String(uid?.clone());
        Some(owner)
    });
    let owners: Vec<_> = owners.collect();
    if !owners.is_empty() {
        cleaned["metadata"]["ownerReferences"] = Value::Array(owners);
    }
    (cleaned, lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cleaned(resource: &str, value: Value) -> Value {
        let resource = resource.to_string();
        clean(&Object { resource, value })
    }

    #[test]
    fn what_the_cluster_gives_goes_and_the_rest_stays() {
        let given = json!({"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2, "creationTimestamp": "t", "managedFields": [],
            "ownerReferences": [{}], "labels": {"a": "b"}, "finalizers": ["mine"]});
        let left = cleaned(
            "configmaps",
            json!({"kind": "ConfigMap", "metadata": given, "data": {"a": "b"}, "status": {}}),
        );
        assert_eq!(
            left,
            json!({"kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n", "labels": {"a": "b"}, "finalizers": ["mine"]}, "data": {"a": "b"}})
        );
    }

    #[test]
    fn services_get_new_addresses() {
        let service = |ip: &str, annotations: Value| {
            let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "healthCheckNodePort": 1, "ports": [{"port": 80, "nodePort": 30080}]});
            cleaned(
                "services",
                json!({"metadata": {"annotations": annotations}, "spec": spec}),
            )["spec"]
                .clone()
        };
        assert_eq!(service("10.0.0.1", json!({})), json!({"ports": [{"port": 80}]}));
        assert_eq!(service("None", json!({}))["clusterIP"], "None");
        let applied =
            json!({"kubectl.kubernetes.io/last-applied-configuration": r#"{"spec":{"ports":[{"nodePort":30080}]}}"#});
        assert_eq!(service("10.0.0.1", applied)["ports"][0]["nodePort"], 30080);
    }

    #[test]
    fn claims_jobs_and_pods_are_free_of_what_they_were_bound_to() {
        let claim = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes", "a": "b"}}, "spec": {"volumeName": "pv", "storageClassName": "local"}});
        assert_eq!(
            cleaned("persistentvolumeclaims", claim),
            json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"storageClassName": "local"}})
        );
        let labels = json!({"controller-uid": "u", "batch.kubernetes.io/controller-uid": "u", "job-name": "j"});
        let job = json!({"metadata": {"labels": labels}, "spec": {"selector": {}, "template": {"metadata": {"labels": labels}}}});
        let left = cleaned("jobs.batch", job);
        assert_eq!(
            left["spec"],
            json!({"template": {"metadata": {"labels": {"job-name": "j"}}}})
        );
        let pod = json!({"metadata": {}, "spec": {"nodeName": "n", "volumes": [{"name": "kube-api-access-x"}, {"name": "data"}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "kube-api-access-x"}, {"name": "data"}]}]}});
        assert_eq!(
            cleaned("pods", pod)["spec"],
            json!({"volumes": [{"name": "data"}], "containers": [{"name": "c", "volumeMounts": [{"name": "data"}]}]})
        );
    }

    #[test]
    fn owners_are_those_that_are_there_now() {
        let value = json!({"metadata": {"name": "a", "ownerReferences": [{"name": "b", "uid": "old"}, {"name": "c", "uid": "gone"}]}});
        let object = Object {
            resource: "replicasets.apps".into(),
            value,
        };
        let now = BTreeMap::from([("old".to_string(), "new".to_string())]);
        let (value, lost) = owned(&object, clean(&object), &now);
        assert_eq!(
            value["metadata"]["ownerReferences"],
            json!([{"name": "b", "uid": "new"}])
        );
        assert_eq!(lost, 1);
    }
}
