//! Snapshots of volumes: the upstream snapshot-controller's job. A snapshot gets a content, which its driver's sidecar acts on and reports
//! in; what it reports is told in the snapshot. Deleting a snapshot deletes or keeps the content, as its policy says.
//!
//! Names, finalizers, annotations, events and messages are upstream's: sidecars of any driver see no difference. Members of groups are left to
//! whoever makes groups. The kinds are custom resources; without their definitions nothing happens here.

pub mod definitions;
mod plan;

use crate::context::{Context, now};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::snapshots::{
    GROUP, SnapshotError, SnapshotStatus, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent,
};
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder, delete_options,
    is_already_exists, is_conflict, is_not_found,
};
use plan::{OfContent, Step, View};
use serde_json::{Value, json};
use std::sync::Arc;

/// On snapshots, in case a claim is being filled from them.
const AS_SOURCE: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// On snapshots whose content goes with them.
const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
/// On contents, until their drivers have let go.
const CONTENT: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
/// On claims that a picture is being taken of.
const CLAIM: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// The index of snapshots by their claims, `namespace/name`.
const BY_CLAIM: &str = "claim";
const IDENTITY: &str = "keelson-snapshot-controller";

/// Everything that is read.
struct World {
    snapshots: Informer<VolumeSnapshot>,
    contents: Informer<VolumeSnapshotContent>,
    classes: Informer<VolumeSnapshotClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
}

pub fn start(context: &Context) {
    if !context.config.snapshots {
        return;
    }
    let world = Arc::new(World {
        snapshots: context.informer(),
        contents: context.informer(),
        classes: context.informer(),
        claims: context.informer(),
        volumes: context.informer(),
        nodes: context.informer(),
    });
    world.snapshots.store().add_index(BY_CLAIM, |s| {
        let claim = s.claim().map(|c| format!("{}/{c}", s.namespace()));
        claim.into_iter().collect()
    });
    let rest = context.rest(IDENTITY);
    let recorder = context.recorder(&rest, "snapshot-controller");
    let snapshots = Snapshots {
        world: world.clone(),
        recorder: recorder.clone(),
        snapshots: Objects::new(&rest),
        contents: Objects::new(&rest),
        claims: Objects::new(&rest),
    };
    context.run(of_snapshots(&world), snapshots);
    let contents = Contents {
        world: world.clone(),
        recorder,
        contents: Objects::new(&rest),
    };
    context.run(of_contents(&world), contents);
    let claims = Claims {
        world: world.clone(),
        claims: Objects::new(&rest),
    };
    context.run(of_claims(&world), claims);
}

fn of_snapshots(world: &Arc<World>) -> Controller {
    let controller = Controller::new("volumesnapshot")
        .input(&world.snapshots)
        .input(&world.contents)
        .input(&world.classes)
        .input(&world.claims)
        .input(&world.volumes)
        .input(&world.nodes)
        .output(VolumeSnapshot::RESOURCE)
        .output(VolumeSnapshotContent::RESOURCE)
        .output(PersistentVolumeClaim::RESOURCE);
    let queue = controller.queue();
    {
        let queue = queue.clone();
        world
            .snapshots
            .on_change(move |change| queue.add(change.object().key()));
    }
    {
        let queue = queue.clone();
        world.contents.on_change(move |change| {
            let reference = &change.object().spec.volume_snapshot_ref;
            if let (Some(namespace), Some(name)) = (&reference.namespace, &reference.name) {
                queue.add(ObjectKey::new(namespace.clone(), name.clone()));
            }
        });
    }
    {
        let (queue, snapshots) = (queue.clone(), world.snapshots.clone());
        // One that came later may be what somebody waits for.
        world.classes.on_change(move |_| {
            let waiting = snapshots.store().filter(|s| !s.is_ready());
            waiting.iter().for_each(|s| queue.add(s.key()));
        });
    }
    {
        let (queue, snapshots) = (queue.clone(), world.snapshots.clone());
        // Whose a volume is may be told by its node's labels only.
        world.nodes.on_change(move |change| {
            let labels = |n: &Node| n.metadata.labels.clone();
            if change.old().is_none_or(|old| labels(old) != labels(change.object())) {
                let waiting = snapshots.store().filter(|s| !s.is_ready());
                waiting.iter().for_each(|s| queue.add(s.key()));
            }
        });
    }
    let snapshots = world.snapshots.clone();
    world.claims.on_change(move |change| {
        let claim = change.object();
        let of_claim = snapshots.store().by_index(BY_CLAIM, &claim.key().to_string());
        of_claim
            .iter()
            .filter(|s| !s.is_ready())
            .for_each(|s| queue.add(s.key()));
        // The last claim that is filled from it may be what keeps it.
        if let Some(name) = filled_from(claim) {
            queue.add(ObjectKey::new(claim.namespace(), name));
        }
    });
    controller
}

