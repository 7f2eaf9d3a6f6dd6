//! Volumes go when their claims have gone, and are kept from going before the driver has let go.

use super::request::{FINALIZER, PROVISIONED_BY};
use super::{Shared, annotation, told};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolume;
use keelson_client::EventType::Warning;
use keelson_client::{ApiObject, ObjectKey, Outcome, Reconcile, delete_options, is_not_found};
use keelson_csi::v1::{self as csi};
use std::sync::Arc;

pub struct Volumes(pub Arc<Shared>);

/// What is to be done about a volume.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Whether it should be there from now on.
    Finalizer(bool),
    Delete,
}

fn decide(volume: &PersistentVolume) -> Step {
    let policy = volume
        .spec
        .as_ref()
        .and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let phase = volume
        .status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default();
    let protected = volume.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    match (policy == Some("Delete"), protected) {
        (true, _) if phase == "Released" || phase == "Failed" && volume.is_deleting() => Step::Delete,
        (true, false) if !volume.is_deleting() => Step::Finalizer(true),
        (false, true) => Step::Finalizer(false),
        _ => Step::Nothing,
    }
}

#[async_trait]
impl Reconcile for Volumes {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(volume) = self.0.volumes.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let ours = annotation(&*volume, PROVISIONED_BY) == Some(&self.0.facts.name);
        if !ours || !self.0.facts.owns(&volume) {
            return Ok(Outcome::Done);
        }
        match decide(&volume) {
            Step::Nothing => Ok(Outcome::Done),
            Step::Finalizer(wanted) => {
                self.mark(&volume, wanted).await?;
                Ok(Outcome::Done)
            }
            Step::Delete => self.delete(&volume).await,
        }
    }
}

impl Volumes {
    async fn mark(&self, volume: &PersistentVolume, wanted: bool) -> anyhow::Result<()> {
        let mut changed = volume.clone();
        let finalizers = changed.metadata.finalizers.get_or_insert_default();
        finalizers.retain(|f| f != FINALIZER);
        if wanted {
            finalizers.push(FINALIZER.into());
        }
        match self.0.volume_objects.update(&changed).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn delete(&self, cached: &PersistentVolume) -> anyhow::Result<Outcome> {
        // Data that is gone can't be had back: the server is asked once more.
        let Some(volume) = self.0.volume_objects.find("", cached.name()).await? else {
            return Ok(Outcome::Done);
        };
        if volume.uid() != cached.uid() || decide(&volume) != Step::Delete {
            return Ok(Outcome::Retry);
        }
        let handle = volume
            .spec
            .as_ref()
            .and_then(|s| s.csi.as_ref())
            .map(|c| c.volume_handle.clone());
        let request = csi::DeleteVolumeRequest {
            volume_id: handle.unwrap_or_default(),
            ..Default::default()
        };
        if let Err(status) = self.0.driver.controller().delete_volume(request).await {
            self.0
                .recorder
                .event(&volume, Warning, "VolumeFailedDelete", told(&status));
            return Ok(Outcome::Retry);
        }
        self.0.changed.notify_one();
        let options = delete_options(None, Some(volume.uid()), None);
        match self.0.volume_objects.delete("", volume.name(), &options).await {
            Err(error) if !is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
        if let Some(live) = self.0.volume_objects.find("", volume.name()).await?
            && live.uid() == volume.uid()
        {
            self.mark(&live, false).await?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_only_when_it_is_to() {
        let judge = |policy: &str, phase: &str, meta: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"v"{meta}}},"spec":{{"persistentVolumeReclaimPolicy":"{policy}"}},"status":{{"phase":"{phase}"}}}}"#
            );
            decide(&PersistentVolume::decode(text.as_bytes()).expect("a volume"))
        };
        let marked = format!(r#","finalizers":["{FINALIZER}"]"#);
        let deleted = format!(r#"{marked},"deletionTimestamp":"2026-01-01T00:00:00Z""#);
        assert_eq!(judge("Delete", "Bound", &marked), Step::Nothing);
        assert_eq!(judge("Delete", "Bound", ""), Step::Finalizer(true));
        assert_eq!(judge("Delete", "Bound", &deleted), Step::Nothing);
        assert_eq!(judge("Delete", "Released", &marked), Step::Delete);
        assert_eq!(judge("Retain", "Released", &marked), Step::Finalizer(false));
        assert_eq!(judge("Retain", "Released", ""), Step::Nothing);
    }
}
