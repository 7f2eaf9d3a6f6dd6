//! A pod's specification, alone or in a template.

use super::check::{Errs, count, ip, is_true, quantity, range_error, s};
use super::container::{self, PodFacts};
use super::{container_env, container_resources, scheduling, security, volumes};
use crate::resources::pod_resources::of_containers;
use keelson_api::{Map, Value};
use keelson_machinery::names;
use std::collections::HashSet;

/// Checks a specification; `pod_name` is empty for templates.
pub fn pod_spec(e: &mut Errs, spec: &Map, pod_name: &str, is_pod: bool) {
    let grace = spec.int("terminationGracePeriodSeconds");
    if grace.is_none() {
        e.required("terminationGracePeriodSeconds", "");
    }
    let facts = PodFacts {
        volumes: volumes::volumes(e, spec, pod_name),
        claims: claims(e, spec),
        grace,
        restart_policy: s(spec, "restartPolicy"),
        host_users: spec.bool("hostUsers") != Some(false),
    };
    container::containers(e, spec, &facts);
    container::init_containers(e, spec, &facts);
    container::ephemeral_containers(e, spec, &facts);
    e.child(spec, "resources", |e, r| pod_resources(e, r, spec, &facts));
    if is_true(spec, "hostNetwork") {
        host_network_ports(e, spec, is_pod);
    }
    e.one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"]);
    e.one_of(
        spec,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    e.labels(spec, "nodeSelector");
    e.child(spec, "securityContext", |e, sc| security_context(e, sc, spec));
    if is_true(spec, "shareProcessNamespace") && is_true(spec, "hostPID") {
        e.invalid(
            "shareProcessNamespace",
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    e.child(spec, "affinity", scheduling::affinity);
    dns_config(e, spec);
    e.each(spec, "readinessGates", |e, _, g| {
        e.format("conditionType", s(g, "conditionType"), names::label_key)
    });
    scheduling_gates(e, spec);
    scheduling::spread(e, spec);
    host_users(e, spec);
    names_of(e, spec);
    scheduling::tolerations(e, spec);
    e.each(spec, "hostAliases", |e, _, a| {
        e.format("ip", s(a, "ip"), ip);
        e.each_str(a, "hostnames", |e, _, name| {
            e.format("", name, names::dns1123_subdomain)
        });
    });
    super::groups::preemption_policy(e, spec);
    if let Some(overhead) = spec.obj("overhead") {
        let limits = Map::from_iter([("limits", overhead.clone())]);
        e.within("overhead", |e| container_resources::resources(e, &limits, None));
    }
    e.child(spec, "os", |e, os| match s(os, "name") {
        "" => e.required("name", ""),
        "linux" | "windows" => {}
        // Upstream's path ends before the name.
        other => e.not_supported("", other, &["linux", "windows"]),
    });
    if spec.obj("os").is_some_and(|os| s(os, "name") == "linux") {
        linux(e, spec);
    }
    container_env::env_files(e, spec);
}

fn names_of(e: &mut Errs, spec: &Map) {
    let account = s(spec, "serviceAccountName");
    if !account.is_empty() {
        e.format("serviceAccountName", account, names::dns1123_subdomain);
    }
    for (key, format) in [
        ("nodeName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
    ] {
        if !s(spec, key).is_empty() {
            e.format(key, s(spec, key), format);
        }
    }
    if let Some(name) = spec.str("runtimeClassName") {
        e.format("runtimeClassName", name, names::dns1123_subdomain);
    }
    if let Some(name) = spec.str("hostnameOverride") {
        if is_true(spec, "setHostnameAsFQDN") {
            e.forbidden(
                "hostnameOverride",
                "may not be specified when setHostnameAsFQDN is true",
            );
        }
        if is_true(spec, "hostNetwork") {
            e.forbidden("hostnameOverride", "may not be specified when hostNetwork is true");
        }
        if name.len() > 64 {
            e.too_long("hostnameOverride", 64);
        }
        e.format("hostnameOverride", name, names::dns1123_subdomain);
    }
    e.in_range(spec, "activeDeadlineSeconds", 1, i32::MAX.into());
}

fn claims<'a>(e: &mut Errs, spec: &'a Map) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    e.each(spec, "resourceClaims", |e, _, c| {
        match s(c, "name") {
            "" => e.required("name", ""),
            name if !seen.insert(name.to_string()) => e.duplicate("name", name),
            name => e.format("name", name, names::dns1123_label),
        }
        match (c.str("resourceClaimName"), c.str("resourceClaimTemplateName")) {
            (Some(_), Some(_)) => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                e.invalid_as("core.PodResourceClaim", "", Some(&Value::Object(c.clone())), why);
            }
            (None, None) => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                e.invalid_as("core.PodResourceClaim", "", Some(&Value::Object(c.clone())), why);
            }
            _ => {}
        }
        for key in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(name) = c.str(key) {
                e.format(key, name, names::dns1123_subdomain);
            }
        }
    });
    let claims = spec.arr("resourceClaims").into_iter().flatten();
    claims
        .filter_map(Value::as_object)
        .map(|claim| s(claim, "name"))
        .collect()
}

