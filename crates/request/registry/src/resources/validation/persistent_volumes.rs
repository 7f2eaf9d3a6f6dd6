//! Persistent volumes: what one is, wherever it stands, and what may change of it.

use super::Rules;
use super::check::{Errs, count, quantity, s};
use super::storage::{VOLUME_MODES, access_modes, driver_name};
use super::{scheduling, volume_sources};
use crate::strategy::same;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;

pub const VOLUME: Rules = Rules {
    object: |_, o, e| {
        e.child(o, "spec", |e, v| spec(e, v, o.name(), false));
        mount_options(o, e);
    },
    update: |_, new, old, e| update(new, old, e),
    ..Rules::SUBDOMAIN
};

/// The sources of a persistent volume.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// Those that are mounted with options that an annotation says.
const MOUNTED_WITH_OPTIONS: &[&str] = &[
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "nfs",
    "rbd",
    "quobyte",
    "iscsi",
    "cinder",
    "cephfs",
    "azureFile",
    "vsphereVolume",
    "azureDisk",
    "photonPersistentDisk",
];

fn mount_options(o: &Object, e: &mut Errs) {
    const KEY: &str = "volume.beta.kubernetes.io/mount-options";
    let takes = |spec: &Map| MOUNTED_WITH_OPTIONS.iter().any(|kind| spec.contains_key(kind));
    if o.annotation(KEY).is_some() && !o.obj("spec").is_some_and(takes) {
        let why = "may not specify mount options for this volume type";
        e.forbidden(&format!("metadata.annotations.{KEY}"), why);
    }
}

const NOT_INLINE: &str = "may not be specified in the context of inline volumes";

