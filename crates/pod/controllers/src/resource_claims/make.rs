//! Claims made from templates for a pod, and reservations for a pod that was given its node by somebody other than the scheduler.

use super::{Name, POD_CLAIM, asked, claims_of, has_claims, name};
use crate::claim::Owner;
use crate::pod_control::message;
use crate::{pods, wire};
use anyhow::Context as _;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::events::EventType::Warning;
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{ApiObject, Informer, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder, is_not_found};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// Who owns the list of claims in pods' statuses.
const MANAGER: &str = "ResourceClaimController";
/// A name that the server completes: a hyphen and five letters fit in 63 after so many bytes.
const LONGEST_BASE: usize = 57;

pub struct Maker {
    pub pods: Informer<Pod>,
    pub claims: Informer<ResourceClaim>,
    pub templates: Informer<ResourceClaimTemplate>,
    pub objects: Objects<ResourceClaim>,
    pub statuses: Objects<Pod>,
    pub recorder: Recorder,
    /// What was made, by the pod's uid and its name for it, until the informer shows it: another one mustn't be made. It goes with
    /// the pod.
    pub made: Mutex<HashMap<ObjectKey, Made>>,
}

#[derive(Default)]
pub struct Made {
    uid: String,
    claims: BTreeMap<String, String>,
}

#[async_trait]
impl Reconcile for Maker {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(pod) = self
            .pods
            .store()
            .get_key(key)
            .filter(|p| pods::is_active(p) && has_claims(p))
        else {
            self.made.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let mut new = BTreeMap::new();
        for claim in asked(&pod) {
            match self.find_or_make(&pod, claim).await {
                Ok(Some(name)) => drop(new.insert(claim.name.clone(), name)),
                Ok(None) => {}
                Err(error) if error.downcast_ref().is_some_and(is_namespace_terminating) => return Ok(Outcome::Done),
                Err(error) => {
                    let text = format!("PodResourceClaim {}: {error:#}", claim.name);
                    self.recorder.event(&*pod, Warning, "FailedResourceClaimCreation", text);
                    return Err(error.context(format!("claim {} of pod {key}", claim.name)));
                }
            }
        }
        if !new.is_empty() {
            self.tell(&pod, new).await?;
        }
        if pods::node(&pod).is_some() {
            self.reserve(&pod).await?;
        }
        Ok(Outcome::Done)
    }
}

