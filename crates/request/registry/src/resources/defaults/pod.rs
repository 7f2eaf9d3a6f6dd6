//! Pods, and the pod templates of everything that makes pods.

use super::super::pod_resources::{for_pods, of_containers};
use super::{each, fill, fill_absent, fill_zero, has_items, inner, round_resources};
use keelson_api::{Map, Object, Value};

pub fn pod(pod: &mut Object) {
    let Some(spec) = inner(pod, "spec") else { return };
    pod_spec(spec);
    only_pods(spec);
    if let Some(status) = inner(pod, "status") {
        pod_status(status);
    }
}

/// Keeps the single address and the list in step; the single one wins.
pub fn pod_status(status: &mut Map) {
    let ip = status.str("podIP").unwrap_or_default().to_string();
    let first = status
        .arr("podIPs")
        .and_then(|l| l.first())
        .and_then(|i| i.get("ip"))
        .and_then(Value::as_str);
    match (ip.is_empty(), first.map(str::to_string)) {
        (false, first) if first.as_deref() != Some(&ip) => {
            let mut one = Map::new();
            one.push("ip", ip);
            status.insert("podIPs", vec![Value::Object(one)]);
        }
        (true, Some(first)) if !first.is_empty() => {
            status.insert("podIP", first);
        }
        _ => {}
    }
}

/// What pods get and templates don't.
fn only_pods(spec: &mut Map) {
    if spec.int("terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        spec.insert("terminationGracePeriodSeconds", 1i64);
    }
    for list in ["containers", "initContainers"] {
        each(spec, list, |c| {
            if let Some(r) = inner(c, "resources") {
                requests_from_limits(r);
            }
        });
    }
    fill_absent(spec, "enableServiceLinks", true);
    if spec.bool("hostNetwork") == Some(true) {
        for list in ["containers", "initContainers"] {
            each(spec, list, |c| {
                each(c, "ports", |p| {
                    if let Some(port) = p.int("containerPort") {
                        fill_zero(p, "hostPort", port);
                    }
                });
            });
        }
    }
}

fn requests_from_limits(resources: &mut Map) {
    let Some(limits) = resources.obj("limits").filter(|l| !l.is_empty()).cloned() else {
        return;
    };
    let requests = resources.object_mut("requests");
    for (name, amount) in limits {
        fill_absent(requests, &name, amount);
    }
}

/// Pod-level requests and huge-page limits, once all containers are known (at creation, after admission): of what a pod says
/// something of for itself.
pub fn hugepages_and_requests(spec: &mut Map) {
    let given = |spec: &Map, key: &str| {
        let list = spec.obj("resources").and_then(|r| r.obj(key));
        list.cloned().unwrap_or_default()
    };
    let (limits, requests) = (given(spec, "limits"), given(spec, "requests"));
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    let mut limits = limits;
    for (name, amount) in of_containers(spec, "limits") {
        if name.starts_with("hugepages-") && !requests.contains_key(&name) {
            fill_absent(&mut limits, &name, amount.to_string());
        }
    }
    if limits.is_empty() {
        return;
    }
    let mut requests = requests;
    for (name, amount) in of_containers(spec, "requests") {
        if matches!(name.as_str(), "cpu" | "memory") {
            fill_absent(&mut requests, &name, amount.to_string());
        }
    }
    for (name, amount) in limits.iter().filter(|(name, _)| for_pods(name)) {
        fill_absent(&mut requests, name, amount.clone());
    }
    let resources = spec.object_mut("resources");
    resources.insert("limits", limits);
    if !requests.is_empty() {
        resources.insert("requests", requests);
    }
}

pub fn template(owner: &mut Map) {
    if let Some(spec) = inner(owner, "template").and_then(|t| inner(t, "spec")) {
        pod_spec(spec);
    }
}

/// What pods and templates get alike.
pub fn pod_spec(spec: &mut Map) {
    let account = match spec.str("serviceAccountName").filter(|s| !s.is_empty()) {
        Some(name) => name.to_string(),
        None => spec.str("serviceAccount").unwrap_or_default().to_string(),
    };
    if !account.is_empty() {
        spec.insert("serviceAccountName", account.as_str());
        spec.insert("serviceAccount", account);
    }
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    fill_absent(spec, "securityContext", Map::new());
    fill_absent(spec, "terminationGracePeriodSeconds", 30i64);
    fill(spec, "schedulerName", "default-scheduler");
    each(spec, "volumes", volume);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list, container);
    }
    round_resources(spec, "overhead");
    if let Some(r) = inner(spec, "resources") {
        round_requirements(r);
    }
}

pub fn round_requirements(r: &mut Map) {
    round_resources(r, "limits");
    round_resources(r, "requests");
}

fn container(c: &mut Map) {
    let policy = pull_policy(c.str("image").unwrap_or_default());
    fill(c, "imagePullPolicy", policy);
    fill(c, "terminationMessagePath", "/dev/termination-log");
    fill(c, "terminationMessagePolicy", "File");
    each(c, "env", |e| {
        if let Some(field) = inner(e, "valueFrom").and_then(|v| inner(v, "fieldRef")) {
            fill(field, "apiVersion", "v1");
        }
    });
    if let Some(r) = inner(c, "resources") {
        round_requirements(r);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = inner(c, probe) {
            for (key, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                fill_zero(p, key, value);
            }
        }
    }
    each_http_get(c, |get| {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    });
}

