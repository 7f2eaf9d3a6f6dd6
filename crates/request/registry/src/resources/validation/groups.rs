//! RBAC, policy, autoscaling, scheduling, node and coordination.

use super::check::{Errs, count, is_true, quantity, s};
use super::conditions::conditions;
use super::{Rules, container_resources, scheduling};
use crate::internal;
use crate::meta::path_segment_errors;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;
use std::collections::HashSet;

const RBAC: &str = "rbac.authorization.k8s.io";

const ROLE: Rules = Rules {
    name: path_segment_errors,
    object: |_, o, e| policy_rules(o, true, e),
    ..Rules::NONE
};
const CLUSTER_ROLE: Rules = Rules {
    name: path_segment_errors,
    object: |_, o, e| {
        policy_rules(o, false, e);
        e.child(o, "aggregationRule", |e, a| {
            if count(a, "clusterRoleSelectors") == 0 {
                let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                e.required("clusterRoleSelectors", why);
            }
            for i in 0..count(a, "clusterRoleSelectors") {
                let selector = a.arr("clusterRoleSelectors").and_then(|l| l.get(i));
                let one = Map::from_iter([("selector", selector.cloned().unwrap_or(Value::Null))]);
                let place = format!("clusterRoleSelectors[{i}]");
                let mut inner = Errs::default();
                inner.label_selector(&one, "selector");
                let path = e.at(&place);
                for mut c in inner.list {
                    c.field = c.field.replacen("selector", &path, 1);
                    e.push(c);
                }
                if keelson_machinery::selector::LabelSelector::from_object(selector).is_err() {
                    e.invalid(&place, Value::Null, "invalid label selector.");
                }
            }
        });
    },
    ..Rules::NONE
};
const ROLE_BINDING: Rules = Rules {
    name: path_segment_errors,
    object: |_, o, e| binding(o, &["Role", "ClusterRole"], e),
    update: |_, new, old, e| e.immutable_as("rbac.RoleRef", new.get("roleRef"), old.get("roleRef"), "roleRef"),
    ..Rules::NONE
};
const CLUSTER_ROLE_BINDING: Rules = Rules {
    object: |_, o, e| binding(o, &["ClusterRole"], e),
    ..ROLE_BINDING
};
const BUDGET: Rules = Rules {
    object: |_, o, e| e.child(o, "spec", budget),
    status: |_, new, _, e| {
        e.child(new, "status", |e, status| {
            conditions(e, status);
            for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
                e.non_negative(status, key);
            }
        });
    },
    ..Rules::NONE
};
const AUTOSCALER: Rules = Rules {
    object: |_, o, e| e.child(o, "spec", autoscaler),
    status: |_, new, _, e| {
        e.child(new, "status", |e, status| {
            e.each(status, "conditions", |e, _, condition| {
                e.non_negative(condition, "observedGeneration")
            });
            e.non_negative(status, "currentReplicas");
            e.non_negative(status, "desiredReplicas");
        });
    },
    create: |_, o, e| autoscaler_versions(e, o, None),
    update: |_, new, old, e| autoscaler_versions(e, new, Some(old)),
    ..Rules::SUBDOMAIN
};
const PRIORITY: Rules = Rules {
    create: |_, o, e| {
        priority(o, e);
        preemption_policy(e, o);
    },
    update: |_, new, old, e| {
        if new.int("value").unwrap_or(0) != old.int("value").unwrap_or(0) {
            e.forbidden("value", "may not be changed in an update.");
        }
        e.immutable(
            new.get("preemptionPolicy"),
            old.get("preemptionPolicy"),
            "preemptionPolicy",
        );
    },
    ..Rules::SUBDOMAIN
};
const RUNTIME_CLASS: Rules = Rules {
    object: |_, o, e| {
        match s(o, "handler") {
            "" => e.required("handler", ""),
            name => e.format("handler", name, names::declared_dns1123_label),
        }
        if let Some(fixed) = o.at(&["overhead", "podFixed"]) {
            let limits = Map::from_iter([("limits", fixed.clone())]);
            e.within("overhead", |e| container_resources::resources(e, &limits, None));
        }
        e.child(o, "scheduling", |e, x| {
            e.labels(x, "nodeSelector");
            scheduling::tolerations(e, x);
            let mut seen = HashSet::new();
            for (i, toleration) in x.arr("tolerations").into_iter().flatten().enumerate() {
                let of = |key: &str| toleration.get(key).and_then(Value::as_str).unwrap_or_default();
                if !seen.insert([of("key"), of("operator"), of("value"), of("effect")]) {
                    let shown = internal::shown("core.Toleration", Some(toleration));
                    e.duplicate_shown(&format!("tolerations[{i}]"), &shown);
                }
            }
        });
    },
    update: |_, new, old, e| e.immutable_untold(new.get("handler"), old.get("handler"), "handler"),
    ..Rules::SUBDOMAIN
};
const LEASE: Rules = Rules {
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            e.positive(spec, "leaseDurationSeconds");
            e.non_negative(spec, "leaseTransitions");
            if !s(spec, "preferredHolder").is_empty() && s(spec, "strategy").is_empty() {
                e.forbidden("preferredHolder", "may only be specified if `strategy` is defined");
            }
        });
    },
    ..Rules::SUBDOMAIN
};