fn of_contents(world: &Arc<World>) -> Controller {
    let controller = Controller::new("volumesnapshotcontent")
        .input(&world.contents)
        .output(VolumeSnapshotContent::RESOURCE);
    let queue = controller.queue();
    world.contents.on_change(move |change| queue.add(change.object().key()));
    controller
}

fn of_claims(world: &Arc<World>) -> Controller {
    let controller = Controller::new("volumesnapshot-claims")
        .input(&world.claims)
        .input(&world.snapshots)
        .output(PersistentVolumeClaim::RESOURCE);
    let queue = controller.queue();
    {
        let queue = queue.clone();
        world.claims.on_change(move |change| queue.add(change.object().key()));
    }
    world.snapshots.on_change(move |change| {
        let snapshot = change.object();
        if let Some(claim) = snapshot.claim() {
            queue.add(ObjectKey::new(snapshot.namespace(), claim));
        }
    });
    controller
}

/// The snapshot that a claim is to be filled from.
fn filled_from(claim: &PersistentVolumeClaim) -> Option<&str> {
    let source = claim.spec.as_ref()?.data_source.as_ref()?;
    let is_snapshot = source.kind == "VolumeSnapshot" && source.api_group.as_deref() == Some(GROUP);
    is_snapshot.then_some(source.name.as_str())
}

fn is_pending(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    phase.is_none_or(|p| p == "Pending")
}

fn is_held(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.finalizers.iter().flatten().any(|f| f == CLAIM)
}

struct Snapshots {
    world: Arc<World>,
    recorder: Recorder,
    snapshots: Objects<VolumeSnapshot>,
    contents: Objects<VolumeSnapshotContent>,
    claims: Objects<PersistentVolumeClaim>,
}

#[async_trait]
impl Reconcile for Snapshots {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(snapshot) = self.world.snapshots.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let world = &self.world;
        let content = plan::content_name(&snapshot).and_then(|name| world.contents.store().get("", &name));
        let claim = snapshot.claim();
        let claim = claim.and_then(|name| world.claims.store().get(snapshot.namespace(), name));
        let held = claim.as_ref().and_then(|c| c.spec.as_ref()?.volume_name.clone());
        let volume = held.and_then(|name| world.volumes.store().get("", &name));
        let node = volume.as_ref().and_then(|v| self.only_node(v));
        let in_namespace = |c: &PersistentVolumeClaim| c.namespace() == snapshot.namespace();
        let restoring = snapshot.is_deleting()
            && !world
                .claims
                .store()
                .filter(|c| in_namespace(c) && filled_from(c) == Some(snapshot.name()) && is_pending(c))
                .is_empty();
        let step = plan::plan(&View {
            snapshot: &snapshot,
            content: content.as_deref(),
            claim: claim.as_deref(),
            volume: volume.as_deref(),
            classes: &world.classes.store().list(),
            node: node.as_deref(),
            restoring,
        });
        match self.act(&snapshot, content.as_deref(), claim.as_deref(), step).await {
            // Somebody else was first, or it is gone: what there is now is on its way here.
            Err(error) if is_conflict(&error) => Ok(Outcome::Retry),
            Err(error) if is_not_found(&error) => Ok(Outcome::Retry),
            other => Ok(other?),
        }
    }
}

impl Snapshots {
    /// The node that a volume can be reached from, if it is only one.
    fn only_node(&self, volume: &PersistentVolume) -> Option<String> {
        let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
        let nodes = self
            .world
            .nodes
            .store()
            .filter(|n| crate::daemonset::selects_node(required, n));
        match nodes.as_slice() {
            [one] => Some(one.name().into()),
            _ => None,
        }
    }

