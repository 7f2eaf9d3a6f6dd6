//! Plug-ins that run when they are asked for: here images are always pulled, and services get no external addresses.

mod always;
mod anti_affinity;
pub mod event_rate;
pub mod image_policy;
mod namespaces;
pub mod node_selector;
mod owners;
pub mod tolerations;

pub use always::{AlwaysAdmit, AlwaysDeny};
pub use anti_affinity::LimitPodHardAntiAffinityTopology;
pub use event_rate::EventRateLimit;
pub use image_policy::ImagePolicyWebhook;
pub use namespaces::{NamespaceAutoProvision, NamespaceExists};
pub use node_selector::PodNodeSelector;
pub use owners::OwnerReferencesPermissionEnforcement;
pub use tolerations::{ExtendedResourceToleration, PodTolerationRestriction};

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::{ApiResult, Cause, Map, Object, Value};
use keelson_registry::Operation;
use std::collections::HashSet;

/// Every image is pulled with its pod's credentials, also one that is on the machine.
pub struct AlwaysPullImages;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const ALWAYS: &str = "Always";

fn containers(pod: &Object) -> impl Iterator<Item = (&'static str, usize, &Map)> {
    LISTS.into_iter().flat_map(move |list| {
        let all = pod.at(&["spec", list]).and_then(Value::as_array).into_iter().flatten();
        all.enumerate()
            .filter_map(move |(i, c)| Some((list, i, c.as_object()?)))
    })
}

/// A change that brings no new image leaves policies as they are.
fn concerns(review: &Review<'_>, new: &Object, old: Option<&Object>) -> bool {
    if !review.is("", "pods") || !matches!(review.op, Operation::Create | Operation::Update) {
        return false;
    }
    let Some(old) = old else { return true };
    let known: HashSet<Option<&str>> = containers(old).map(|(_, _, c)| c.str("image")).collect();
    containers(new).any(|(_, _, c)| !known.contains(&c.str("image")))
}

#[async_trait]
impl Plugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new else { return Ok(()) };
        if !concerns(review, pod, old) {
            return Ok(());
        }
        let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
        for list in LISTS {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container.set_at(&["imagePullPolicy"], ALWAYS);
            }
        }
        for volume in spec
            .get_mut("volumes")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(image) = volume.get_mut("image").filter(|i| !i.is_null()) {
                image.set_at(&["pullPolicy"], ALWAYS);
            }
        }
        Ok(())
    }
    /// What came after may have changed it.
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(pod) = new.filter(|pod| concerns(review, pod, old)) else {
            return Ok(());
        };
        let wrong = |at: String, policy: Option<&str>| {
            let cause = Cause::not_supported(at, &policy.unwrap_or_default().into(), &[ALWAYS]);
            Err(review.forbidden(Some(pod), format!("{}: {}", cause.field, cause.message)))
        };
        for (list, i, container) in containers(pod) {
            let policy = container.str("imagePullPolicy");
            if policy != Some(ALWAYS) {
                return wrong(format!("spec.{list}[{i}].imagePullPolicy"), policy);
            }
        }
        let volumes = pod.at(&["spec", "volumes"]).and_then(Value::as_array);
        for (i, volume) in volumes.into_iter().flatten().enumerate() {
            let policy = volume.at(&["image", "pullPolicy"]).and_then(Value::as_str);
            if volume.get("image").is_some_and(|image| !image.is_null()) && policy != Some(ALWAYS) {
                return wrong(format!("spec.volumes[{i}].image.pullPolicy"), policy);
            }
        }
        Ok(())
    }
}

/// Who may write services could take any address with them (CVE-2020-8554).
pub struct DenyServiceExternalIPs;

#[async_trait]
impl Plugin for DenyServiceExternalIPs {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let writes = matches!(review.op, Operation::Create | Operation::Update);
        let Some(service) = new.filter(|_| writes && review.is("", "services")) else {
            return Ok(());
        };
        fn list(o: &Object) -> impl Iterator<Item = &Value> {
            let all = o.at(&["spec", "externalIPs"]).and_then(Value::as_array);
            all.into_iter().flatten()
        }
        let known: HashSet<&str> = old.into_iter().flat_map(list).filter_map(Value::as_str).collect();
        let is_known = |ip: &Value| ip.as_str().is_some_and(|ip| known.contains(ip));
        if list(service).all(is_known) {
            return Ok(());
        }
        Err(review.forbidden(Some(service), "Use of external IPs is denied by admission control"))
    }
}