pub fn of(group: &str, kind: &str) -> Rules {
    match (group, kind) {
        (RBAC, "Role") => ROLE,
        (RBAC, "ClusterRole") => CLUSTER_ROLE,
        (RBAC, "RoleBinding") => ROLE_BINDING,
        (RBAC, "ClusterRoleBinding") => CLUSTER_ROLE_BINDING,
        (_, "PodDisruptionBudget") => BUDGET,
        (_, "HorizontalPodAutoscaler") => AUTOSCALER,
        (_, "PriorityClass") => PRIORITY,
        (_, "RuntimeClass") => RUNTIME_CLASS,
        (_, "Lease") => LEASE,
        ("storagemigration.k8s.io", _) => super::conditions::MIGRATION,
        ("resource.k8s.io", kind) => super::devices::of(kind).unwrap_or(Rules::SUBDOMAIN),
        ("authentication.k8s.io" | "authorization.k8s.io", _) => Rules::NONE,
        _ => Rules::SUBDOMAIN,
    }
}

fn policy_rules(o: &Object, namespaced: bool, e: &mut Errs) {
    e.each(o, "rules", |e, _, rule| {
        if count(rule, "verbs") == 0 {
            e.required("verbs", "");
        }
        if count(rule, "nonResourceURLs") > 0 {
            let shown = rule.get("nonResourceURLs").cloned().unwrap_or(Value::Null);
            if namespaced {
                e.invalid(
                    "nonResourceURLs",
                    shown.clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|k| count(rule, k) > 0)
            {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                e.invalid("nonResourceURLs", shown, why);
            }
            return;
        }
        if count(rule, "apiGroups") == 0 {
            e.required("apiGroups", "resource rules must supply at least one api group");
        }
        if count(rule, "resources") == 0 {
            e.required("resources", "resource rules must supply at least one resource");
        }
    });
}

fn binding(o: &Object, kinds: &[&str], e: &mut Errs) {
    let empty = Map::new();
    let role = o.obj("roleRef").unwrap_or(&empty);
    e.within("roleRef", |e| {
        if s(role, "apiGroup") != RBAC {
            e.not_supported("apiGroup", s(role, "apiGroup"), &[RBAC]);
        }
        if !kinds.contains(&s(role, "kind")) {
            e.not_supported("kind", s(role, "kind"), kinds);
        }
        match s(role, "name") {
            "" => e.required("name", ""),
            name => e.format("name", name, path_segment_errors),
        }
    });
    let namespaced = !o.namespace().is_empty();
    e.each(o, "subjects", |e, _, subject| {
        if s(subject, "name").is_empty() {
            e.required("name", "");
        }
        let group = s(subject, "apiGroup");
        match s(subject, "kind") {
            "ServiceAccount" => {
                if !s(subject, "name").is_empty() {
                    e.format("name", s(subject, "name"), names::dns1123_subdomain);
                }
                if !group.is_empty() {
                    e.not_supported("apiGroup", group, &[""]);
                }
                if !namespaced && s(subject, "namespace").is_empty() {
                    e.required("namespace", "");
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    e.not_supported("apiGroup", group, &[RBAC]);
                }
            }
            other => e.not_supported("kind", other, &["ServiceAccount", "User", "Group"]),
        }
    });
}

fn budget(e: &mut Errs, spec: &Map) {
    if spec.contains_key("minAvailable") && spec.contains_key("maxUnavailable") {
        let shown = spec.clone().into();
        let why = "minAvailable and maxUnavailable cannot be both set";
        e.invalid_as("policy.PodDisruptionBudgetSpec", "", Some(&shown), why);
    }
    for key in ["minAvailable", "maxUnavailable"] {
        e.int_or_percent(spec, key);
        e.not_more_than_100_percent(spec, key);
    }
    e.label_selector(spec, "selector");
    e.optional_one_of(spec, "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"]);
}

