//! The core group's kinds that configure rather than run: ConfigMap, Secret, Namespace, quotas, limits, events, ….

use super::Rules;
use super::addresses;
use super::check::{Errs, IMMUTABLE, config_key, count, is_true, quantity, s};
use super::container_resources;
use crate::context::Cx;
use crate::strategy::same;
use keelson_api::{Map, Object, Quantity, Value};
use keelson_machinery::names;
use std::collections::HashSet;

const MAX_DATA: usize = 1024 * 1024;
const SET_IMMUTABLE: &str = "field is immutable when `immutable` is set";

const CONFIG_MAP: Rules = Rules {
    object: |_, o, e| config_map(o, e),
    update: |_, new, old, e| frozen(new, old, &["data", "binaryData"], e),
    ..Rules::SUBDOMAIN
};
const SECRET: Rules = Rules {
    object: |_, o, e| secret(o, e),
    update: |_, new, old, e| {
        e.immutable(new.get("type"), old.get("type"), "type");
        frozen(new, old, &["data"], e);
    },
    ..Rules::SUBDOMAIN
};
const NAMESPACE: Rules = Rules {
    name: names::dns1123_label,
    object: |_, o, e| {
        let Some(spec) = o.obj("spec") else { return };
        e.within("spec", |e| {
            for f in spec.arr("finalizers").into_iter().flatten().filter_map(Value::as_str) {
                e.format("finalizers", f, names::label_key);
                if !f.contains('/') && !super::STANDARD_FINALIZERS.contains(&f) {
                    e.invalid("finalizers", f, super::NO_FINALIZER);
                }
            }
        });
    },
    status: |_, new, _, e| {
        let (phase, why) = match new.deletion_timestamp() {
            None => ("Active", "may only be 'Active' if `deletionTimestamp` is empty"),
            Some(_) => (
                "Terminating",
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            ),
        };
        let has = new.str_at(&["status", "phase"]).unwrap_or_default();
        if has != phase {
            e.invalid("status.Phase", has, why);
        }
    },
    ..Rules::SUBDOMAIN
};
const LIMIT_RANGE: Rules = Rules {
    object: |_, o, e| limit_range(o, e),
    ..Rules::SUBDOMAIN
};
const ENDPOINTS: Rules = Rules {
    create: |_, o, e| endpoints(o, e),
    // What was valid once stays as it is.
    update: |_, new, old, e| {
        if !same(new.get("subsets"), old.get("subsets")) {
            endpoints(new, e);
        }
    },
    ..Rules::SUBDOMAIN
};
const EVENT: Rules = Rules {
    name: |_| Vec::new(),
    object: event,
    create: |cx, o, e| {
        if cx.def.gvr.group == NEW_EVENTS {
            new_event(o, e);
        }
    },
    update: |cx, new, old, e| {
        if cx.def.gvr.group == NEW_EVENTS {
            same_event(new, old, e);
        }
    },
    ..Rules::NONE
};
const NEW_EVENTS: &str = "events.k8s.io";

pub fn of(kind: &str) -> Rules {
    match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Namespace" => NAMESPACE,
        "Node" => super::nodes::NODE,
        "ResourceQuota" => super::quotas::QUOTA,
        "LimitRange" => LIMIT_RANGE,
        "Endpoints" => ENDPOINTS,
        "Event" => EVENT,
        _ => Rules::SUBDOMAIN,
    }
}

fn text_len(v: &Value) -> usize {
    v.as_str().map_or(0, str::len)
}

/// The length of what a base64 text stands for.
fn decoded_len(v: &Value) -> usize {
    let text = v.as_str().unwrap_or_default();
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count()
}

fn config_map(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (data, binary) = (o.obj("data").unwrap_or(&empty), o.obj("binaryData").unwrap_or(&empty));
    let mut size = 0;
    for (key, v) in data {
        let field = format!("data[{key}]");
        e.format(&field, key, config_key);
        if binary.contains_key(key) {
            e.invalid(&field, key.as_str(), "duplicate of key present in binaryData");
        }
        size += text_len(v);
    }
    for (key, v) in binary {
        e.format(&format!("binaryData[{key}]"), key, config_key);
        size += decoded_len(v);
    }
    if size > MAX_DATA {
        e.too_long("", MAX_DATA);
    }
}