/// Requests and limits of the pod as a whole, and whether its containers' fit in.
fn pod_resources(e: &mut Errs, r: &Map, spec: &Map, facts: &PodFacts) {
    if r.contains_key("claims") {
        e.forbidden("claims", "claims may not be set for Resources at pod-level");
    }
    container_resources::pod_resources(e, r, &facts.claims);
    at_least_containers(e, r, spec);
    let Some(limits) = r.obj("limits") else { return };
    for (i, container) in spec.arr("containers").into_iter().flatten().enumerate() {
        let own = container.at(&["resources", "limits"]).and_then(Value::as_object);
        for (name, limit) in own.into_iter().flatten() {
            if let Some(most) = limits.get(name).filter(|most| quantity(limit) > quantity(most)) {
                let why = format!(
                    "must be less than or equal to pod limits of {}",
                    most.as_str().unwrap_or_default()
                );
                e.invalid(&format!("containers[{i}][{name}].limits"), limit.clone(), &why);
            }
        }
    }
}

/// A pod asks for no less than its containers together, and is given no fewer huge pages.
fn at_least_containers(e: &mut Errs, r: &Map, spec: &Map) {
    for (key, counts) in [
        ("requests", (|_| true) as fn(&str) -> bool),
        ("limits", |name| name.starts_with("hugepages-")),
    ] {
        let own = r.obj(key);
        for (name, sum) in of_containers(spec, key).into_iter().filter(|(name, _)| counts(name)) {
            if let Some(of_pod) = own.and_then(|own| own.get(&name)).filter(|v| sum > quantity(v)) {
                let why = format!("must be greater than or equal to aggregate container {key} of {sum}");
                e.invalid(&format!("{key}[{name}]"), of_pod.clone(), &why);
            }
        }
    }
}

fn host_network_ports(e: &mut Errs, spec: &Map, is_pod: bool) {
    e.each(spec, "containers", |e, _, c| {
        e.each(c, "ports", |e, _, p| {
            let (host, container) = (p.int("hostPort").unwrap_or(0), p.int("containerPort").unwrap_or(0));
            if (is_pod || host != 0) && host != container {
                e.invalid(
                    "hostPort",
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        });
    });
}

fn security_context(e: &mut Errs, sc: &Map, spec: &Map) {
    let max = i32::MAX.into();
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        e.in_range(sc, key, 0, max);
    }
    for (i, gid) in sc.arr("supplementalGroups").into_iter().flatten().enumerate() {
        if let Some(gid) = gid.as_i64().filter(|g| !(0..=max).contains(g)) {
            e.invalid(&format!("supplementalGroups[{i}]"), gid, &range_error(0, max));
        }
    }
    sysctls(e, sc, spec);
    e.optional_one_of(sc, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    e.child(sc, "seccompProfile", security::seccomp);
    e.child(sc, "appArmorProfile", security::app_armor);
    e.optional_one_of(sc, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    e.optional_one_of(sc, "seLinuxChangePolicy", &["MountOption", "Recursive"]);
}

const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn is_sysctl(name: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|segment| {
            let b = segment.as_bytes();
            matches!((b.first(), b.last()), (Some(first), Some(last)) if alnum(*first) && alnum(*last))
                && b.iter().all(|c| alnum(*c) || matches!(c, b'-' | b'_'))
        })
}

fn sysctls(e: &mut Errs, sc: &Map, spec: &Map) {
    let mut seen = HashSet::new();
    e.each(sc, "sysctls", |e, _, item| {
        let name = s(item, "name");
        if name.is_empty() {
            e.required("name", "");
        } else if !is_sysctl(name) {
            e.invalid(
                "name",
                name,
                &format!("must have at most 253 characters and match regex {SYSCTL}"),
            );
        } else if seen.contains(name) {
            e.duplicate("name", name);
        }
        seen.insert(name.to_string());
        let dotted = dotted(name);
        let net = dotted.starts_with("net.");
        let ipc = dotted.starts_with("kernel.shm")
            || dotted.starts_with("kernel.msg")
            || dotted == "kernel.sem"
            || dotted.starts_with("fs.mqueue.");
        if net && is_true(spec, "hostNetwork") {
            e.invalid("name", name, "may not be specified when 'hostNetwork' is true");
        }
        if ipc && is_true(spec, "hostIPC") {
            e.invalid("name", name, "may not be specified when 'hostIPC' is true");
        }
    });
}

/// A name whose separators are slashes, with dots: the first separator says which is which.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(i) if name.as_bytes()[i] == b'/' => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_string(),
    }
}

