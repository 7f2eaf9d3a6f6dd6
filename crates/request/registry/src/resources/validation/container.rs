//! Containers of a pod or a template, of all three sorts.

use super::check::{Errs, config_key, count, env_name, header_name, is_true, port_name, quantity, s};
use keelson_api::{Map, Value};
use keelson_machinery::names;
use std::collections::{HashMap, HashSet};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// What a container's checks know of its pod.
pub struct PodFacts<'a> {
    pub volumes: HashMap<&'a str, &'a Map>,
    pub claims: HashSet<&'a str>,
    pub grace: Option<i64>,
    pub restart_policy: &'a str,
    pub host_users: bool,
}

fn name_of(c: &Value) -> &str {
    c.get("name").and_then(Value::as_str).unwrap_or_default()
}

pub fn containers(e: &mut Errs, spec: &Map, facts: &PodFacts) {
    if count(spec, "containers") == 0 {
        e.required("containers", "");
        return;
    }
    let mut names = HashSet::new();
    let mut ports = HashSet::new();
    e.each(spec, "containers", |e, _, c| {
        common(e, c, facts);
        if !names.insert(s(c, "name").to_string()) {
            e.duplicate("name", s(c, "name"));
        }
        lifecycle_and_probes(e, c, facts);
        restart_policy(e, c, false);
        host_ports(e, c, &mut ports);
    });
}

pub fn init_containers(e: &mut Errs, spec: &Map, facts: &PodFacts) {
    let mut names: HashSet<String> = spec.arr("containers").into_iter().flatten().map(|c| name_of(c).into()).collect();
    e.each(spec, "initContainers", |e, _, c| {
        common(e, c, facts);
        restart_policy(e, c, true);
        if names.contains(s(c, "name")) {
            e.duplicate("name", s(c, "name"));
        } else if !s(c, "name").is_empty() {
            names.insert(s(c, "name").into());
        }
        host_ports(e, c, &mut HashSet::new());
        let sidecar = s(c, "restartPolicy") == "Always";
        if sidecar {
            lifecycle_and_probes(e, c, facts);
            return;
        }
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if c.contains_key(key) {
                e.forbidden(key, "may not be set for init containers without restartPolicy=Always");
            }
        }
        e.each(c, "resizePolicy", |e, _, p| {
            if s(p, "restartPolicy") == "RestartContainer" {
                let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                e.invalid("restartPolicy", "RestartContainer", why);
            }
        });
    });
}

/// The members that an ephemeral container may have.
const EPHEMERAL_FIELDS: &[&str] = &[
    "name", "image", "command", "args", "workingDir", "env", "envFrom", "volumeMounts", "volumeDevices", "resources",
    "terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy", "securityContext", "stdin", "stdinOnce", "tty",
    "targetContainerName",
];

pub fn ephemeral_containers(e: &mut Errs, spec: &Map, facts: &PodFacts) {
    let listed = |key: &str| spec.arr(key).into_iter().flatten().map(|c| name_of(c).to_string());
    let others: HashSet<String> = listed("containers").chain(listed("initContainers")).collect();
    let mut names = others.clone();
    e.each(spec, "ephemeralContainers", |e, _, c| {
        common(e, c, facts);
        untrimmed_image(e, c);
        if !names.insert(s(c, "name").to_string()) {
            e.duplicate("name", s(c, "name"));
        }
        let target = s(c, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            e.not_found("targetContainerName", target);
        }
        for (key, value) in c {
            let set = !matches!(value, Value::Null) && value.as_object().is_none_or(|m| !m.is_empty());
            let forbidden = !EPHEMERAL_FIELDS.contains(&key.as_str());
            if set && (forbidden || (key == "resources")) {
                e.forbidden(key, "cannot be set for an Ephemeral Container");
            }
        }
        e.each(c, "volumeMounts", |e, _, mount| {
            for key in ["subPath", "subPathExpr"] {
                if !s(mount, key).is_empty() {
                    e.forbidden(key, "cannot be set for an Ephemeral Container");
                }
            }
        });
    });
}

