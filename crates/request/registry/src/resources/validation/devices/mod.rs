//! `resource.k8s.io`: claims, their templates, classes of devices, slices and taints.

mod names;
mod policies;
mod slices;
pub mod status;
#[cfg(test)]
mod tests;

use super::Rules;
use super::check::{Errs, count, s};
use super::storage::{declared_driver_name, driver_name};
use keelson_api::codec::json;
use keelson_api::{Map, Value};
use keelson_machinery::cel::device::{Selector, TOO_COSTLY};
use keelson_machinery::names::{declared_dns1123_subdomain, dns1123_label, dns1123_subdomain, label_key, label_value};
use names::{fully_qualified_name, pool_name};
use std::collections::{BTreeMap, BTreeSet};

const MOST_REQUESTS: usize = 32;
const MOST_CONSTRAINTS: usize = 32;
const MOST_CONFIGS: usize = 32;
const MOST_SELECTORS: usize = 32;
const MOST_ALTERNATIVES: usize = 8;
/// Bytes of a CEL expression, of a driver's parameters and of a device's own data.
const LONGEST_TEXT: usize = 10 << 10;

pub fn of(kind: &str) -> Option<Rules> {
    Some(match kind {
        "ResourceClaim" => CLAIM,
        "ResourceClaimTemplate" => TEMPLATE,
        "DeviceClass" => CLASS,
        "ResourceSlice" => slices::SLICE,
        "DeviceTaintRule" => TAINT_RULE,
        _ => return None,
    })
}

const CLAIM: Rules = Rules {
    create: |_, o, e| e.child(o, "spec", claim_spec),
    // What can't be changed needs no second look.
    update: |_, new, old, e| {
        if !crate::strategy::same(new.get("spec"), old.get("spec")) {
            e.invalid("spec", Value::Null, super::check::IMMUTABLE);
        }
    },
    status: |_, new, old, e| status::claim(new, old, e),
    ..Rules::SUBDOMAIN
};

const TEMPLATE: Rules = Rules {
    // Upstream looks at it again although it can't be changed.
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            e.child(spec, "metadata", template_metadata);
            e.child(spec, "spec", claim_spec);
        });
    },
    update: |_, new, old, e| {
        e.immutable_as(
            "resource.ResourceClaimTemplateSpec",
            new.get("spec"),
            old.get("spec"),
            "spec",
        );
    },
    ..Rules::SUBDOMAIN
};

const CLASS: Rules = Rules {
    name: declared_dns1123_subdomain,
    create: |_, o, e| e.child(o, "spec", selectors),
    // Expressions that are there already are as they were.
    update: |_, new, old, e| {
        if !crate::strategy::same(new.at(&["spec", "selectors"]), old.at(&["spec", "selectors"])) {
            e.child(new, "spec", selectors);
        }
    },
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            if at_most(e, spec, "config", MOST_CONFIGS) {
                e.each(spec, "config", |e, _, config| configuration(e, config));
            }
            if let Some(name) = spec.str("extendedResourceName") {
                names::extended_resource(e, "extendedResourceName", name);
            }
        });
    },
    ..Rules::SUBDOMAIN
};

const TAINT_RULE: Rules = Rules {
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            e.child(spec, "deviceSelector", |e, selector| {
                if selector.contains_key("driver") {
                    driver_name(e, "driver", s(selector, "driver"));
                }
                if selector.contains_key("pool") {
                    pool_name(e, "pool", s(selector, "pool"));
                }
                if selector.contains_key("device") {
                    e.format("device", s(selector, "device"), dns1123_label);
                }
            });
            let none = Map::new();
            e.within("taint", |e| taint(e, spec.obj("taint").unwrap_or(&none)));
        });
    },
    ..Rules::SUBDOMAIN
};

/// Whether a list is no longer than it may be; what is longer isn't looked into.
fn at_most(e: &mut Errs, m: &Map, key: &str, most: usize) -> bool {
    let n = count(m, key);
    if n > most {
        e.too_many(key, n, most);
    }
    n <= most
}