    async fn act(
        &self,
        snapshot: &VolumeSnapshot,
        content: Option<&VolumeSnapshotContent>,
        claim: Option<&PersistentVolumeClaim>,
        step: Step,
    ) -> keelson_client::Result<Outcome> {
        let (namespace, name) = (snapshot.namespace(), snapshot.name());
        let same = |meta: &ObjectMeta, mut body: Value| {
            body["metadata"]["resourceVersion"] = json!(meta.resource_version);
            body
        };
        match step {
            Step::Nothing => {}
            Step::Wait => {
                let text = "Snapshot is being used to restore a PVC";
                self.recorder.event(snapshot, Warning, "SnapshotDeletePending", text);
            }
            Step::Refuse {
                reason,
                message,
                unready,
            } => {
                self.refuse(snapshot, reason, message, unready).await?;
                return Ok(Outcome::Retry);
            }
            Step::Finalizers(all) => {
                let body = same(&snapshot.metadata, json!({"metadata": {"finalizers": all}}));
                self.snapshots.patch(namespace, name, Patch::Merge(&body)).await?;
            }
            Step::SetClass(class) => {
                let body = json!({"spec": {"volumeSnapshotClassName": class}});
                self.snapshots.patch(namespace, name, Patch::Merge(&body)).await?;
            }
            Step::HoldClaim => {
                let Some(claim) = claim else { return Ok(Outcome::Retry) };
                let mut all = claim.metadata.finalizers.clone().unwrap_or_default();
                all.push(CLAIM.into());
                let body = same(&claim.metadata, json!({"metadata": {"finalizers": all}}));
                self.claims.patch(namespace, claim.name(), Patch::Merge(&body)).await?;
            }
            Step::Create(content) => match self.contents.create(&content).await {
                Ok(_) => {
                    let text = format!("Waiting for a snapshot {namespace}/{name} to be created by the CSI driver.");
                    self.recorder.event(snapshot, Normal, "CreatingSnapshot", text);
                }
                Err(error) if is_already_exists(&error) => {}
                Err(error) => {
                    let text = format!(
                        "Error creating volume snapshot content object for snapshot {namespace}/{name}: {error}."
                    );
                    self.recorder
                        .event(snapshot, Warning, "CreateSnapshotContentFailed", text);
                    return Err(error);
                }
            },
            Step::Label(node) => {
                let Some(content) = content else {
                    return Ok(Outcome::Retry);
                };
                let body = json!({"metadata": {"uid": content.uid(), "labels": {plan::MANAGED_BY: node}}});
                self.contents.patch("", content.name(), Patch::Merge(&body)).await?;
            }
            Step::Bind => {
                let Some(content) = content else {
                    return Ok(Outcome::Retry);
                };
                let mut spec = json!({"volumeSnapshotRef": {"uid": snapshot.uid()}});
                if let Some(class) = &snapshot.spec.volume_snapshot_class_name {
                    spec["volumeSnapshotClassName"] = json!(class);
                }
                let body = same(&content.metadata, json!({ "spec": spec }));
                self.contents.patch("", content.name(), Patch::Merge(&body)).await?;
            }
            Step::Tell(status) => self.tell(snapshot, *status).await?,
            Step::Mark => {
                let Some(content) = content else {
                    return Ok(Outcome::Retry);
                };
                let body = json!({"metadata": {"uid": content.uid(), "annotations": {BEING_DELETED: "yes"}}});
                self.contents.patch("", content.name(), Patch::Merge(&body)).await?;
            }
            Step::DeleteContent => {
                let Some(content) = content else {
                    return Ok(Outcome::Retry);
                };
                let options = delete_options(None, Some(content.uid()), None);
                match self.contents.delete("", content.name(), &options).await {
                    Err(error) if !is_not_found(&error) => {
                        let text = "Failed to delete snapshot content API object";
                        self.recorder
                            .event(snapshot, Warning, "SnapshotContentObjectDeleteError", text);
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// Says once why a snapshot isn't made.
    async fn refuse(
        &self,
        snapshot: &VolumeSnapshot,
        reason: &'static str,
        message: String,
        unready: bool,
    ) -> keelson_client::Result<()> {
        let told = snapshot.status.as_ref().and_then(|s| s.error.as_ref());
        if told.and_then(|e| e.message.as_deref()) == Some(message.as_str()) {
            return Ok(());
        }
        let error = SnapshotError {
            time: Some(Time(now())),
            message: Some(message.clone()),
        };
        let mut status = json!({ "error": error });
        if unready {
            status["readyToUse"] = json!(false);
        }
        let body = json!({"metadata": {"uid": snapshot.uid()}, "status": status});
        let patched = self
            .snapshots
            .patch_status(snapshot.namespace(), snapshot.name(), Patch::Merge(&body))
            .await;
        self.recorder.event(snapshot, Warning, reason, message);
        patched.map(drop)
    }

    async fn tell(&self, snapshot: &VolumeSnapshot, status: SnapshotStatus) -> keelson_client::Result<()> {
        let (namespace, name) = (snapshot.namespace(), snapshot.name());
        let mut body = json!({ "status": status });
        if status.error.is_none() {
            body["status"]["error"] = Value::Null;
        }
        body["metadata"] = json!({"uid": snapshot.uid(), "resourceVersion": snapshot.metadata.resource_version});
        self.snapshots
            .patch_status(namespace, name, Patch::Merge(&body))
            .await?;
        let before = snapshot.status.clone().unwrap_or_default();
        if before.creation_time.is_none() && status.creation_time.is_some() {
            let text = format!("Snapshot {namespace}/{name} was successfully created by the CSI driver.");
            self.recorder.event(snapshot, Normal, "SnapshotCreated", text);
        }
        if !snapshot.is_ready() && status.ready_to_use == Some(true) {
            let text = format!("Snapshot {namespace}/{name} is ready to use.");
            self.recorder.event(snapshot, Normal, "SnapshotReady", text);
        }
        Ok(())
    }
}

struct Contents {
    world: Arc<World>,
    recorder: Recorder,
    contents: Objects<VolumeSnapshotContent>,
}

#[async_trait]
impl Reconcile for Contents {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(content) = self.world.contents.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        match plan::of_content(&content) {
            OfContent::Nothing => Ok(Outcome::Done),
            OfContent::Invalid => {
                let text = "Exactly one of VolumeHandle and SnapshotHandle should be specified";
                self.recorder.event(&*content, Warning, "ContentValidationError", text);
                Ok(Outcome::Done)
            }
            OfContent::Protect => {
                let mut all = content.metadata.finalizers.clone().unwrap_or_default();
                all.push(CONTENT.into());
                let version = &content.metadata.resource_version;
                let body = json!({"metadata": {"finalizers": all, "resourceVersion": version}});
                match self.contents.patch("", content.name(), Patch::Merge(&body)).await {
                    Err(error) if is_conflict(&error) => Ok(Outcome::Retry),
                    Err(error) if !is_not_found(&error) => Err(error.into()),
                    _ => Ok(Outcome::Done),
                }
            }
        }
    }
}

/// Lets claims go that no picture is being taken of any more.
struct Claims {
    world: Arc<World>,
    claims: Objects<PersistentVolumeClaim>,
}

#[async_trait]
impl Reconcile for Claims {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let held = self.world.claims.store().get_key(key).filter(|c| is_held(c));
        let Some(claim) = held else { return Ok(Outcome::Done) };
        let users = self.world.snapshots.store().by_index(BY_CLAIM, &key.to_string());
        if users.iter().any(|s| !s.is_ready()) {
            return Ok(Outcome::Done);
        }
        let all = claim.metadata.finalizers.iter().flatten();
        let rest: Vec<_> = all.filter(|f| *f != CLAIM).collect();
        let version = &claim.metadata.resource_version;
        let body = json!({"metadata": {"finalizers": rest, "resourceVersion": version}});
        match self
            .claims
            .patch(claim.namespace(), claim.name(), Patch::Merge(&body))
            .await
        {
            Err(error) if is_conflict(&error) => Ok(Outcome::Retry),
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}