/// What was declared immutable stays as it is.
fn frozen(new: &Object, old: &Object, keys: &[&str], e: &mut Errs) {
    if !is_true(old, "immutable") {
        return;
    }
    if !is_true(new, "immutable") {
        e.forbidden("immutable", SET_IMMUTABLE);
    }
    for key in keys {
        if !crate::strategy::same(new.get(key), old.get(key)) {
            e.forbidden(key, SET_IMMUTABLE);
        }
    }
}

fn secret(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let data = o.obj("data").unwrap_or(&empty);
    let mut size = 0;
    for (key, v) in data {
        e.format(&format!("data[{key}]"), key, config_key);
        size += decoded_len(v);
    }
    if size > MAX_DATA {
        e.too_long("data", MAX_DATA);
    }
    let needs = |e: &mut Errs, key: &str| {
        if !data.contains_key(key) {
            e.required(&format!("data[{key}]"), "");
        }
    };
    match s(o, "type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if o.annotation(key).unwrap_or_default().is_empty() {
                e.required(&format!("metadata.annotations[{key}]"), "");
            }
        }
        "kubernetes.io/dockercfg" => json_map(e, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_map(e, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
            needs(e, "username");
            needs(e, "password");
        }
        "kubernetes.io/ssh-auth" if data.str("ssh-privatekey").unwrap_or_default().is_empty() => {
            e.required("data[ssh-privatekey]", "");
        }
        "kubernetes.io/tls" => {
            needs(e, "tls.crt");
            needs(e, "tls.key");
        }
        _ => {}
    }
}

fn json_map(e: &mut Errs, data: &Map, key: &str) {
    use base64::Engine;
    let field = format!("data[{key}]");
    if !data.contains_key(key) {
        return e.required(&field, "");
    }
    // What is null is there, and empty.
    let text = data.str(key).unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default();
    let decoded = keelson_api::codec::json::decode(&bytes, None, keelson_api::codec::Strictness::Lenient);
    let why = match decoded {
        Ok(d) if matches!(d.value, Value::Object(_) | Value::Null) => return,
        Ok(d) => format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            d.value.type_name()
        ),
        Err(error) => error.0,
    };
    e.invalid(&field, "<secret contents redacted>", &why);
}