impl Maker {
    /// The name of the claim, if the pod's status doesn't tell it yet.
    async fn find_or_make(&self, pod: &Pod, claim: &PodResourceClaim) -> anyhow::Result<Option<String>> {
        match name(pod, claim) {
            Name::Given(_) | Name::None => return Ok(None),
            Name::Made(name) if self.is_for(pod, name).await? => return Ok(None),
            Name::Made(_) | Name::Missing => {}
        }
        let Some(template) = &claim.resource_claim_template_name else {
            return Ok(None);
        };
        let ours = self.claims.store().controlled_by(pod.uid());
        let is_it = |c: &&std::sync::Arc<ResourceClaim>| {
            c.metadata.annotations.as_ref().and_then(|a| a.get(POD_CLAIM)) == Some(&claim.name)
        };
        if let Some(found) = ours.iter().find(is_it) {
            return Ok(Some(found.name().to_owned()));
        }
        if let Some(made) = self.was_made(pod, &claim.name)
            && self.is_for(pod, &made).await?
        {
            return Ok(Some(made));
        }
        let Some(template) = self.templates.store().get(pod.namespace(), template) else {
            anyhow::bail!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            );
        };
        let wanted = of_template(pod, &claim.name, &template);
        let created = self.objects.create(&wanted).await;
        let created = created.map_err(|error| {
            let text = format!("create ResourceClaim : {}", message(&error));
            anyhow::Error::from(error).context(text)
        })?;
        let mut made = self.made.lock();
        let made = made.entry(pod.key()).or_default();
        if made.uid != pod.uid() {
            *made = Made {
                uid: pod.uid().to_owned(),
                ..Made::default()
            };
        }
        made.claims.insert(claim.name.clone(), created.name().to_owned());
        Ok(Some(created.name().to_owned()))
    }

    fn was_made(&self, pod: &Pod, claim: &str) -> Option<String> {
        let made = self.made.lock();
        let made = made.get(&pod.key()).filter(|made| made.uid == pod.uid())?;
        made.claims.get(claim).cloned()
    }

    /// Whether there is such a claim, and it was made for the pod. What the informer doesn't show the server is asked for.
    async fn is_for(&self, pod: &Pod, name: &str) -> anyhow::Result<bool> {
        let claim = match self.claims.store().get(pod.namespace(), name) {
            Some(known) => Some(known),
            None => self.objects.find(pod.namespace(), name).await?.map(Into::into),
        };
        Ok(claim.is_some_and(|claim| wire::controller_of(claim.meta()).is_some_and(|owner| owner.uid == pod.uid())))
    }

    async fn tell(&self, pod: &Pod, new: BTreeMap<String, String>) -> anyhow::Result<()> {
        let told = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_ref());
        let told = told.into_iter().flatten();
        let mut all: BTreeMap<_, _> = told
            .filter_map(|s| Some((s.name.clone(), s.resource_claim_name.clone()?)))
            .collect();
        all.extend(new);
        let statuses: Vec<_> = all
            .iter()
            .map(|(name, claim)| json!({"name": name, "resourceClaimName": claim}))
            .collect();
        let body = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name(), "namespace": pod.namespace()},
            "status": {"resourceClaimStatuses": statuses},
        });
        let patch = Patch::Apply {
            body: &body,
            manager: MANAGER,
            force: true,
        };
        match self.statuses.patch_status(pod.namespace(), pod.name(), patch).await {
            Err(error) if !is_not_found(&error) => {
                Err(error).with_context(|| format!("update pod {} ResourceClaimStatuses", pod.key()))
            }
            _ => Ok(()),
        }
    }

    /// Enters the pod in its claims, if they are allocated and the scheduler hasn't done it.
    async fn reserve(&self, pod: &Pod) -> anyhow::Result<()> {
        for claim_name in claims_of(pod) {
            let Some(claim) = self.claims.store().get(pod.namespace(), &claim_name) else {
                continue;
            };
            let status = claim.status.as_ref();
            if status.is_none_or(|s| s.allocation.is_none()) {
                continue;
            }
            let is_made = asked(pod).iter().any(|c| name(pod, c) == Name::Made(&claim_name));
            let owner = wire::controller_of(claim.meta());
            anyhow::ensure!(
                !is_made || owner.is_some_and(|o| o.uid == pod.uid()),
                "ResourceClaim {} was not created for Pod {} (Pod is not owner)",
                claim.key(),
                pod.key()
            );
            let mut users = status.and_then(|s| s.reserved_for.clone()).unwrap_or_default();
            if users.iter().any(|user| user.uid == pod.uid()) {
                continue;
            }
            users.push(k8s_openapi::api::resource::v1::ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".into(),
                name: pod.name().into(),
                uid: pod.uid().into(),
            });
            let body = json!({
                "metadata": {"uid": claim.uid(), "resourceVersion": claim.metadata.resource_version},
                "status": {"reservedFor": users},
            });
            let patched = self
                .objects
                .patch_status(claim.namespace(), claim.name(), Patch::Merge(&body))
                .await;
            patched.with_context(|| format!("reserve claim {}", claim.key()))?;
        }
        Ok(())
    }
}

fn of_template(pod: &Pod, claim: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let wanted = template.spec.as_ref();
    let meta = wanted.and_then(|spec| spec.metadata.clone()).unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.into(), claim.into());
    ResourceClaim {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace().into()),
            generate_name: Some(base(pod.name(), claim)),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![Owner::of(pod).reference()]),
            ..ObjectMeta::default()
        },
        spec: wanted.and_then(|spec| spec.spec.clone()),
        status: None,
    }
}

/// Pod and claim share what room there is by their lengths. Names are ASCII.
fn base(pod: &str, claim: &str) -> String {
    let whole = format!("{pod}-{claim}-");
    if whole.len() <= LONGEST_BASE {
        return whole;
    }
    let part = |text: &str| {
        text.chars()
            .take(text.len() * LONGEST_BASE / whole.len())
            .collect::<String>()
    };
    format!("{}-{}", part(pod), part(claim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_share_the_room() {
        assert_eq!(base("pod", "gpu"), "pod-gpu-");
        let long = base(&"p".repeat(100), &"c".repeat(50));
        assert!(
            long.len() <= LONGEST_BASE && long.starts_with("ppp") && long.ends_with('c'),
            "{long}"
        );
        assert_eq!(long, format!("{}-{}", "p".repeat(37), "c".repeat(18)));
    }
}
