//! `apps`, `batch` and replication controllers.

use super::Rules;
use super::check::{Errs, count, is_zero_number_or_percent, s};
use super::pod_spec::template;
use super::{jobs, storage};
use crate::internal;
use crate::strategy::same;
use keelson_api::{Cause, Map, Object, Value};
use keelson_machinery::names;
use keelson_machinery::selector::LabelSelector;
use std::collections::HashSet;

pub const REPLICATION_CONTROLLER: Rules = Rules {
    object: |_, o, e| replication_controller(o, e),
    status: |_, new, _, e| replica_status(new, e, OF_REPLICAS),
    name: names::declared_dns1123_subdomain,
    ..Rules::SUBDOMAIN
};
const DEPLOYMENT: Rules = Rules {
    object: |_, o, e| spec_of(o, e, deployment),
    update: |_, new, old, e| selector_immutable(new, old, e),
    status: |_, new, old, e| {
        replica_status(new, e, OF_DEPLOYMENTS);
        collisions(new, old, e);
    },
    ..Rules::SUBDOMAIN
};
const REPLICA_SET: Rules = Rules {
    object: |_, o, e| {
        spec_of(o, e, |e, spec| {
            e.non_negative(spec, "replicas");
            e.non_negative(spec, "minReadySeconds");
            selected_template(e, spec, "deployment", "ReplicaSet");
        })
    },
    update: |_, new, old, e| selector_immutable(new, old, e),
    status: |_, new, _, e| replica_status(new, e, OF_REPLICAS),
    ..Rules::SUBDOMAIN
};
const STATEFUL_SET: Rules = Rules {
    name: names::dns1123_label,
    object: |_, o, e| spec_of(o, e, stateful_set),
    create: |_, o, e| spec_of(o, e, new_stateful_set),
    update: |_, new, old, e| stateful_set_update(new, old, e),
    status: |_, new, old, e| {
        replica_status(new, e, OF_STATEFUL_SETS);
        collisions(new, old, e);
    },
    ..Rules::NONE
};
const DAEMON_SET: Rules = Rules {
    object: |_, o, e| spec_of(o, e, daemon_set),
    update: |_, new, old, e| selector_immutable(new, old, e),
    status: |_, new, old, e| {
        e.child(new, "status", |e, status| {
            OF_NODES.iter().for_each(|key| e.non_negative(status, key));
        });
        collisions(new, old, e);
    },
    ..Rules::SUBDOMAIN
};
const REVISION: Rules = Rules {
    object: |_, o, e| e.non_negative(o, "revision"),
    create: |_, o, e| match o.get("data") {
        None | Some(Value::Null) => e.required("data", "data is mandatory"),
        Some(Value::Object(_)) => {}
        Some(_) => e.required("data", "data must be a valid JSON object"),
    },
    update: |_, new, old, e| e.immutable(new.get("data"), old.get("data"), "data"),
    ..Rules::SUBDOMAIN
};
pub fn of(kind: &str) -> Rules {
    match kind {
        "Deployment" => DEPLOYMENT,
        "ReplicaSet" => REPLICA_SET,
        "StatefulSet" => STATEFUL_SET,
        "DaemonSet" => DAEMON_SET,
        "ControllerRevision" => REVISION,
        "Job" => jobs::JOB,
        "CronJob" => jobs::CRON_JOB,
        _ => Rules::SUBDOMAIN,
    }
}

pub fn spec_of(o: &Object, e: &mut Errs, f: impl FnOnce(&mut Errs, &Map)) {
    let empty = Map::new();
    e.within("spec", |e| f(e, o.obj("spec").unwrap_or(&empty)));
}

fn selector_immutable(new: &Object, old: &Object, e: &mut Errs) {
    let path = ["spec", "selector"];
    e.immutable_as("*v1.LabelSelector", new.at(&path), old.at(&path), "spec.selector");
}

pub fn template_labels(spec: &Map) -> Option<&Map> {
    spec.get("template")?.at(&["metadata", "labels"])?.as_object()
}

pub fn shown_labels(spec: &Map) -> Value {
    template_labels(spec).cloned().map_or(Value::Null, Value::Object)
}

