//! Pods and their templates.

use super::storage::{claim_spec, whole_bytes};
use super::{Errs, addresses, annotation, labels, paths, ports, s};
use keelson_api::Map;
use std::collections::BTreeSet;

const BY_PRIORITY: &str = r#"non-functional in v1.16+; use the "priorityClassName" field instead"#;
const BY_SYSCTLS: &str = r#"non-functional in v1.11+; use the "sysctls" field instead"#;
const BY_SECCOMP: &str = r#"non-functional in v1.27+; use the "seccompProfile" field instead"#;
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const CONTAINER_SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
const ANNOTATIONS: &[(&str, &str)] = &[
    ("scheduler.alpha.kubernetes.io/critical-pod", BY_PRIORITY),
    ("security.alpha.kubernetes.io/sysctls", BY_SYSCTLS),
    ("security.alpha.kubernetes.io/unsafe-sysctls", BY_SYSCTLS),
];
/// Kinds of volumes that upstream has removed, in upstream's order; the place as its warning names it.
const VOLUMES: &[(&str, &str, &str)] = &[
    (
        "photonPersistentDisk",
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    (
        "gitRepo",
        "gitRepo",
        "deprecated in v1.11, and disabled by default in v1.33+",
    ),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    (
        "storageos",
        "storageOS",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    (
        "glusterfs",
        "glusterfs",
        "deprecated in v1.25, non-functional in v1.26+",
    ),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Looks at every container of a spec, init containers first.
pub fn containers<'a>(e: &mut Errs, spec: &'a Map, mut f: impl FnMut(&mut Errs, &'a Map)) {
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        let list = spec.arr(key).into_iter().flatten().enumerate();
        for (i, container) in list.filter_map(|(i, c)| Some((i, c.as_object()?))) {
            e.within(&format!("{key}[{i}]"), |e| f(e, container));
        }
    }
}

/// A pod, or a template.
pub fn spec_and_meta(e: &mut Errs, o: &Map, is_template: bool) {
    let meta = o.obj("metadata");
    e.child(o, "spec", placement);
    for (key, text) in ANNOTATIONS {
        warn_of_annotation(e, meta, key, text);
    }
    e.child(o, "spec", lists);
    if let Some(spec) = o.obj("spec") {
        annotations_in_place_of_fields(e, meta, spec, is_template);
        e.within("spec", |e| {
            containers(e, spec, container);
            ports::of(e, spec);
            rest(e, spec);
        });
    }
}

fn warn_of_annotation(e: &mut Errs, meta: Option<&Map>, key: &str, text: &str) {
    if annotation(meta, key).is_some() {
        e.warn(&format!("metadata.annotations[{key}]"), text);
    }
}

/// How nodes are chosen.
fn placement(e: &mut Errs, spec: &Map) {
    labels::map(e, spec, "nodeSelector", true);
    e.child(spec, "affinity", |e, affinity| {
        e.child(affinity, "nodeAffinity", |e, node| {
            e.child(node, "requiredDuringSchedulingIgnoredDuringExecution", |e, required| {
                e.each(required, "nodeSelectorTerms", |e, _, term| labels::term(e, term, false));
            });
            e.each(
                node,
                "preferredDuringSchedulingIgnoredDuringExecution",
                |e, _, preferred| {
                    e.child(preferred, "preference", |e, term| labels::term(e, term, true));
                },
            );
        });
    });
    e.each(spec, "topologySpreadConstraints", |e, _, constraint| {
        let key = s(constraint, "topologyKey");
        if let Some(text) = labels::deprecated(key) {
            e.warn("topologyKey", format!("{key} is {text}"));
        }
        has_selector(e, constraint);
    });
}

fn has_selector(e: &mut Errs, o: &Map) {
    if o.obj("labelSelector").is_none() {
        e.warn("labelSelector", NO_SELECTOR);
    }
}

/// Volumes, and lists in which something is twice.
fn lists(e: &mut Errs, spec: &Map) {
    e.each(spec, "volumes", |e, _, volume| {
        for (_, shown, text) in VOLUMES.iter().filter(|(kind, ..)| volume.contains_key(kind)) {
            e.warn(shown, *text);
        }
        e.child(volume, "ephemeral", |e, ephemeral| {
            e.child(ephemeral, "volumeClaimTemplate", |e, template| {
                e.child(template, "spec", claim_spec)
            });
        });
    });
    e.each(spec, "volumes", |e, _, volume| paths::overlaps(e, volume));
    for (list, key, what) in [("hostAliases", "ip", "ip"), ("imagePullSecrets", "name", "name")] {
        let mut seen = BTreeSet::new();
        e.each(spec, list, |e, _, item| {
            let value = s(item, key);
            if !seen.insert(value.to_string()) {
                e.warn(key, format!("duplicate {what} {value:?}"));
            }
        });
    }
    e.each(spec, "imagePullSecrets", |e, _, secret| {
        if s(secret, "name").is_empty() {
            e.warn("name", "invalid empty name \"\"");
        }
    });
    whole_bytes(e, spec, "overhead", &["memory", "ephemeral-storage"]);
}

fn annotations_in_place_of_fields(e: &mut Errs, meta: Option<&Map>, spec: &Map, is_template: bool) {
    let context = spec.obj("securityContext");
    let has = |context: Option<&Map>, key: &str| context.is_some_and(|c| c.contains_key(key));
    if !has(context, "seccompProfile") {
        warn_of_annotation(e, meta, SECCOMP, BY_SECCOMP);
    }
    let mut names = Vec::new();
    containers(&mut Errs::default(), spec, |_, c| {
        names.push((s(c, "name"), c.obj("securityContext")))
    });
    for (name, own) in names {
        if !has(own, "seccompProfile") {
            warn_of_annotation(e, meta, &format!("{CONTAINER_SECCOMP}{name}"), BY_SECCOMP);
        }
        let key = format!("{APPARMOR}{name}");
        if let (true, false, Some(asked)) = (is_template, has(own, "appArmorProfile"), annotation(meta, &key)) {
            let pod = context.and_then(|c| c.obj("appArmorProfile"));
            if !pod.is_some_and(|profile| says(profile, asked)) {
                e.warn(
                    &format!("metadata.annotations[{key}]"),
                    r#"deprecated since v1.30; use the "appArmorProfile" field instead"#,
                );
            }
        }
    }
}

/// Whether an AppArmor profile is what an annotation asks for.
fn says(profile: &Map, asked: &str) -> bool {
    match (s(profile, "type"), asked) {
        ("RuntimeDefault", "runtime/default") | ("Unconfined", "unconfined") => true,
        ("Localhost", asked) => asked.strip_prefix("localhost/") == profile.str("localhostProfile"),
        _ => false,
    }
}

fn container(e: &mut Errs, container: &Map) {
    e.child(container, "resources", |e, resources| {
        for name in ["memory", "ephemeral-storage"] {
            whole_bytes(e, resources, "limits", &[name]);
            whole_bytes(e, resources, "requests", &[name]);
        }
    });
    let mut seen = BTreeSet::new();
    e.each(container, "env", |e, _, env| {
        let (name, value) = (s(env, "name"), s(env, "value"));
        if seen.insert(name.to_string()) {
            return;
        }
        // One that is made of the earlier one is meant so.
        let reference = format!("$({name})");
        if env.contains_key("valueFrom") || value == reference || !value.contains(&reference) {
            e.warn(
                "",
                format!("hides previous definition of {name:?}, which may be dropped when using apply"),
            );
        }
    });
}

fn rest(e: &mut Errs, spec: &Map) {
    if spec.int("terminationGracePeriodSeconds").is_some_and(|n| n < 0) {
        e.warn(
            "terminationGracePeriodSeconds",
            "must be >= 0; negative values are invalid and will be treated as 1",
        );
    }
    e.child(spec, "affinity", |e, affinity| {
        for kind in ["podAffinity", "podAntiAffinity"] {
            e.child(affinity, kind, |e, affinity| {
                e.each(
                    affinity,
                    "requiredDuringSchedulingIgnoredDuringExecution",
                    |e, _, term| has_selector(e, term),
                );
                e.each(
                    affinity,
                    "preferredDuringSchedulingIgnoredDuringExecution",
                    |e, _, weighted| {
                        e.child(weighted, "podAffinityTerm", has_selector);
                    },
                );
            });
        }
    });
    e.child(spec, "dnsConfig", |e, dns| {
        e.each_str(dns, "nameservers", |e, _, ip| addresses::ip(e, "", ip))
    });
    e.each(spec, "hostAliases", |e, _, alias| {
        addresses::ip(e, "ip", s(alias, "ip"))
    });
}