/// A volume's `spec`; `inline` if it stands within an attachment: what a driver needs of one that was in a pod, and nothing of
/// where it is from.
pub fn spec(e: &mut Errs, spec: &Map, name: &str, inline: bool) {
    if inline {
        for key in ["claimRef", "capacity"] {
            if spec.obj(key).is_some_and(|m| key == "claimRef" || !m.is_empty()) {
                e.forbidden(key, NOT_INLINE);
            }
        }
        if !spec.contains_key("csi") {
            e.required("csi", "has to be specified in the context of inline volumes");
        }
    }
    if count(spec, "accessModes") == 0 {
        e.required("accessModes", "");
    }
    access_modes(e, spec);
    if !inline {
        capacity(e, spec);
    }
    match s(spec, "persistentVolumeReclaimPolicy") {
        "" => {}
        policy if !inline => {
            const POLICIES: [&str; 3] = ["Delete", "Recycle", "Retain"];
            if !POLICIES.contains(&policy) {
                e.not_supported("persistentVolumeReclaimPolicy", policy, &POLICIES);
            }
        }
        "Retain" => {}
        _ => e.forbidden(
            "persistentVolumeReclaimPolicy",
            "may only be Retain in the context of inline volumes",
        ),
    }
    match spec.obj("nodeAffinity") {
        Some(_) if inline => e.forbidden("nodeAffinity", NOT_INLINE),
        Some(affinity) => e.within("nodeAffinity", |e| match affinity.obj("required") {
            None => e.required("required", "must specify required node constraints"),
            Some(r) => e.within("required", |e| scheduling::node_selector(e, r, true)),
        }),
        None => {}
    }
    source(e, spec, name);
    let path = spec.obj("hostPath").map(|h| s(h, "path"));
    if path == Some("/") && s(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        e.forbidden(
            "persistentVolumeReclaimPolicy",
            "may not be 'recycle' for a hostPath mount of '/'",
        );
    }
    match s(spec, "storageClassName") {
        "" => {}
        _ if inline => e.forbidden("storageClassName", NOT_INLINE),
        class => e.format("storageClassName", class, names::dns1123_subdomain),
    }
    match spec.str("volumeMode") {
        None => {}
        Some(_) if !inline => e.optional_one_of(spec, "volumeMode", VOLUME_MODES),
        Some("Filesystem") => {}
        Some(_) => e.forbidden(
            "volumeMode",
            "may not specify volumeMode other than Filesystem in the context of inline volumes",
        ),
    }
    // Within an attachment upstream doesn't look at it.
    if let Some(class) = spec.str("volumeAttributesClassName").filter(|_| !inline) {
        match class {
            "" => e.required("volumeAttributesClassName", "an empty string is disallowed"),
            class => e.format("volumeAttributesClassName", class, names::dns1123_subdomain),
        }
        if !spec.contains_key("csi") {
            e.required("csi", "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn capacity(e: &mut Errs, spec: &Map) {
    let capacity = spec.obj("capacity").filter(|c| !c.is_empty());
    if capacity.is_none() {
        e.required("capacity", "");
    }
    if capacity.is_none_or(|c| c.len() > 1 || !c.contains_key("storage")) {
        let shown = spec.get("capacity").cloned().unwrap_or_default();
        e.not_supported("capacity", shown, &["storage"]);
    }
    for (key, v) in capacity.into_iter().flatten() {
        let (q, field) = (quantity(v), format!("capacity[{key}]"));
        if q.is_negative() {
            e.invalid(&field, q.value(), "must be a valid resource quantity");
        }
        if q.is_zero() || q.is_negative() {
            e.invalid(&field, v.clone(), "must be greater than zero");
        }
    }
}

/// Where the data is: one source of those there are.
fn source(e: &mut Errs, spec: &Map, name: &str) {
    let mut found = false;
    for key in SOURCES {
        let Some(src) = spec.obj(key) else { continue };
        // Some of them upstream spells in its own way.
        if found {
            let shown = if *key == "cephfs" { "cephFS" } else { key };
            e.forbidden(shown, "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        let shown = if *key == "gcePersistentDisk" {
            "persistentDisk"
        } else {
            key
        };
        e.within(shown, |e| match *key {
            "csi" => csi(e, src),
            "local" => {
                if s(src, "path").is_empty() {
                    e.required("path", "");
                } else {
                    e.no_backsteps("path", s(src, "path"));
                }
            }
            _ => volume_sources::persistent(e, key, src, name),
        });
        if *key == "local" && !spec.contains_key("nodeAffinity") {
            e.required("nodeAffinity", "Local volume requires node affinity");
        }
    }
    if !found {
        e.required("", "must specify a volume type");
    }
}

fn csi(e: &mut Errs, source: &Map) {
    driver_name(e, "driver", s(source, "driver"));
    if s(source, "volumeHandle").is_empty() {
        e.required("volumeHandle", "");
    }
    for key in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        e.child(source, key, |e, secret| {
            match s(secret, "name") {
                "" => e.required("name", ""),
                name => e.format("name", name, names::dns1123_subdomain),
            }
            match s(secret, "namespace") {
                "" => e.required("namespace", ""),
                namespace => e.format("namespace", namespace, names::dns1123_label),
            }
        });
    }
}

fn update(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (n, o) = (new.obj("spec").unwrap_or(&empty), old.obj("spec").unwrap_or(&empty));
    let sources = |m: &Map| {
        let mut kept = m.clone();
        kept.retain(|k, _| SOURCES.contains(&k));
        // A secret for expansion may be added to a volume that has none.
        if let Some(Value::Object(csi)) = kept.get_mut("csi")
            && o.get("csi")
                .is_some_and(|c| c.get("controllerExpandSecretRef").is_none())
        {
            csi.remove("controllerExpandSecretRef");
        }
        Value::Object(kept)
    };
    // A member that is there and empty is another thing than one that isn't.
    let (now, was) = (sources(n), sources(o));
    if now != was {
        let changed = crate::internal::difference("core.PersistentVolumeSource", &was, &now);
        let why = format!("spec.persistentvolumesource is immutable after creation\n{changed}");
        e.forbidden("spec.persistentvolumesource", &why);
    }
    e.immutable(n.get("volumeMode"), o.get("volumeMode"), "volumeMode");
    if o.contains_key("nodeAffinity") && !same(n.get("nodeAffinity"), o.get("nodeAffinity")) {
        e.invalid_as(
            "*core.VolumeNodeAffinity",
            "nodeAffinity",
            n.get("nodeAffinity"),
            "field is immutable, except for updating from beta label to GA",
        );
    }
    if o.contains_key("volumeAttributesClassName") && !n.contains_key("volumeAttributesClassName") {
        e.forbidden(
            "spec.volumeAttributesClassName",
            "update from non-nil value to nil is forbidden",
        );
    }
}
