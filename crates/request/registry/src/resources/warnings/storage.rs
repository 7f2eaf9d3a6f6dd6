//! Volumes, claims, classes and drivers.

use super::{Errs, annotation, labels, s};
use keelson_api::{Map, Object};

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const BY_CLASS: &str = r#"deprecated since v1.8; use "storageClassName" attribute instead"#;
/// Kinds of volumes that upstream has removed.
const REMOVED: &[(&str, &str)] = &[
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

pub fn volume(e: &mut Errs, o: &Object) {
    for (key, text) in [
        (CLASS_ANNOTATION, BY_CLASS),
        (
            "volume.beta.kubernetes.io/mount-options",
            r#"deprecated since v1.31; use "mountOptions" attribute instead"#,
        ),
    ] {
        if annotation(o.meta(), key).is_some() {
            e.warn(&format!("metadata.annotations[{key}]"), text);
        }
    }
    e.child(o, "spec", |e, spec| {
        if s(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
            e.warn("persistentVolumeReclaimPolicy", "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.");
        }
        e.child(spec, "nodeAffinity", |e, affinity| {
            e.child(affinity, "required", |e, required| {
                e.each(required, "nodeSelectorTerms", |e, _, term| labels::term(e, term, false));
            });
        });
        for (kind, text) in REMOVED.iter().filter(|(kind, _)| spec.contains_key(kind)) {
            // Upstream's paths have the name of the Go field here.
            e.warn(if *kind == "storageos" { "storageOS" } else { kind }, *text);
        }
    });
}

pub fn claim(e: &mut Errs, o: &Object) {
    if annotation(o.meta(), CLASS_ANNOTATION).is_some() {
        e.warn(&format!("metadata.annotations[{CLASS_ANNOTATION}]"), BY_CLASS);
    }
    e.child(o, "spec", claim_spec);
}

pub fn claim_spec(e: &mut Errs, spec: &Map) {
    e.child(spec, "resources", |e, resources| {
        whole_bytes(e, resources, "requests", &["storage"]);
        whole_bytes(e, resources, "limits", &["storage"]);
    });
}

/// Amounts of bytes are whole.
pub fn whole_bytes(e: &mut Errs, o: &Map, at: &str, names: &[&str]) {
    for name in names {
        let Some(value) = o.obj(at).and_then(|m| m.str(name)) else {
            continue;
        };
        if keelson_api::Quantity::parse(value).is_ok_and(|q| q.milli_value() % 1000 != 0) {
            e.warn(
                &format!("{at}[{name}]"),
                format!("fractional byte value {value:?} is invalid, must be an integer"),
            );
        }
    }
}

pub fn class(e: &mut Errs, o: &Object) {
    e.each(o, "allowedTopologies", |e, _, term| {
        e.each(term, "matchLabelExpressions", |e, _, expression| {
            if let Some(text) = labels::deprecated(s(expression, "key")) {
                e.warn("key", text);
            }
        });
    });
}

pub fn driver(e: &mut Errs, new: &Object, old: Option<&Object>) {
    let requests = |o: &Object| o.at(&["spec", "tokenRequests"]).cloned();
    let asked = requests(new).is_some_and(|r| r.as_array().is_some_and(|a| !a.is_empty()));
    let changed = old.is_none_or(|o| !crate::strategy::same(requests(o).as_ref(), requests(new).as_ref()));
    if asked && changed && new.at(&["spec", "serviceAccountTokenInSecrets"]).is_none() {
        e.remark("spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes");
    }
}
