//! Pods: grace, quality of service, and what each of their subresources may change.

use super::super::defaults::hugepages_and_requests;
use super::{label_keys, qos};
use crate::context::Cx;
use crate::meta::timestamp;
use crate::options::DeleteOptions;
use crate::strategy::{Behaviour, Generation, restore};
use keelson_api::{Map, Object, Value, value};

pub const POD: Behaviour = Behaviour {
    status: true,
    generation: Generation::Follows(&["spec"]),
    returns_deleted: true,
    status_keeps: &["ownerReferences"],
    prepare_create: create,
    prepare_update: update,
    prepare_status: status,
    graceful: Some(graceful),
    ..Behaviour::DEFAULT
};

fn create(_: &Cx, pod: &mut Object) {
    if let Some(Value::Object(spec)) = pod.get_mut("spec") {
        hugepages_and_requests(spec);
    }
    let mut status = value!({"phase": "Pending", "qosClass": qos::class(pod)});
    label_keys::merge(pod);
    let gated = pod
        .at(&["spec", "schedulingGates"])
        .and_then(Value::as_array)
        .is_some_and(|g| !g.is_empty());
    if gated {
        let condition = value!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null,
            "lastTransitionTime": timestamp(keelson_clock::now()).as_str(),
        });
        status.set_at(&["conditions"], vec![condition]);
    }
    pod.insert("status", status);
}

fn update(cx: &Cx, new: &mut Object, old: &Object) {
    match cx.subresource.as_str() {
        "ephemeralcontainers" => {
            let added = new.at(&["spec", "ephemeralContainers"]).cloned();
            restore(&mut new.0, Some(&old.0), "spec");
            keep_metadata(new, old);
            if let Some(list) = added {
                new.set_at(&["spec", "ephemeralContainers"], list);
            }
        }
        "resize" => resize(new, old),
        _ => {}
    }
}

/// Everything but what the engine keeps is as it was.
fn keep_metadata(new: &mut Object, old: &Object) {
    for key in [
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        restore(new.meta_mut(), old.meta(), key);
    }
}

/// Of a resize only resources and resize policies are taken, container by container.
fn resize(new: &mut Object, old: &Object) {
    let names = |o: &Object, key: &str| -> Vec<String> {
        let list = o.at(&["spec", key]).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .map(|c| c.get("name").and_then(Value::as_str).unwrap_or_default().to_string())
            .collect()
    };
    // A changed set of containers is left for validation to refuse.
    if ["containers", "initContainers"]
        .iter()
        .any(|key| names(new, key) != names(old, key))
    {
        return;
    }
    let mut spec = old.obj("spec").cloned().unwrap_or_default();
    for key in ["containers", "initContainers"] {
        let asked = new
            .at(&["spec", key])
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let Some(Value::Array(list)) = spec.get_mut(key) else {
            continue;
        };
        for (container, asked) in list.iter_mut().zip(&asked) {
            if let (Value::Object(c), Some(asked)) = (container, asked.as_object()) {
                restore(c, Some(asked), "resources");
                restore(c, Some(asked), "resizePolicy");
            }
        }
    }
    if let Some(pod_level) = new.at(&["spec", "resources"]).cloned() {
        spec.insert("resources", pod_level);
    }
    new.insert("spec", spec);
    keep_metadata(new, old);
}

fn status(_: &Cx, new: &mut Object, old: &Object) {
    let before = old.obj("status").cloned().unwrap_or_default();
    let status = new.object_mut("status");
    for key in [
        "qosClass",
        "resourceClaimStatuses",
        "extendedResourceClaimStatus",
        "nodeAllocatableResourceClaimStatuses",
    ] {
        let empty = matches!(status.get(key), None | Some(Value::Null)) || status.str(key) == Some("");
        if empty && before.contains_key(key) {
            restore(status, Some(&before), key);
        }
    }
    keep_observed(status, &before);
}

/// A client that doesn't know observed generations doesn't take them away.
fn keep_observed(status: &mut Map, before: &Map) {
    const KEY: &str = "observedGeneration";
    if status.int(KEY).unwrap_or(0) == 0 {
        restore(status, Some(before), KEY);
    }
    let mut known: Vec<(String, i64)> = before
        .arr("conditions")
        .into_iter()
        .flatten()
        .map(|c| {
            let kind = c.get("type").and_then(Value::as_str).unwrap_or_default();
            (kind.to_string(), c.get(KEY).and_then(Value::as_i64).unwrap_or(0))
        })
        .collect();
    let Some(Value::Array(conditions)) = status.get_mut("conditions") else {
        return;
    };
    for c in conditions {
        let kind = c.get("type").and_then(Value::as_str).unwrap_or_default().to_string();
        let Some(at) = known.iter().position(|(k, _)| *k == kind) else {
            continue;
        };
        let (_, generation) = known.remove(at);
        if generation != 0 && c.get(KEY).and_then(Value::as_i64).unwrap_or(0) == 0 {
            c.set_at(&[KEY], generation);
        }
    }
}

/// The grace asked for, or the pod's own; none for pods that run nowhere or are done.
fn graceful(pod: &Object, options: &mut DeleteOptions) -> bool {
    let own = || {
        pod.at(&["spec", "terminationGracePeriodSeconds"])
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    let mut period = options.grace_period_seconds.unwrap_or_else(own);
    if pod.str_at(&["spec", "nodeName"]).unwrap_or_default().is_empty() {
        period = 0;
    }
    if matches!(pod.str_at(&["status", "phase"]), Some("Failed" | "Succeeded")) {
        period = 0;
    }
    options.grace_period_seconds = Some(if period < 0 { 1 } else { period });
    true
}