fn limit_range(o: &Object, e: &mut Errs) {
    e.child(o, "spec", |e, spec| {
        let mut seen = HashSet::new();
        e.each(spec, "limits", |e, _, l| {
            let kind = s(l, "type").to_string();
            let known = ["Container", "PersistentVolumeClaim", "Pod"].contains(&kind.as_str()) || kind.contains('/');
            let wrong = names::label_key(&kind);
            if wrong.is_empty() && !known {
                e.invalid(
                    "type",
                    kind.as_str(),
                    "must be a standard limit type or fully qualified",
                );
            }
            wrong.iter().for_each(|m| e.invalid("type", kind.as_str(), m));
            if !seen.insert(kind.clone()) {
                e.duplicate("type", kind.as_str());
            }
            let of = |list: &str, name: &str| l.obj(list).and_then(|m| m.get(name)).map(quantity);
            for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                if kind == "Pod" && key.starts_with("default") {
                    if count(l, key) > 0 {
                        e.forbidden(key, "may not be specified when `type` is 'Pod'");
                    }
                    continue;
                }
                for name in l.obj(key).into_iter().flat_map(Map::keys) {
                    e.within(&format!("{key}[{name}]"), |e| match kind.as_str() {
                        "Pod" | "Container" => container_resources::resource_name(e, name.as_str()),
                        _ => container_resources::any_resource_name(e, name.as_str()),
                    });
                }
            }
            if kind == "PersistentVolumeClaim" && of("min", "storage").is_none() && of("max", "storage").is_none() {
                e.required(
                    "limits",
                    "either minimum or maximum storage value is required, but neither was provided",
                );
            }
            let mut all: Vec<&str> = Vec::new();
            for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                all.extend(l.obj(list).into_iter().flat_map(Map::keys).map(|k| k.as_str()));
            }
            all.sort_unstable();
            all.dedup();
            for name in all {
                let text = |list: &str| l.obj(list).and_then(|m| m.str(name)).unwrap_or_default().to_string();
                let mut above = |low: &str, high: &str, (field, shown): (&str, &str), words: (&str, &str)| {
                    if let (Some(a), Some(b)) = (of(low, name), of(high, name))
                        && a > b
                    {
                        let why = format!(
                            "{} value {} is greater than {} value {}",
                            words.0,
                            text(low),
                            words.1,
                            text(high)
                        );
                        e.invalid(&format!("{field}[{name}]"), text(shown), &why);
                    }
                };
                above("min", "max", ("min", "min"), ("min", "max"));
                let request = ("defaultRequest", "defaultRequest");
                above("min", "defaultRequest", request, ("min", "default request"));
                above("defaultRequest", "max", request, ("default request", "max"));
                above(
                    "defaultRequest",
                    "default",
                    request,
                    ("default request", "default limit"),
                );
                above("min", "default", ("default", "min"), ("min", "default"));
                above("default", "max", ("default", "max"), ("default", "max"));
                if let Some(ratio) = of("maxLimitRequestRatio", name)
                    && ratio < keelson_api::Quantity::new(1, ratio.format())
                {
                    let why = format!("ratio {} is less than 1", text("maxLimitRequestRatio"));
                    e.invalid(
                        &format!("maxLimitRequestRatio[{name}]"),
                        text("maxLimitRequestRatio"),
                        &why,
                    );
                }
                if let (Some(ratio), Some(min), Some(max)) =
                    (of("maxLimitRequestRatio", name), of("min", name), of("max", name))
                    && let Some(most) = exceeded_ratio(ratio, min, max)
                {
                    let why = format!(
                        "ratio {} is greater than max/min = {most}",
                        text("maxLimitRequestRatio")
                    );
                    e.invalid(
                        &format!("maxLimitRequestRatio[{name}]"),
                        text("maxLimitRequestRatio"),
                        &why,
                    );
                }
                let fixed = !container_resources::overcommits(name);
                if let (true, Some(limit), Some(request)) = (fixed, of("default", name), of("defaultRequest", name))
                    && limit != request
                {
                    let (limit, request) = (text("default"), text("defaultRequest"));
                    let why = format!("default value {limit} must equal to defaultRequest value {request} in {name}");
                    e.invalid(&format!("defaultRequest[{name}]"), request, &why);
                }
            }
        });
    });
}

/// The most that a ratio of limits to requests can be between two bounds, as Go prints it, if `ratio` is more.
fn exceeded_ratio(ratio: Quantity, min: Quantity, max: Quantity) -> Option<String> {
    let large = [&ratio, &min, &max].iter().any(|q| q.value() >= i64::MAX / 1000);
    let of = |q: &Quantity| {
        if large {
            q.value() as f64 * 1000.0
        } else {
            q.milli_value() as f64
        }
    };
    let most = of(&max) / of(&min);
    (of(&ratio) / 1000.0 > most).then(|| match most {
        m if m.is_infinite() => "+Inf".to_string(),
        m => format!("{m:.6}"),
    })
}

fn endpoints(o: &Object, e: &mut Errs) {
    e.each(o, "subsets", |e, _, subset| {
        if count(subset, "addresses") == 0 && count(subset, "notReadyAddresses") == 0 {
            e.required("", "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            e.each(subset, list, |e, _, a| {
                let address = s(a, "ip");
                e.format("ip", address, super::check::ip);
                if !s(a, "hostname").is_empty() {
                    e.format("hostname", s(a, "hostname"), names::dns1123_label);
                }
                if let Some(node) = a.str("nodeName") {
                    e.format("nodeName", node, names::dns1123_subdomain);
                }
                match addresses::ip(address) {
                    Some(_) => e.format("ip", address, super::networking::endpoint_ip),
                    None => e.invalid("ip", address, "must be a valid IP address"),
                }
            });
        }
        let several = count(subset, "ports") > 1;
        e.each(subset, "ports", |e, _, p| {
            match s(p, "name") {
                "" if several => e.required("name", ""),
                "" => {}
                name => e.format("name", name, names::dns1123_label),
            }
            e.port(p, "port");
            e.one_of(p, "protocol", &["SCTP", "TCP", "UDP"]);
            if let Some(app) = p.str("appProtocol") {
                e.format("appProtocol", app, names::label_key);
            }
        });
    });
}