/// What only pods check, not templates.
pub fn untrimmed_image(e: &mut Errs, c: &Map) {
    if s(c, "image").trim() != s(c, "image") {
        e.invalid("image", s(c, "image"), "must not have leading or trailing whitespace");
    }
}

fn common(e: &mut Errs, c: &Map, facts: &PodFacts) {
    match s(c, "name") {
        "" => e.required("name", ""),
        name => e.format("name", name, names::dns1123_label),
    }
    if s(c, "image").is_empty() {
        e.required("image", "");
    }
    e.one_of(c, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(e, c);
    env(e, c);
    mounts(e, c, facts);
    devices(e, c, facts);
    e.one_of(c, "imagePullPolicy", PULL_POLICIES);
    e.child(c, "resources", |e, r| resources(e, r, Some(&facts.claims)));
    resize_policies(e, c, facts);
    e.child(c, "securityContext", |e, sc| security_context(e, sc, facts.host_users));
}

fn ports(e: &mut Errs, c: &Map) {
    let mut names = HashSet::new();
    e.each(c, "ports", |e, _, p| {
        let name = s(p, "name");
        if !name.is_empty() {
            let msgs = port_name(name);
            if msgs.is_empty() && !names.insert(name.to_string()) {
                e.duplicate("name", name);
            }
            msgs.iter().for_each(|m| e.invalid("name", name, m));
        }
        if p.int("containerPort").unwrap_or(0) == 0 {
            e.required("containerPort", "");
        } else {
            e.port(p, "containerPort");
        }
        if p.int("hostPort").unwrap_or(0) != 0 {
            e.port(p, "hostPort");
        }
        e.one_of(p, "protocol", PROTOCOLS);
    });
}

fn host_ports(e: &mut Errs, c: &Map, seen: &mut HashSet<String>) {
    e.each(c, "ports", |e, _, p| {
        let port = p.int("hostPort").unwrap_or(0);
        let key = format!("{}/{}/{port}", s(p, "protocol"), s(p, "hostIP"));
        if port != 0 && !seen.insert(key.clone()) {
            e.duplicate("hostPort", key);
        }
    });
}

fn env(e: &mut Errs, c: &Map) {
    e.each(c, "env", |e, _, var| {
        match s(var, "name") {
            "" => e.required("name", ""),
            name => e.format("name", name, env_name),
        }
        e.child(var, "valueFrom", |e, from| {
            env_source(e, from);
            let sources = from.len();
            if sources == 0 {
                let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
                e.invalid("", "", why);
            } else if !s(var, "value").is_empty() {
                e.invalid("", "", "may not be specified when `value` is not empty");
            } else if sources > 1 {
                e.invalid("", "", "may not have more than one field specified at a time");
            }
        });
    });
    let Some(list) = c.arr("envFrom") else { return };
    for (i, from) in list.iter().enumerate() {
        let Some(from) = from.as_object() else { continue };
        e.within(&format!("envFrom[{i}]"), |e| {
            if !s(from, "prefix").is_empty() {
                e.format("prefix", s(from, "prefix"), env_name);
            }
            for key in ["configMapRef", "secretRef"] {
                e.child(from, key, |e, r| match s(r, "name") {
                    "" => e.required("name", ""),
                    name => e.format("name", name, names::dns1123_subdomain),
                });
            }
        });
        match usize::from(from.contains_key("configMapRef")) + usize::from(from.contains_key("secretRef")) {
            0 => e.invalid("envFrom", "", "must specify one of: `configMapRef` or `secretRef`"),
            2 => e.invalid("envFrom", "", "may not have more than one field specified at a time"),
            _ => {}
        }
    }
}

fn env_source(e: &mut Errs, from: &Map) {
    e.child(from, "fieldRef", |e, f| field_ref(e, f, ENV_FIELDS));
    e.child(from, "resourceFieldRef", |e, f| resource_field_ref(e, f, false));
    for key in ["configMapKeyRef", "secretKeyRef"] {
        e.child(from, key, |e, r| {
            e.format("name", s(r, "name"), names::dns1123_subdomain);
            match s(r, "key") {
                "" => e.required("key", ""),
                key => e.format("key", key, config_key),
            }
        });
    }
    e.child(from, "fileKeyRef", |e, f| {
        match s(f, "key") {
            "" => e.required("key", ""),
            key => e.format("key", key, env_name),
        }
        match s(f, "volumeName") {
            "" => e.required("volumeName", ""),
            name => e.format("volumeName", name, names::dns1123_label),
        }
        match s(f, "path") {
            "" => e.required("path", ""),
            path => e.local_unreserved_path("path", path),
        }
    });
}

/// A field of the pod that is told to its containers.
pub fn field_ref(e: &mut Errs, f: &Map, allowed: &[&str]) {
    if s(f, "apiVersion").is_empty() {
        return e.required("apiVersion", "");
    }
    let path = s(f, "fieldPath");
    if path.is_empty() {
        return e.required("fieldPath", "");
    }
    if let Some((base, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        return match base {
            "metadata.annotations" => e.format("", &key.to_lowercase(), names::label_key),
            "metadata.labels" => e.format("", key, names::label_key),
            _ => e.invalid("", base, "does not support subscript"),
        };
    }
    let known = [
        "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
        "spec.restartPolicy", "spec.serviceAccountName", "spec.schedulerName", "status.phase", "status.hostIP", "status.hostIPs",
        "status.podIP", "status.podIPs",
    ];
    if s(f, "apiVersion") != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {}", s(f, "apiVersion"));
        return e.invalid("fieldPath", path, &why);
    }
    if !known.contains(&path) {
        return e.invalid("fieldPath", path, &format!("error converting fieldPath: field label not supported: {path}"));
    }
    if !allowed.contains(&path) {
        e.not_supported("fieldPath", path, allowed);
    }
}

pub fn resource_field_ref(e: &mut Errs, f: &Map, volume: bool) {
    let resource = s(f, "resource");
    if volume && s(f, "containerName").is_empty() {
        e.required("containerName", "");
    } else if resource.is_empty() {
        e.required("resource", "");
    } else if !RESOURCE_FIELDS.contains(&resource)
        && !resource.starts_with("limits.hugepages-")
        && !resource.starts_with("requests.hugepages-")
    {
        e.not_supported("resource", resource, RESOURCE_FIELDS);
    }
    let divisor = s(f, "divisor");
    if matches!(divisor, "" | "0") {
        return;
    }
    let (allowed, kind): (&[&str], &str) = if resource.ends_with("cpu") {
        (&["1m", "1"], "cpu")
    } else {
        (
            &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
            if resource.ends_with("memory") {
                "memory"
            } else if resource.contains("hugepages-") {
                "hugepages"
            } else {
                "local ephemeral storage"
            },
        )
    };
    if !allowed.contains(&divisor) {
        let unit = if kind == "cpu" { "1m and 1" } else { "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei" };
        e.invalid("divisor", divisor, &format!("only divisor's values {unit} are supported with the {kind} resource"));
    }
}

fn mounts(e: &mut Errs, c: &Map, facts: &PodFacts) {
    let devices: Vec<(&str, &str)> = c
        .arr("volumeDevices")
        .into_iter()
        .flatten()
        .map(|d| (name_of(d), d.get("devicePath").and_then(Value::as_str).unwrap_or_default()))
        .collect();
    let mut points = HashSet::new();
    let Some(list) = c.arr("volumeMounts") else { return };
    for (i, mount) in list.iter().enumerate() {
        let Some(mount) = mount.as_object() else { continue };
        let (name, path) = (s(mount, "name"), s(mount, "mountPath"));
        e.within(&format!("volumeMounts[{i}]"), |e| {
            if name.is_empty() {
                e.required("name", "");
            }
            if !facts.volumes.contains_key(name) {
                e.not_found("name", name);
            }
            if path.is_empty() {
                e.required("mountPath", "");
            }
            if !points.insert(path) {
                e.invalid("mountPath", path, "must be unique");
            }
            if devices.iter().any(|(n, _)| *n == name) {
                e.invalid("name", name, "must not already exist in volumeDevices");
            }
            if devices.iter().any(|(_, p)| *p == path) {
                e.invalid("mountPath", path, "must not already exist as a path in volumeDevices");
            }
        });
        e.within("volumeMounts", |e| {
            let (sub, expr) = (s(mount, "subPath"), s(mount, "subPathExpr"));
            if !sub.is_empty() {
                e.local_path("subPath", sub);
            }
            if !expr.is_empty() {
                if !sub.is_empty() {
                    e.within(&format!("[{i}]"), |e| {
                        e.invalid("subPathExpr", expr, "subPathExpr and subPath are mutually exclusive");
                    });
                }
                e.local_path("subPathExpr", expr);
            }
            propagation(e, mount, c);
            recursive_read_only(e, mount);
        });
    }
}

fn propagation(e: &mut Errs, mount: &Map, c: &Map) {
    let Some(mode) = mount.str("mountPropagation") else { return };
    let supported = ["Bidirectional", "HostToContainer", "None"];
    if !supported.contains(&mode) {
        e.not_supported("mountPropagation", mode, &supported);
    }
    let privileged = c.obj("securityContext").is_some_and(|sc| is_true(sc, "privileged"));
    if mode == "Bidirectional" && !privileged {
        e.forbidden("mountPropagation", "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn recursive_read_only(e: &mut Errs, mount: &Map) {
    let Some(mode) = mount.str("recursiveReadOnly") else { return };
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !is_true(mount, "readOnly") {
                e.forbidden("recursiveReadOnly", "may only be specified when readOnly is true");
            }
            if !matches!(s(mount, "mountPropagation"), "" | "None") {
                e.forbidden("recursiveReadOnly", "may only be specified when mountPropagation is None or not specified");
            }
        }
        other => e.not_supported("recursiveReadOnly", other, &["Disabled", "IfPossible", "Enabled"]),
    }
}

fn devices(e: &mut Errs, c: &Map, facts: &PodFacts) {
    let mounts: Vec<(&str, &str)> = c
        .arr("volumeMounts")
        .into_iter()
        .flatten()
        .map(|d| (name_of(d), d.get("mountPath").and_then(Value::as_str).unwrap_or_default()))
        .collect();
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    e.each(c, "volumeDevices", |e, _, d| {
        let (name, path) = (s(d, "name").to_string(), s(d, "devicePath").to_string());
        let volume = facts.volumes.get(name.as_str());
        if name.is_empty() {
            e.required("name", "");
        } else if !names.insert(name.clone()) {
            e.invalid("name", name.as_str(), "must be unique");
        }
        match volume {
            None => e.not_found("name", name.as_str()),
            Some(v) if !v.contains_key("persistentVolumeClaim") && !v.contains_key("ephemeral") => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                e.invalid("name", name.as_str(), why);
            }
            Some(_) => {}
        }
        if path.is_empty() {
            e.required("devicePath", "");
        } else if !paths.insert(path.clone()) {
            e.invalid("devicePath", path.as_str(), "must be unique");
        }
        if path.split('/').any(|p| p == "..") {
            e.invalid("devicePath", path.as_str(), "can not contain backsteps ('..')");
        }
        if mounts.iter().any(|(n, _)| *n == name) {
            e.invalid("name", name.as_str(), "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|(_, p)| *p == path) {
            e.invalid("devicePath", path.as_str(), "must not already exist as a path in volumeMounts");
        }
    });
}

/// Whether requests may stay below limits: true for what Kubernetes itself knows, besides huge pages.
fn overcommits(name: &str) -> bool {
    !name.contains('/') && !name.starts_with("hugepages-") || name.starts_with("kubernetes.io/")
}

fn resource_name(e: &mut Errs, name: &str) {
    let msgs = names::label_key(name);
    if !msgs.is_empty() {
        return msgs.iter().for_each(|m| e.invalid("", name, m));
    }
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !known {
        e.invalid("", name, "must be a standard resource for containers");
    }
}

/// Requests and limits.
pub fn resources(e: &mut Errs, r: &Map, claims: Option<&HashSet<&str>>) {
    let empty = Map::new();
    let (limits, requests) = (r.obj("limits").unwrap_or(&empty), r.obj("requests").unwrap_or(&empty));
    let amount = |e: &mut Errs, name: &str, v: &Value| {
        resource_name(e, name);
        let q = quantity(v);
        if q.is_negative() {
            e.invalid("", v.clone(), super::check::NOT_NEGATIVE);
        }
        let whole = name.contains('/') && !name.starts_with("kubernetes.io/") || name.starts_with("hugepages-");
        if whole && !q.is_whole() {
            e.invalid("", v.clone(), "must be an integer");
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
                    e.invalid("requests", v.clone(), &format!("must be equal to {name} limit of {limit}"));
                } else if q > l {
                    e.invalid("requests", v.clone(), &format!("must be less than or equal to {name} limit of {limit}"));
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
    let Some(claims) = claims else { return };
    let mut seen = HashSet::new();
    e.each(r, "claims", |e, _, claim| match s(claim, "name") {
        "" => e.required("name", ""),
        name => {
            if !seen.insert((name.to_string(), s(claim, "request").to_string())) {
                e.duplicate("", name);
            }
            if !claims.contains(name) {
                e.not_found("name", name);
            }
        }
    });
}

fn resize_policies(e: &mut Errs, c: &Map, facts: &PodFacts) {
    let mut seen = HashSet::new();
    let Some(list) = c.arr("resizePolicy") else { return };
    for (i, p) in list.iter().enumerate() {
        let Some(p) = p.as_object() else { continue };
        if !seen.insert(s(p, "resourceName")) {
            e.duplicate(&format!("resizePolicy[{i}]"), s(p, "resourceName"));
        }
        for (key, supported) in
            [("resourceName", ["cpu", "memory"]), ("restartPolicy", ["NotRequired", "RestartContainer"])]
        {
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

fn security_context(e: &mut Errs, sc: &Map, host_users: bool) {
    e.in_range(sc, "runAsUser", 0, i32::MAX.into());
    e.in_range(sc, "runAsGroup", 0, i32::MAX.into());
    if sc.contains_key("procMount") {
        e.optional_one_of(sc, "procMount", &["Default", "Unmasked"]);
        if host_users && s(sc, "procMount") == "Unmasked" {
            e.invalid("procMount", "Unmasked", "`hostUsers` must be false to use `Unmasked`");
        }
    }
    e.child(sc, "seccompProfile", seccomp);
    e.child(sc, "appArmorProfile", app_armor);
    if sc.bool("allowPrivilegeEscalation") == Some(false) {
        if is_true(sc, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            e.invalid("", sc.clone(), why);
        }
        let added = sc.obj("capabilities").and_then(|c| c.arr("add")).into_iter().flatten();
        if added.filter_map(Value::as_str).any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            e.invalid("", sc.clone(), why);
        }
    }
}

pub fn seccomp(e: &mut Errs, p: &Map) {
    match s(p, "type") {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => e.required("type", "type is required when seccompProfile is set"),
        other => e.not_supported("type", other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    match (s(p, "type"), p.str("localhostProfile")) {
        ("Localhost", None) => e.required("localhostProfile", "must be set when seccomp type is Localhost"),
        ("Localhost", Some(path)) => e.local_path("localhostProfile", path),
        (_, Some(_)) => {
            e.invalid("localhostProfile", p.clone(), "can only be set when seccomp type is Localhost");
        }
        _ => {}
    }
}

pub fn app_armor(e: &mut Errs, p: &Map) {
    let profile = p.str("localhostProfile");
    match s(p, "type") {
        "Localhost" => match profile {
            None => e.required("localhostProfile", "must be set when AppArmor type is Localhost"),
            Some(text) if text.trim() != text => {
                e.invalid("localhostProfile", text, "must not be padded with whitespace");
            }
            Some("") => e.required("localhostProfile", "must be set when AppArmor type is Localhost"),
            Some(text) if text.len() > 4095 => e.too_long("localhostProfile", 4095),
            Some(_) => {}
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(text) = profile {
                e.invalid("localhostProfile", text, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => e.required("type", "type is required when appArmorProfile is set"),
        other => e.not_supported("type", other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn lifecycle_and_probes(e: &mut Errs, c: &Map, facts: &PodFacts) {
    e.child(c, "lifecycle", |e, l| {
        for hook in ["postStart", "preStop"] {
            e.child(l, hook, |e, h| handler(e, h, facts.grace));
        }
    });
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        e.child(c, key, |e, p| {
            handler(e, p, facts.grace);
            for number in
                ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
            {
                e.non_negative(p, number);
            }
            if let Some(n) = p.int("terminationGracePeriodSeconds") {
                if n <= 0 {
                    e.invalid("terminationGracePeriodSeconds", n, "must be greater than 0");
                }
                if key == "readinessProbe" {
                    e.invalid("terminationGracePeriodSeconds", n, "must not be set for readinessProbes");
                }
            }
            let success = p.int("successThreshold").unwrap_or(0);
            if key != "readinessProbe" && success != 1 {
                e.invalid("successThreshold", success, "must be 1");
            }
        });
    }
}

fn handler(e: &mut Errs, h: &Map, grace: Option<i64>) {
    let mut found = false;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        if !h.contains_key(kind) {
            continue;
        }
        if found {
            e.forbidden(kind, "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        e.child(h, kind, |e, action| match kind {
            "exec" if count(action, "command") == 0 => e.required("command", ""),
            "httpGet" => http_get(e, action),
            "tcpSocket" => e.port_or_name(action, "port"),
            "grpc" => e.port(action, "port"),
            "sleep" => {
                let seconds = action.int("seconds").unwrap_or(0);
                if let Some(grace) = grace.filter(|g| seconds < 0 || seconds > *g) {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    e.invalid("", seconds, &why);
                }
            }
            _ => {}
        });
    }
    if !found {
        e.required("", "must specify a handler type");
    }
}

fn http_get(e: &mut Errs, get: &Map) {
    if s(get, "path").is_empty() {
        e.required("path", "");
    }
    e.port_or_name(get, "port");
    let schemes = ["HTTP", "HTTPS"];
    if !schemes.contains(&s(get, "scheme")) {
        e.not_supported("scheme", s(get, "scheme"), &schemes);
    }
    for header in get.arr("httpHeaders").into_iter().flatten() {
        e.format("httpHeaders", name_of(header), header_name);
    }
    if let Some(protocol) = get.str("protocol") {
        let supported = ["HTTP1", "HTTP2"];
        if !supported.contains(&protocol) {
            e.not_supported("protocol", protocol, &supported);
        } else if protocol == "HTTP2" && s(get, "scheme") != "HTTP" {
            e.invalid("protocol", protocol, "is only supported with HTTP (H2C)");
        } else if protocol == "HTTP2" && !s(get, "host").is_empty() {
            e.invalid("host", s(get, "host"), "must be empty when `protocol` is \"HTTP2\"");
        }
    }
}

fn restart_policy(e: &mut Errs, c: &Map, init: bool) {
    let rules = count(c, "restartPolicyRules");
    let policy = c.str("restartPolicy");
    if policy.is_none() {
        if rules > 0 {
            e.required("restartPolicy", "must specify restartPolicy when restart rules are used");
        }
        return;
    }
    e.optional_one_of(c, "restartPolicy", &["Always", "Never", "OnFailure"]);
    if init && policy == Some("Always") && rules > 0 {
        e.forbidden("restartPolicyRules", "restartPolicyRules are not allowed for init containers with restart policy Always");
        return;
    }
    if rules > 20 {
        e.too_many("restartPolicyRules", rules, 20);
    }
    e.each(c, "restartPolicyRules", |e, _, rule| {
        if !matches!(s(rule, "action"), "Restart" | "RestartAllContainers") {
            e.not_supported("action", s(rule, "action"), &["Restart", "RestartAllContainers"]);
        }
        if !rule.contains_key("exitCodes") {
            e.required("exitCodes", "must be specified");
        }
        e.child(rule, "exitCodes", |e, codes| {
            if !matches!(s(codes, "operator"), "In" | "NotIn") {
                e.not_supported("operator", s(codes, "operator"), &["In", "NotIn"]);
            }
            if count(codes, "values") > 255 {
                e.too_many("values", count(codes, "values"), 255);
            }
        });
    });
}
