//! What upstream refuses of each kind: same fields, same reasons, same words.
//!
//! Metadata that all kinds share is checked elsewhere; here stand the formats of names and everything below.

pub(super) mod addresses;
#[cfg(test)]
mod answers;
mod certificates;
pub(super) mod check;
mod conditions;
mod config;
mod container;
mod container_env;
mod container_mounts;
mod container_resources;
pub(super) mod devices;
mod extensions;
#[cfg(test)]
mod golden;
mod groups;
mod job_status;
mod jobs;
#[cfg(test)]
mod label_keys;
#[cfg(test)]
mod left_of_nothing;
mod networking;
mod nodes;
mod persistent_volumes;
mod pod;
mod pod_claims;
mod pod_spec;
mod pod_update;
mod probes;
mod quotas;
mod scheduling;
mod security;
mod service;
pub(super) mod service_addresses;
mod storage;
mod success;
#[cfg(test)]
pub(super) mod tests;
mod volume_sources;
mod volumes;
mod workloads;

pub(super) use container_resources::is_extended as is_extended_resource;

use crate::context::Cx;
use check::Errs;
use keelson_api::{Cause, Object};
use keelson_machinery::names;

type Check = fn(&Cx, &Object, &mut Errs);
type CheckChange = fn(&Cx, &Object, &Object, &mut Errs);

/// What is checked of a kind. An update is checked like a creation, and then for what may not change.
#[derive(Clone, Copy)]
pub struct Rules {
    pub name: fn(&str) -> Vec<String>,
    /// The same where a name follows from what the object is.
    pub name_of: fn(&Object, &str) -> Vec<String>,
    pub object: Check,
    pub create: Check,
    pub update: CheckChange,
    pub status: CheckChange,
}

impl Rules {
    const NONE: Rules = Rules {
        name: |_| Vec::new(),
        name_of: |_, _| Vec::new(),
        object: |_, _, _| (),
        create: |_, _, _| (),
        update: |_, _, _, _| (),
        status: |_, _, _, _| (),
    };
    /// A kind whose names are DNS subdomains, as most.
    const SUBDOMAIN: Rules = Rules {
        name: names::dns1123_subdomain,
        ..Rules::NONE
    };
}

/// The rules of a kind.
pub fn of(group: &str, kind: &str) -> Rules {
    match group {
        "" => match kind {
            "Pod" => pod::POD,
            "PodTemplate" => pod::POD_TEMPLATE,
            "ReplicationController" => workloads::REPLICATION_CONTROLLER,
            "Service" => service::SERVICE,
            "PersistentVolume" => persistent_volumes::VOLUME,
            "PersistentVolumeClaim" => storage::CLAIM,
            _ => config::of(kind),
        },
        "events.k8s.io" => config::of("Event"),
        "apps" | "batch" => workloads::of(kind),
        "networking.k8s.io" | "discovery.k8s.io" => networking::of(kind),
        "storage.k8s.io" => storage::of(kind),
        "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "apiregistration.k8s.io"
        | "flowcontrol.apiserver.k8s.io" => extensions::of(kind),
        "certificates.k8s.io" => certificates::of(kind),
        _ => groups::of(group, kind),
    }
}

/// The name of an object, or the prefix that one is made from.
fn check_name(obj: &Object, rules: &Rules, errs: &mut Errs) {
    let wrong = |name: &str| {
        let mut told = (rules.name)(name);
        told.extend((rules.name_of)(obj, name));
        told
    };
    let generate = obj.generate_name();
    if !generate.is_empty() {
        let masked = crate::meta::mask_trailing_dash(generate);
        for msg in wrong(&masked) {
            errs.invalid("metadata.generateName", generate, &msg);
        }
    }
    if !obj.name().is_empty() {
        errs.format("metadata.name", obj.name(), wrong);
    }
}

/// Kinds whose metadata are judged by the rules of the core group: a finalizer has a domain, or is a well-known one.
fn has_core_metadata(group: &str) -> bool {
    !matches!(
        group,
        "admissionregistration.k8s.io"
            | "apiextensions.k8s.io"
            | "apiregistration.k8s.io"
            | "coordination.k8s.io"
            | "node.k8s.io"
            | "policy"
    )
}

fn finalizers(cx: &Cx, obj: &Object, errs: &mut Errs) {
    let group = cx.def.gvr.group.as_str();
    let judged = match cx.def.kind.as_str() {
        "Event" => !group.is_empty(),
        "FlowSchema" | "PriorityLevelConfiguration" => cx.subresource != "status",
        _ => has_core_metadata(group),
    };
    if !judged {
        return;
    }
    for (i, name) in obj.finalizers().enumerate() {
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            errs.invalid(&format!("metadata.finalizers[{i}]"), name, NO_FINALIZER);
        }
    }
}

/// Finalizers without a domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
const NO_FINALIZER: &str = "name is neither a standard finalizer name nor is it fully qualified";

fn rules(cx: &Cx) -> Rules {
    of(&cx.def.gvr.group, &cx.def.kind)
}

pub fn create(cx: &Cx, obj: &Object) -> Vec<Cause> {
    let rules = rules(cx);
    let mut errs = Errs::default();
    check_name(obj, &rules, &mut errs);
    // What holds for all metadata; what holds for all names is only said when nothing else is wrong.
    let shared = crate::meta::validate(obj, cx.def.namespaced).into_iter();
    let unnamed = |c: &Cause| c.field != "metadata.name" || c.reason == "FieldValueRequired";
    shared
        .filter(|c| unnamed(c) && c.field != "metadata.generateName")
        .for_each(|c| errs.push(c));
    finalizers(cx, obj, &mut errs);
    (rules.object)(cx, obj, &mut errs);
    (rules.create)(cx, obj, &mut errs);
    errs.list.into()
}

pub fn update(cx: &Cx, new: &Object, old: &Object) -> Vec<Cause> {
    let rules = rules(cx);
    let mut errs = Errs::default();
    finalizers(cx, new, &mut errs);
    (rules.object)(cx, new, &mut errs);
    (rules.update)(cx, new, old, &mut errs);
    but_for_old_forms(errs.list.into(), |before| (rules.object)(cx, old, before))
}

pub fn status(cx: &Cx, new: &Object, old: &Object) -> Vec<Cause> {
    let rules = rules(cx);
    let mut errs = Errs::default();
    finalizers(cx, new, &mut errs);
    (rules.status)(cx, new, old, &mut errs);
    but_for_old_forms(errs.list.into(), |before| (rules.status)(cx, old, old, before))
}

/// What isn't taken any more, as an address in an old form, stays in an object that had it before.
fn but_for_old_forms(mut told: Vec<Cause>, judge_old: impl FnOnce(&mut Errs)) -> Vec<Cause> {
    if told.iter().any(check::was_taken) {
        let mut before = Errs::default();
        judge_old(&mut before);
        told.retain(|cause| !check::was_taken(cause) || !before.list.iter().any(|b| check::had_before(cause, b)));
    }
    told
}
