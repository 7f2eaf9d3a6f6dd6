//! Claims of devices: those made from templates for pods, and what becomes of a claim when the pods that used it have ended.
//!
//! * [`make`]: a claim for each template that a pod names; its name is told in the pod's status. A pod that reached a node
//!   without the scheduler is entered in claims that are allocated already.
//! * [`release`]: pods that have ended lose their reservation; with the last one the devices are free, and a claim that was made
//!   for a pod goes.
//!
//! Allocates nothing: that is the scheduler's.

mod make;
mod release;

use crate::context::Context;
use crate::pods;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use keelson_client::{ApiObject, Controller, Kind, ObjectKey, Objects, WorkQueue};
use std::sync::Arc;

/// Pods by the claims they use, and by the templates they name: `namespace/name`.
const BY_CLAIM: &str = "resource-claim";
const BY_TEMPLATE: &str = "resource-claim-template";
/// The claim's name within the pod that it was made for.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Held while the devices are allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

pub fn start(context: &Context) {
    let pods = context.informer::<Pod>();
    let claims = context.informer::<ResourceClaim>();
    let templates = context.informer::<ResourceClaimTemplate>();
    pods.store().add_index(BY_CLAIM, |pod| {
        claims_of(pod)
            .iter()
            .map(|name| format!("{}/{name}", pod.namespace()))
            .collect()
    });
    pods.store().add_index(BY_TEMPLATE, |pod| {
        let templates = asked(pod)
            .iter()
            .filter_map(|c| c.resource_claim_template_name.as_ref());
        templates.map(|name| format!("{}/{name}", pod.namespace())).collect()
    });
    claims.store().index_controllers();
    let making = Controller::new("resourceclaim")
        .input(&pods)
        .input(&claims)
        .input(&templates)
        .output(ResourceClaim::RESOURCE)
        .output(Pod::RESOURCE);
    let releasing = Controller::new("resourceclaim-release")
        .input(&pods)
        .input(&claims)
        .output(ResourceClaim::RESOURCE);
    {
        let (making, releasing) = (making.queue(), releasing.queue());
        pods.on_change(move |change| {
            let pod = change.object();
            if !has_claims(pod) {
                return;
            }
            if change.is_deleted() || is_done(pod) {
                let names = claims_of(pod).into_iter();
                names.for_each(|name| releasing.add(ObjectKey::new(pod.namespace(), name)));
            }
            making.add(pod.key());
        });
    }
    {
        let (making, releasing, pods) = (making.queue(), releasing.queue(), pods.clone());
        claims.on_change(move |change| {
            if !change.is_deleted() {
                releasing.add(change.object().key());
            }
            tell_users(
                &making,
                &pods.store().by_index(BY_CLAIM, &change.object().key().to_string()),
            );
        });
    }
    {
        let (making, pods) = (making.queue(), pods.clone());
        templates.on_change(move |change| {
            if !change.is_deleted() {
                tell_users(
                    &making,
                    &pods.store().by_index(BY_TEMPLATE, &change.object().key().to_string()),
                );
            }
        });
    }
    let rest = context.rest("resource-claim-controller");
    let maker = make::Maker {
        pods: pods.clone(),
        claims: claims.clone(),
        templates,
        objects: Objects::new(&rest),
        statuses: Objects::new(&rest),
        recorder: context.recorder(&rest, "resource_claim"),
        made: Default::default(),
    };
    context.run(making, maker);
    let releaser = release::Releaser {
        known: pods,
        claims,
        objects: Objects::new(&rest),
        pods: Objects::new(&rest),
    };
    context.run(releasing, releaser);
}

fn tell_users(queue: &WorkQueue<ObjectKey>, users: &[Arc<Pod>]) {
    users.iter().for_each(|pod| queue.add(pod.key()));
}

fn asked(pod: &Pod) -> &[PodResourceClaim] {
    let claims = pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref());
    claims.unwrap_or_default()
}

pub(crate) fn has_claims(pod: &Pod) -> bool {
    let extended = pod
        .status
        .as_ref()
        .and_then(|s| s.extended_resource_claim_status.as_ref());
    !asked(pod).is_empty() || extended.is_some()
}

/// The claim that stands for one of the pod's.
#[derive(Debug, PartialEq, Eq)]
enum Name<'a> {
    /// Somebody else's.
    Given(&'a str),
    /// Made for the pod.
    Made(&'a str),
    /// It was found out that none is needed.
    None,
    /// It hasn't been made yet.
    Missing,
}

fn name<'a>(pod: &'a Pod, claim: &'a PodResourceClaim) -> Name<'a> {
    if let Some(name) = &claim.resource_claim_name {
        return Name::Given(name);
    }
    let statuses = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_ref());
    match statuses.into_iter().flatten().find(|s| s.name == claim.name) {
        Some(status) => status.resource_claim_name.as_deref().map_or(Name::None, Name::Made),
        None => Name::Missing,
    }
}

/// Every claim that is known to be the pod's.
pub(crate) fn claims_of(pod: &Pod) -> Vec<String> {
    let named = asked(pod).iter().filter_map(|claim| match name(pod, claim) {
        Name::Given(name) | Name::Made(name) => Some(name.to_owned()),
        Name::None | Name::Missing => None,
    });
    let extended = pod
        .status
        .as_ref()
        .and_then(|s| s.extended_resource_claim_status.as_ref());
    let extended = extended
        .map(|s| s.resource_claim_name.clone())
        .filter(|name| !name.is_empty());
    named.chain(extended).collect()
}

/// It won't run any more.
fn is_done(pod: &Pod) -> bool {
    pods::is_finished(pod) || pod.is_deleting() && pods::node(pod).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pods_claims_are_those_given_and_those_made() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "resourceClaims": [
                {"name": "given", "resourceClaimName": "shared"},
                {"name": "made", "resourceClaimTemplateName": "t"},
                {"name": "none", "resourceClaimTemplateName": "t"},
                {"name": "missing", "resourceClaimTemplateName": "t"},
            ]},
            "status": {
                "resourceClaimStatuses": [{"name": "made", "resourceClaimName": "p-made-x"}, {"name": "none"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "extended", "requestMappings": []},
            },
        }))
        .unwrap();
        assert_eq!(claims_of(&pod), ["shared", "p-made-x", "extended"]);
        let names: Vec<_> = asked(&pod).iter().map(|claim| name(&pod, claim)).collect();
        assert_eq!(
            names,
            [Name::Given("shared"), Name::Made("p-made-x"), Name::None, Name::Missing]
        );
    }
}
