//! Binds claims to volumes, and tells in both what became of them.
//!
//! A bond is written in three steps, any of which a crash may follow: the volume's reference; its phase and the claim's
//! reference, side by side; the claim's phase. Each turn takes up where the last ended. Volumes are made and destroyed by provisioners; here
//! they are only asked for, and marked as released.

mod attach;
mod bond;
mod classes;
mod ephemeral;
mod expand;
mod matching;
mod protect;
mod reclaim;
mod snapshots;
mod unused;

use crate::context::{Context, now};
use async_trait::async_trait;
pub use attach::start as start_attaching;
use bond::{claim_status, with_claim, with_volume};
pub use ephemeral::start as start_ephemeral;
pub use expand::start as start_expanding;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder, is_not_found,
};
use matching::BOUND_BY_CONTROLLER;
pub use protect::{
    start_claims as start_claim_protection, start_classes as start_class_protection,
    start_volumes as start_volume_protection,
};
pub use snapshots::{definitions as snapshot_definitions, start as start_snapshots};
use std::sync::Arc;

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Provisioners of this prefix were part of Kubernetes, and none is left: `kubernetes.io/no-provisioner` marks classes whose
/// volumes are only ever made by hand.
const IN_TREE: &str = "kubernetes.io/";

pub fn annotation<'a>(object: &'a impl ApiObject, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

pub fn has_annotation(object: &impl ApiObject, name: &str) -> bool {
    annotation(object, name).is_some()
}

/// Bonds that are written at a time: each is a row of writes that wait for the disk.
const WORKERS: usize = 10;
/// The index of claims that wait for a volume: one value, the empty one.
const UNBOUND: &str = "unbound";
/// The index of volumes by what they are for ([`matching::meant_for`]).
const FOR: &str = "for";

pub fn start(context: &Context) {
    let claims = context.informer::<PersistentVolumeClaim>();
    let volumes = context.informer::<PersistentVolume>();
    let classes = context.informer::<StorageClass>();
    let pods = context.informer::<Pod>();
    attach::world::by_claim(&pods);
    let controller = Controller::new("persistentvolume-binder")
        .input(&claims)
        .input(&volumes)
        .input(&classes)
        .input(&pods)
        .output(PersistentVolume::RESOURCE)
        .output(PersistentVolumeClaim::RESOURCE)
        .workers(WORKERS);
    claims
        .store()
        .add_index(UNBOUND, |c| match has_annotation(c, BIND_COMPLETED) {
            true => Vec::new(),
            false => vec![String::new()],
        });
    volumes
        .store()
        .add_index(FOR, |volume| vec![matching::meant_for(volume)]);
    let queue = controller.queue();
    {
        let queue = queue.clone();
        claims.on_change(move |change| {
            let claim = change.object();
            queue.add(claim.key());
            // A claim's end, or its choice, is news to its volume.
            if let Some(volume) = claim
                .spec
                .as_ref()
                .and_then(|s| s.volume_name.as_deref())
                .filter(|v| !v.is_empty())
            {
                queue.add(ObjectKey::cluster(volume));
            }
        });
    }
    let waiting = claims.clone();
    let take = queue.clone();
    volumes.on_change(move |change| {
        let volume = change.object();
        take.add(volume.key());
        if let Some(claim) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
            take.add(claim_key(claim));
        }
        // A volume that became free may be what some claim waits for.
        if !matching::is_claimed(volume) && !change.is_deleted() {
            let unbound = waiting.store().by_index(UNBOUND, "");
            unbound.iter().for_each(|claim| take.add(claim.key()));
        }
    });
    let waiting = claims.clone();
    let take = queue.clone();
    classes.on_change(move |change| {
        let name = change.object().name();
        let concerned = |c: &PersistentVolumeClaim| matching::claim_class(c) == name || !classes::is_chosen(c);
        let unbound = waiting.store().by_index(UNBOUND, "");
        unbound
            .iter()
            .filter(|c| concerned(c))
            .for_each(|claim| take.add(claim.key()));
    });
    let waiting = claims.clone();
    pods.on_change(move |change| {
        // A claim that waits for pods tells which ones it waits for.
        let pod = change.object();
        if change.old().is_none() && !change.is_deleted() && crate::pods::node(pod).is_none() {
            let names = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
            let names = names.filter_map(|v| protect::claim_of(pod.name(), v));
            let keys = names.map(|name| ObjectKey::new(pod.namespace(), name));
            let unbound = |k: &ObjectKey| {
                waiting
                    .store()
                    .get_key(k)
                    .is_some_and(|c| !has_annotation(&*c, BIND_COMPLETED))
            };
            keys.filter(unbound).for_each(|key| queue.add(key));
        }
    });
    let rest = context.rest("persistent-volume-binder");
    let recorder = context.recorder(&rest, "persistentvolume-controller");
    context.run(
        controller,
        Binder {
            claims,
            volumes,
            classes,
            pods,
            claim_objects: Objects::new(&rest),
            volume_objects: Objects::new(&rest),
            recorder,
            claims_written: Expectations::default(),
            volumes_written: Expectations::default(),
            choosing: tokio::sync::Mutex::default(),
        },
    );
}

