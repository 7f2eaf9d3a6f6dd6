//! Devices that a driver offers.

use super::super::Rules;
use super::super::check::{Errs, count, is_true, s};
use super::super::scheduling::node_selector;
use super::super::storage::driver_name;
use super::names::{pool_name, qualified_name};
use super::{at_most, named, policies, taint, unique};
use keelson_api::{Map, Object, Value};
use keelson_machinery::names::{dns1123_label, dns1123_subdomain, label_key};
use regex::Regex;
use std::collections::BTreeSet;
use std::sync::LazyLock;

const MOST_DEVICES: usize = 128;
/// Where devices have taints, counters or lists.
const MOST_LARGE_DEVICES: usize = 64;
const MOST_COUNTER_SETS: usize = 8;
const MOST_COUNTERS: usize = 32;
const MOST_CONSUMED_SETS: usize = 2;
const MOST_TAINTS: usize = 16;
const MOST_MEMBERS: usize = 32;
const MOST_CONDITIONS: usize = 4;
const LONGEST_VALUE: usize = 64;
const LISTS: [&str; 4] = ["ints", "bools", "strings", "versions"];
const VALUES: [&str; 8] = [
    "int", "bool", "string", "version", "ints", "bools", "strings", "versions",
];

pub const SLICE: Rules = Rules {
    object: |_, o, e| e.child(o, "spec", slice),
    create: |_, o, e| capacities(o, None, e),
    update: |_, new, old, e| {
        for path in [
            &["spec", "pool", "name"][..],
            &["spec", "driver"],
            &["spec", "nodeName"],
        ] {
            e.immutable(new.at(path), old.at(path), &path.join("."));
        }
        capacities(new, Some(old), e);
    },
    ..Rules::SUBDOMAIN
};

fn slice(e: &mut Errs, spec: &Map) {
    driver_name(e, "driver", s(spec, "driver"));
    let none = Map::new();
    let pool = spec.obj("pool").unwrap_or(&none);
    e.within("pool", |e| {
        pool_name(e, "name", s(pool, "name"));
        let n = pool.int("resourceSliceCount").unwrap_or(0);
        if n <= 0 {
            e.invalid("resourceSliceCount", n, "must be greater than zero");
        }
        if let Some(n) = pool.int("generation").filter(|n| *n < 0) {
            e.invalid("generation", n, "must be greater than or equal to zero");
        }
    });
    let mut places = where_devices_are(e, spec, "must be either unset or set to a non-empty string");
    if count(&selector(spec), "nodeSelectorTerms") != 1 && spec.contains_key("nodeSelector") {
        let terms = selector(spec).get("nodeSelectorTerms").cloned().unwrap_or(Value::Null);
        e.invalid(
            "nodeSelector.nodeSelectorTerms",
            terms,
            "must have exactly one node selector term",
        );
    }
    flag(e, spec, "perDeviceNodeSelection", &mut places);
    one_place(
        e,
        &places,
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
        ", but multiple fields are set",
    );
    if spec.contains_key("sharedCounters") && spec.contains_key("devices") {
        e.invalid("", "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let most = if is_large(spec) {
        MOST_LARGE_DEVICES
    } else {
        MOST_DEVICES
    };
    if at_most(e, spec, "devices", most) {
        let each = is_true(spec, "perDeviceNodeSelection");
        e.each(spec, "devices", |e, _, d| device(e, d, each));
        unique(e, spec, "devices", named);
    }
    if at_most(e, spec, "sharedCounters", MOST_COUNTER_SETS) {
        e.each(spec, "sharedCounters", |e, _, set| counters(e, set, "name"));
        unique(e, spec, "sharedCounters", named);
    }
}

fn selector(m: &Map) -> Map {
    m.obj("nodeSelector").cloned().unwrap_or_default()
}

fn is_large(spec: &Map) -> bool {
    spec.arr("devices").into_iter().flatten().any(|device| {
        let filled = |key: &str| device.get(key).and_then(Value::as_array).is_some_and(|l| !l.is_empty());
        let attributes = device.get("attributes").and_then(Value::as_object);
        filled("taints")
            || filled("consumesCounters")
            || attributes
                .into_iter()
                .flat_map(Map::values)
                .any(|a| LISTS.iter().any(|list| a.get(list).is_some()))
    })
}

/// The fields that say where devices are.
fn where_devices_are(e: &mut Errs, m: &Map, empty: &str) -> Vec<&'static str> {
    let mut places = Vec::new();
    match m.str("nodeName") {
        Some("") => e.invalid("nodeName", "", empty),
        Some(name) => {
            places.push("`nodeName`");
            e.format("nodeName", name, dns1123_subdomain);
        }
        None => {}
    }
    e.child(m, "nodeSelector", |e, selector| {
        places.push("`nodeSelector`");
        node_selector(e, selector, false);
    });
    flag(e, m, "allNodes", &mut places);
    places
}