const METRICS: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];

fn metric(e: &mut Errs, m: &Map) {
    let kind = s(m, "type");
    if kind.is_empty() {
        e.required("type", "must specify a metric source type");
    }
    if !METRICS.contains(&kind) {
        e.not_supported("type", kind, METRICS);
    }
    let member = |kind: &str| {
        let mut key = kind.to_string();
        // The kind may be anything.
        if let Some(first) = key.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        key
    };
    let order = ["object", "external", "pods", "resource", "containerResource"];
    let present: Vec<&str> = order.into_iter().filter(|k| m.contains_key(k)).collect();
    if let Some(first) = present.first() {
        e.child(m, first, |e, source| metric_source(e, first, source));
    }
    if METRICS.contains(&kind) && !m.contains_key(&member(kind)) {
        e.required(&member(kind), "must populate information for the given metric source");
    }
    if present.len() > 1 {
        for key in present.iter().filter(|k| **k != member(kind)) {
            e.forbidden(key, "must populate the given metric source only");
        }
    }
}

fn metric_source(e: &mut Errs, kind: &str, source: &Map) {
    let empty = Map::new();
    let target = source.obj("target").unwrap_or(&empty);
    match (kind, s(source, "name")) {
        ("resource" | "containerResource", "") => e.required("name", "must specify a resource name"),
        ("containerResource", name) => e.within("name", |e| container_resources::resource_name(e, name)),
        _ => {}
    }
    if kind == "containerResource" {
        match s(source, "container") {
            "" => e.required("container", "must specify a container"),
            name => e.format("container", name, names::dns1123_label),
        }
    }
    if matches!(kind, "object" | "pods" | "external") {
        let metric = source.obj("metric").unwrap_or(&empty);
        e.within("metric", |e| match s(metric, "name") {
            "" => e.required("name", "must specify a metric name"),
            name => e.format("name", name, path_segment_errors),
        });
    }
    if kind == "object" {
        let object = source.obj("describedObject").unwrap_or(&empty);
        e.within("describedObject", |e| reference(e, object));
    }
    e.within("target", |e| {
        match s(target, "type") {
            "Utilization" | "Value" | "AverageValue" => {}
            other => {
                if other.is_empty() {
                    e.required("type", "must specify a metric target type");
                }
                e.invalid("type", other, "must be either Utilization, Value, or AverageValue");
            }
        }
        for amount in ["value", "averageValue"] {
            if let Some(v) = target
                .get(amount)
                .filter(|v| quantity(v).is_zero() || quantity(v).is_negative())
            {
                e.invalid(amount, v.clone(), "must be positive");
            }
        }
        if let Some(n) = target.int("averageUtilization").filter(|n| *n < 1) {
            e.invalid("averageUtilization", n, "must be greater than 0");
        }
        let has = |key: &str| target.contains_key(key);
        match kind {
            "pods" if !has("averageValue") => {
                e.required("averageValue", "must specify a positive target averageValue");
            }
            "object" | "external" if !has("value") && !has("averageValue") => {
                let what = if kind == "object" {
                    "target value or averageValue"
                } else {
                    "target value for metric or a per-pod target"
                };
                e.required("averageValue", &format!("must set either a {what}"));
            }
            "external" if has("value") && has("averageValue") => {
                e.forbidden(
                    "value",
                    "may not set both a target value for metric and a per-pod target",
                );
            }
            "resource" | "containerResource" if !has("averageUtilization") && !has("averageValue") => {
                e.required(
                    "averageUtilization",
                    "must set either a target raw value or a target utilization",
                );
            }
            "resource" | "containerResource" if has("averageUtilization") && has("averageValue") => {
                e.forbidden(
                    "averageValue",
                    "may not set both a target raw value and a target utilization",
                );
            }
            _ => {}
        }
    });
}