/// A template that a selector must match, of pods that always run.
fn selected_template(e: &mut Errs, spec: &Map, kind: &str, title: &str) {
    match spec.obj("selector") {
        None => e.required("selector", ""),
        Some(selector) => {
            e.label_selector(spec, "selector");
            if count(selector, "matchLabels") + count(selector, "matchExpressions") == 0 {
                e.invalid(
                    "selector",
                    selector.clone(),
                    &format!("empty selector is invalid for {kind}"),
                );
            }
        }
    }
    if spec.contains_key("selector") && LabelSelector::from_object(spec.get("selector")).is_err() {
        let why = if kind == "statefulset" {
            ""
        } else {
            "invalid label selector"
        };
        e.invalid_as("*v1.LabelSelector", "selector", spec.get("selector"), why);
    }
    matches_template(e, spec, false);
    template(e, spec);
    always_running(e, spec, title);
}

pub fn matches_template(e: &mut Errs, spec: &Map, even_empty: bool) {
    let Ok(selector) = LabelSelector::from_object(spec.get("selector")) else {
        return;
    };
    if (even_empty || !selector.is_empty()) && !selector.matches(template_labels(spec)) {
        let why = "`selector` does not match template `labels`";
        e.invalid("template.metadata.labels", shown_labels(spec), why);
    }
}

fn always_running(e: &mut Errs, spec: &Map, title: &str) {
    let empty = Map::new();
    let pod = spec.obj("template").and_then(|t| t.obj("spec")).unwrap_or(&empty);
    if s(pod, "restartPolicy") != "Always" {
        e.not_supported("template.spec.restartPolicy", s(pod, "restartPolicy"), &["Always"]);
    }
    if pod.contains_key("activeDeadlineSeconds") {
        let why = format!("activeDeadlineSeconds in {title} is not Supported");
        e.forbidden("template.spec.activeDeadlineSeconds", &why);
    }
}

fn replication_controller(o: &Object, e: &mut Errs) {
    spec_of(o, e, |e, spec| {
        e.non_negative(spec, "minReadySeconds");
        if count(spec, "selector") == 0 {
            e.required("selector", "");
        }
        e.non_negative(spec, "replicas");
        if !spec.contains_key("template") {
            return e.required("template", "");
        }
        let selector = LabelSelector::from_map(spec.obj("selector"));
        if !selector.is_empty() && !selector.matches(template_labels(spec)) {
            let why = "`selector` does not match template `labels`";
            e.invalid("template.metadata.labels", shown_labels(spec), why);
        }
        template(e, spec);
        always_running(e, spec, "ReplicationController");
    });
}

