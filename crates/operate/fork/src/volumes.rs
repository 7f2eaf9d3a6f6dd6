//! Plays the drivers of storage: a claim that waits for a volume is given one, and a released volume whose class says so goes.

use anyhow::Context as _;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, ObjectKey, Objects, Outcome, Patch, Reconcile, Rest,
    delete_options, is_already_exists, is_not_found,
};
use serde_json::json;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where the scheduler says on which node a claim's pod is to be.
const NODE: &str = "volume.kubernetes.io/selected-node";
/// Volumes of such classes are made by hand.
const NOBODY: &str = "kubernetes.io/no-provisioner";

/// Plays until it is told to stop.
pub async fn run(rest: Rest, stop: CancellationToken) {
    let claims = Informer::<PersistentVolumeClaim>::start(&rest, InformerOptions::default(), &stop);
    let classes = Informer::<StorageClass>::start(&rest, InformerOptions::default(), &stop);
    let volumes = Informer::<PersistentVolume>::start(&rest, InformerOptions::default(), &stop);
    let making = Controller::new("volumes that are made").input(&claims).input(&classes);
    let queue = making.queue();
    claims.on_change(move |change| queue.add(change.object().key()));
    let (queue, waiting) = (making.queue(), claims.clone());
    classes.on_change(move |_| waiting.store().keys().into_iter().for_each(|key| queue.add(key)));
    let going = Controller::new("volumes that go").input(&volumes);
    let queue = going.queue();
    volumes.on_change(move |change| queue.add(change.object().key()));
    let objects = Objects::new(&rest);
    let maker = Maker {
        claims,
        classes,
        objects: objects.clone(),
    };
    let breaker = Breaker { volumes, objects };
    tokio::join!(
        making.run(Arc::new(maker), stop.clone()),
        going.run(Arc::new(breaker), stop)
    );
}

struct Maker {
    claims: Informer<PersistentVolumeClaim>,
    classes: Informer<StorageClass>,
    objects: Objects<PersistentVolume>,
}

#[async_trait]
impl Reconcile for Maker {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(claim) = self.claims.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
        let class = class.and_then(|class| self.classes.store().get("", &class));
        let Some(volume) = class.and_then(|class| made(&claim, &class)) else {
            return Ok(Outcome::Done);
        };
        match self.objects.create(&volume).await {
            Err(error) if !is_already_exists(&error) => Err(error).context("a volume that a driver would make"),
            _ => Ok(Outcome::Done),
        }
    }
}

/// The volume that the class's driver would make for the claim now.
pub fn made(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<PersistentVolume> {
    let spec = claim.spec.as_ref()?;
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    let node = claim.metadata.annotations.as_ref().and_then(|a| a.get(NODE));
    let is_bound = spec.volume_name.as_ref().is_some_and(|volume| !volume.is_empty());
    if is_bound || claim.is_deleting() || class.provisioner == NOBODY || (waits && node.is_none()) {
        return None;
    }
    let name = format!("pvc-{}", claim.uid());
    let by = ("pv.kubernetes.io/provisioned-by".to_owned(), class.provisioner.clone());
    Some(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some([by].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes.clone(),
            capacity: spec.resources.as_ref().and_then(|resources| resources.requests.clone()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
            csi: Some(CSIPersistentVolumeSource {
                driver: class.provisioner.clone(),
                volume_handle: name,
                ..CSIPersistentVolumeSource::default()
            }),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone().or(Some("Delete".into())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: spec.volume_mode.clone(),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    })
}

struct Breaker {
    volumes: Informer<PersistentVolume>,
    objects: Objects<PersistentVolume>,
}

#[async_trait]
impl Reconcile for Breaker {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(volume) = self.volumes.store().get_key(key).filter(|volume| goes(volume)) else {
            return Ok(Outcome::Done);
        };
        let name = volume.name();
        let freed = json!({"metadata": {"uid": volume.uid(), "finalizers": null}});
        let gone = match self.objects.patch("", name, Patch::Merge(&freed)).await {
            Ok(_) => {
                let options = delete_options(None, Some(volume.uid()), None);
                self.objects.delete("", name, &options).await
            }
            Err(error) => Err(error),
        };
        match gone {
            Err(error) if !is_not_found(&error) => Err(error).context("a volume that a driver would delete"),
            _ => Ok(Outcome::Done),
        }
    }
}

fn goes(volume: &PersistentVolume) -> bool {
    let is_released = volume
        .status
        .as_ref()
        .is_some_and(|s| s.phase.as_deref() == Some("Released"));
    let policy = volume
        .spec
        .as_ref()
        .and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    is_released && policy == Some("Delete")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(text: serde_json::Value) -> PersistentVolumeClaim {
        serde_json::from_value(text).unwrap()
    }

    fn class(text: serde_json::Value) -> StorageClass {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_claim_is_given_a_volume_when_its_class_would() {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "fast"});
        let waiting = claim(json!({"metadata": {"name": "data", "namespace": "n", "uid": "u"}, "spec": spec}));
        let now =
            class(json!({"metadata": {"name": "fast"}, "provisioner": "disk.example.com", "reclaimPolicy": "Retain"}));
        let volume = made(&waiting, &now).unwrap();
        let spec = volume.spec.unwrap();
        assert_eq!(volume.metadata.name.as_deref(), Some("pvc-u"));
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("u"));
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        let later = class(
            json!({"metadata": {"name": "fast"}, "provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer"}),
        );
        assert!(made(&waiting, &later).is_none());
        let mut chosen = waiting.clone();
        chosen.metadata.annotations = Some([(NODE.to_owned(), "n1".to_owned())].into());
        assert!(made(&chosen, &later).is_some());
        let by_hand = class(json!({"metadata": {"name": "fast"}, "provisioner": NOBODY}));
        assert!(made(&waiting, &by_hand).is_none());
        let mut bound = waiting;
        bound.spec.get_or_insert_default().volume_name = Some("pv".into());
        assert!(made(&bound, &now).is_none());
    }
}
