//! Quotas: names and amounts of what is counted, and the scopes within which it is.

use super::Rules;
use super::check::{Errs, IMMUTABLE, NOT_NEGATIVE, count, quantity, s};
use super::container_resources::{any_resource_name, is_extended, is_standard};
use crate::strategy::same;
use keelson_api::{Map, Object, Value};
use std::collections::{BTreeMap, BTreeSet};

pub const QUOTA: Rules = Rules {
    object: |_, o, e| quota(o, e),
    update: |_, new, old, e| {
        let scopes = |o: &Object| o.at(&["spec", "scopes"]).cloned();
        if !same(scopes(new).as_ref(), scopes(old).as_ref()) {
            let shown = scopes(new).unwrap_or(Value::Null);
            e.invalid("spec.scopes", shown, IMMUTABLE);
        }
    },
    status: |_, new, _, e| {
        e.child(new, "status", |e, status| {
            for list in ["hard", "used"] {
                for (name, v) in status.obj(list).into_iter().flatten() {
                    e.within(&format!("{list}[{name}]"), |e| quota_amount(e, name, v));
                }
            }
        });
    },
    ..Rules::SUBDOMAIN
};
/// Scopes, and which resources can be counted within them.
const SCOPES: &[(&str, &[&str])] = &[
    ("BestEffort", &["pods"]),
    ("CrossNamespacePodAffinity", OF_PODS),
    ("NotBestEffort", OF_PODS),
    ("NotTerminating", OF_PODS),
    ("PriorityClass", OF_PODS),
    ("Terminating", OF_PODS),
    ("VolumeAttributesClass", &["persistentvolumeclaims", "requests.storage"]),
];
const OF_PODS: &[&str] = &[
    "pods",
    "cpu",
    "memory",
    "limits.cpu",
    "limits.memory",
    "requests.cpu",
    "requests.memory",
];
/// Scopes that exclude each other.
const CONFLICTING: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
/// What there are whole ones of only.
const WHOLE: &[&str] = &[
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Whether quotas know a resource by itself.
fn is_counted(name: &str) -> bool {
    is_standard(name) && name != "storage"
}

fn quota_amount(e: &mut Errs, name: &str, v: &Value) {
    any_resource_name(e, name);
    if !name.contains('/') && !is_counted(name) {
        e.invalid("", name, "must be a standard resource for quota");
    }
    let q = quantity(v);
    if q.is_negative() {
        e.invalid("", v.clone(), NOT_NEGATIVE);
    }
    if (WHOLE.contains(&name) || is_extended(name)) && !q.is_whole() {
        e.invalid("", v.clone(), "must be an integer");
    }
}

/// A complaint of one scope shows all of them: more of these would make the answer as long as the request's square.
const MOST_TOLD: usize = 32;

fn quota(o: &Object, e: &mut Errs) {
    e.child(o, "spec", |e, spec| {
        for (name, v) in spec.obj("hard").into_iter().flatten() {
            e.within(&format!("hard[{name}]"), |e| quota_amount(e, name, v));
        }
        scopes(e, spec);
        e.child(spec, "scopeSelector", |e, selector| scope_selector(e, selector, spec));
    });
}

/// How many of a quota's resources can't be counted within each scope.
fn misplaced(spec: &Map) -> BTreeMap<&'static str, usize> {
    let hard = || spec.obj("hard").into_iter().flat_map(Map::keys);
    let of = |countable: &[&str]| {
        let misplaced = hard().filter(|name| is_counted(name) && !countable.contains(&name.as_str()));
        misplaced.count()
    };
    SCOPES
        .iter()
        .map(|(scope, countable)| (*scope, of(countable)))
        .collect()
}

const MISPLACED: &str = "unsupported scope applied to resource";

fn is_scope(name: &str) -> bool {
    SCOPES.iter().any(|(known, _)| *known == name)
}

fn scopes(e: &mut Errs, spec: &Map) {
    let all: Vec<&str> = spec
        .arr("scopes")
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let shown = || spec.get("scopes").cloned().unwrap_or_default();
    let misplaced = misplaced(spec);
    let mut told = 0..MOST_TOLD;
    for scope in &all {
        let unknown = (!is_scope(scope)).then_some("unsupported scope");
        let misplaced = std::iter::repeat_n(MISPLACED, misplaced.get(scope).copied().unwrap_or(0));
        for (why, _) in unknown.into_iter().chain(misplaced).zip(&mut told) {
            e.invalid("scopes", shown(), why);
        }
    }
    conflicts(e, "scopes", &all.into_iter().collect(), spec);
}