/// A `CrossVersionObjectReference`.
fn reference(e: &mut Errs, target: &Map) {
    for key in ["kind", "name"] {
        match s(target, key) {
            "" => e.required(key, ""),
            text => e.format(key, text, path_segment_errors),
        }
    }
}

/// What is wrong with a reference's group and version; those of the core have no group.
fn version_error(target: &Map, without_group: bool) -> Option<String> {
    let version = s(target, "apiVersion");
    match version.matches('/').count() {
        0 | 1 if without_group => None,
        0 | 1 => {
            let group = version.split_once('/').map_or("", |(group, _)| group);
            group.is_empty().then(|| "apiVersion must specify API group".into())
        }
        _ => Some(format!("unexpected GroupVersion string: {version}")),
    }
}

/// Older servers took any; an update that leaves such a version is taken too.
fn autoscaler_versions(e: &mut Errs, new: &Object, old: Option<&Object>) {
    let empty = Map::default();
    let target_of = |o: &Object| {
        o.obj("spec")
            .and_then(|s| s.obj("scaleTargetRef"))
            .cloned()
            .unwrap_or_default()
    };
    let described = |o: &Object| -> Vec<(usize, Map)> {
        let metrics = o
            .obj("spec")
            .and_then(|s| s.arr("metrics"))
            .into_iter()
            .flatten()
            .enumerate();
        let objects = metrics.filter(|(_, m)| m.as_object().is_some_and(|m| s(m, "type") == "Object"));
        let object = |m: &Value| m.as_object()?.obj("object").cloned();
        let targets = objects.filter_map(|(i, m)| Some((i, object(m)?)));
        targets
            .map(|(i, o)| (i, o.obj("describedObject").unwrap_or(&empty).clone()))
            .collect()
    };
    let target = target_of(new);
    let as_before = old
        .map(target_of)
        .is_some_and(|old| s(&old, "apiVersion") == s(&target, "apiVersion") && s(&old, "kind") == s(&target, "kind"));
    let wrong = version_error(&target, s(&target, "kind") == "ReplicationController");
    if let Some(why) = wrong.filter(|_| !as_before) {
        e.invalid("spec.scaleTargetRef.apiVersion", s(&target, "apiVersion"), &why);
    }
    if old.is_some_and(|old| described(old).iter().any(|(_, o)| version_error(o, true).is_some())) {
        return;
    }
    for (i, object) in described(new) {
        if let Some(why) = version_error(&object, true) {
            let at = format!("spec.metrics[{i}].object.describedObject.apiVersion");
            e.invalid(&at, s(&object, "apiVersion"), &why);
        }
    }
}