fn flag(e: &mut Errs, m: &Map, key: &'static str, places: &mut Vec<&'static str>) {
    match m.get(key) {
        Some(Value::Bool(true)) => places.push(if key == "allNodes" {
            "`allNodes`"
        } else {
            "`perDeviceNodeSelection`"
        }),
        Some(Value::Bool(false)) => e.invalid(key, false, "must be either unset or set to true"),
        _ => {}
    }
}

fn one_place(e: &mut Errs, places: &[&str], why: &str, many: &str) {
    match places.len() {
        0 => e.required("", why),
        1 => {}
        _ => e.invalid("", format!("{{{}}}", places.join(", ")), &format!("{why}{many}")),
    }
}

/// Policies of capacities. Those of a device that is as it was aren't judged again: what was taken before there were rules stays.
fn capacities(new: &Object, old: Option<&Object>, e: &mut Errs) {
    if devices(new).len() > MOST_DEVICES {
        return;
    }
    e.child(new, "spec", |e, spec| {
        e.each(spec, "devices", |e, _, d| {
            let mut known = old.into_iter().flat_map(devices);
            let was = known.find(|was| was.get("name") == d.get("name"));
            let is_same = |key: &str| was.is_some_and(|was| was.get(key) == d.get(key));
            if is_same("capacity") && is_same("allowMultipleAllocations") {
                return;
            }
            let is_shared = is_true(d, "allowMultipleAllocations");
            for (key, value) in d.obj("capacity").into_iter().flatten() {
                if let Some(value) = value.as_object() {
                    e.within(&format!("capacity[{key}]"), |e| policies::capacity(e, value, is_shared));
                }
            }
        });
    });
}

