//! Volumes, claims and the storage group.

use super::Rules;
use super::check::{Errs, count, quantity, s};
use super::persistent_volumes;
use crate::strategy::same;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
pub const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

pub const CLAIM: Rules = Rules {
    object: |_, o, e| {
        let empty = Map::new();
        e.within("spec", |e| claim_spec(e, o.obj("spec").unwrap_or(&empty)));
    },
    create: |_, o, e| e.child(o, "spec", source_groups),
    update: |_, new, old, e| claim_update(new, old, e),
    status: |_, new, _, e| claim_status(new, e),
    ..Rules::SUBDOMAIN
};
const CLASS: Rules = Rules {
    object: |_, o, e| class(o, e),
    update: |_, new, old, e| {
        for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            e.immutable_untold(new.get(key), old.get(key), key);
        }
    },
    ..Rules::SUBDOMAIN
};
const ATTRIBUTES_CLASS: Rules = Rules {
    object: |_, o, e| {
        qualified_driver(e, "driverName", s(o, "driverName"));
        if count(o, "parameters") == 0 {
            e.required("parameters", "must contain at least one key/value pair");
        }
    },
    update: |_, new, old, e| {
        for key in ["driverName", "parameters"] {
            if !same(new.get(key), old.get(key)) {
                e.forbidden(key, &format!("updates to {key} are forbidden."));
            }
        }
    },
    ..Rules::SUBDOMAIN
};
const ATTACHMENT: Rules = Rules {
    create: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            declared_driver_name(e, "attacher", s(spec, "attacher"))
        })
    },
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            let empty = Map::new();
            let source = spec.obj("source").unwrap_or(&empty);
            const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            let (volume, name) = (source.obj("inlineVolumeSpec"), source.str("persistentVolumeName"));
            match (volume, name) {
                (None, None) => e.required("source", ONE),
                (Some(_), Some(_)) => e.forbidden("source", ONE),
                (None, Some("")) => e.required(
                    "source.persistentVolumeName",
                    "must specify non empty persistentVolumeName",
                ),
                (None, Some(_)) => {}
                (Some(volume), None) => e.within("source.inlineVolumeSpec", |e| {
                    persistent_volumes::spec(e, volume, "", true);
                }),
            }
            if let Some(name) = name {
                e.format("source.persistentVolumeName", name, names::dns1123_subdomain);
            }
            e.format("nodeName", s(spec, "nodeName"), names::dns1123_subdomain);
        });
    },
    update: |_, new, old, e| {
        // A member that is there and empty is another thing than one that isn't.
        if new.get("spec") != old.get("spec") {
            // Upstream's rule is declared, and shows nothing. What it is declared for isn't looked at further.
            e.invalid("spec", Value::Null, "field is immutable");
            e.child(new, "spec", |e, spec| driver_name(e, "attacher", s(spec, "attacher")));
        }
    },
    ..Rules::SUBDOMAIN
};
const CSI_NODE: Rules = Rules {
    object: |_, o, e| {
        let mut seen = HashSet::new();
        e.child(o, "spec", |e, spec| {
            e.each(spec, "drivers", |e, _, d| {
                let name = s(d, "name");
                driver_name(e, "name", name);
                if !seen.insert(name.to_owned()) {
                    e.duplicate("name", name);
                }
                match s(d, "nodeID") {
                    "" => e.required("nodeID", ""),
                    id if id.len() > 256 => e.invalid("nodeID", id, "must be 256 characters or less"),
                    _ => {}
                }
                e.child(d, "allocatable", |e, a| e.non_negative(a, "count"));
                let mut known = HashSet::new();
                for key in d.arr("topologyKeys").into_iter().flatten().filter_map(Value::as_str) {
                    if key.is_empty() {
                        e.required("", "");
                    }
                    if !known.insert(key) {
                        e.duplicate("", key);
                    }
                    e.format("", key, names::label_key);
                }
            });
        });
    },
    update: |_, new, old, e| {
        let drivers = |o: &Object| {
            o.at(&["spec", "drivers"])
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let name = |driver: &Value| {
            driver
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let mut now: HashMap<String, Value> = drivers(new).into_iter().rev().map(|d| (name(&d), d)).collect();
        for mut before in drivers(old) {
            let mut after = now.remove(&name(&before));
            for side in [Some(&mut before), after.as_mut()].into_iter().flatten() {
                side.remove_at(&["allocatable"]);
            }
            if after.is_some() {
                e.immutable_as("*storage.CSINodeDriver", after.as_ref(), Some(&before), "spec.drivers");
            }
        }
    },
    ..Rules::SUBDOMAIN
};
const CSI_DRIVER: Rules = Rules {
    name: |name| names::dns1123_subdomain(&name.to_lowercase()),
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            for key in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
                if !spec.contains_key(key) {
                    e.required(key, "");
                }
            }
            if let Some(n) = spec.int("nodeAllocatableUpdatePeriodSeconds").filter(|n| *n < 10) {
                let why = "must be greater than or equal to 10 seconds";
                e.invalid("nodeAllocatableUpdatePeriodSeconds", n, why);
            }
            if let Some(said) = spec
                .get("serviceAccountTokenInSecrets")
                .filter(|_| count(spec, "tokenRequests") == 0)
            {
                let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
                e.invalid("serviceAccountTokenInSecrets", said.clone(), why);
            }
            let mut audiences = HashSet::new();
            e.each(spec, "tokenRequests", |e, _, t| {
                let audience = s(t, "audience").to_string();
                if !audiences.insert(audience.clone()) {
                    e.duplicate("audience", audience.as_str());
                }
                if let Some(n) = t.int("expirationSeconds") {
                    if n < 600 {
                        e.invalid(
                            "expirationSeconds",
                            n,
                            "may not specify a duration less than 10 minutes",
                        );
                    }
                    if n > 1 << 32 {
                        e.invalid(
                            "expirationSeconds",
                            n,
                            "may not specify a duration larger than 2^32 seconds",
                        );
                    }
                }
            });
            e.optional_one_of(spec, "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"]);
            for mode in spec
                .arr("volumeLifecycleModes")
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                if !matches!(mode, "Persistent" | "Ephemeral") {
                    e.not_supported("volumeLifecycleModes", mode, &["Persistent", "Ephemeral"]);
                }
            }
        });
    },
    update: |_, new, old, e| {
        for (key, shown) in [
            ("attachRequired", "attachedRequired"),
            ("volumeLifecycleModes", "volumeLifecycleModes"),
        ] {
            let of = |o: &Object| o.at(&["spec", key]).cloned();
            e.immutable(of(new).as_ref(), of(old).as_ref(), &format!("spec.{shown}"));
        }
    },
    ..Rules::SUBDOMAIN
};
const CAPACITY: Rules = Rules {
    object: |_, o, e| {
        e.format("storageClassName", s(o, "storageClassName"), names::dns1123_subdomain);
        e.label_selector(o, "nodeTopology");
        {
            let key = "capacity";
            if let Some(v) = o.get(key).filter(|v| quantity(v).is_negative()) {
                e.invalid(key, v.clone(), super::check::NOT_NEGATIVE);
            }
        }
    },
    update: |_, new, old, e| {
        for (key, ty) in [("nodeTopology", "*v1.LabelSelector"), ("storageClassName", "string")] {
            e.immutable_as(ty, new.get(key), old.get(key), key);
        }
    },
    ..Rules::SUBDOMAIN
};