struct Binder {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    claim_objects: Objects<PersistentVolumeClaim>,
    volume_objects: Objects<PersistentVolume>,
    recorder: Recorder,
    claims_written: Expectations,
    volumes_written: Expectations,
    /// Two claims must not choose the same volume: who chooses has seen all choices before.
    choosing: tokio::sync::Mutex<()>,
}

/// Choices are waited for together.
fn choices() -> ObjectKey {
    ObjectKey::default()
}

fn claim_key(reference: &ObjectReference) -> ObjectKey {
    ObjectKey::new(
        reference.namespace.clone().unwrap_or_default(),
        reference.name.clone().unwrap_or_default(),
    )
}

#[async_trait]
impl Reconcile for Binder {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.claims_written.settle(key, self.claims.store()).await?;
        self.volumes_written.settle(key, self.volumes.store()).await?;
        if key.namespace.is_empty() {
            if let Some(volume) = self.volumes.store().get_key(key) {
                self.see_to_volume(&volume).await?;
            }
        } else if let Some(claim) = self.claims.store().get_key(key) {
            if has_annotation(&*claim, BIND_COMPLETED) {
                self.see_to_bound(&claim).await?;
            } else {
                self.see_to_unbound(&claim).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

impl Binder {
    async fn see_to_unbound(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let named = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_name.as_deref())
            .unwrap_or_default();
        if !named.is_empty() {
            return self.see_to_named(claim, named).await;
        }
        if claim.is_deleting() {
            return self.write_claim_phase(claim, "Pending", None).await;
        }
        let wanted = matching::claim_class(claim);
        let class = self.classes.store().get("", wanted).filter(|_| !wanted.is_empty());
        let delayed = class.as_ref().is_some_and(|c| classes::waits_for_pods(c));
        let choosing = match delayed {
            true => None,
            false => Some(self.choosing.lock().await),
        };
        if choosing.is_some() {
            self.volumes_written.settle(&choices(), self.volumes.store()).await?;
        }
        let meant_for = |whom: &str| self.volumes.store().by_index(FOR, whom);
        let mut volumes = match delayed {
            true => Vec::new(),
            false => meant_for(&matching::free(wanted)),
        };
        // In this order: one that is being reserved for the claim is found in either place.
        volumes.extend(meant_for(&matching::reserved(claim)));
        if let Some(volume) = matching::best(claim, &volumes, delayed) {
            let volume = self.reserve(&volume, claim).await?;
            drop(choosing);
            return self.complete(&volume, claim).await;
        }
        drop(choosing);
        if !classes::is_chosen(claim)
            && let Some(default) = classes::default(&self.classes.store().list())
        {
            return self.choose(claim, default).await;
        }
        self.write_claim_phase(claim, "Pending", None).await?;
        if delayed && !has_annotation(claim, SELECTED_NODE) {
            let (reason, text) = self.what_for(claim);
            self.recorder.event(claim, Normal, reason, text);
            return Ok(());
        }
        let failed = match class {
            Some(class) if class.provisioner.starts_with(IN_TREE) => {
                format!("no volume plugin matched name: {}", class.provisioner)
            }
            Some(class) => return self.ask(claim, &class).await,
            None if wanted.is_empty() => {
                let text = "no persistent volumes available for this claim and no storage class is set";
                self.recorder.event(claim, Normal, "FailedBinding", text);
                return Ok(());
            }
            None => format!("storageclass.storage.k8s.io {wanted:?} not found"),
        };
        self.recorder.event(claim, Warning, "ProvisioningFailed", failed);
        Ok(())
    }

    /// Gives a claim that doesn't say which class it wants the default one, also if that came later than the claim.
    async fn choose(&self, claim: &PersistentVolumeClaim, class: &str) -> anyhow::Result<()> {
        let mut changed = claim.clone();
        changed.spec.get_or_insert_default().storage_class_name = Some(class.into());
        self.wrote_claim(&self.claim_objects.update(&changed).await?);
        Ok(())
    }

    /// What a claim of a class that waits for pods waits for.
    fn what_for(&self, claim: &PersistentVolumeClaim) -> (&'static str, String) {
        let users = self
            .pods
            .store()
            .by_index(attach::world::BY_CLAIM, &claim.key().to_string());
        let unplaced = users
            .iter()
            .filter(|p| crate::pods::node(p).is_none() && !attach::world::is_terminated(p));
        let names: Vec<_> = unplaced.map(|p| p.name()).collect();
        match names.as_slice() {
            [] => (
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".into(),
            ),
            [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
            many => (
                "WaitForPodScheduled",
                format!("waiting for pods {} to be scheduled", many.join(",")),
            ),
        }
    }

    /// Asks the class' provisioner for a volume.
    async fn ask(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> anyhow::Result<()> {
        let provisioner = &class.provisioner;
        if annotation(claim, PROVISIONER) != Some(provisioner) {
            let mut changed = self.claim_objects.get(claim.namespace(), claim.name()).await?;
            anyhow::ensure!(
                changed.uid() == claim.uid(),
                "the claim was replaced by another of that name"
            );
            let annotations = changed.metadata.annotations.get_or_insert_default();
            annotations.insert(PROVISIONER.into(), provisioner.clone());
            annotations.insert(PROVISIONER_BETA.into(), provisioner.clone());
            self.wrote_claim(&self.claim_objects.update(&changed).await?);
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. \
             If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.recorder.event(claim, Normal, "ExternalProvisioning", text);
        Ok(())
    }

    /// The claim asks for one volume by name.
    async fn see_to_named(&self, claim: &PersistentVolumeClaim, name: &str) -> anyhow::Result<()> {
        let Some(volume) = self.volumes.store().get("", name) else {
            return self.write_claim_phase(claim, "Pending", None).await;
        };
        if matching::is_reserved_for(&volume, claim) {
            return self.bind(&volume, claim).await;
        }
        if matching::is_claimed(&volume) {
            let text = format!("volume {name:?} already bound to a different claim.");
            self.recorder.event(claim, Warning, "FailedBinding", text);
            // Somebody took the mark of its bond from a claim: upstream tries again, which mends it if the other gives up.
            anyhow::ensure!(
                !has_annotation(claim, BOUND_BY_CONTROLLER),
                "invalid binding of the claim to volume {name:?}: already claimed"
            );
            return self.write_claim_phase(claim, "Pending", None).await;
        }
        if let Some(why) = matching::mismatch(&volume, claim) {
            let text = format!("Cannot bind to requested volume {name:?}: {why}");
            self.recorder.event(claim, Warning, "VolumeMismatch", text);
            return self.write_claim_phase(claim, "Pending", None).await;
        }
        self.bind(&volume, claim).await
    }

    async fn see_to_bound(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let name = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_name.as_deref())
            .unwrap_or_default();
        if name.is_empty() {
            return self
                .lose(
                    claim,
                    "ClaimLost",
                    "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
                )
                .await;
        }
        let Some(volume) = self.volumes.store().get("", name) else {
            return self
                .lose(
                    claim,
                    "ClaimLost",
                    "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
                )
                .await;
        };
        let holder = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if holder.is_none_or(|r| r.uid.as_deref() == Some(claim.uid())) {
            return self.bind(&volume, claim).await;
        }
        let text = "Two claims are bound to the same volume, this one is bound incorrectly";
        self.lose(claim, "ClaimMisbound", text).await
    }

    async fn lose(&self, claim: &PersistentVolumeClaim, reason: &str, text: &str) -> anyhow::Result<()> {
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Lost") {
            self.write_claim_phase(claim, "Lost", None).await?;
            self.recorder.event(claim, Warning, reason, text);
        }
        Ok(())
    }

    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let volume = self.reserve(volume, claim).await?;
        self.complete(&volume, claim).await
    }

    /// The volume is the claim's from here on.
    async fn reserve(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> anyhow::Result<PersistentVolume> {
        let Some(changed) = with_claim(volume, claim) else {
            return Ok(volume.clone());
        };
        let written = self.volume_objects.update(&changed).await?;
        self.volumes_written.wrote(&choices(), written.meta());
        self.wrote_volume(&written);
        Ok(written)
    }

    /// The rest of the bond. Nobody sees a claim that is bound and a volume that isn't.
    async fn complete(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let chosen = async {
            let Some(changed) = with_volume(claim, volume) else {
                return anyhow::Ok(claim.clone());
            };
            let written = self.claim_objects.update(&changed).await?;
            self.wrote_claim(&written);
            Ok(written)
        };
        let (bound, claim) = tokio::join!(self.write_volume_phase(volume, "Bound", None), chosen);
        bound?;
        self.write_claim_phase(&claim?, "Bound", Some(volume)).await
    }

    /// Turns of the claim, and of the volume that it is bound to, wait until they see this.
    fn wrote_claim(&self, claim: &PersistentVolumeClaim) {
        self.claims_written.wrote(&claim.key(), claim.meta());
        let chosen = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
        if let Some(volume) = chosen.filter(|v| !v.is_empty()) {
            self.claims_written.wrote(&ObjectKey::cluster(volume), claim.meta());
        }
    }

    fn wrote_volume(&self, volume: &PersistentVolume) {
        self.volumes_written.wrote(&volume.key(), volume.meta());
        if let Some(claim) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
            self.volumes_written.wrote(&claim_key(claim), volume.meta());
        }
    }

    async fn see_to_volume(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let Some(spec) = &volume.spec else { return Ok(()) };
        let Some(reference) = &spec.claim_ref else {
            return self.write_volume_phase(volume, "Available", None).await;
        };
        let uid = reference.uid.as_deref().unwrap_or_default();
        if uid.is_empty() {
            return self.write_volume_phase(volume, "Available", None).await;
        }
        let (ns, name) = (
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        );
        let claim = match self.claims.store().get(ns, name).filter(|c| c.uid() == uid) {
            Some(claim) => Some(claim),
            // "Released" can't be taken back: the server is asked before it is said.
            None => self
                .claim_objects
                .find(ns, name)
                .await?
                .filter(|c| c.uid() == uid)
                .map(Arc::new),
        };
        let Some(claim) = claim else {
            return self.release(volume).await;
        };
        let chosen = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_name.as_deref())
            .unwrap_or_default();
        if chosen == volume.name() {
            return self.write_volume_phase(volume, "Bound", None).await;
        }
        if chosen.is_empty() {
            // The claim's own turn completes the bond, unless it can't be.
            if !matching::has_same_mode(volume, &claim) {
                let text = format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
                    claim.name()
                );
                self.recorder.event(volume, Warning, "VolumeMismatch", text);
                let text = format!(
                    "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim due to incompatible volumeMode.",
                    volume.name()
                );
                self.recorder.event(&*claim, Warning, "VolumeMismatch", text);
            }
            return Ok(());
        }
        // The claim has another volume.
        if reclaim::goes_with_claim(volume) {
            return self.release(volume).await;
        }
        let mut free = volume.clone();
        let spec = free.spec.get_or_insert_default();
        if matching::is_bound_by_controller(volume) {
            spec.claim_ref = None;
            if let Some(annotations) = &mut free.metadata.annotations {
                annotations.remove(BOUND_BY_CONTROLLER);
            }
        } else if let Some(reference) = &mut spec.claim_ref {
            reference.uid = None;
        }
        let written = self.volume_objects.update(&free).await?;
        self.wrote_volume(&written);
        self.write_volume_phase(&written, "Available", None).await
    }

