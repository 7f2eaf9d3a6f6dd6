//! Requests, limits and how they may be resized.

use super::check::{Errs, quantity, s};
use super::container::PodFacts;
use keelson_api::{Cause, Map, Quantity, Value};
use keelson_machinery::names;
use std::collections::{HashMap, HashSet};

/// Whether a resource is Kubernetes' own rather than a vendor's.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A vendor's resource whose name can be counted by quotas too.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::label_key(&format!("requests.{name}")).is_empty()
}

/// Whether there are whole ones of it only, on nodes.
pub fn is_counted(name: &str) -> bool {
    name == "pods" || is_extended(name)
}

/// Whether an amount is of whole pages of the size that the name says.
fn is_of_pages(name: &str, amount: Quantity) -> bool {
    let size = name
        .strip_prefix(HUGE_PAGES)
        .and_then(|size| Quantity::parse(size).ok());
    size.is_some_and(|size| size.value() > 0 && size.is_whole() && amount.value() % size.value() == 0)
}

/// Whether requests may stay below limits.
pub fn overcommits(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

const HUGE_PAGES: &str = "hugepages-";

/// The name of a resource, of whatever has some.
pub fn any_resource_name(e: &mut Errs, name: &str) {
    let msgs = names::label_key(name);
    msgs.iter().for_each(|m| e.invalid("", name, m));
    if msgs.is_empty() && !name.contains('/') && !is_standard(name) {
        e.invalid("", name, "must be a standard resource type or fully qualified");
    }
}

/// The name of a resource that a container may have.
pub fn resource_name(e: &mut Errs, name: &str) {
    any_resource_name(e, name);
    if name.contains('/') {
        if !is_native(name) && !is_extended(name) {
            e.invalid("", name, "doesn't follow extended resource name standard");
        }
        return;
    }
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !known {
        e.invalid("", name, "must be a standard resource for containers");
    }
}

/// Whether the system knows a resource, be it of containers or of quotas.
pub fn is_standard(name: &str) -> bool {
    const COUNTED: [&str; 9] = [
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    let plain = name.strip_prefix("requests.").unwrap_or(name);
    let limited = name.strip_prefix("limits.").unwrap_or(plain);
    matches!(limited, "cpu" | "memory" | "ephemeral-storage")
        || plain == "storage"
        || plain.starts_with("hugepages-")
        || COUNTED.contains(&name)
}

/// The name of a resource that a pod as a whole may have.
fn pod_resource_name(e: &mut Errs, name: &str) {
    let mut own = Errs::default();
    any_resource_name(&mut own, name);
    if own.list.iter().next().is_some() {
        any_resource_name(e, name);
    } else if !matches!(name, "cpu" | "memory") && !name.starts_with(HUGE_PAGES) {
        e.not_supported("", name, &["cpu", HUGE_PAGES, "memory"]);
    }
}

/// Requests and limits of a container, or of what is like one.
pub fn resources(e: &mut Errs, r: &Map, claims: Option<&HashSet<&str>>) {
    of_names(e, r, claims, resource_name);
}

/// Requests and limits of a pod.
pub fn pod_resources(e: &mut Errs, r: &Map, claims: &HashSet<&str>) {
    of_names(e, r, Some(claims), pod_resource_name);
}

fn of_names(e: &mut Errs, r: &Map, claims: Option<&HashSet<&str>>, named: fn(&mut Errs, &str)) {
    let empty = Map::new();
    let (limits, requests) = (r.obj("limits").unwrap_or(&empty), r.obj("requests").unwrap_or(&empty));
    let amount = |e: &mut Errs, name: &str, v: &Value| {
        named(e, name);
        let q = quantity(v);
        if q.is_negative() {
            e.invalid("", v.clone(), super::check::NOT_NEGATIVE);
        }
        if is_extended(name) && !q.is_whole() {
            e.invalid("", v.clone(), "must be an integer");
        }
        if name.starts_with(HUGE_PAGES) && !is_of_pages(name, q) {
            let shown = v.as_str().unwrap_or_default();
            let why = format!("{shown} is not positive integer multiple of {name}");
            e.invalid("", v.clone(), &why);
        }
    };
    for (name, v) in limits {
        e.within(&format!("limits[{name}]"), |e| amount(e, name, v));
    }
    for (name, v) in requests {
        e.within(&format!("requests[{name}]"), |e| amount(e, name, v));
        match limits.get(name) {
            Some(limit) => {
                let (q, l) = (quantity(v), quantity(limit));
                let limit = limit.as_str().unwrap_or_default();
                if q != l && !overcommits(name) {
                    e.invalid(
                        "requests",
                        v.clone(),
                        &format!("must be equal to {name} limit of {limit}"),
                    );
                } else if q > l {
                    e.invalid(
                        "requests",
                        v.clone(),
                        &format!("must be less than or equal to {name} limit of {limit}"),
                    );
                }
            }
            None if !overcommits(name) => e.required("limits", "Limit must be set for non overcommitable resources"),
            None => {}
        }
    }
    let has = |m: &Map, f: fn(&str) -> bool| m.keys().any(|k| f(k));
    let compute: fn(&str) -> bool = |k| matches!(k, "cpu" | "memory");
    let huge: fn(&str) -> bool = |k| k.starts_with("hugepages-");
    if !has(limits, compute) && !has(requests, compute) && (has(limits, huge) || has(requests, huge)) {
        e.forbidden("", "HugePages require cpu or memory");
    }
    if let Some(claims) = claims {
        claimed(e, r, claims);
    }
}

/// Each claim, or a request of it, is used once, and is the pod's.
fn claimed(e: &mut Errs, r: &Map, claims: &HashSet<&str>) {
    let mut seen = HashSet::new();
    // Of how many requests of a claim each is used.
    let mut requested: HashMap<String, usize> = HashMap::new();
    e.each(r, "claims", |e, _, claim| {
        let (name, request) = (s(claim, "name"), s(claim, "request"));
        if name.is_empty() {
            return e.required("", "");
        }
        if seen.contains(name) {
            e.duplicate("", name);
        } else {
            let key = match request {
                "" => name.to_string(),
                request => format!("{name}/{request}"),
            };
            if !request.is_empty() {
                e.format("request", request, names::dns1123_label);
            } else {
                (0..requested.get(name).copied().unwrap_or(0)).for_each(|_| e.duplicate("", name));
            }
            if seen.contains(&key) {
                e.duplicate("", key);
            } else {
                if let Some((claim, _)) = key.split_once('/') {
                    *requested.entry(claim.to_string()).or_default() += 1;
                }
                seen.insert(key);
            }
        }
        if !claims.contains(name) {
            let at = e.at("");
            // Each would show all of the pod's: what isn't told isn't put into words.
            e.list.add(|| {
                let mut all: Vec<&str> = claims.iter().copied().filter(|claim| !claim.is_empty()).collect();
                all.sort_unstable();
                let which = match all.as_slice() {
                    [] => " which is empty".to_string(),
                    all => format!(": {}", all.join(", ")),
                };
                let told = Cause::not_found(at, &name.into());
                let message = format!(
                    "{}: must be one of the names in pod.spec.resourceClaims{which}",
                    told.message
                );
                Cause { message, ..told }
            });
        }
    });
}

pub fn resize_policies(e: &mut Errs, c: &Map, facts: &PodFacts) {
    let mut seen = HashSet::new();
    let Some(list) = c.arr("resizePolicy") else { return };
    for (i, p) in list.iter().enumerate() {
        let Some(p) = p.as_object() else { continue };
        if !seen.insert(s(p, "resourceName")) {
            e.duplicate(&format!("resizePolicy[{i}]"), s(p, "resourceName"));
        }
        for (key, supported) in [
            ("resourceName", ["cpu", "memory"]),
            ("restartPolicy", ["NotRequired", "RestartContainer"]),
        ] {
            match s(p, key) {
                "" => e.required("resizePolicy", ""),
                v if !supported.contains(&v) => e.not_supported("resizePolicy", v, &supported),
                _ => {}
            }
        }
        if facts.restart_policy == "Never" && s(p, "restartPolicy") != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            e.invalid("resizePolicy", s(p, "restartPolicy"), why);
        }
    }
}