pub fn of(kind: &str) -> Rules {
    match kind {
        "StorageClass" => CLASS,
        "VolumeAttributesClass" => ATTRIBUTES_CLASS,
        "VolumeAttachment" => ATTACHMENT,
        "CSINode" => CSI_NODE,
        "CSIDriver" => CSI_DRIVER,
        "CSIStorageCapacity" => CAPACITY,
        _ => Rules::SUBDOMAIN,
    }
}

/// A driver's name where any qualified name will do.
fn qualified_driver(e: &mut Errs, key: &str, name: &str) {
    if name.is_empty() {
        return e.required(key, "");
    }
    for msg in names::label_key(&name.to_lowercase()) {
        e.invalid(key, name.to_lowercase(), &msg);
    }
}

/// A driver's name where upstream's rule is declared.
pub fn declared_driver_name(e: &mut Errs, key: &str, name: &str) {
    const MOST: usize = 63;
    if name.is_empty() {
        return e.required(key, "");
    }
    e.format(key, name, names::dns1123_subdomain_of_any_case);
    if name.len() > MOST {
        let why = format!("Too long: may not be more than {MOST} characters");
        e.push(keelson_api::Cause::new("FieldValueTooLong", e.at(key), why));
    }
}

pub fn driver_name(e: &mut Errs, key: &str, name: &str) {
    if name.is_empty() {
        e.required(key, "");
    }
    if name.len() > 63 {
        e.too_long(key, 63);
    }
    if !name.is_empty() {
        for msg in names::dns1123_subdomain(&name.to_lowercase()) {
            e.invalid(key, name, &msg);
        }
    }
}

