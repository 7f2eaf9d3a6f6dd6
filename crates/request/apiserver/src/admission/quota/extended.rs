//! Claims of devices that are extended resources, too: a quota of `requests.example.com/gpu` counts those whose class is known by that
//! name, and one of `requests.deviceclass.resource.kubernetes.io/CLASS` those of that class, less what is counted for the pod
//! that the scheduler made the claim for.

use super::super::Review;
use super::usage::{self, DEVICE_SUFFIX};
use keelson_api::quantity::Quantity;
use keelson_api::{ApiResult, GroupVersionResource, Object, Str, Value};
use keelson_registry::resources::pod_resources::Amounts;
use std::collections::HashMap;

const IMPLICIT: &str = "requests.deviceclass.resource.kubernetes.io/";
/// What the scheduler marks a claim with that stands for a pod's extended resources.
const MARK: &str = "resource.kubernetes.io/extended-resource-claim";

#[derive(Default)]
pub struct Extended {
    /// Names of extended resources by classes' names; empty for a class that has none.
    names: HashMap<Str, Str>,
    /// What the pod counts for that the claim is made for.
    of_pod: Amounts,
}

impl Extended {
    pub async fn of(review: &Review<'_>, claim: &Object) -> ApiResult<Extended> {
        let classes = review.lookup.list("resource.k8s.io", "deviceclasses", "").await?;
        let named = |class: &Object| {
            class
                .str_at(&["spec", "extendedResourceName"])
                .unwrap_or_default()
                .into()
        };
        Ok(Extended {
            names: classes
                .iter()
                .map(|class| (class.name().into(), named(class)))
                .collect(),
            of_pod: of_pod(review, claim).await?,
        })
    }

    /// Whether a claim can count for what a quota names so.
    pub fn measures(&self, name: &str) -> bool {
        match name.strip_prefix(IMPLICIT) {
            Some(class) => self.names.contains_key(class),
            None => name
                .strip_prefix("requests.")
                .is_some_and(|name| !name.is_empty() && self.names.values().any(|known| known == name)),
        }
    }

    /// Counts the devices of each class under these names as well.
    pub fn add_to(&self, used: &mut Amounts) {
        let devices: Vec<_> = used
            .iter()
            .filter_map(|(name, n)| Some((name.strip_suffix(DEVICE_SUFFIX)?.to_owned(), *n)))
            .collect();
        // Several classes may be known by one name.
        let mut known = Amounts::new();
        for (class, n) in devices.into_iter().filter(|(class, _)| !class.is_empty()) {
            let explicit = self.names.get(class.as_str()).filter(|name| !name.is_empty());
            let explicit = explicit.map(|name| format!("requests.{name}"));
            for name in [Some(format!("{IMPLICIT}{class}")), explicit].into_iter().flatten() {
                known.entry(Str::from(name)).or_insert(Quantity::ZERO).add(n);
            }
        }
        for (name, mut left) in known {
            if let Some(counted) = self.of_pod.get(&name) {
                left.sub(*counted);
            }
            if !left.is_zero() && !left.is_negative() {
                used.insert(name, left);
            }
        }
    }
}

/// What the pod counts for, if the claim is the one that was made for its extended resources.
async fn of_pod(review: &Review<'_>, claim: &Object) -> ApiResult<Amounts> {
    let Some((name, uid)) = owner(claim) else {
        return Ok(Amounts::new());
    };
    let pod = review.lookup.cached("", "pods", claim.namespace(), name).await?;
    let Some(pod) = pod.filter(|pod| pod.uid() == uid) else {
        return Ok(Amounts::new());
    };
    let is_its = match pod.str_at(&["status", "extendedResourceClaimStatus", "resourceClaimName"]) {
        Some(told) => told == claim.name(),
        // It doesn't say so yet: the first of those that say that they are its.
        None => {
            let all = review
                .lookup
                .list("resource.k8s.io", "resourceclaims", claim.namespace())
                .await?;
            let age = |claim: &Object| (claim.creation_timestamp().to_owned(), claim.name().to_owned());
            let mut others = all.iter().filter(|other| owner(other).is_some_and(|(_, of)| of == uid));
            !others.any(|other| age(other) < age(claim))
        }
    };
    Ok(match is_its {
        true => usage::of(&GroupVersionResource::new("", "v1", "pods"), &pod),
        false => Amounts::new(),
    })
}

/// Name and UID of the pod that a marked claim belongs to.
fn owner(claim: &Object) -> Option<(&str, &str)> {
    claim.annotation(MARK).filter(|mark| *mark == "true")?;
    let references = claim.at(&["metadata", "ownerReferences"])?.as_array()?;
    let controls = |r: &&Value| r.get("controller").and_then(Value::as_bool) == Some(true);
    let controller = references.iter().find(controls)?;
    let text = |key: &str| controller.get(key).and_then(Value::as_str);
    let is_pod = text("kind") == Some("Pod") && text("apiVersion") == Some("v1");
    is_pod.then_some((text("name")?, text("uid")?))
}
