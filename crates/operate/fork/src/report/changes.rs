//! Which objects were made, changed and deleted, but for what controllers write by themselves.

use super::{Change, Key, Picture, What, controller};
use keelson_backup::objects::differences;
use serde_json::Value;
use std::collections::BTreeMap;

/// Pods are told of by their owners.
const OTHERS: [&str; 9] = [
    "controllerrevisions.apps",
    "csinodes.storage.k8s.io",
    "endpoints",
    "endpointslices.discovery.k8s.io",
    "events",
    "events.events.k8s.io",
    "ipaddresses.networking.k8s.io",
    "leases.coordination.k8s.io",
    "pods",
];
/// Of metadata: what says nothing of what was wanted.
const NOISE: [&str; 7] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "deletionGracePeriodSeconds",
];
const NOTES: [&str; 3] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/revision",
    "kwok.x-k8s.io/node",
];

/// Of a volume that its driver would delete.
const LOST: &str = "what is stored in it would be deleted, too";

pub fn changes(before: &Picture, after: &Picture) -> (Vec<Change>, BTreeMap<String, usize>) {
    let (mut changes, mut kept) = (Vec::new(), BTreeMap::new());
    for change in all(before, after) {
        let object = after.get(&change.object).or_else(|| before.get(&change.object));
        match object.is_some_and(|object| is_kept(&change.object, object)) {
            true => *kept.entry(change.object.resource).or_default() += 1,
            false => changes.push(change),
        }
    }
    (changes, kept)
}

/// Somebody else makes it, and makes it anew.
fn is_kept(key: &Key, object: &Value) -> bool {
    let of_namespaces = [("serviceaccounts", "default"), ("configmaps", "kube-root-ca.crt")];
    controller(object).is_some() || of_namespaces.contains(&(key.resource.as_str(), key.name.as_str()))
}

fn all(before: &Picture, after: &Picture) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |what, object: &Key, fields| {
        let object = object.clone();
        changes.push(Change { what, object, fields });
    };
    for (key, now) in after.0.iter().filter(|(key, _)| is_told(key)) {
        match before.get(key) {
            None => add(What::Create, key, Vec::new()),
            Some(was) => {
                let fields = differences(key.resource == "secrets", &clean(was), &clean(now));
                if !fields.is_empty() {
                    add(What::Change, key, fields);
                }
            }
        }
    }
    for (key, was) in before
        .0
        .iter()
        .filter(|(key, _)| is_told(key) && after.get(key).is_none())
    {
        let loses = key.resource == "persistentvolumes" && was["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
        add(What::Delete, key, loses.then(|| LOST.to_owned()).into_iter().collect());
    }
    changes
}

fn is_told(key: &Key) -> bool {
    !OTHERS.contains(&key.resource.as_str())
}

fn clean(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        fields.remove("apiVersion");
    }
    let without = |map: Option<&mut Value>, names: &[&str]| {
        if let Some(map) = map.and_then(Value::as_object_mut) {
            map.retain(|name, _| !names.contains(&name.as_str()));
        }
    };
    without(object.get_mut("metadata"), &NOISE);
    without(object.pointer_mut("/metadata/annotations"), &NOTES);
    let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
    if annotations.is_some_and(serde_json::Map::is_empty) {
        without(object.get_mut("metadata"), &["annotations"]);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn picture(objects: &[(&str, Value)]) -> Picture {
        let mut picture = Picture::default();
        for (resource, object) in objects {
            picture.add(resource, object.clone());
        }
        picture
    }

    fn map(name: &str, revision: &str, data: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": revision}, "data": {"a": data}})
    }

    #[test]
    fn what_was_wanted_is_told_and_what_follows_is_counted() {
        let owned = json!({"metadata": {"name": "web-1", "namespace": "n", "ownerReferences": [{"controller": true}]}});
        let (changes, kept) = changes(
            &picture(&[
                ("configmaps", map("same", "1", "x")),
                ("configmaps", map("other", "1", "x")),
                ("configmaps", map("gone", "1", "x")),
                ("secrets", map("key", "1", "x")),
            ]),
            &picture(&[
                ("configmaps", map("same", "2", "x")),
                ("configmaps", map("other", "2", "y")),
                ("configmaps", map("new", "2", "x")),
                ("secrets", map("key", "2", "y")),
                ("replicasets.apps", owned),
                ("events", map("told", "2", "x")),
            ]),
        );
        let told: Vec<_> = changes.iter().map(|c| (c.what, c.object.name.as_str())).collect();
        let expected = [
            (What::Create, "new"),
            (What::Change, "other"),
            (What::Change, "key"),
            (What::Delete, "gone"),
        ];
        assert_eq!(told, expected);
        assert_eq!(changes[1].fields, ["data.a: \"x\" -> \"y\""]);
        assert_eq!(changes[2].fields, ["data.a: (another value)"]);
        assert_eq!(kept, BTreeMap::from([("replicasets.apps".to_owned(), 1)]));
    }
}