/// The HTTP requests of a container's probes and hooks.
fn each_http_get(c: &mut Map, f: impl Fn(&mut Map)) {
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(get) = inner(c, probe).and_then(|p| inner(p, "httpGet")) {
            f(get);
        }
    }
    let Some(lifecycle) = inner(c, "lifecycle") else { return };
    for hook in ["postStart", "preStop"] {
        if let Some(get) = inner(lifecycle, hook).and_then(|h| inner(h, "httpGet")) {
            f(get);
        }
    }
}

/// Images that float are pulled always.
pub fn pull_policy(image: &str) -> &'static str {
    let name = image.split('@').next().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    let latest = match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !image.contains('@'),
    };
    let latest = latest && is_reference(name);
    if latest { "Always" } else { "IfNotPresent" }
}

/// Whether the path of an image's name is well formed; of what isn't, upstream assumes no tag.
fn is_reference(name: &str) -> bool {
    let (host, path) = match name.split_once('/') {
        // No part of a path has capital letters.
        Some((host, path))
            if host.contains(['.', ':']) || host == "localhost" || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (host, path)
        }
        _ => ("", name),
    };
    let path = match path.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => path,
    };
    // Sixty-four digits alone are an image's identifier, not its name.
    let is_identifier = name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let library = if host.is_empty() && !path.contains('/') {
        "library/"
    } else {
        ""
    };
    let is_short = library.len() + path.len() <= LONGEST_PATH;
    is_host(host) && is_short && path.split('/').all(is_path_component) && !is_identifier
}

const LONGEST_PATH: usize = 255;

/// Letters and digits, and between them a dot, one or two underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separates = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    text.starts_with(alnum) && text.ends_with(alnum) && text.split(alnum).all(separates)
}

/// Whether an image's host is none, or a name with a port perhaps.
fn is_host(host: &str) -> bool {
    // The colons of an address in brackets begin no port.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, "0"),
    };
    let label = |label: &str| {
        let b = label.as_bytes();
        b.first().is_some_and(u8::is_ascii_alphanumeric)
            && b.last().is_some_and(u8::is_ascii_alphanumeric)
            && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_address = address.is_some_and(|a| !a.is_empty() && a.bytes().all(|c| c.is_ascii_hexdigit() || c == b':'));
    let is_port = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    host.is_empty() || is_port && (is_address || name.split('.').all(label))
}

fn volume(v: &mut Map) {
    if v.len() <= 1 && v.keys().all(|k| k == "name") {
        v.insert("emptyDir", Map::new());
        return;
    }
    for (source, mode) in [
        ("secret", 0o644i64),
        ("configMap", 0o644),
        ("downwardAPI", 0o644),
        ("projected", 0o644),
    ] {
        if let Some(s) = inner(v, source) {
            fill_absent(s, "defaultMode", mode);
        }
    }
    if let Some(path) = inner(v, "hostPath") {
        fill_absent(path, "type", "");
    }
    if let Some(image) = inner(v, "image") {
        let policy = pull_policy(image.str("reference").unwrap_or_default());
        fill(image, "pullPolicy", policy);
    }
    let field_refs = |items: &mut Map| {
        each(items, "items", |i| {
            if let Some(field) = inner(i, "fieldRef") {
                fill(field, "apiVersion", "v1");
            }
        });
    };
    if let Some(api) = inner(v, "downwardAPI") {
        field_refs(api);
    }
    if let Some(projected) = inner(v, "projected") {
        each(projected, "sources", |s| {
            if let Some(api) = inner(s, "downwardAPI") {
                field_refs(api);
            }
            if let Some(token) = inner(s, "serviceAccountToken") {
                fill_absent(token, "expirationSeconds", 3600i64);
            }
        });
    }
    if let Some(spec) = inner(v, "ephemeral")
        .and_then(|e| inner(e, "volumeClaimTemplate"))
        .and_then(|t| inner(t, "spec"))
    {
        claim_spec(spec);
    }
}

pub fn claim_spec(spec: &mut Map) {
    fill_absent(spec, "volumeMode", "Filesystem");
    if let Some(r) = inner(spec, "resources") {
        round_requirements(r);
    }
}

/// Labels of the template stand in for what its owner lacks.
pub fn template_labels(spec: &Map) -> Option<Map> {
    let labels = spec.get("template")?.at(&["metadata", "labels"])?.as_object()?;
    (!labels.is_empty()).then(|| labels.clone())
}

/// Labels an owner like its template when it has none.
pub fn label_like_template(o: &mut Object) {
    let Some(labels) = o.obj("spec").and_then(template_labels) else {
        return;
    };
    if !o.meta().is_some_and(|m| has_items(m, "labels")) {
        o.meta_mut().insert("labels", labels);
    }
}
