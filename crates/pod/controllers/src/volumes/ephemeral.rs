//! Makes the claims that pods' generic ephemeral volumes ask for; they belong to their pods.

use super::protect::claim_of;
use crate::claim::Owner;
use crate::context::Context;
use crate::pod_control::message;
use crate::{pods, wire};
use anyhow::Context as _;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::events::EventType::Warning;
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder, is_already_exists,
};

pub fn start(context: &Context) {
    let all = context.informer::<Pod>();
    let claims = context.informer::<PersistentVolumeClaim>();
    let controller = Controller::new("ephemeral-volume")
        .input(&all)
        .input(&claims)
        .output(PersistentVolumeClaim::RESOURCE);
    let queue = controller.queue();
    {
        let queue = queue.clone();
        all.on_change(move |change| {
            let pod = change.object();
            let wants = pod
                .spec
                .iter()
                .flat_map(|s| s.volumes.iter().flatten())
                .any(|v| v.ephemeral.is_some());
            if wants && !change.is_deleted() && change.old().is_none() {
                queue.add(pod.key());
            }
        });
    }
    claims.on_change(move |change| {
        if change.is_deleted()
            && let Some(owner) = wire::controller_of(change.object().meta()).filter(|o| wire::is_kind(o, "Pod", ""))
        {
            queue.add(ObjectKey::new(change.object().namespace(), owner.name.clone()));
        }
    });
    let rest = context.rest("ephemeral-volume-controller");
    let recorder = context.recorder(&rest, "ephemeral_volume");
    context.run(
        controller,
        Maker {
            pods: all,
            claims,
            objects: Objects::new(&rest),
            recorder,
        },
    );
}

struct Maker {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    objects: Objects<PersistentVolumeClaim>,
    recorder: Recorder,
}

#[async_trait]
impl Reconcile for Maker {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(pod) = self.pods.store().get_key(key).filter(|p| pods::is_active(p)) else {
            return Ok(Outcome::Done);
        };
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let template = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref());
            let (Some(template), Some(name)) = (template, claim_of(pod.name(), volume)) else {
                continue;
            };
            if let Some(found) = self.claims.store().get(&key.namespace, &name) {
                if wire::controller_of(found.meta()).is_none_or(|o| o.uid != pod.uid()) {
                    let text = format!(
                        "ephemeral volume {}: PVC {}/{name} was not created for pod {key} (pod is not owner)",
                        volume.name, key.namespace
                    );
                    self.recorder.event(&*pod, Warning, "FailedBinding", text.clone());
                    anyhow::bail!("{text}");
                }
                continue;
            }
            let meta = template.metadata.clone().unwrap_or_default();
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(key.namespace.clone()),
                    labels: meta.labels,
                    annotations: meta.annotations,
                    owner_references: Some(vec![Owner::of(&*pod).reference()]),
                    ..Default::default()
                },
                spec: Some(template.spec.clone()),
                status: None,
            };
            match self.objects.create(&claim).await {
                Ok(_) => {}
                Err(error) if is_already_exists(&error) => return Ok(Outcome::Retry),
                Err(error) if is_namespace_terminating(&error) => return Ok(Outcome::Done),
                Err(error) => {
                    let text = format!(
                        "ephemeral volume {}: create PVC {name}: {}",
                        volume.name,
                        message(&error)
                    );
                    self.recorder.event(&*pod, Warning, "FailedBinding", text);
                    return Err(error).context("creating the claim of an ephemeral volume");
                }
            }
        }
        Ok(Outcome::Done)
    }
}
