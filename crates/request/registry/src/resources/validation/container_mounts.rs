//! Volumes as containers see them: mounts and devices.

use super::check::{Errs, is_true, s};
use super::container::{PodFacts, name_of};
use keelson_api::{Map, Value};
use std::collections::HashSet;

/// What a list names, and where in the container that is.
fn listed<'a>(c: &'a Map, list: &str, place: &str) -> (HashSet<&'a str>, HashSet<&'a str>) {
    let place = |of: &'a Value| of.get(place).and_then(Value::as_str).unwrap_or_default();
    let all = c.arr(list).into_iter().flatten();
    all.map(|of| (name_of(of), place(of))).unzip()
}

pub fn mounts(e: &mut Errs, c: &Map, facts: &PodFacts) {
    let (device_names, device_paths) = listed(c, "volumeDevices", "devicePath");
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
            if device_names.contains(name) {
                e.invalid("name", name, "must not already exist in volumeDevices");
            }
            if device_paths.contains(path) {
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
    let Some(mode) = mount.str("mountPropagation") else {
        return;
    };
    let supported = ["Bidirectional", "HostToContainer", "None"];
    if !supported.contains(&mode) {
        e.not_supported("mountPropagation", mode, &supported);
    }
    let privileged = c.obj("securityContext").is_some_and(|sc| is_true(sc, "privileged"));
    if mode == "Bidirectional" && !privileged {
        e.forbidden(
            "mountPropagation",
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
}

fn recursive_read_only(e: &mut Errs, mount: &Map) {
    let Some(mode) = mount.str("recursiveReadOnly") else {
        return;
    };
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !is_true(mount, "readOnly") {
                e.forbidden("recursiveReadOnly", "may only be specified when readOnly is true");
            }
            if !matches!(s(mount, "mountPropagation"), "" | "None") {
                e.forbidden(
                    "recursiveReadOnly",
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        other => e.not_supported("recursiveReadOnly", other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

pub fn devices(e: &mut Errs, c: &Map, facts: &PodFacts) {
    let (mount_names, mount_paths) = listed(c, "volumeMounts", "mountPath");
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
        if mount_names.contains(name.as_str()) {
            e.invalid("name", name.as_str(), "must not already exist in volumeMounts");
        }
        if mount_paths.contains(path.as_str()) {
            e.invalid(
                "devicePath",
                path.as_str(),
                "must not already exist as a path in volumeMounts",
            );
        }
    });
}
