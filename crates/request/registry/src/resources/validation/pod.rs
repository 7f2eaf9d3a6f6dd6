//! Pods and pod templates.

use super::check::{Errs, count, s};
use super::container::untrimmed_image;
use super::pod_spec::{pod_spec, template};
use super::volumes::token_without_account;
use super::{Rules, pod_update};
use keelson_api::{Map, Object};

pub const POD: Rules = Rules {
    object: |_, pod, e| object(pod, e),
    create: |_, pod, e| create(pod, e),
    update: |cx, new, old, e| match cx.subresource.as_str() {
        "ephemeralcontainers" => pod_update::ephemeral_containers(new, old, e),
        "resize" => pod_update::resize(new, old, e),
        _ => pod_update::update(new, old, e),
    },
    status: |_, new, old, e| pod_update::status(new, old, e),
    ..Rules::SUBDOMAIN
};

pub const POD_TEMPLATE: Rules = Rules {
    object: |_, o, e| template(e, o),
    ..Rules::SUBDOMAIN
};

fn object(pod: &Object, e: &mut Errs) {
    let empty = Map::new();
    let spec = pod.obj("spec").unwrap_or(&empty);
    let mirror = pod.annotation("kubernetes.io/config.mirror").is_some();
    e.within("spec", |e| {
        pod_spec(e, spec, pod.name(), true);
        token_without_account(e, spec);
        e.non_negative(spec, "terminationGracePeriodSeconds");
        for list in ["containers", "initContainers"] {
            e.each(spec, list, |e, _, c| untrimmed_image(e, c));
        }
    });
    if mirror && s(spec, "nodeName").is_empty() {
        let field = "metadata.annotations[kubernetes.io/config.mirror]";
        e.invalid(
            field,
            pod.annotation("kubernetes.io/config.mirror"),
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
}

fn create(pod: &Object, e: &mut Errs) {
    let Some(spec) = pod.obj("spec") else { return };
    if count(spec, "ephemeralContainers") > 0 {
        e.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    if !s(spec, "nodeName").is_empty() && count(spec, "schedulingGates") > 0 {
        e.forbidden(
            "spec.nodeName",
            "cannot be set until all schedulingGates have been cleared",
        );
    }
}