fn conflicts(e: &mut Errs, key: &str, all: &BTreeSet<&str>, spec: &Map) {
    for _ in CONFLICTING
        .iter()
        .filter(|pair| pair.iter().all(|scope| all.contains(scope)))
    {
        e.invalid(
            key,
            spec.get("scopes").cloned().unwrap_or_default(),
            "conflicting scopes",
        );
    }
}

/// Upstream's paths here name no index.
fn scope_selector(e: &mut Errs, selector: &Map, spec: &Map) {
    let list = || {
        selector
            .arr("matchExpressions")
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
    };
    let misplaced = misplaced(spec);
    let mut told = 0..MOST_TOLD;
    for x in list() {
        e.within("matchExpressions", |e| {
            if !is_scope(s(x, "scopeName")) {
                e.invalid("scopeName", s(x, "scopeName"), "unsupported scope");
            }
            let here = misplaced.get(s(x, "scopeName")).copied().unwrap_or(0);
            for _ in (0..here).zip(&mut told) {
                let shown = Value::Object(selector.clone());
                e.invalid_as("*core.ScopeSelector", "", Some(&shown), MISPLACED);
            }
            scope_operator(e, x);
        });
    }
    conflicts(
        e,
        "matchExpressions",
        &list().map(|x| s(x, "scopeName")).collect(),
        spec,
    );
}

fn scope_operator(e: &mut Errs, x: &Map) {
    let operator = s(x, "operator");
    // Priority classes and those of attributes have names, other scopes are there or not.
    let has_names = matches!(s(x, "scopeName"), "PriorityClass" | "VolumeAttributesClass");
    if is_scope(s(x, "scopeName")) && !has_names && operator != "Exists" {
        let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        e.invalid("operator", operator, why);
    }
    match (operator, count(x, "values")) {
        ("In" | "NotIn", 0) => {
            let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            e.required("values", why);
        }
        ("Exists" | "DoesNotExist", 1..) => {
            let shown = x.get("values").cloned().unwrap_or_default();
            let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            e.invalid("values", shown, why);
        }
        ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
        (other, _) => e.invalid("operator", other, "not a valid selector operator"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::shown;
    use super::*;
    use keelson_api::value;

    fn told(spec: Value) -> Vec<String> {
        let mut e = Errs::default();
        quota(&Object::try_from(value!({"spec": spec})).unwrap_or_default(), &mut e);
        shown(e.list.into())
    }

    #[test]
    fn what_is_counted_can_be_within_its_scopes() {
        let of = |scope: &str, operator: &str, hard: Value| {
            told(
                value!({"hard": hard, "scopeSelector": {"matchExpressions": [{"scopeName": scope, "operator": operator}]}}),
            )
        };
        assert_eq!(of("BestEffort", "Exists", value!({"pods": "1"})), [""; 0]);
        assert_eq!(
            of("VolumeAttributesClass", "Exists", value!({"requests.storage": "1"})),
            [""; 0]
        );
        let told_of_cpu = of("BestEffort", "Exists", value!({"cpu": "1"}));
        assert!(told_of_cpu[0].ends_with(MISPLACED), "{told_of_cpu:?}");
        let told_of_operator = of("Terminating", "DoesNotExist", value!({"pods": "1"}));
        assert!(told_of_operator[0].contains("must be 'Exists'"), "{told_of_operator:?}");
        assert_eq!(
            told(value!({"hard": {"services": "1"}, "scopes": ["Terminating"]})).len(),
            1
        );
    }

    #[test]
    fn resources_are_known_ones_and_whole_where_they_are_counted() {
        assert_eq!(
            told(value!({"hard": {"count/x.example.com": "1", "hugepages-2Mi": "2Mi"}})),
            [""; 0]
        );
        assert_eq!(told(value!({"hard": {"storage": "1"}})).len(), 1);
        assert_eq!(told(value!({"hard": {"services.x": "1"}})).len(), 2);
        assert_eq!(told(value!({"hard": {"pods": "1500m"}})).len(), 1);
    }
}
