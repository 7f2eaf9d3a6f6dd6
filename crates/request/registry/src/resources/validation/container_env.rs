//! The environment of a container, and what it is told of its pod.

use super::check::{Errs, config_key, env_name, s};
use keelson_api::{Map, Value};
use keelson_machinery::names;
use std::cell::LazyCell;
use std::collections::HashMap;

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

/// Files of variables are written by the pod itself: they are in an emptyDir of it.
pub fn env_files(e: &mut Errs, spec: &Map) {
    let volumes: LazyCell<HashMap<&str, &Map>, _> = LazyCell::new(|| {
        let all = spec.arr("volumes").into_iter().flatten().filter_map(Value::as_object);
        all.rev().map(|v| (s(v, "name"), v)).collect()
    });
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        e.each(spec, list, |e, _, c| {
            e.each(c, "env", |e, _, var| {
                let file = var.obj("valueFrom").and_then(|from| from.obj("fileKeyRef"));
                let Some(name) = file.map(|f| s(f, "volumeName")) else {
                    return;
                };
                e.within("valueFrom.fileKeyRef", |e| match volumes.get(name) {
                    None => e.not_found("volumeName", name),
                    Some(v) if !v.contains_key("emptyDir") => {
                        e.invalid("volumeName", name, "referenced volume must be of type emptyDir")
                    }
                    Some(_) => {}
                });
            });
        });
    }
}

pub fn env(e: &mut Errs, c: &Map) {
    e.each(c, "env", |e, _, var| {
        match s(var, "name") {
            "" => e.required("name", ""),
            name => e.format("name", name, env_name),
        }
        e.child(var, "valueFrom", |e, from| {
            env_source(e, from);
            let sources = from.len();
            if sources == 0 {
                let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
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
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if s(f, "apiVersion") != "v1" {
        let why = format!(
            "error converting fieldPath: unsupported pod version: {}",
            s(f, "apiVersion")
        );
        return e.invalid("fieldPath", path, &why);
    }
    if !known.contains(&path) {
        return e.invalid(
            "fieldPath",
            path,
            &format!("error converting fieldPath: field label not supported: {path}"),
        );
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
    let amount = resource
        .strip_prefix("limits.")
        .or_else(|| resource.strip_prefix("requests."));
    let kind = match amount {
        Some("cpu") => "cpu",
        Some("memory") => "memory",
        Some("ephemeral-storage") => "local ephemeral storage",
        Some(size) if size.starts_with("hugepages-") => "hugepages",
        _ => return,
    };
    let allowed: &[&str] = match kind {
        "cpu" => &["1m", "1"],
        _ => &[
            "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
        ],
    };
    if !allowed.contains(&divisor) {
        let unit = if kind == "cpu" {
            "1m and 1"
        } else {
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei"
        };
        e.invalid(
            "divisor",
            resource,
            &format!("only divisor's values {unit} are supported with the {kind} resource"),
        );
    }
}
