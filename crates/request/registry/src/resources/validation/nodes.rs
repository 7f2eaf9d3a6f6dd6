//! Nodes, and what kubelets tell of them.

use super::check::{Errs, NOT_NEGATIVE, cidr, quantity};
use super::{Rules, container_resources, scheduling};
use keelson_api::{Map, Object, Value};
use std::collections::HashSet;

pub const NODE: Rules = Rules {
    object: |_, o, e| object(o, e),
    update: |_, new, old, e| {
        addresses(new, e);
        update(new, old, e);
    },
    status: |_, new, _, e| {
        status(new, e);
        addresses(new, e);
    },
    ..Rules::SUBDOMAIN
};

const LONGEST_NAME: usize = 253;

fn object(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let spec = o.obj("spec").unwrap_or(&empty);
    scheduling::taints(e, spec);
    status(o, e);
    for (i, c) in spec.arr("podCIDRs").into_iter().flatten().enumerate() {
        e.format(&format!("spec.podCIDRs[{i}]"), c.as_str().unwrap_or_default(), cidr);
    }
    let cidrs: Vec<&str> = spec
        .arr("podCIDRs")
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let of_six = cidrs.iter().filter(|c| c.contains(':')).count();
    if cidrs.len() > 1 && (cidrs.len() > 2 || of_six != 1) {
        let shown = spec.get("podCIDRs").cloned().unwrap_or_default();
        e.invalid(
            "spec.podCIDRs",
            shown,
            "may specify no more than one CIDR for each IP family",
        );
    }
}

fn status(o: &Object, e: &mut Errs) {
    for list in ["capacity", "allocatable"] {
        for (name, v) in o.at(&["status", list]).and_then(Value::as_object).into_iter().flatten() {
            let (field, amount) = (format!("status.{list}.{name}"), quantity(v));
            if amount.is_negative() {
                e.invalid(&field, v.clone(), NOT_NEGATIVE);
            }
            if container_resources::is_counted(name) && !amount.is_whole() {
                e.invalid(&field, v.clone(), "must be an integer");
            }
        }
    }
    let declared = o.at(&["status", "declaredFeatures"]).and_then(Value::as_array);
    let declared: Vec<&str> = declared.into_iter().flatten().filter_map(Value::as_str).collect();
    for (i, name) in declared.iter().enumerate() {
        let field = |i: usize| format!("status.declaredFeatures[{i}]");
        if let Some(why) = feature_name(name) {
            e.invalid(&field(i), *name, &format!("invalid feature name {name:?}: {why}"));
        }
        match declared.get(i + 1) {
            Some(next) if next == name => e.duplicate(&field(i + 1), *next),
            Some(next) if next < name => e.invalid(&field(i + 1), *next, "list must be sorted alphabetically"),
            _ => {}
        }
    }
}

/// What is wrong with the name of a feature: it is a gate's, or that and what it is part of.
fn feature_name(name: &str) -> Option<String> {
    if name.len() > LONGEST_NAME {
        return Some(format!("must be no more than {LONGEST_NAME} characters"));
    }
    let is_segment =
        |s: &str| s.starts_with(|c: char| c.is_ascii_alphabetic()) && s.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_named = name.starts_with(|c: char| c.is_ascii_uppercase()) && name.split('/').all(is_segment);
    (!is_named).then(|| {
        "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or \
         MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
            .into()
    })
}

fn addresses(o: &Object, e: &mut Errs) {
    let Some(all) = o.at(&["status", "addresses"]).and_then(Value::as_array) else {
        return;
    };
    let mut known = HashSet::new();
    for (i, address) in all.iter().enumerate() {
        let text = |key: &str| address.get(key).and_then(Value::as_str).unwrap_or_default();
        if !known.insert([text("type"), text("address")]) {
            e.duplicate(&format!("status.addresses[{i}]"), address.clone());
        }
    }
}