/// Tells of elements whose key stood before; all others are looked at first.
fn unique(e: &mut Errs, m: &Map, list: &str, key: impl Fn(&Value) -> Value) {
    let mut seen = BTreeSet::new();
    for (i, item) in m.arr(list).into_iter().flatten().enumerate() {
        let key = key(item);
        if !seen.insert(json::encode(&key)) {
            e.duplicate(&format!("{list}[{i}]"), key);
        }
    }
}

fn named(item: &Value) -> Value {
    item.get("name").cloned().unwrap_or_else(|| "".into())
}

/// Of a template's metadata only labels and annotations are heeded.
fn template_metadata(e: &mut Errs, meta: &Map) {
    e.annotations(meta, "annotations");
    e.labels(meta, "labels");
    for key in [
        "name",
        "generateName",
        "namespace",
        "selfLink",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
        "managedFields",
    ] {
        if meta.get(key).is_some_and(|v| !v.is_null()) {
            // Upstream names this one otherwise.
            e.forbidden(if key == "uid" { "uID" } else { key }, "cannot be set");
        }
    }
}

/// The requests of a claim, and the alternatives that each has.
type Requests<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn requests(spec: &Map) -> Requests<'_> {
    let list = spec.obj("devices").and_then(|d| d.arr("requests"));
    let mut out = Requests::new();
    for request in list.into_iter().flatten() {
        let alternatives = request.get("firstAvailable").and_then(Value::as_array);
        let of = out
            .entry(request.get("name").and_then(Value::as_str).unwrap_or_default())
            .or_default();
        of.extend(
            alternatives
                .into_iter()
                .flatten()
                .filter_map(|a| a.get("name").and_then(Value::as_str)),
        );
    }
    out
}

fn claim_spec(e: &mut Errs, spec: &Map) {
    let known = requests(spec);
    e.child(spec, "devices", |e, devices| {
        if at_most(e, devices, "requests", MOST_REQUESTS) {
            e.each(devices, "requests", |e, _, r| request(e, r));
            unique(e, devices, "requests", named);
        }
        if at_most(e, devices, "constraints", MOST_CONSTRAINTS) {
            e.each(devices, "constraints", |e, _, c| constraint(e, c, &known));
        }
        if at_most(e, devices, "config", MOST_CONFIGS) {
            e.each(devices, "config", |e, _, c| {
                request_names(e, c, &known);
                configuration(e, c);
            });
        }
    });
}

fn request(e: &mut Errs, r: &Map) {
    e.format("name", s(r, "name"), dns1123_label);
    match (r.obj("exactly"), count(r, "firstAvailable")) {
        (None, 0) => e.required("", "exactly one of `exactly` or `firstAvailable` is required"),
        (Some(_), 1..) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            e.invalid("", Value::Null, why);
            // Upstream's rules of these are declared, and hold wherever they stand.
            e.each(r, "firstAvailable", |e, _, sub| class_name(e, sub));
        }
        (Some(exactly), 0) => e.within("exactly", |e| device_request(e, exactly)),
        (None, _) => {
            if at_most(e, r, "firstAvailable", MOST_ALTERNATIVES) {
                e.each(r, "firstAvailable", |e, _, sub| {
                    e.format("name", s(sub, "name"), dns1123_label);
                    device_request(e, sub);
                });
                unique(e, r, "firstAvailable", named);
            }
        }
    }
}

fn class_name(e: &mut Errs, r: &Map) {
    match s(r, "deviceClassName") {
        "" => e.required("deviceClassName", ""),
        name => e.format("deviceClassName", name, dns1123_subdomain),
    }
}

fn device_request(e: &mut Errs, r: &Map) {
    class_name(e, r);
    selectors(e, r);
    let count = r.int("count").unwrap_or(0);
    match s(r, "allocationMode") {
        "All" if count != 0 => {
            e.invalid("count", count, "must not be specified when allocationMode is 'All'");
        }
        "All" => {}
        "ExactCount" if count <= 0 => e.invalid("count", count, "must be greater than zero"),
        "ExactCount" => {}
        other => e.not_supported("allocationMode", other, &["All", "ExactCount"]),
    }
    e.each(r, "tolerations", |e, _, t| toleration(e, t));
}

