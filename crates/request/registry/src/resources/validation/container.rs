//! Containers of a pod or a template, of all three sorts.

use super::check::{Errs, count, port_name, s};
use super::container_env::env;
use super::container_mounts::{devices, mounts};
use super::container_resources::{resize_policies, resources};
use super::probes::lifecycle_and_probes;
use super::security::security_context;
use keelson_api::{Map, Value};
use keelson_machinery::names;
use std::collections::{HashMap, HashSet};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
/// What a container's checks know of its pod.
pub struct PodFacts<'a> {
    pub volumes: HashMap<&'a str, &'a Map>,
    pub claims: HashSet<&'a str>,
    pub grace: Option<i64>,
    pub restart_policy: &'a str,
    pub host_users: bool,
}

pub fn name_of(c: &Value) -> &str {
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
    let mut names: HashSet<String> = spec
        .arr("containers")
        .into_iter()
        .flatten()
        .map(|c| name_of(c).into())
        .collect();
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
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "env",
    "envFrom",
    "volumeMounts",
    "volumeDevices",
    "resources",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
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

fn restart_policy(e: &mut Errs, c: &Map, init: bool) {
    let rules = count(c, "restartPolicyRules");
    let policy = c.str("restartPolicy");
    if policy.is_none() && rules > 0 {
        e.required(
            "restartPolicy",
            "must specify restartPolicy when restart rules are used",
        );
    }
    // Rules of an init container without a policy aren't looked at.
    if init && policy.is_none() {
        return;
    }
    e.optional_one_of(c, "restartPolicy", &["Always", "Never", "OnFailure"]);
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