fn devices(slice: &Object) -> &[Value] {
    let list = slice.at(&["spec", "devices"]).and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

fn device(e: &mut Errs, d: &Map, each_has_a_place: bool) {
    e.format("name", s(d, "name"), dns1123_label);
    let members = |key: &str| d.obj(key).map_or(0, Map::len);
    let total = members("attributes") + members("capacity");
    if total > MOST_MEMBERS {
        let why = format!("the total number of attributes and capacities must not exceed {MOST_MEMBERS}");
        e.invalid("", total as i64, &why);
    }
    for (key, value) in d.obj("attributes").into_iter().flatten() {
        qualified_name(e, "attributes", key);
        if let Some(value) = value.as_object() {
            e.within(&format!("attributes[{key}]"), |e| attribute(e, value));
        }
    }
    for (key, _) in d.obj("capacity").into_iter().flatten() {
        qualified_name(e, "capacity", key);
    }
    if at_most(e, d, "taints", MOST_TAINTS) {
        e.each(d, "taints", |e, _, t| taint(e, t));
    }
    if at_most(e, d, "consumesCounters", MOST_CONSUMED_SETS) {
        e.each(d, "consumesCounters", |e, _, set| counters(e, set, "counterSet"));
        unique(e, d, "consumesCounters", |set| {
            set.get("counterSet").cloned().unwrap_or_default()
        });
    }
    if each_has_a_place {
        let places = where_devices_are(e, d, "must not be empty");
        let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        one_place(e, &places, why, "");
    } else if ["nodeName", "nodeSelector", "allNodes"]
        .iter()
        .any(|key| d.contains_key(key))
    {
        let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        e.invalid("", Value::Null, why);
    }
    binding(e, d);
}

fn attribute(e: &mut Errs, a: &Map) {
    let set: Vec<&str> = VALUES.into_iter().filter(|key| a.contains_key(key)).collect();
    for (one, many) in [("string", "strings"), ("version", "versions")] {
        if let Some(value) = a.str(one) {
            attribute_text(e, one, one == "version", value);
        }
        e.each_str(a, many, |e, _, value| attribute_text(e, "", one == "version", value));
    }
    for list in LISTS {
        if a.arr(list).is_some_and(Vec::is_empty) {
            e.invalid(list, Value::Array(Vec::new()), "must not be empty if specified");
        }
    }
    let all = VALUES.map(|v| format!("`{v}`")).join(", ");
    match set.len() {
        0 => e.invalid("", "", &format!("must specify one of: {all}")),
        1 => {}
        _ => e.invalid(
            "",
            format!("{{{}}}", set.join(", ")),
            &format!("must specify exactly one of: {all}"),
        ),
    }
}

fn attribute_text(e: &mut Errs, key: &str, version: bool, value: &str) {
    #[allow(clippy::unwrap_used, reason = "a constant")]
    static VERSION: LazyLock<Regex> = LazyLock::new(|| {
        let number = r"(0|[1-9][0-9]*)";
        let before = r"(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)";
        let build = "[0-9a-zA-Z-]+";
        Regex::new(&format!(
            r"^{number}\.{number}\.{number}(-{before}(\.{before})*)?(\+{build}(\.{build})*)?$"
        ))
        .unwrap()
    });
    if version && !VERSION.is_match(value) {
        e.invalid(key, value, "must be a string compatible with semver.org spec 2.0.0");
    }
    if value.len() > LONGEST_VALUE {
        e.too_long(key, LONGEST_VALUE);
    }
}

/// A set of counters, or what is taken of one.
fn counters(e: &mut Errs, set: &Map, name: &str) {
    match s(set, name) {
        "" => e.required(name, ""),
        text => e.format(name, text, dns1123_label),
    }
    match set.obj("counters").map_or(0, Map::len) {
        0 => e.required("counters", ""),
        n if n > MOST_COUNTERS => e.too_many("counters", n, MOST_COUNTERS),
        _ => {
            for (key, _) in set.obj("counters").into_iter().flatten() {
                e.format("counters", key, dns1123_label);
            }
        }
    }
}

/// Conditions that a pod's binding waits for, and those that end the wait.
pub fn binding(e: &mut Errs, m: &Map) {
    const READY: &str = "bindingConditions";
    const FAILED: &str = "bindingFailureConditions";
    for list in [READY, FAILED] {
        if at_most(e, m, list, MOST_CONDITIONS) {
            e.each_str(m, list, |e, _, name| e.format("", name, label_key));
        }
    }
    unique(e, m, READY, Value::clone);
    unique(e, m, FAILED, Value::clone);
    let ready: BTreeSet<&str> = m.arr(READY).into_iter().flatten().filter_map(Value::as_str).collect();
    for (i, name) in m.arr(FAILED).into_iter().flatten().enumerate() {
        if name.as_str().is_some_and(|name| ready.contains(name)) {
            let why = "bindingFailureConditions must not overlap with bindingConditions";
            e.invalid(&format!("{FAILED}[{i}]"), name.clone(), why);
        }
    }
    for (list, other) in [(READY, FAILED), (FAILED, READY)] {
        if count(m, list) == 0 && count(m, other) > 0 {
            e.invalid(list, Value::Null, &format!("{list} are required to use {other}"));
        }
    }
}
