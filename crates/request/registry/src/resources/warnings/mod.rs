//! What is taken but warned of: deprecated fields and values, and what surely isn't meant so. Clients get these in `Warning`
//! headers.

mod addresses;
mod cluster;
mod labels;
mod paths;
mod pod;
mod ports;
mod storage;
mod tls;

use super::validation::check::{Errs, s};
use crate::context::Cx;
use keelson_api::{Cause, Map, Object};
use keelson_machinery::names;

/// The warnings about an object that is made (`old` is `None`) or changed, through `/status` or not.
pub fn of(cx: &Cx, new: &Object, old: Option<&Object>) -> Vec<String> {
    let mut e = Errs::default();
    let group = cx.def.gvr.group.as_str();
    match cx.subresource.as_str() {
        "status" => status(&mut e, group, &cx.def.kind, new),
        "" => object(&mut e, group, &cx.def.kind, new, old),
        _ => {}
    }
    e.list.into_iter().map(shown).collect()
}

fn shown(cause: Cause) -> String {
    match cause.field.is_empty() {
        true => cause.message.to_string(),
        false => format!("{}: {}", cause.field, cause.message),
    }
}

/// Warnings of an object at most, more than a client is ever shown; and how many of a list's members are compared with each other. An
/// object may have a hundred thousand of either.
const MOST: usize = 1024;

impl Errs {
    /// A warning about a member.
    pub(super) fn warn(&mut self, key: &str, text: impl Into<String>) {
        if self.list.len() < MOST {
            let cause = Cause::new("", self.at(key), text.into());
            self.push(cause);
        }
    }
    /// A warning that names no place.
    pub(super) fn remark(&mut self, text: impl Into<String>) {
        if self.list.len() < MOST {
            self.push(Cause::new("", "", text.into()));
        }
    }
}

fn status(e: &mut Errs, group: &str, kind: &str, new: &Object) {
    e.child(new, "status", |e, status| match (group, kind) {
        ("", "Pod") => {
            e.each(status, "podIPs", |e, _, ip| addresses::ip(e, "ip", s(ip, "ip")));
            e.each(status, "hostIPs", |e, _, ip| addresses::ip(e, "ip", s(ip, "ip")));
        }
        ("", "Service") | ("networking.k8s.io", "Ingress") => e.child(status, "loadBalancer", |e, balancer| {
            e.each(balancer, "ingress", |e, _, ingress| {
                if !s(ingress, "ip").is_empty() {
                    addresses::ip(e, "", s(ingress, "ip"));
                }
            });
        }),
        _ => {}
    });
}

fn object(e: &mut Errs, group: &str, kind: &str, new: &Object, old: Option<&Object>) {
    match (group, kind) {
        ("", "Pod") if old.is_none() => {
            name(e, new, "the Pod's hostname");
            pod::spec_and_meta(e, new, false);
        }
        ("", "PodTemplate") => template(e, new, old, &["template"]),
        ("", "ReplicationController") | ("apps", "Deployment" | "ReplicaSet") => {
            pod_names(e, new, old);
            template(e, new, old, &["spec", "template"]);
        }
        ("apps", "DaemonSet") => {
            let same = |o: &Object| o.at(&["spec", "templateGeneration"]) == new.at(&["spec", "templateGeneration"]);
            if old.is_none_or(|o| !same(o)) {
                template(e, new, None, &["spec", "template"]);
            }
        }
        ("apps", "StatefulSet") => stateful_set(e, new, old),
        ("batch", "Job") => {
            pod_names(e, new, old);
            job(e, new, old, &["spec"]);
        }
        ("batch", "CronJob") => {
            pod_names(e, new, old);
            job(e, new, old, &["spec", "jobTemplate", "spec"]);
            let schedule = new
                .at(&["spec", "schedule"])
                .and_then(|v| v.as_str())
                .unwrap_or_default();
            if old.is_some() && schedule.contains("TZ") {
                e.remark("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details");
            }
        }
        ("", "Secret") => tls::pair(e, new),
        ("", "PersistentVolume") => storage::volume(e, new),
        ("", "PersistentVolumeClaim") => storage::claim(e, new),
        ("storage.k8s.io", "StorageClass") => storage::class(e, new),
        ("storage.k8s.io", "CSIStorageCapacity") => labels::selector(e, new, "nodeTopology"),
        ("storage.k8s.io", "CSIDriver") => storage::driver(e, new, old),
        _ => cluster::object(e, group, kind, new, old),
    }
}

/// A name that becomes a part of host names.
fn name(e: &mut Errs, o: &Object, used_in: &str) {
    let wrong = names::dns1123_label(o.name());
    if !wrong.is_empty() {
        let text = format!(
            "this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            wrong.join(" ")
        );
        e.warn("metadata.name", text);
    }
}

fn pod_names(e: &mut Errs, new: &Object, old: Option<&Object>) {
    if old.is_none() {
        name(e, new, "Pod names and hostnames");
    }
}

/// A pod's template, unless the generation says that nothing changed.
fn template(e: &mut Errs, new: &Object, old: Option<&Object>, path: &[&str]) {
    if old.is_some_and(|o| o.generation() == new.generation()) {
        return;
    }
    if let Some(template) = new.at(path).and_then(|v| v.as_object()) {
        e.within(&path.join("."), |e| pod::spec_and_meta(e, template, true));
    }
}

fn stateful_set(e: &mut Errs, new: &Object, old: Option<&Object>) {
    template(e, new, old, &["spec", "template"]);
    e.child(new, "spec", |e, spec| {
        e.each(spec, "volumeClaimTemplates", |e, _, claim| {
            // Upstream's paths: without `spec` when it is made, and in another case when it is changed.
            let Some(claim) = claim.obj("spec") else { return };
            match old {
                None => storage::claim_spec(e, claim),
                Some(_) => e.within("Spec", |e| storage::claim_spec(e, claim)),
            }
        });
        if spec.int("revisionHistoryLimit").is_some_and(|n| n < 0) {
            e.warn(
                "revisionHistoryLimit",
                "a negative value retains all historical revisions; a value >= 0 is recommended",
            );
        }
    });
}

fn job(e: &mut Errs, new: &Object, old: Option<&Object>, path: &[&str]) {
    if old.is_some_and(|o| o.generation() == new.generation()) {
        return;
    }
    let Some(spec) = new.at(path).and_then(|v| v.as_object()) else {
        return;
    };
    e.within(&path.join("."), |e| {
        let many = |key: &str, limit: i64| spec.int(key).is_some_and(|n| n > limit);
        if s(spec, "completionMode") == "Indexed" && many("completions", 100_000) && many("parallelism", 10_000) {
            e.warn("", "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail");
        }
        e.child(spec, "template", |e, template| pod::spec_and_meta(e, template, true));
    });
}

fn annotation<'a>(meta: Option<&'a Map>, key: &str) -> Option<&'a str> {
    meta?.obj("annotations")?.str(key)
}
