//! Keeps claims that pods use, volumes that claims are bound to, and attribute classes of either from going before their
//! users.

use super::attach::world::{BY_CLAIM, by_claim};
use super::unused;
use crate::context::Context;
use crate::{pods, wire};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use keelson_client::{
    ApiObject, Change, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, is_conflict, is_not_found,
};
use std::collections::BTreeSet;
use std::sync::Arc;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";

pub fn start_claims(context: &Context) {
    let claims = context.informer::<PersistentVolumeClaim>();
    let all = context.informer::<Pod>();
    by_claim(&all);
    let controller = Controller::new("pvc-protection")
        .input(&claims)
        .input(&all)
        .output(PersistentVolumeClaim::RESOURCE);
    let queue = controller.queue();
    wire::own(&claims, &queue);
    all.on_change(move |change| {
        let pod = change.object();
        // A claim may go when the last pod that uses it is gone, or has ended; it is used from a pod's first moment on.
        if change.is_deleted() || change.old().is_none() || pods::is_finished(pod) {
            claims_of(pod)
                .into_iter()
                .for_each(|name| queue.add(ObjectKey::new(pod.namespace(), name)));
        }
    });
    let rest = context.rest("pvc-protection-controller");
    let (objects, pod_objects) = (Objects::new(&rest), Objects::new(&rest));
    context.run(
        controller,
        Claims {
            claims,
            pods: all,
            objects,
            pod_objects,
        },
    );
}

pub fn start_volumes(context: &Context) {
    let volumes = context.informer::<PersistentVolume>();
    let controller = Controller::new("pv-protection")
        .input(&volumes)
        .output(PersistentVolume::RESOURCE);
    wire::own(&volumes, &controller.queue());
    let objects = Objects::new(&context.rest("pv-protection-controller"));
    context.run(controller, Volumes { volumes, objects });
}

pub fn start_classes(context: &Context) {
    let classes = context.informer::<VolumeAttributesClass>();
    let claims = context.informer::<PersistentVolumeClaim>();
    let volumes = context.informer::<PersistentVolume>();
    let controller = Controller::new("volumeattributesclass-protection")
        .input(&classes)
        .input(&claims)
        .input(&volumes)
        .output(VolumeAttributesClass::RESOURCE);
    let queue = controller.queue();
    wire::own(&classes, &queue);
    release(&claims, &queue, classes_of_claim);
    release(&volumes, &queue, class_of_volume);
    let objects = Objects::new(&context.rest("volumeattributesclass-protection-controller"));
    context.run(
        controller,
        Classes {
            classes,
            claims,
            volumes,
            objects,
        },
    );
}

/// Classes that a user names no longer may be free to go.
fn release<K: ApiObject>(users: &Informer<K>, queue: &wire::Queue, named: fn(&K) -> BTreeSet<String>) {
    let queue = queue.clone();
    users.on_change(move |change| {
        let (before, now) = match change {
            Change::Added(_) => return,
            Change::Updated { old, new } => (named(old), named(new)),
            Change::Deleted(old) => (named(old), BTreeSet::new()),
        };
        before
            .difference(&now)
            .for_each(|name| queue.add(ObjectKey::new("", name.clone())));
    });
}

/// The classes that a claim has, asks for, or is being moved to.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> BTreeSet<String> {
    let spec = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|s| s.current_volume_attributes_class_name.clone());
    let target = status
        .and_then(|s| s.modify_volume_status.as_ref())
        .and_then(|s| s.target_volume_attributes_class_name.clone());
    [spec, current, target]
        .into_iter()
        .flatten()
        .filter(|name| !name.is_empty())
        .collect()
}

fn class_of_volume(volume: &PersistentVolume) -> BTreeSet<String> {
    let name = volume
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.clone());
    name.into_iter().filter(|name| !name.is_empty()).collect()
}

/// The claims a pod uses, those made for it included.
fn claims_of(pod: &Pod) -> BTreeSet<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|volume: &Volume| claim_of(pod.name(), volume))
        .collect()
}

pub fn claim_of(pod: &str, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref().map(|_| format!("{pod}-{}", volume.name))
}

fn uses(pod: &Pod, claim: &str) -> bool {
    !pods::is_finished(pod) && pods::node(pod).is_some() && claims_of(pod).contains(claim)
}