fn autoscaler(e: &mut Errs, spec: &Map) {
    let (min, max) = (spec.int("minReplicas"), spec.int("maxReplicas").unwrap_or(0));
    if let Some(n) = min.filter(|n| *n < 0) {
        e.invalid("minReplicas", n, "must be greater than or equal to 0");
    }
    if max == 0 {
        e.required("maxReplicas", "");
    } else if max < 1 {
        e.invalid("maxReplicas", max, "must be greater than or equal to 1");
    }
    if min.is_some_and(|n| max < n) {
        e.invalid("maxReplicas", max, "must be greater than or equal to `minReplicas`");
    }
    e.child(spec, "scaleTargetRef", |e, target| {
        for key in ["kind", "name"] {
            match s(target, key) {
                "" => e.required(key, ""),
                text => e.format(key, text, path_segment_errors),
            }
        }
    });
    // The older form of a metric, the last of the newer one's.
    if let Some(n) = spec.int("targetCPUUtilizationPercentage").filter(|n| *n < 1) {
        let field = format!("metrics[{}].resource.target.averageUtilization", count(spec, "metrics"));
        e.invalid(&field, n, "must be greater than 0");
    }
    e.each(spec, "metrics", |e, _, m| metric(e, m));
    // A pod that isn't there has no usage by which it could come back.
    let mut metrics = spec.arr("metrics").into_iter().flatten().filter_map(Value::as_object);
    if min == Some(0) && !metrics.any(|m| matches!(s(m, "type"), "Object" | "External")) {
        e.forbidden(
            "metrics",
            "must specify at least one Object or External metric to support scaling to zero replicas",
        );
    }
    e.child(spec, "behavior", |e, behavior| {
        for way in ["scaleUp", "scaleDown"] {
            e.child(behavior, way, |e, rules| {
                match rules.int("stabilizationWindowSeconds") {
                    Some(n) if n < 0 => {
                        e.invalid("stabilizationWindowSeconds", n, "must be greater than or equal to zero");
                    }
                    Some(n) if n > 3600 => {
                        e.invalid("stabilizationWindowSeconds", n, "must be less than or equal to 3600");
                    }
                    _ => {}
                }
                e.optional_one_of(rules, "selectPolicy", &["Disabled", "Max", "Min"]);
                if count(rules, "policies") == 0 {
                    e.required("policies", "must specify at least one Policy");
                }
                e.each(rules, "policies", |e, _, p| {
                    if !matches!(s(p, "type"), "Pods" | "Percent") {
                        e.not_supported("type", s(p, "type"), &["Percent", "Pods"]);
                    }
                    if p.int("value").unwrap_or(0) <= 0 {
                        e.invalid("value", p.int("value").unwrap_or(0), "must be greater than zero");
                    }
                    let period = p.int("periodSeconds").unwrap_or(0);
                    if period <= 0 {
                        e.invalid("periodSeconds", period, "must be greater than zero");
                    } else if period > 1800 {
                        e.invalid("periodSeconds", period, "must be less than or equal to 1800");
                    }
                });
                if let Some(tolerance) = rules.get("tolerance").filter(|v| quantity(v).is_negative()) {
                    e.invalid("tolerance", tolerance.clone(), super::check::NOT_NEGATIVE);
                }
            });
        }
    });
}

/// The classes that the system makes, with their values.
const SYSTEM: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

/// Of priority classes and of pods.
pub fn preemption_policy(e: &mut Errs, m: &Map) {
    match m.str("preemptionPolicy") {
        None | Some("PreemptLowerPriority" | "Never") => {}
        Some("") => e.required("preemptionPolicy", ""),
        Some(other) => e.not_supported("preemptionPolicy", other, &["PreemptLowerPriority", "Never"]),
    }
}

fn priority(o: &Object, e: &mut Errs) {
    let value = o.int("value").unwrap_or(0);
    if o.name().starts_with("system-") {
        let why = match SYSTEM.iter().find(|(name, _)| *name == o.name()) {
            None => format!("{} is not a known system priority class", o.name()),
            Some((_, v)) if *v != value => format!("value of {} PriorityClass must be {v}", o.name()),
            Some(_) if is_true(o, "globalDefault") => {
                format!("globalDefault of {} PriorityClass must be false", o.name())
            }
            Some(_) => return,
        };
        e.forbidden(
            "metadata.name",
            &format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"),
        );
    } else if value > 1_000_000_000 {
        e.forbidden(
            "value",
            "maximum allowed value of a user defined priority is 1000000000",
        );
    }
}