fn class(o: &Object, e: &mut Errs) {
    match s(o, "provisioner") {
        "" => e.required("provisioner", ""),
        name => e.format("provisioner", &name.to_lowercase(), names::label_key),
    }
    if count(o, "parameters") > 512 {
        e.too_long("parameters", 512);
    }
    if o.obj("parameters").is_some_and(|p| p.contains_key("")) {
        e.invalid("parameters", "", "field can not be empty.");
    }
    e.optional_one_of(o, "reclaimPolicy", &["Delete", "Retain"]);
    match o.str("volumeBindingMode") {
        None => e.required("volumeBindingMode", ""),
        Some(_) => e.optional_one_of(o, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
    }
    topologies(e, o);
}

/// Where volumes of a class may be: the same terms twice are an error, told once for each term before that is the same.
fn topologies(e: &mut Errs, o: &Object) {
    let mut seen: HashMap<BTreeMap<String, BTreeSet<String>>, usize> = HashMap::new();
    // Upstream compares with as many empty terms as there are terms.
    seen.insert(BTreeMap::new(), count(o, "allowedTopologies"));
    e.each(o, "allowedTopologies", |e, _, term| {
        let mut all = BTreeMap::new();
        e.each(term, "matchLabelExpressions", |e, _, x| {
            let key = s(x, "key").to_string();
            if count(x, "values") == 0 {
                e.required("values", "");
            }
            let mut values = BTreeSet::new();
            e.each_str(x, "values", |e, _, value| {
                if !values.insert(value.to_owned()) {
                    e.duplicate("", value);
                }
            });
            e.format("key", &key, names::label_key);
            if all.contains_key(&key) {
                e.duplicate("key", key.as_str());
            }
            all.insert(key, values);
        });
        let before = seen.entry(all).or_default();
        for _ in 0..(*before).min(MOST_TOLD) {
            e.duplicate("matchLabelExpressions", "");
        }
        *before += 1;
    });
}

/// Of one term so many complaints are told, that it costs no more than its length.
const MOST_TOLD: usize = 100;

pub fn access_modes(e: &mut Errs, spec: &Map) {
    let modes: Vec<&str> = spec
        .arr("accessModes")
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for mode in modes.iter().filter(|m| !ACCESS_MODES.contains(m)) {
        e.not_supported("accessModes", *mode, ACCESS_MODES);
    }
    if modes.contains(&"ReadWriteOncePod")
        && modes
            .iter()
            .any(|m| *m != "ReadWriteOncePod" && ACCESS_MODES.contains(m))
    {
        e.forbidden("accessModes", "may not use ReadWriteOncePod with other access modes");
    }
}

pub fn claim_spec(e: &mut Errs, spec: &Map) {
    if count(spec, "accessModes") == 0 {
        e.required("accessModes", "at least 1 access mode is required");
    }
    e.label_selector(spec, "selector");
    access_modes(e, spec);
    let field = "resources[storage]";
    match spec.get("resources").and_then(|r| r.at(&["requests", "storage"])) {
        None => e.required(field, ""),
        Some(v) => {
            let q = quantity(v);
            if q.is_zero() || q.is_negative() {
                e.invalid(field, v.clone(), "must be greater than zero");
            }
        }
    }
    for key in ["storageClassName", "volumeAttributesClassName"] {
        if !s(spec, key).is_empty() {
            e.format(key, s(spec, key), names::dns1123_subdomain);
        }
    }
    e.optional_one_of(spec, "volumeMode", VOLUME_MODES);
    for key in ["dataSource", "dataSourceRef"] {
        e.child(spec, key, |e, source| {
            if key == "dataSourceRef" && !s(source, "namespace").is_empty() {
                e.format("namespace", s(source, "namespace"), names::dns1123_label);
            }
            for part in ["name", "kind"] {
                if s(source, part).is_empty() {
                    e.required(part, "");
                }
            }
            if s(source, "apiGroup").is_empty() && s(source, "kind") != "PersistentVolumeClaim" {
                e.invalid(
                    "",
                    s(source, "kind"),
                    "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                );
            }
        });
    }
    one_source(e, spec);
}

/// The groups of what a new claim is to be filled from. Older ones may have any.
fn source_groups(e: &mut Errs, spec: &Map) {
    for key in ["dataSource", "dataSourceRef"] {
        let group = spec.obj(key).map(|source| s(source, "apiGroup")).unwrap_or_default();
        if !group.is_empty() {
            e.within(key, |e| e.format("apiGroup", group, names::dns1123_subdomain));
        }
    }
}

/// All that a claim is judged by when it is made.
pub fn new_claim_spec(e: &mut Errs, spec: &Map) {
    claim_spec(e, spec);
    source_groups(e, spec);
}

const RESIZES: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

fn claim_status(o: &Object, e: &mut Errs) {
    if o.obj("spec").is_none_or(|spec| count(spec, "accessModes") == 0) {
        e.required("Spec.accessModes", "");
    }
    e.child(o, "status", |e, status| {
        let not_negative = |e: &mut Errs, list: &str, name: &str, amount: &Value| {
            let amount = quantity(amount).value();
            if amount < 0 {
                e.invalid(&format!("{list}[{name}]"), amount, "must be a valid resource quantity");
            }
        };
        for (name, amount) in status.obj("capacity").into_iter().flatten() {
            not_negative(e, "capacity", name, amount);
        }
        for (name, how) in status.obj("allocatedResourceStatuses").into_iter().flatten() {
            e.within("allocatedResourceStatuses", |e| {
                claimed_resource(e, name);
                if !RESIZES.contains(&how.as_str().unwrap_or_default()) {
                    e.not_supported("", name.as_str(), RESIZES);
                }
            });
        }
        for (name, amount) in status.obj("allocatedResources").into_iter().flatten() {
            if e.within("allocatedResources", |e| claimed_resource(e, name)) {
                not_negative(e, "allocatedResources", name, amount);
            }
        }
    });
}

/// What a claim may be given: storage, or what others define. Says whether it may.
fn claimed_resource(e: &mut Errs, name: &str) -> bool {
    let wrong = names::label_key(name);
    wrong.iter().for_each(|why| e.invalid("", name, why));
    let is_known = name == "storage" || !super::container_resources::is_native(name);
    if wrong.is_empty() && !is_known {
        e.not_supported("", name, &["storage"]);
    }
    wrong.is_empty() && is_known
}

/// Where a claim names a source twice, it is the same one; one in another namespace is named once.
fn one_source(e: &mut Errs, spec: &Map) {
    let (Some(source), Some(reference)) = (spec.obj("dataSource"), spec.obj("dataSourceRef")) else {
        return;
    };
    // An empty group is another than none.
    let differs = || {
        source.get("apiGroup") != reference.get("apiGroup")
            || ["kind", "name"].iter().any(|key| s(source, key) != s(reference, key))
    };
    // Upstream shows the path, of which nothing can be seen.
    let shown = Value::Object(Map::new());
    if !s(reference, "namespace").is_empty() {
        e.invalid(
            "",
            shown,
            "may not be specified when dataSourceRef.namespace is specified",
        );
    } else if differs() {
        e.invalid("", shown, "must match dataSourceRef");
    }
}

fn claim_update(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (n, o) = (new.obj("spec").unwrap_or(&empty), old.obj("spec").unwrap_or(&empty));
    let (mut now, mut was) = (n.clone(), o.clone());
    if s(o, "volumeName").is_empty() {
        crate::strategy::restore(&mut was, Some(n), "volumeName");
    }
    let path = ["resources", "requests", "storage"];
    let size = |m: &Map| m.get("resources").and_then(|r| r.at(&path[1..])).cloned();
    // A class may be filled in later where there was none.
    if !o.contains_key("storageClassName") && n.contains_key("storageClassName") {
        now.remove("storageClassName");
    }
    if new.str_at(&["status", "phase"]) == Some("Bound") {
        if let Some(before) = size(o) {
            now.object_mut("resources")
                .object_mut("requests")
                .insert("storage", before);
        }
        crate::strategy::restore(&mut now, Some(o), "volumeAttributesClassName");
    }
    let (now, was) = (Value::Object(now), Value::Object(was));
    if !same(Some(&now), Some(&was)) {
        let changed = crate::internal::difference("core.PersistentVolumeClaimSpec", &was, &now);
        let why = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{changed}"
        );
        e.forbidden("spec", &why);
    }
    let amount = |v: Option<Value>| v.as_ref().map(quantity).unwrap_or_default();
    let capacity = new
        .at(&["status", "capacity", "storage"])
        .map(quantity)
        .unwrap_or_default();
    if amount(size(n)) < amount(size(o)) && amount(size(n)) <= capacity {
        e.forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        );
    }
    e.immutable(n.get("volumeMode"), o.get("volumeMode"), "volumeMode");
    if old.at(&["status", "currentVolumeAttributesClassName"]).is_some()
        && !same(n.get("volumeAttributesClassName"), o.get("volumeAttributesClassName"))
    {
        let how = match n.str("volumeAttributesClassName") {
            None => "nil",
            Some("") => "empty string",
            Some(_) => return,
        };
        let why = format!("update to {how} is forbidden when status.currentVolumeAttributesClassName is not nil");
        e.forbidden("spec.volumeAttributesClassName", &why);
    }
}
