//! Claims get volumes. Where the class waits for pods the scheduler has chosen the node; otherwise the node that has room and is first
//! to write its name into the claim makes the volume.

use super::request::{self, Source, class_of, requested, volume_name};
use super::source::{self, Refused, Wish};
use super::{Shared, annotation, resize, told};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use keelson_client::EventType::{Normal, Warning};
use keelson_client::{ApiObject, ObjectKey, Outcome, Reconcile, is_already_exists};
use keelson_csi::v1::{self as csi};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::Code;

const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub struct Claims {
    shared: Arc<Shared>,
    /// Volumes that the driver made and the API doesn't have yet, by claim. Should the claim go meanwhile, so do they.
    made: Mutex<HashMap<ObjectKey, (String, String)>>,
}

impl Claims {
    pub fn new(shared: Arc<Shared>) -> Self {
        Claims {
            shared,
            made: Mutex::default(),
        }
    }
}

#[async_trait]
impl Reconcile for Claims {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let claim = self.shared.claims.store().get_key(key);
        self.forsake(key, claim.as_deref()).await?;
        let Some(claim) = claim else { return Ok(Outcome::Done) };
        let bound = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_name.as_deref())
            .is_some_and(|v| !v.is_empty());
        if bound {
            return resize::see_to(&self.shared, &claim).await;
        }
        if claim.is_deleting() || self.shared.volumes.store().get("", &volume_name(&claim)).is_some() {
            return Ok(Outcome::Done);
        }
        let name = Some(self.shared.facts.name.as_str());
        if annotation(&*claim, PROVISIONER).or_else(|| annotation(&*claim, PROVISIONER_BETA)) != name {
            return Ok(Outcome::Done);
        }
        let class = class_of(&claim).and_then(|c| self.shared.classes.store().get("", c));
        let Some(class) = class.filter(|c| Some(c.provisioner.as_str()) == name) else {
            return Ok(Outcome::Done);
        };
        if let Ok(Wish::Foreign(_)) = source::wish(&claim) {
            let text = "Assuming an external populator will provision the volume";
            self.shared.recorder.event(&*claim, Normal, "Provisioning", text);
            return Ok(Outcome::Done);
        }
        match annotation(&*claim, SELECTED_NODE) {
            Some(node) if node == self.shared.facts.node => self.provision(&claim, &class).await,
            Some(_) => Ok(Outcome::Done),
            None if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => Ok(Outcome::Done),
            None => self.volunteer(&claim, &class).await,
        }
    }
}