fn selectors(e: &mut Errs, m: &Map) {
    if !at_most(e, m, "selectors", MOST_SELECTORS) {
        return;
    }
    e.each(m, "selectors", |e, _, selector| match selector.obj("cel") {
        None => e.required("cel", ""),
        Some(cel) if s(cel, "expression").len() > LONGEST_TEXT => e.too_long("cel.expression", LONGEST_TEXT),
        Some(cel) => expression(e, s(cel, "expression")),
    });
}

fn expression(e: &mut Errs, text: &str) {
    match Selector::compile(text) {
        Ok(_) => {}
        Err(why) if why == TOO_COSTLY => e.forbidden("cel.expression", &why),
        Err(why) => e.invalid("cel.expression", text, &why),
    }
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn toleration(e: &mut Errs, t: &Map) {
    if !s(t, "key").is_empty() {
        e.format("key", s(t, "key"), label_key);
    }
    match s(t, "operator") {
        "Exists" if !s(t, "value").is_empty() => {
            e.invalid("value", s(t, "value"), "must be empty for operator `Exists`");
        }
        "Exists" => {}
        "Equal" => e.format("value", s(t, "value"), label_value),
        "" => e.required("operator", ""),
        other => e.not_supported("operator", other, &["Equal", "Exists"]),
    }
    match s(t, "effect") {
        "" => {}
        effect if EFFECTS.contains(&effect) => {}
        other => e.not_supported("effect", other, &EFFECTS),
    }
}

fn taint(e: &mut Errs, t: &Map) {
    e.format("key", s(t, "key"), label_key);
    if !s(t, "value").is_empty() {
        e.format("value", s(t, "value"), label_value);
    }
    e.one_of(t, "effect", &EFFECTS);
}

fn constraint(e: &mut Errs, c: &Map, known: &Requests) {
    request_names(e, c, known);
    const KEYS: [&str; 2] = ["matchAttribute", "distinctAttribute"];
    for (key, name) in KEYS.iter().filter_map(|key| Some((key, c.str(key)?))) {
        fully_qualified_name(e, key, name);
    }
    if KEYS.iter().all(|key| !c.contains_key(key)) {
        let why = r#"exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set"#;
        e.required("", why);
    }
}

const NO_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// Requests that a constraint or a configuration is about.
fn request_names(e: &mut Errs, m: &Map, known: &Requests) {
    if at_most(e, m, "requests", MOST_REQUESTS) {
        e.each_str(m, "requests", |e, _, name| request_name(e, "", name, known));
        unique(e, m, "requests", Value::clone);
    }
}

fn request_name(e: &mut Errs, key: &str, name: &str, known: &Requests) {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 {
        return e.invalid(key, name, NO_REQUEST);
    }
    for part in &parts {
        e.format(key, part, dns1123_label);
    }
    let found = match parts.as_slice() {
        [request, alternative] => known.get(request).is_some_and(|of| of.contains(alternative)),
        _ => known.contains_key(name),
    };
    if !found {
        e.invalid(key, name, NO_REQUEST);
    }
}

/// What a driver is told.
fn configuration(e: &mut Errs, config: &Map) {
    let Some(opaque) = config.obj("opaque") else {
        return e.required("opaque", "");
    };
    e.within("opaque", |e| {
        declared_driver_name(e, "driver", s(opaque, "driver"));
        raw_object(e, opaque, "parameters");
    });
}

/// Any JSON object of a driver's own.
fn raw_object(e: &mut Errs, m: &Map, key: &str) {
    match m.get(key) {
        None | Some(Value::Null) => e.required(key, ""),
        Some(value) if serde_json::to_string(value).is_ok_and(|text| text.len() > LONGEST_TEXT) => {
            e.too_long(key, LONGEST_TEXT);
        }
        Some(Value::Object(_)) => {}
        Some(_) => e.invalid(key, "<value omitted>", "must be a valid JSON object"),
    }
}
