//! The volumes of a pod or template.

use super::check::{Errs, quantity, s};
use super::container_env::{field_ref, resource_field_ref};
use super::{certificates, storage, volume_sources};
use keelson_api::{Map, Value};
use keelson_machinery::names;
use std::collections::{HashMap, HashSet};

const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
/// The sources of a volume, in the order in which upstream looks at them.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// Checks the volumes; answers with the sound ones by name.
pub fn volumes<'a>(e: &mut Errs, spec: &'a Map, pod_name: &str) -> HashMap<&'a str, &'a Map> {
    let mut sound = HashMap::new();
    let list = || spec.arr("volumes").into_iter().flatten().filter_map(Value::as_object);
    let created: HashSet<String> = list()
        .filter(|v| !pod_name.is_empty() && v.contains_key("ephemeral"))
        .map(|v| format!("{pod_name}-{}", s(v, "name")))
        .collect();
    for (i, v) in list().enumerate() {
        let name = s(v, "name");
        e.within(&format!("volumes[{i}]"), |e| {
            let before = e.list.len();
            source(e, v, pod_name);
            match name {
                "" => e.required("name", ""),
                _ => e.format("name", name, names::dns1123_label),
            }
            if sound.contains_key(name) {
                e.duplicate("name", name);
            }
            if e.list.len() == before {
                sound.insert(name, v);
            }
            let claim = v
                .obj("persistentVolumeClaim")
                .map(|c| s(c, "claimName"))
                .unwrap_or_default();
            if created.contains(claim) {
                let why = "must not reference a PVC that gets created for an ephemeral volume";
                e.invalid("persistentVolumeClaim.claimName", claim, why);
            }
        });
    }
    sound
}