/// Events of both groups; in `events.k8s.io` new ones must be whole.
fn event(cx: &Cx, o: &Object, e: &mut Errs) {
    let new_group = cx.def.gvr.group == "events.k8s.io";
    let subject = if new_group { "regarding" } else { "involvedObject" };
    let namespace = o.str_at(&[subject, "namespace"]).unwrap_or_default();
    let has_time = !s(o, "eventTime").is_empty();
    let mismatch = match (has_time, namespace) {
        (false, "") => !matches!(o.namespace(), "" | "default"),
        (false, ns) => ns != o.namespace(),
        (true, "") => !matches!(o.namespace(), "default" | "kube-system"),
        (true, _) => false,
    };
    if mismatch {
        e.invalid("involvedObject.namespace", namespace, "does not match event.namespace");
    }
    if has_time {
        let controller = if new_group {
            "reportingController"
        } else {
            "reportingComponent"
        };
        if s(o, controller).is_empty() {
            e.required(controller, "");
        }
        e.format(controller, s(o, controller), names::label_key);
        for (key, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
            match s(o, key) {
                "" => e.required(key, ""),
                text if text.len() > max => e.invalid(key, "", &format!("can have at most {max} characters")),
                _ => {}
            }
        }
        if s(o, "message").len().max(s(o, "note").len()) > 1024 {
            e.invalid("message", "", "can have at most 1024 characters");
        }
    }
}

/// What is made in `events.k8s.io` is whole, and has nothing of before.
fn new_event(o: &Object, e: &mut Errs) {
    for why in names::dns1123_subdomain(o.name()) {
        if !o.name().is_empty() {
            e.invalid("metadata.name", o.name(), &why);
        }
    }
    event_series(o, e);
    if s(o, "eventTime").is_empty() {
        e.required("eventTime", "");
    }
    if !matches!(s(o, "type"), "Normal" | "Warning") {
        e.invalid("type", "", &format!("has invalid value: {}", s(o, "type")));
    }
    let of_source = |key: &str| o.str_at(&["deprecatedSource", key]).unwrap_or_default();
    for (is_set, key) in [
        (!s(o, "deprecatedFirstTimestamp").is_empty(), "firstTimestamp"),
        (!s(o, "deprecatedLastTimestamp").is_empty(), "lastTimestamp"),
        (o.int("deprecatedCount").unwrap_or(0) != 0, "count"),
        (
            !of_source("component").is_empty() || !of_source("host").is_empty(),
            "source",
        ),
    ] {
        if is_set {
            e.invalid(key, "", "needs to be unset");
        }
    }
}

fn event_series(o: &Object, e: &mut Errs) {
    let Some(series) = o.obj("series") else { return };
    if series.int("count").unwrap_or(0) < 2 {
        e.invalid("series.count", "", "should be at least 2");
    }
    if s(series, "lastObservedTime").is_empty() {
        e.required("series.lastObservedTime", "");
    }
}

/// Of an event in `events.k8s.io` only the series goes on.
fn same_event(new: &Object, old: &Object, e: &mut Errs) {
    if new.get("series") != old.get("series") {
        event_series(new, e);
    }
    let text = |o: &Object, key: &str| Value::from(s(o, key));
    let reference = |e: &mut Errs, key: &str, shown: &str, ty: &str| {
        if !same(new.get(key), old.get(key)) {
            e.invalid_as(ty, shown, new.get(key), IMMUTABLE);
        }
    };
    reference(e, "regarding", "involvedObject", "core.ObjectReference");
    let kept = |e: &mut Errs, key: &str, shown: &str| {
        e.immutable(Some(&text(new, key)), Some(&text(old, key)), shown);
    };
    kept(e, "reason", "reason");
    kept(e, "note", "message");
    reference(e, "deprecatedSource", "source", "core.EventSource");
    for (key, shown) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
    ] {
        e.immutable(new.get(key), old.get(key), shown);
    }
    kept(e, "type", "type");
    e.immutable(new.get("eventTime"), old.get("eventTime"), "eventTime");
    kept(e, "action", "action");
    reference(e, "related", "related", "*core.ObjectReference");
    kept(e, "reportingController", "reportingController");
    kept(e, "reportingInstance", "reportingInstance");
}