    /// The claim of a volume has gone, or has another. A volume that has failed remains so.
    async fn release(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let phase = volume
            .status
            .as_ref()
            .and_then(|s| s.phase.as_deref())
            .unwrap_or_default();
        if phase == "Failed" {
            return Ok(());
        }
        if phase != "Released" {
            self.write_volume_phase(volume, "Released", None).await?;
            // What becomes of it is decided when the change comes back.
            return Ok(());
        }
        if let Some((reason, text)) = reclaim::failure(volume) {
            self.write_volume_phase(volume, "Failed", Some(&text)).await?;
            self.recorder.event(volume, Warning, reason, text);
        }
        Ok(())
    }

    async fn write_volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> anyhow::Result<()> {
        let old = volume.status.clone().unwrap_or_default();
        if old.phase.as_deref() == Some(phase) {
            return Ok(());
        }
        let status = PersistentVolumeStatus {
            phase: Some(phase.into()),
            message: message.map(Into::into),
            reason: None,
            last_phase_transition_time: Some(Time(now())),
        };
        match self
            .volume_objects
            .update_status(&PersistentVolume {
                status: Some(status),
                ..volume.clone()
            })
            .await
        {
            Ok(written) => self.wrote_volume(&written),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn write_claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> anyhow::Result<()> {
        let old = claim.status.clone().unwrap_or_default();
        let status = claim_status(&old, phase, volume);
        if old == status {
            return Ok(());
        }
        match self
            .claim_objects
            .update_status(&PersistentVolumeClaim {
                status: Some(status),
                ..claim.clone()
            })
            .await
        {
            Ok(written) => self.wrote_claim(&written),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