fn source(e: &mut Errs, v: &Map, pod_name: &str) {
    let mut found = false;
    for key in SOURCES {
        if !v.contains_key(key) {
            continue;
        }
        if found {
            // Two of them upstream spells in its own way.
            let shown = match *key {
                "cephfs" => "cephFS",
                "downwardAPI" => "downwarAPI",
                key => key,
            };
            e.forbidden(shown, "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        // As is what is wrong with this one.
        let within = if *key == "gcePersistentDisk" {
            "persistentDisk"
        } else {
            key
        };
        if let Some(src) = v.obj(key) {
            e.within(within, |e| one_source(e, key, src));
        }
        if *key == "ephemeral" && !pod_name.is_empty() && !s(v, "name").is_empty() {
            let claim = format!("{pod_name}-{}", s(v, "name"));
            for msg in names::dns1123_subdomain(&claim) {
                e.invalid("name", s(v, "name"), &format!("PVC name {claim:?}: {msg}"));
            }
        }
    }
    if !found {
        e.required("", "must specify a volume type");
    }
}

fn one_source(e: &mut Errs, key: &str, src: &Map) {
    match key {
        "emptyDir" => {
            if src.get("sizeLimit").is_some_and(|q| quantity(q).is_negative()) {
                e.forbidden("sizeLimit", "SizeLimit field must be a valid resource quantity");
            }
        }
        "secret" => {
            if s(src, "secretName").is_empty() {
                e.required("secretName", "");
            }
            e.file_mode(src, "defaultMode");
            e.each(src, "items", |e, _, i| key_to_path(e, i));
        }
        "configMap" => {
            if s(src, "name").is_empty() {
                e.required("name", "");
            }
            e.file_mode(src, "defaultMode");
            e.each(src, "items", |e, _, i| key_to_path(e, i));
        }
        "downwardAPI" => {
            e.file_mode(src, "defaultMode");
            for file in src.arr("items").into_iter().flatten().filter_map(Value::as_object) {
                downward_file(e, file);
            }
        }
        "projected" => {
            e.file_mode(src, "defaultMode");
            projections(e, src);
        }
        "persistentVolumeClaim" => {
            if s(src, "claimName").is_empty() {
                e.required("claimName", "");
            }
        }
        "ephemeral" => match src.obj("volumeClaimTemplate") {
            None => e.required("volumeClaimTemplate", ""),
            Some(t) => e.within("volumeClaimTemplate", |e| {
                e.child(t, "metadata", |e, m| {
                    e.labels(m, "labels");
                    e.annotations(m, "annotations");
                });
                e.child(t, "spec", storage::new_claim_spec);
            }),
        },
        "image" => {
            if s(src, "reference").is_empty() {
                e.required("reference", "");
            }
            e.one_of(src, "pullPolicy", &["Always", "IfNotPresent", "Never"]);
        }
        "csi" => {
            storage::driver_name(e, "driver", s(src, "driver"));
            if let Some(secret) = src.obj("nodePublishSecretRef") {
                match s(secret, "name") {
                    "" => e.required("nodePublishSecretRef.name", ""),
                    name => e.format("name", name, names::dns1123_subdomain),
                }
            }
        }
        _ => volume_sources::plain(e, key, src),
    }
}

fn key_to_path(e: &mut Errs, item: &Map) {
    if s(item, "key").is_empty() {
        e.required("key", "");
    }
    if s(item, "path").is_empty() {
        e.required("path", "");
    }
    e.local_unreserved_path("path", s(item, "path"));
    e.file_mode(item, "mode");
}

fn downward_file(e: &mut Errs, file: &Map) {
    if s(file, "path").is_empty() {
        e.required("path", "");
    }
    e.local_unreserved_path("path", s(file, "path"));
    match (file.obj("fieldRef"), file.obj("resourceFieldRef")) {
        (Some(f), r) => {
            e.within("fieldRef", |e| field_ref(e, f, VOLUME_FIELDS));
            if r.is_some() {
                e.invalid(
                    "",
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (None, Some(r)) => e.within("resourceFieldRef", |e| resource_field_ref(e, r, true)),
        (None, None) => e.required("", "one of fieldRef and resourceFieldRef is required"),
    }
    e.file_mode(file, "mode");
}

fn projections(e: &mut Errs, projected: &Map) {
    let mut paths = HashSet::new();
    let Some(list) = projected.arr("sources") else { return };
    for (i, src) in list.iter().enumerate() {
        let Some(src) = src.as_object() else { continue };
        let mut conflict = |e: &mut Errs, path: &str, shown: &str| {
            if !path.is_empty() && !paths.insert(path.to_string()) {
                e.invalid("", shown, "conflicting duplicate paths");
            }
        };
        let place = format!("sources[{i}]");
        for key in ["secret", "configMap"] {
            let Some(p) = src.obj(key) else { continue };
            e.within(&format!("{place}.{key}"), |e| {
                if s(p, "name").is_empty() {
                    e.required("name", "");
                }
                e.each(p, "items", |e, _, item| key_to_path(e, item));
            });
            for item in p.arr("items").into_iter().flatten().filter_map(Value::as_object) {
                conflict(e, s(item, "path"), s(p, "name"));
            }
        }
        if let Some(p) = src.obj("downwardAPI") {
            for file in p.arr("items").into_iter().flatten().filter_map(Value::as_object) {
                e.within(&format!("{place}.downwardAPI"), |e| downward_file(e, file));
                conflict(e, s(file, "path"), s(file, "path"));
            }
        }
        if let Some(p) = src.obj("serviceAccountToken") {
            e.within(&format!("{place}.serviceAccountToken"), |e| {
                match p.int("expirationSeconds") {
                    None => e.required("expirationSeconds", ""),
                    Some(n) if n < 600 => {
                        e.invalid(
                            "expirationSeconds",
                            n,
                            "may not specify a duration less than 10 minutes",
                        );
                    }
                    Some(n) if n > 1 << 32 => {
                        e.invalid(
                            "expirationSeconds",
                            n,
                            "may not specify a duration larger than 2^32 seconds",
                        );
                    }
                    Some(_) => {}
                }
            });
            match s(p, "path") {
                "" => e.required("path", ""),
                path => e.local_unreserved_path("path", path),
            }
        }
        if let Some(p) = src.obj("clusterTrustBundle") {
            e.within(&format!("{place}.clusterTrustBundle"), |e| {
                bundle(e, p);
                if s(p, "path").is_empty() {
                    e.required("path", "");
                }
                e.local_unreserved_path("path", s(p, "path"));
            });
            conflict(e, s(p, "path"), s(p, "path"));
        }
        if let Some(p) = src.obj("podCertificate") {
            e.within(&format!("{place}.podCertificate"), |e| pod_certificate(e, p));
            for key in CERTIFICATE_PATHS {
                conflict(e, s(p, key), s(p, key));
            }
        }
        if src.len() > 1 {
            e.forbidden(&place, "may not specify more than 1 volume type per source");
        }
    }
}

/// One bundle by its name, or all of a signer.
fn bundle(e: &mut Errs, p: &Map) {
    match (p.str("name"), p.str("signerName")) {
        (Some(_), Some(_)) => e.invalid("", p.clone(), "only one of name and signerName may be used"),
        (Some(name), None) => {
            if name.is_empty() {
                e.required("name", "must be a valid object name");
            }
            let signer = name
                .rsplit_once(':')
                .map_or(String::new(), |(s, _)| s.replace(':', "/"));
            certificates::bundle_name(e, "name", name, &signer, "not a valid clustertrustbundlename: ");
            if p.contains_key("labelSelector") {
                let why = "labelSelector must be unset if name is specified";
                e.invalid("labelSelector", Value::Null, why);
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                e.required("signerName", "must be a valid signer name");
            }
            certificates::signer_name(e, "signerName", signer);
            e.label_selector(p, "labelSelector");
        }
        (None, None) => e.required("", "either name or signerName must be specified"),
    }
}

const CERTIFICATE_PATHS: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];
const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

fn pod_certificate(e: &mut Errs, p: &Map) {
    let signer = s(p, "signerName");
    certificates::signer_name(e, "signerName", signer);
    certificates::user_annotations(e, p, "userAnnotations");
    if !KEY_TYPES.contains(&s(p, "keyType")) {
        e.not_supported("keyType", s(p, "keyType"), KEY_TYPES);
    }
    if let Some(n) = p.int("maxExpirationSeconds") {
        let (least, most) = certificates::lifetimes(signer);
        if n < least {
            let why = format!("if provided, maxExpirationSeconds must be >= {least}");
            e.invalid("maxExpirationSeconds", n, &why);
        }
        if n > most {
            let why = format!("if provided, maxExpirationSeconds must be <= {most}");
            e.invalid("maxExpirationSeconds", n, &why);
        }
    }
    let mut paths = CERTIFICATE_PATHS.iter().filter(|key| !s(p, key).is_empty()).peekable();
    if paths.peek().is_none() {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        e.required("", why);
    }
    paths.for_each(|key| e.local_unreserved_path(key, s(p, key)));
}

/// A template needs an account for projected tokens only once it is a pod.
pub fn token_without_account(e: &mut Errs, spec: &Map) {
    if !s(spec, "serviceAccountName").is_empty() {
        return;
    }
    e.each(spec, "volumes", |e, _, v| {
        e.child(v, "projected", |e, p| {
            e.each(p, "sources", |e, _, src| {
                if src.contains_key("serviceAccountToken") {
                    e.forbidden(
                        "serviceAccountToken",
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            });
        });
    });
}