fn dns_config(e: &mut Errs, spec: &Map) {
    let config = spec.obj("dnsConfig");
    if s(spec, "dnsPolicy") == "None" {
        match config {
            None => return e.required("dnsConfig", "must provide `dnsConfig` when `dnsPolicy` is None"),
            Some(c) if count(c, "nameservers") == 0 => {
                let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
                return e.required("dnsConfig.nameservers", why);
            }
            Some(_) => {}
        }
    }
    e.child(spec, "dnsConfig", |e, c| {
        let shown = |key: &str| c.get(key).cloned().unwrap_or(Value::Null);
        if count(c, "nameservers") > 3 {
            e.invalid(
                "nameservers",
                shown("nameservers"),
                "must not have more than 3 nameservers",
            );
        }
        e.each_str(c, "nameservers", |e, _, ns| e.format("", ns, ip));
        if count(c, "searches") > 32 {
            e.invalid("searches", shown("searches"), "must not have more than 32 search paths");
        }
        let chars: usize = c
            .arr("searches")
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|x| x.len() + 1)
            .sum();
        if chars > 2049 {
            let why = "must not have more than 2048 characters (including spaces) in the search list";
            e.invalid("searches", shown("searches"), why);
        }
        e.each_str(c, "searches", |e, _, search| {
            if search != "." {
                let search = search.strip_suffix('.').unwrap_or(search);
                e.format("", search, names::dns1123_subdomain_with_underscore);
            }
        });
        e.each(c, "options", |e, _, o| {
            if s(o, "name").is_empty() {
                e.required("", "must not be empty");
            }
        });
    });
}

fn scheduling_gates(e: &mut Errs, spec: &Map) {
    let mut seen = HashSet::new();
    e.each(spec, "schedulingGates", |e, _, g| {
        e.format("", s(g, "name"), names::label_key);
        if !seen.insert(s(g, "name").to_string()) {
            e.duplicate("", s(g, "name"));
        }
    });
}

/// What a pod that says it is of Linux can't have.
fn linux(e: &mut Errs, spec: &Map) {
    let no_windows = |e: &mut Errs, o: &Map| {
        e.child(o, "securityContext", |e, context| {
            if context.contains_key("windowsOptions") {
                e.forbidden("windowsOptions", "windows options cannot be set for a linux pod");
            }
        });
    };
    no_windows(e, spec);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        e.each(spec, list, |e, _, container| no_windows(e, container));
    }
}

fn host_users(e: &mut Errs, spec: &Map) {
    if spec.bool("hostUsers") != Some(false) {
        return;
    }
    for (key, shown) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if is_true(spec, key) {
            e.forbidden(shown, "when `hostUsers` is false");
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        e.each(spec, list, |e, _, c| {
            if count(c, "volumeDevices") > 0 {
                e.forbidden("volumeDevices", "when `hostUsers` is false");
            }
        });
    }
}

/// A template of pods: its metadata and specification, at `template`.
pub fn template(e: &mut Errs, owner: &Map) {
    let empty = Map::new();
    let t = owner.obj("template").unwrap_or(&empty);
    e.within("template", |e| {
        // Upstream's paths leave `metadata` out here.
        if let Some(m) = t.obj("metadata") {
            e.labels(m, "labels");
            e.annotations(m, "annotations");
        }
        let spec = t.obj("spec").unwrap_or(&empty);
        e.within("spec", |e| {
            pod_spec(e, spec, "", false);
            if count(spec, "ephemeralContainers") > 0 {
                e.forbidden(
                    "ephemeralContainers",
                    "ephemeral containers not allowed in pod template",
                );
            }
        });
    });
}
