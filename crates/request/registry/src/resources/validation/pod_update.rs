//! What may not change about a pod, and through which of its subresources what may.

use super::check::{Errs, count, range_error, s};
use super::{addresses, pod_claims};
use crate::internal;
use crate::resources::core::qos_class;
use crate::strategy::{restore, same};
use keelson_api::codec::json;
use keelson_api::{Map, Object, Value};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

fn spec(o: &Object) -> Map {
    o.obj("spec").cloned().unwrap_or_default()
}

fn name_of(v: &Value) -> &str {
    v.get("name").and_then(Value::as_str).unwrap_or_default()
}

pub fn update(new: &Object, old: &Object, e: &mut Errs) {
    let (new, old) = (spec(new), spec(old));
    for list in ["containers", "initContainers"] {
        if count(&new, list) != count(&old, list) {
            return e.forbidden(&format!("spec.{list}"), "pod updates may not add or remove containers");
        }
    }
    let deadline = |m: &Map| m.int("activeDeadlineSeconds");
    match (deadline(&new), deadline(&old)) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            return e.invalid("spec.activeDeadlineSeconds", n, &range_error(0, i32::MAX.into()));
        }
        (Some(n), Some(o)) if o < n => {
            return e.invalid(
                "spec.activeDeadlineSeconds",
                n,
                "must be less than or equal to previous value",
            );
        }
        (None, Some(_)) => {
            e.invalid(
                "spec.activeDeadlineSeconds",
                Value::Null,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
    tolerations(&new, &old, e);
    gates(&new, &old, e);
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        let before = old.arr(list).cloned().unwrap_or_default();
        if let Some(Value::Array(containers)) = munged.get_mut(list) {
            for (c, before) in containers.iter_mut().filter_map(Value::as_object_mut).zip(&before) {
                restore(c, before.as_object(), "image");
            }
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        restore(&mut munged, Some(&old), key);
    }
    let grace = |m: &Map| m.int("terminationGracePeriodSeconds");
    if grace(&old).is_some_and(|g| g < 0) && grace(&munged) == Some(1) {
        restore(&mut munged, Some(&old), "terminationGracePeriodSeconds");
    }
    if count(&old, "schedulingGates") > 0 {
        gated(&mut munged, &old, e);
    }
    if !same(Some(&Value::Object(munged.clone())), Some(&Value::Object(old.clone()))) {
        let detail = internal::difference("core.PodSpec", &Value::Object(old), &Value::Object(munged));
        e.forbidden(
            "spec",
            &format!("pod updates may not change fields other than {MUTABLE}\n{detail}"),
        );
    }
}

/// What an update may change, as upstream lists it.
const MUTABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn tolerations(new: &Map, old: &Map, e: &mut Errs) {
    // Tolerations are counted by nobody: each is looked up, not compared with each.
    let keys = |m: &Map| -> Vec<Vec<u8>> {
        let all = m.arr("tolerations").into_iter().flatten();
        let without_seconds = all.map(|toleration| {
            let mut toleration = toleration.clone();
            toleration.remove_at(&["tolerationSeconds"]);
            json::encode(&toleration)
        });
        without_seconds.collect()
    };
    let now: HashSet<Vec<u8>> = keys(new).into_iter().collect();
    if keys(old).iter().any(|before| !now.contains(before)) {
        e.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

fn gates(new: &Map, old: &Map, e: &mut Errs) {
    let names = |m: &Map| -> Vec<String> {
        m.arr("schedulingGates")
            .into_iter()
            .flatten()
            .map(|g| name_of(g).into())
            .collect()
    };
    let had: HashSet<String> = names(old).into_iter().collect();
    for (i, name) in names(new).iter().enumerate() {
        if !had.contains(name) {
            e.forbidden(
                &format!("spec.schedulingGates[{i}].name"),
                &format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
}

/// While a pod waits at its gates, where it may go can be narrowed.
fn gated(munged: &mut Map, old: &Map, e: &mut Errs) {
    if !same(munged.get("nodeSelector"), old.get("nodeSelector")) {
        let now = munged.obj("nodeSelector").cloned().unwrap_or_default();
        for (k, v) in old.obj("nodeSelector").into_iter().flatten() {
            if now.get(k) != Some(v) {
                e.invalid(
                    "spec.nodeSelector",
                    now.clone(),
                    "only additions to nodeSelector are allowed (no mutations or deletions)",
                );
                break;
            }
        }
        restore(munged, Some(old), "nodeSelector");
    }
    let node_affinity = |m: &Map| m.get("affinity").and_then(|a| a.get("nodeAffinity")).cloned();
    let before = node_affinity(old);
    if !same(node_affinity(munged).as_ref(), before.as_ref()) {
        let mut affinity = munged.obj("affinity").cloned().unwrap_or_default();
        match before {
            Some(b) => {
                affinity.insert("nodeAffinity", b);
            }
            None => {
                affinity.remove("nodeAffinity");
            }
        }
        if affinity.is_empty() && !old.contains_key("affinity") {
            munged.remove("affinity");
        } else {
            munged.insert("affinity", affinity);
        }
    }
}

pub fn ephemeral_containers(new: &Object, old: &Object, e: &mut Errs) {
    if old.annotation("kubernetes.io/config.mirror").is_some() {
        return e.forbidden("", "static pods do not support ephemeral containers");
    }
    let list = |o: &Object| spec(o).arr("ephemeralContainers").cloned().unwrap_or_default();
    let now = list(new);
    let now: HashMap<&str, &Value> = now.iter().rev().map(|c| (name_of(c), c)).collect();
    for before in list(old) {
        let name = name_of(&before);
        match now.get(name).copied() {
            None => e.forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(c) if !same(Some(c), Some(&before)) => {
                e.forbidden(
                    "spec.ephemeralContainers",
                    &format!("existing ephemeral containers {name:?} may not be changed\n"),
                );
            }
            Some(_) => {}
        }
    }
}

pub fn resize(new: &Object, old: &Object, e: &mut Errs) {
    if old.annotation("kubernetes.io/config.mirror").is_some() {
        return e.forbidden("", "static pods cannot be resized");
    }
    let was = old.str_at(&["status", "qosClass"]).unwrap_or_else(|| qos_class(old));
    if was != qos_class(new) {
        let now = new.str_at(&["status", "qosClass"]).unwrap_or_default();
        e.invalid("spec", now, "Pod QOS Class may not change as a result of resizing");
    }
    let (new, old) = (spec(new), spec(old));
    for list in ["containers", "initContainers"] {
        let names = |m: &Map| -> Vec<String> { m.arr(list).into_iter().flatten().map(|c| name_of(c).into()).collect() };
        if names(&new).len() != names(&old).len() {
            return e.forbidden(
                &format!("spec.{list}"),
                "containers may not be added or removed on resize",
            );
        }
        if names(&new) != names(&old) {
            return e.forbidden(
                &format!("spec.{list}"),
                "containers may not be renamed or reordered on resize",
            );
        }
    }
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        let before = old.arr(list).cloned().unwrap_or_default();
        for (i, b) in before.iter().enumerate() {
            let (Some(n), Some(b)) = (
                new.arr(list).and_then(|l| l.get(i)).and_then(Value::as_object),
                b.as_object(),
            ) else {
                continue;
            };
            e.within(&format!("spec.{list}[{i}].resources"), |e| not_removed(n, b, e));
        }
        if let Some(Value::Array(containers)) = munged.get_mut(list) {
            let pairs = containers.iter_mut().filter_map(Value::as_object_mut).zip(&before);
            for (i, (c, before)) in pairs.enumerate() {
                let Some(before) = before.as_object() else { continue };
                let is_resized = !same(c.get("resources"), before.get("resources"));
                keep_compute(c, before);
                if list == "initContainers" {
                    e.within(&format!("spec.{list}[{i}]"), |e| {
                        init_container(c, before, is_resized, e)
                    });
                }
            }
        }
    }
    restore(&mut munged, Some(&old), "resources");
    if e.list.is_empty() && !same(Some(&Value::Object(munged)), Some(&Value::Object(old))) {
        e.forbidden("spec", "only cpu and memory resources are mutable");
    }
}

fn init_container(now: &Map, before: &Map, is_resized: bool, e: &mut Errs) {
    if now != before {
        e.forbidden(
            "",
            "only cpu and memory resources for init or sidecar containers are mutable",
        );
    }
    let mut policies = now.arr("resizePolicy").into_iter().flatten();
    let restarts = |p: &Value| p.get("restartPolicy").and_then(Value::as_str) == Some("RestartContainer");
    // One that ends can't be begun anew for that.
    if is_resized && s(before, "restartPolicy") != "Always" && policies.any(restarts) {
        e.forbidden(
            "",
            "non-sidecar init containers with a resize policy of RestartContainer cannot be resized",
        );
    }
}

/// Requests and limits may change, not go away.
fn not_removed(new: &Map, old: &Map, e: &mut Errs) {
    let empty = Map::new();
    let of = |c: &Map, kind: &str| c.obj("resources").and_then(|r| r.obj(kind)).unwrap_or(&empty).clone();
    for kind in ["limits", "requests"] {
        let now = of(new, kind);
        if of(old, kind).keys().any(|name| !now.contains_key(name)) {
            e.forbidden(kind, &format!("resource {kind} cannot be removed"));
        }
    }
}

/// As the container would be with what it had of processor and memory. What is left of nothing is nothing: it would be another thing.
fn keep_compute(c: &mut Map, before: &Map) {
    let Some(Value::Object(resources)) = c.get_mut("resources") else {
        return;
    };
    for kind in ["limits", "requests"] {
        let Some(old) = before.obj("resources").and_then(|r| r.obj(kind)) else {
            resources.remove(kind);
            continue;
        };
        if let Some(Value::Object(list)) = resources.get_mut(kind) {
            for name in ["cpu", "memory"] {
                restore(list, Some(old), name);
            }
        }
    }
    if resources.is_empty() && !before.contains_key("resources") {
        c.remove("resources");
    }
}

pub fn status(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (now, before) = (new.obj("status").unwrap_or(&empty), old.obj("status").unwrap_or(&empty));
    if new.at(&["spec", "nodeName"]) != old.at(&["spec", "nodeName"]) {
        e.forbidden("status.nodeName", "may not be changed directly");
    }
    e.within("status", |e| {
        e.each(now, "conditions", |e, _, c| {
            e.format("Type", s(c, "type"), keelson_machinery::names::label_key);
        });
        if let Some(first) = now.arr("hostIPs").and_then(|l| l.first()) {
            let ip = first.get("ip").and_then(Value::as_str).unwrap_or_default();
            if ip != s(now, "hostIP") {
                e.invalid("hostIPs[0].ip", ip, "must be equal to `hostIP`");
            }
        }
        for list in ["podIPs", "hostIPs"] {
            of_each_family(now, before, list, e);
        }
        e.immutable(now.get("qosClass"), before.get("qosClass"), "qosClass");
        let policy = old.str_at(&["spec", "restartPolicy"]).unwrap_or_default();
        if policy != "Always" {
            terminated(now, before, "containerStatuses", policy, old, e);
        }
        pod_claims::status(now, new.obj("spec").unwrap_or(&empty), e);
    });
}

/// New addresses are valid ones; there are at most two, one of each family.
fn of_each_family(now: &Map, before: &Map, list: &str, e: &mut Errs) {
    let of = |m: &Map| -> Vec<String> {
        let ip = |v: &Value| v.get("ip").and_then(Value::as_str).unwrap_or_default().to_owned();
        m.arr(list).into_iter().flatten().map(ip).collect()
    };
    let (new, old) = (of(now), of(before));
    for (i, ip) in new.iter().enumerate().filter(|(_, ip)| !old.contains(ip)) {
        e.format(&format!("{list}[{i}]"), ip, super::check::ip);
    }
    let families: Vec<IpAddr> = new.iter().filter_map(|ip| addresses::ip(ip)).collect();
    if new.len() > 1 && families.len() == new.len() && (new.len() > 2 || families[0].is_ipv4() == families[1].is_ipv4())
    {
        // By upstream's internal names.
        let shown = |ip: &String| Value::Object(Map::from_iter([("IP", Value::from(ip.as_str()))]));
        let shown: Vec<Value> = new.iter().map(shown).collect();
        e.invalid(list, shown, "may specify no more than one IP for each IP family");
    }
}

/// What has ended and isn't restarted stays ended.
fn terminated(now: &Map, before: &Map, list: &str, policy: &str, pod: &Object, e: &mut Errs) {
    for (i, old) in before.arr(list).into_iter().flatten().enumerate() {
        let Some(end) = old.at(&["state", "terminated"]) else {
            continue;
        };
        let own = pod
            .at(&["spec", "containers"])
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|c| name_of(c) == name_of(old))
            .is_some_and(|c| c.get("restartPolicy").is_some() || c.get("restartPolicyRules").is_some());
        let code = end.get("exitCode").and_then(Value::as_i64).unwrap_or(0);
        if own || code != 0 && policy == "OnFailure" {
            continue;
        }
        let same_name = now.arr(list).into_iter().flatten().find(|c| name_of(c) == name_of(old));
        if same_name.is_some_and(|c| c.at(&["state", "terminated"]).is_none()) {
            e.forbidden(
                &format!("{list}[{i}].state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}