fn has(object: &impl ApiObject, finalizer: &str) -> bool {
    object.meta().finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Puts a finalizer on an object that should have it, or takes it off one that is deleted and no longer used.
async fn keep<K: Kind>(objects: &Objects<K>, object: &K, finalizer: &str) -> anyhow::Result<()> {
    let mut changed = object.clone();
    let finalizers = changed.meta_mut().finalizers.get_or_insert_default();
    if object.is_deleting() {
        finalizers.retain(|f| f != finalizer);
    } else {
        finalizers.push(finalizer.to_string());
    }
    match objects.update(&changed).await {
        Err(error) if !is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

struct Claims {
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    objects: Objects<PersistentVolumeClaim>,
    pod_objects: Objects<Pod>,
}

impl Claims {
    /// Pods that name the claim, as far as the cache knows. However many others there are in the namespace: each claim of it asks.
    fn known_users(&self, claim: &ObjectKey) -> Vec<Arc<Pod>> {
        self.pods.store().by_index(BY_CLAIM, &claim.to_string())
    }

    /// Says in the claim whether a pod names it, by what the cache knows: a pod that it doesn't have yet brings the claim here again, and
    /// nobody's claim goes by what is said. `false`: the claim lags behind somebody's write.
    async fn tell_use(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<bool> {
        let is_used = self.known_users(&claim.key()).iter().any(|pod| !pods::is_finished(pod));
        if !unused::differs(claim, is_used) {
            return Ok(true);
        }
        let changed = unused::tell(claim, is_used, keelson_clock::now());
        match self.objects.update_status(&changed).await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl Reconcile for Claims {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(claim) = self.claims.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        if unused::is_told(&claim) && !self.tell_use(&claim).await? {
            return Ok(Outcome::Retry);
        }
        match (claim.is_deleting(), has(&*claim, CLAIM)) {
            (false, false) => keep(&self.objects, &*claim, CLAIM).await?,
            (true, true) => {
                if self.known_users(key).iter().any(|pod| uses(pod, &key.name)) {
                    return Ok(Outcome::Done);
                }
                // The cache may lag behind a pod that was just placed: the server decides.
                let live = self.pod_objects.list(&key.namespace, "", "").await?;
                if live.iter().any(|pod| uses(pod, &key.name)) {
                    return Ok(Outcome::Retry);
                }
                keep(&self.objects, &*claim, CLAIM).await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }
}

struct Volumes {
    volumes: Informer<PersistentVolume>,
    objects: Objects<PersistentVolume>,
}

#[async_trait]
impl Reconcile for Volumes {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(volume) = self.volumes.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        match (volume.is_deleting(), has(&*volume, VOLUME)) {
            (false, false) => keep(&self.objects, &*volume, VOLUME).await?,
            (true, true) if !bound => keep(&self.objects, &*volume, VOLUME).await?,
            _ => {}
        }
        Ok(Outcome::Done)
    }
}

struct Classes {
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    objects: Objects<VolumeAttributesClass>,
}

impl Classes {
    fn is_used(&self, name: &str) -> bool {
        self.volumes
            .store()
            .list()
            .iter()
            .any(|v| class_of_volume(v).contains(name))
            || self
                .claims
                .store()
                .list()
                .iter()
                .any(|c| classes_of_claim(c).contains(name))
    }
}

#[async_trait]
impl Reconcile for Classes {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(class) = self.classes.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        match (class.is_deleting(), has(&*class, CLASS)) {
            (false, false) => keep(&self.objects, &*class, CLASS).await?,
            (true, true) if !self.is_used(&key.name) => keep(&self.objects, &*class, CLASS).await?,
            _ => {}
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_in_use() {
        let pod = |phase: &str, node: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"p"}},"spec":{{"containers":[],"nodeName":"{node}","volumes":[{{"name":"a","persistentVolumeClaim":{{"claimName":"data"}}}},{{"name":"b","ephemeral":{{}}}},{{"name":"c"}}]}},"status":{{"phase":"{phase}"}}}}"#
            );
            Pod::decode(text.as_bytes()).expect("valid")
        };
        assert!(uses(&pod("Running", "n"), "data") && uses(&pod("Running", "n"), "p-b"));
        assert!(
            !uses(&pod("Running", "n"), "c")
                && !uses(&pod("Succeeded", "n"), "data")
                && !uses(&pod("Pending", ""), "data")
        );
    }
}