fn update(new: &Object, old: &Object, e: &mut Errs) {
    let of = |o: &Object, key: &str| o.at(&["spec", key]).cloned();
    if of(old, "podCIDRs").is_some() && of(new, "podCIDRs") != of(old, "podCIDRs") {
        e.forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    if of(new, "externalID") != of(old, "externalID") {
        e.forbidden("spec.externalID", "may not be updated");
    }
    if let Some(before) = of(old, "providerID") {
        match of(new, "providerID") {
            None => e.invalid("spec.providerID", Value::Null, "field cannot be cleared once set"),
            Some(now) if now != before => {
                e.invalid("spec.providerID", Value::Null, "field cannot be modified once set")
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn of_status(status: Value) -> Vec<String> {
        let node = value!({"metadata": {"name": "n"}, "status": status});
        let node = Object::try_from(node).unwrap();
        let mut e = Errs::default();
        (NODE.status)(&super::super::tests::request("", "Node"), &node, &node, &mut e);
        super::super::tests::shown(e.list.into())
    }

    #[test]
    fn declared_features_are_named_and_sorted() {
        assert!(of_status(value!({"declaredFeatures": ["A", "B/sub", "B/sub2"]})).is_empty());
        let told = of_status(value!({"declaredFeatures": ["B", "B", "A", "a", "C/", "D-x"]}));
        let why = "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or \
                   MyFeature/mySubFeature), and contain only alphanumeric characters and slashes";
        let wrong = |i: usize, name: &str| {
            format!("status.declaredFeatures[{i}]: Invalid value: \"{name}\": invalid feature name \"{name}\": {why}")
        };
        assert_eq!(
            told,
            [
                "status.declaredFeatures[1]: Duplicate value: \"B\"".to_owned(),
                "status.declaredFeatures[2]: Invalid value: \"A\": list must be sorted alphabetically".to_owned(),
                wrong(3, "a"),
                "status.declaredFeatures[4]: Invalid value: \"C/\": list must be sorted alphabetically".to_owned(),
                wrong(4, "C/"),
                wrong(5, "D-x"),
            ]
        );
        let long = "A".repeat(254);
        assert!(
            of_status(value!({"declaredFeatures": [(long.as_str())]}))[0]
                .contains("must be no more than 253 characters")
        );
    }

    #[test]
    fn networks_are_one_of_each_family_and_an_external_id_stays() {
        let of = |spec: Value| Object::try_from(value!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let cx = super::super::tests::request("", "Node");
        let told = |cidrs: Value| {
            let mut e = Errs::default();
            object(&of(value!({"podCIDRs": cidrs})), &mut e);
            e.list.len()
        };
        assert_eq!(told(value!(["10.0.0.0/24", "fd00::/64"])), 0);
        assert_eq!(told(value!(["10.0.0.0/24", "10.0.1.0/24"])), 1);
        let mut e = Errs::default();
        (NODE.update)(
            &cx,
            &of(value!({"externalID": "b"})),
            &of(value!({"externalID": "a"})),
            &mut e,
        );
        assert_eq!(
            super::super::tests::shown(e.list.into()),
            ["spec.externalID: Forbidden: may not be updated"]
        );
    }

    #[test]
    fn amounts_and_addresses_of_a_status_are_looked_at() {
        let address = value!({"type": "InternalIP", "address": "10.0.0.1"});
        let told = of_status(value!({
            "capacity": {"cpu": "1500m", "pods": "1500m", "x.io/gpu": "-1"},
            "addresses": [(address.clone()), {"type": "Hostname", "address": "n"}, address],
        }));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(
            told[0].starts_with("status.capacity.pods: Invalid value: \"1500m\": must be an integer"),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("status.capacity.x.io/gpu: Invalid value: \"-1\": must be greater"),
            "{told:?}"
        );
        assert!(
            told[2].starts_with("status.addresses[2]: Duplicate value: "),
            "{told:?}"
        );
    }
}