fn deployment(e: &mut Errs, spec: &Map) {
    e.non_negative(spec, "replicas");
    selected_template(e, spec, "deployment", "ReplicaSet");
    e.child(spec, "strategy", |e, strategy| match s(strategy, "type") {
        "Recreate" => {
            if strategy.contains_key("rollingUpdate") {
                e.forbidden(
                    "rollingUpdate",
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => match strategy.obj("rollingUpdate") {
            None => e.required("rollingUpdate", "this should be defaulted and never be nil"),
            Some(r) => e.within("rollingUpdate", |e| {
                e.int_or_percent(r, "maxUnavailable");
                e.int_or_percent(r, "maxSurge");
                let zero = |key| is_zero_number_or_percent(r.get(key));
                if zero("maxUnavailable") && zero("maxSurge") {
                    let shown = r.get("maxUnavailable").cloned().unwrap_or(Value::Int(0));
                    e.invalid("maxUnavailable", shown, "may not be 0 when `maxSurge` is 0");
                }
                e.not_more_than_100_percent(r, "maxUnavailable");
            }),
        },
        _ => {
            let shown = internal::shown("apps.DeploymentStrategy", Some(&Value::Object(strategy.clone())));
            let why = format!("Unsupported value: {shown}: supported values: \"Recreate\", \"RollingUpdate\"");
            e.push(Cause::new("FieldValueNotSupported", e.at(""), why));
        }
    });
    for key in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        e.non_negative(spec, key);
    }
    if let Some(n) = spec
        .int("progressDeadlineSeconds")
        .filter(|n| *n <= spec.int("minReadySeconds").unwrap_or(0))
    {
        e.invalid("progressDeadlineSeconds", n, "must be greater than minReadySeconds");
    }
}

/// What a status counts of replicas: the parts that can't be more than the whole.
type Parts = &'static [&'static str];
const OF_REPLICAS: Parts = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
const OF_DEPLOYMENTS: Parts = &["updatedReplicas", "readyReplicas", "availableReplicas"];
const OF_STATEFUL_SETS: Parts = &[
    "readyReplicas",
    "currentReplicas",
    "updatedReplicas",
    "availableReplicas",
];
/// What a DaemonSet's status counts.
const OF_NODES: Parts = &[
    "currentNumberScheduled",
    "numberMisscheduled",
    "desiredNumberScheduled",
    "numberReady",
    "observedGeneration",
    "updatedNumberScheduled",
    "numberAvailable",
    "numberUnavailable",
    "collisionCount",
];

/// The counts of a status, and that no part is more than the whole.
fn replica_status(o: &Object, e: &mut Errs, parts: Parts) {
    e.child(o, "status", |e, status| {
        let others = [
            "replicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "observedGeneration",
            "collisionCount",
        ];
        let all = others.iter().chain(parts);
        all.for_each(|key| e.non_negative(status, key));
        let of = |key: &str| status.int(key).unwrap_or(0);
        for key in parts {
            if of(key) > of("replicas") {
                e.invalid(key, of(key), "cannot be greater than status.replicas");
            }
        }
        if of("availableReplicas") > of("readyReplicas") {
            let ready = if parts == OF_STATEFUL_SETS {
                "status.readyReplicas"
            } else {
                "readyReplicas"
            };
            let why = format!("cannot be greater than {ready}");
            e.invalid("availableReplicas", of("availableReplicas"), &why);
        }
    });
}

fn collisions(new: &Object, old: &Object, e: &mut Errs) {
    let of = |o: &Object| o.at(&["status", "collisionCount"]).and_then(Value::as_i64);
    if of(old).is_some_and(|before| of(new).unwrap_or(0) < before) {
        e.invalid("status.collisionCount", of(new).unwrap_or(0), "cannot be decremented");
    }
}

/// What can't be changed later is judged once: a set that was taken before it was judged so stays.
fn new_stateful_set(e: &mut Errs, spec: &Map) {
    e.each(spec, "volumeClaimTemplates", |e, _, claim| {
        let empty = Map::new();
        e.within("spec", |e| {
            storage::new_claim_spec(e, claim.obj("spec").unwrap_or(&empty))
        });
    });
    if !s(spec, "serviceName").is_empty() {
        e.format("serviceName", s(spec, "serviceName"), names::dns1123_label);
    }
}

fn stateful_set(e: &mut Errs, spec: &Map) {
    match s(spec, "podManagementPolicy") {
        "" => e.required("podManagementPolicy", ""),
        "OrderedReady" | "Parallel" => {}
        other => e.invalid("podManagementPolicy", other, "must be 'OrderedReady' or 'Parallel'"),
    }
    let empty = Map::new();
    let strategy = spec.obj("updateStrategy").unwrap_or(&empty);
    match s(strategy, "type") {
        "" => e.required("updateStrategy", ""),
        "OnDelete" => {
            if let Some(r) = strategy.get("rollingUpdate") {
                e.invalid_as(
                    "apps.RollingUpdateStatefulSetStrategy",
                    "updateStrategy.rollingUpdate",
                    Some(r),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => e.within("updateStrategy", |e| {
            e.child(strategy, "rollingUpdate", |e, r| {
                e.non_negative(r, "partition");
                if let Some(n) = r.get("maxUnavailable") {
                    e.int_or_percent(r, "maxUnavailable");
                    if is_zero_number_or_percent(Some(n)) {
                        e.invalid("maxUnavailable", n.clone(), "cannot be 0");
                    }
                    e.not_more_than_100_percent(r, "maxUnavailable");
                }
            });
        }),
        _ => e.invalid_as(
            "apps.StatefulSetUpdateStrategy",
            "updateStrategy",
            Some(&Value::Object(strategy.clone())),
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    e.child(spec, "persistentVolumeClaimRetentionPolicy", |e, p| {
        for key in ["whenDeleted", "whenScaled"] {
            if !matches!(s(p, key), "Retain" | "Delete") {
                e.not_supported(key, s(p, key), &["Retain", "Delete"]);
            }
        }
    });
    e.non_negative(spec, "replicas");
    e.non_negative(spec, "minReadySeconds");
    if let Some(n) = spec.obj("ordinals").and_then(|o| o.int("start")).filter(|n| *n < 0) {
        e.invalid("ordinals.start", n, super::check::NOT_NEGATIVE);
    }
    // Claims become volumes of the pods, so mounts may name them.
    let mut whole = spec.clone();
    let mut claimed = HashSet::new();
    let claims = spec.arr("volumeClaimTemplates").into_iter().flatten();
    let mut volumes: Vec<Value> = claims
        .map(|c| c.at(&["metadata", "name"]).and_then(Value::as_str).unwrap_or_default())
        .filter(|name| claimed.insert(*name))
        .map(|name| keelson_api::value!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    let pod = whole.object_mut("template").object_mut("spec");
    let own = pod.arr("volumes").cloned().unwrap_or_default();
    let named = |v: &Value| v.get("name").and_then(Value::as_str).map(str::to_string);
    volumes.extend(
        own.into_iter()
            .filter(|v| !named(v).is_some_and(|n| claimed.contains(n.as_str()))),
    );
    if !volumes.is_empty() {
        pod.insert("volumes", volumes);
    }
    pod.remove("subdomain");
    pod.remove("hostname");
    selected_template(e, &whole, "statefulset", "StatefulSet");
}

fn stateful_set_update(new: &Object, old: &Object, e: &mut Errs) {
    const FIXED: [(&str, &str); 4] = [
        ("selector", "*v1.LabelSelector"),
        ("volumeClaimTemplates", "[]core.PersistentVolumeClaim"),
        ("serviceName", "string"),
        ("podManagementPolicy", "string"),
    ];
    const MUTABLE: [&str; 8] = [
        "minReadySeconds",
        "ordinals",
        "persistentVolumeClaimRetentionPolicy",
        "replicas",
        "revisionHistoryLimit",
        "template",
        "updateStrategy",
        "minReadySeconds",
    ];
    let before = e.list.len();
    let empty = Map::new();
    let (n, o) = (new.obj("spec").unwrap_or(&empty), old.obj("spec").unwrap_or(&empty));
    let strip = |m: &Map| {
        let mut m = m.clone();
        MUTABLE.iter().for_each(|key| {
            m.remove(key);
        });
        Value::Object(m)
    };
    for (key, ty) in FIXED {
        e.immutable_as(ty, n.get(key), o.get(key), &format!("spec.{key}"));
    }
    if e.list.len() == before && !same(Some(&strip(n)), Some(&strip(o))) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        e.forbidden("spec", why);
    }
}

fn daemon_set(e: &mut Errs, spec: &Map) {
    e.label_selector(spec, "selector");
    matches_template(e, spec, true);
    if let Some(selector) = spec.obj("selector")
        && count(selector, "matchLabels") + count(selector, "matchExpressions") == 0
    {
        e.invalid("selector", selector.clone(), "empty selector is invalid for daemonset");
    }
    template(e, spec);
    always_running(e, spec, "DaemonSet");
    e.non_negative(spec, "minReadySeconds");
    e.non_negative(spec, "revisionHistoryLimit");
    e.child(spec, "updateStrategy", |e, strategy| match s(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => match strategy.obj("rollingUpdate") {
            None => e.required("rollingUpdate", ""),
            Some(r) => e.within("rollingUpdate", |e| {
                for key in ["maxUnavailable", "maxSurge"] {
                    e.int_or_percent(r, key);
                    e.not_more_than_100_percent(r, key);
                }
                let zero = |key| is_zero_number_or_percent(r.get(key));
                match (zero("maxUnavailable"), zero("maxSurge")) {
                    (false, false) => {
                        let surge = r.get("maxSurge").cloned().unwrap_or(Value::Null);
                        e.invalid("maxSurge", surge, "may not be set when maxUnavailable is non-zero");
                    }
                    (true, true) => e.required("maxUnavailable", "cannot be 0 when maxSurge is 0"),
                    _ => {}
                }
            }),
        },
        _ => {
            let shown = internal::shown("apps.DaemonSetUpdateStrategy", Some(&Value::Object(strategy.clone())));
            let why = format!("Unsupported value: {shown}: supported values: \"RollingUpdate\", \"OnDelete\"");
            e.push(Cause::new("FieldValueNotSupported", e.at(""), why));
        }
    });
}