impl Claims {
    /// Removes what was made for a claim that has gone since.
    async fn forsake(&self, key: &ObjectKey, claim: Option<&PersistentVolumeClaim>) -> anyhow::Result<()> {
        let Some((uid, handle)) = self.made.lock().get(key).cloned() else {
            return Ok(());
        };
        if claim.is_some_and(|c| c.uid() == uid) {
            return Ok(());
        }
        let request = csi::DeleteVolumeRequest {
            volume_id: handle,
            ..Default::default()
        };
        self.shared.driver.controller().delete_volume(request).await?;
        self.made.lock().remove(key);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Offers this node for a claim that may be anywhere.
    async fn volunteer(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> anyhow::Result<Outcome> {
        let facts = &self.shared.facts;
        let source = self.source(claim).await?;
        let asked = match source.and_then(|source| Ok(request::create(facts, claim, class, source)?)) {
            Ok(asked) => csi::GetCapacityRequest {
                volume_capabilities: asked.volume_capabilities,
                parameters: asked.parameters,
                accessible_topology: Some(self.shared.facts.topology()),
            },
            Err(why) if why.elsewhere => return Ok(Outcome::Done),
            Err(why) => {
                self.fail(claim, class, &why.text);
                return Ok(Outcome::Retry);
            }
        };
        let room = self.shared.driver.controller().get_capacity(asked).await?.into_inner();
        if room.available_capacity < requested(claim) {
            return Ok(Outcome::Retry);
        }
        let mut mine = claim.clone();
        let annotations = mine.metadata.annotations.get_or_insert_default();
        annotations.insert(SELECTED_NODE.into(), self.shared.facts.node.clone());
        // A conflict means that another node was first; what comes back tells.
        self.shared.claim_objects.update(&mine).await?;
        Ok(Outcome::Done)
    }

    fn fail(&self, claim: &PersistentVolumeClaim, class: &StorageClass, why: &str) {
        let text = format!("failed to provision volume with StorageClass {:?}: {why}", class.name());
        self.shared.recorder.event(claim, Warning, "ProvisioningFailed", text);
    }

    /// What the claim's volume is to begin with.
    async fn source(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<Result<Option<Source>, Refused>> {
        let shared = &self.shared;
        let (facts, namespace) = (&shared.facts, claim.namespace());
        let wish = match source::wish(claim) {
            Ok(wish) => wish,
            Err(why) => return Ok(Err(why.into())),
        };
        Ok(match wish {
            Wish::Nothing | Wish::Foreign(_) => Ok(None),
            Wish::Claim(name) => {
                let find = |name: &str| shared.claims.store().get(namespace, name);
                let volume = |name: &str| shared.volumes.store().get("", name);
                source::of_claim(facts, claim, name, find, volume).map(|handle| Some(Source::Volume(handle)))
            }
            Wish::Snapshot(name) => {
                let snapshot = shared.snapshot_objects.find(namespace, name).await?;
                let content = match snapshot.as_ref().and_then(|s| s.bound()) {
                    Some(content) => shared.content_objects.find("", content).await?,
                    None => None,
                };
                let found = snapshot.as_ref().map(|s| (s, content.as_ref()));
                source::of_snapshot(facts, claim, name, found).map(|handle| Some(Source::Snapshot(handle)))
            }
        })
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> anyhow::Result<Outcome> {
        let shared = &self.shared;
        let source = self.source(claim).await?;
        let asked = source.and_then(|source| Ok(request::create(&shared.facts, claim, class, source)?));
        let asked = match asked {
            Ok(asked) => asked,
            Err(why) => {
                self.fail(claim, class, &why.text);
                return match why.elsewhere {
                    true => self.give_back(claim).await,
                    false => Ok(Outcome::Retry),
                };
            }
        };
        let text = format!(
            "External provisioner is provisioning volume for claim \"{}\"",
            claim.key()
        );
        shared.recorder.event(claim, Normal, "Provisioning", text);
        let made = match shared.driver.controller().create_volume(asked).await {
            Ok(answer) => answer.into_inner().volume,
            Err(status) => {
                self.fail(claim, class, &told(&status));
                if status.code() == Code::ResourceExhausted {
                    return self.give_back(claim).await;
                }
                return Ok(Outcome::Retry);
            }
        };
        let Some(made) = made else {
            self.fail(claim, class, "the driver answers without a volume");
            return Ok(Outcome::Retry);
        };
        self.made
            .lock()
            .insert(claim.key(), (claim.uid().into(), made.volume_id.clone()));
        shared.changed.notify_one();
        let volume = request::volume(&shared.facts, claim, class, made);
        match shared.volume_objects.create(&volume).await {
            Ok(_) => {}
            Err(error) if is_already_exists(&error) => {}
            Err(error) => return Err(error.into()),
        }
        self.made.lock().remove(&claim.key());
        let text = format!("Successfully provisioned volume {}", volume.name());
        shared.recorder.event(claim, Normal, "ProvisioningSucceeded", text);
        Ok(Outcome::Done)
    }

    /// There is no room here: the scheduler, or another node, may know better.
    async fn give_back(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<Outcome> {
        self.shared.changed.notify_one();
        let mut free = claim.clone();
        if let Some(annotations) = &mut free.metadata.annotations {
            annotations.remove(SELECTED_NODE);
        }
        self.shared.claim_objects.update(&free).await?;
        Ok(Outcome::Done)
    }
}
