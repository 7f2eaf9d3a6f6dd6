//! Attaches the volumes that pods want to their nodes, and detaches what nobody wants any more.
//!
//! A volume is attached by an object (VolumeAttachment) that the driver's own attacher acts on. A node is told by its status what
//! is attached, and tells by it what it has mounted; a volume is taken off that list before it is detached, and never while the
//! node says that it is in use, unless the node is given up. All state but the times is in the API. One key is one node.

mod plan;
pub(super) mod world;

use super::protect::claim_of;
use crate::context::Context;
use anyhow::Context as _;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::events::EventType::{self, Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Expectations, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder, delete_options,
    is_already_exists, is_not_found,
};
use parking_lot::Mutex;
use plan::{Detach, Facts, Plan, Waits, Wanted};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use world::{BY_CLAIM, Volume, World};

/// How long an attacher is waited for before its silence is an error.
const ATTACHER: Duration = Duration::from_secs(120);

pub fn start(context: &Context) {
    let world = Arc::new(World {
        pods: context.informer(),
        nodes: context.informer(),
        claims: context.informer(),
        volumes: context.informer(),
        drivers: context.informer(),
        attachments: context.informer(),
    });
    world.index();
    let controller = Controller::new("persistentvolume-attach-detach")
        .input(&world.pods)
        .input(&world.nodes)
        .input(&world.claims)
        .input(&world.volumes)
        .input(&world.drivers)
        .input(&world.attachments)
        .output(VolumeAttachment::RESOURCE)
        .output(Node::RESOURCE)
        // Two nodes must not be given the same volume at the same time.
        .workers(1);
    listen(&world, &controller);
    let rest = context.rest("attachdetach-controller");
    context.run(
        controller,
        Attacher {
            world,
            recorder: context.recorder(&rest, "attachdetach-controller"),
            attachments: Objects::new(&rest),
            nodes: Objects::new(&rest),
            written: Expectations::default(),
            memory: Mutex::default(),
        },
    );
}

/// Everything becomes keys of nodes.
fn listen(world: &Arc<World>, controller: &Controller) {
    let queue = controller.queue();
    let node_of = |pod: &Pod| crate::pods::node(pod).map(ObjectKey::cluster);
    {
        let queue = queue.clone();
        world.pods.on_change(move |change| {
            let pod = change.object();
            let has_claims = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
            if has_claims.into_iter().any(|v| claim_of(pod.name(), v).is_some()) {
                node_of(pod).into_iter().for_each(|key| queue.add(key));
            }
        });
    }
    {
        let (queue, pods) = (queue.clone(), world.pods.clone());
        world.claims.on_change(move |change| {
            let users = pods.store().by_index(BY_CLAIM, &change.object().key().to_string());
            users.iter().filter_map(|p| node_of(p)).for_each(|key| queue.add(key));
        });
    }
    {
        let (queue, pods) = (queue.clone(), world.pods.clone());
        world.volumes.on_change(move |change| {
            let reference = change.object().spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            let Some((ns, name)) = reference.and_then(|r| Some((r.namespace.as_deref()?, r.name.as_deref()?))) else {
                return;
            };
            let users = pods.store().by_index(BY_CLAIM, &format!("{ns}/{name}"));
            users.iter().filter_map(|p| node_of(p)).for_each(|key| queue.add(key));
        });
    }
    {
        let (queue, nodes) = (queue.clone(), world.nodes.clone());
        world.drivers.on_change(move |_| {
            nodes.store().keys().into_iter().for_each(|key| queue.add(key));
        });
    }
    {
        let (queue, world) = (queue.clone(), Arc::downgrade(world));
        let attachments = world.upgrade().map(|w| w.attachments.clone());
        attachments.iter().for_each(|informer| {
            let (queue, world) = (queue.clone(), world.clone());
            informer.on_change(move |change| {
                let gone = change.object();
                queue.add(ObjectKey::cluster(&gone.spec.node_name));
                // Whoever waited for the volume may have it now.
                let volume = gone.spec.source.persistent_volume_name.as_deref();
                if let (true, Some(volume), Some(world)) = (change.is_deleted(), volume, world.upgrade()) {
                    let claim = world
                        .volumes
                        .store()
                        .get("", volume)
                        .and_then(|v| v.spec.as_ref()?.claim_ref.clone());
                    let Some(claim) = claim else { return };
                    let (ns, name) = (claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default());
                    let users = world.pods.store().by_index(BY_CLAIM, &format!("{ns}/{name}"));
                    users.iter().filter_map(|p| node_of(p)).for_each(|key| queue.add(key));
                }
            });
        });
    }
    world.nodes.on_change(move |change| {
        let told = |node: &Node| {
            let status = node.status.as_ref();
            let ready = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "Ready"));
            (
                status.and_then(|s| s.volumes_in_use.clone()),
                status.and_then(|s| s.volumes_attached.clone()),
                ready.map(|c| c.status.clone()),
                node.spec.as_ref().and_then(|s| s.taints.clone()),
                node.metadata.annotations.clone(),
            )
        };
        let node = change.object();
        if change.is_deleted() || change.old().is_none_or(|old| told(old) != told(node)) {
            queue.add(node.key());
        }
    });
}

/// What the controller knows of a node beside the API: times, and what was told to whom. Lost, it is made anew: times begin again,
/// and news are told once more.
#[derive(Default)]
struct Known {
    unwanted: BTreeMap<String, Instant>,
    attaching: BTreeMap<String, Attaching>,
    in_use: Option<BTreeSet<String>>,
}

struct Attaching {
    since: Instant,
    told: Option<String>,
}

struct Attacher {
    world: Arc<World>,
    recorder: Recorder,
    attachments: Objects<VolumeAttachment>,
    nodes: Objects<Node>,
    written: Expectations,
    memory: Mutex<HashMap<String, Known>>,
}

/// All writes are waited for together: whether a volume is free depends on all nodes.
fn all() -> ObjectKey {
    ObjectKey::default()
}

fn in_use(node: &Node) -> BTreeSet<String> {
    let names = node.status.iter().flat_map(|s| s.volumes_in_use.iter().flatten());
    names.cloned().collect()
}

#[async_trait]
impl Reconcile for Attacher {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.written.settle(&all(), self.world.attachments.store()).await?;
        let name = key.name.as_str();
        let node = self.world.nodes.store().get("", name);
        let wanted = node.as_ref().map(|n| self.world.wanted(n)).unwrap_or_default();
        let attached = self.world.attached(name, node.as_deref());
        let plan = self.judge(name, node.as_deref(), &wanted, &attached);
        if let Some(node) = &node {
            self.report(node, &plan.reported).await?;
        }
        let mut outcome = plan.again.map_or(Outcome::Done, Outcome::After);
        for detach in &plan.detach {
            if !self.detach(name, detach).await? {
                outcome = Outcome::Retry;
            }
        }
        if let Some(rest) = self.attach(name, &wanted, &plan).await? {
            outcome = match outcome {
                Outcome::Done => Outcome::After(rest),
                Outcome::After(other) => Outcome::After(rest.min(other)),
                other => other,
            };
        }
        Ok(outcome)
    }
}

impl Attacher {
    fn judge(
        &self,
        name: &str,
        node: Option<&Node>,
        wanted: &BTreeMap<String, Wanted>,
        attached: &BTreeMap<String, Arc<VolumeAttachment>>,
    ) -> Plan {
        let mut memory = self.memory.lock();
        if node.is_none() && attached.is_empty() {
            memory.remove(name);
            return Plan::default();
        }
        let known = memory.entry(name.to_string()).or_default();
        if let Some(node) = node {
            known.in_use = Some(in_use(node));
        }
        let now = Instant::now();
        known
            .unwanted
            .retain(|v, _| attached.contains_key(v) && !wanted.contains_key(v));
        for volume in attached.keys().filter(|v| !wanted.contains_key(*v)) {
            known.unwanted.entry(volume.clone()).or_insert(now);
        }
        known.attaching.retain(|v, _| wanted.contains_key(v));
        plan::plan(&Facts {
            node,
            wanted,
            attached,
            in_use: known.in_use.as_ref(),
            unwanted: &|v| known.unwanted.get(v).map_or(Duration::ZERO, |since| now - *since),
            elsewhere: &|v| self.world.elsewhere(v, name),
        })
    }

    /// Tells the node what is attached to it.
    async fn report(&self, node: &Node, reported: &BTreeSet<String>) -> anyhow::Result<()> {
        let told = node.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
        let told: BTreeSet<_> = told.map(|v| v.name.clone()).collect();
        if told == *reported {
            return Ok(());
        }
        let list: Vec<_> = reported.iter().map(|v| json!({"name": v, "devicePath": ""})).collect();
        let body = json!({"metadata": {"uid": node.uid()}, "status": {"volumesAttached": list}});
        match self.nodes.patch_status("", node.name(), Patch::Merge(&body)).await {
            Err(error) if !is_not_found(&error) => Err(error).context("telling a node what is attached to it"),
            _ => Ok(()),
        }
    }

    /// False: the node has it in use after all, or hasn't been told yet that it will be gone. What is known here of both may be old.
    async fn detach(&self, node: &str, detach: &Detach) -> anyhow::Result<bool> {
        if detach.asks
            && let Some(live) = self.nodes.find("", node).await?
            && plan::keeps(&live, &detach.name)
        {
            tracing::debug!(node, volume = detach.name, "is in use: not detached");
            return Ok(false);
        }
        if !detach.asks {
            tracing::warn!(
                node,
                volume = detach.name,
                "is detached although it may be in use: the node was given up"
            );
        }
        let options = delete_options(None, Some(&detach.uid), None);
        match self.attachments.delete("", &detach.attachment, &options).await {
            Ok(()) => {
                let found = self.world.attachments.store().get("", &detach.attachment);
                found.iter().for_each(|a| self.written.deleted(&all(), a.meta()));
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error).context("detaching a volume"),
        }
        Ok(true)
    }

    /// When the attachers' silence will be an error, if it isn't broken.
    async fn attach(
        &self,
        node: &str,
        wanted: &BTreeMap<String, Wanted>,
        plan: &Plan,
    ) -> anyhow::Result<Option<Duration>> {
        let mut again: Option<Duration> = None;
        for (name, wanted) in wanted {
            match plan.waits.get(name) {
                None => {
                    if self.forget(node, name) {
                        self.tell(
                            wanted,
                            Normal,
                            "SuccessfulAttachVolume",
                            "AttachVolume.Attach succeeded",
                            "",
                        );
                    }
                }
                Some(Waits::Creation) => {
                    self.create(node, &wanted.volume).await?;
                    self.remember(node, name);
                    again = Some(again.map_or(ATTACHER, |a| a.min(ATTACHER)));
                }
                Some(Waits::Attacher) => {
                    let rest = self.silence(node, name, wanted);
                    again = Some(again.map_or(rest, |a| a.min(rest)));
                }
                Some(Waits::Failed(message)) => {
                    if self.is_news(node, name, message) {
                        let text = format!(": {message}");
                        self.tell(
                            wanted,
                            Warning,
                            "FailedAttachVolume",
                            "AttachVolume.Attach failed",
                            &text,
                        );
                    }
                }
                Some(Waits::Nodes(nodes)) => {
                    if self.is_news(node, name, "elsewhere") {
                        let users = self.world.users(&wanted.volume, nodes);
                        for pod in &wanted.pods {
                            let text = plan::taken(pod, &users);
                            let text = format!("Waiting for detach for volume {:?} {text}", wanted.volume.object);
                            self.recorder.event(&**pod, Warning, "FailedAttachVolume", text);
                        }
                    }
                }
            }
        }
        Ok(again)
    }

    async fn create(&self, node: &str, volume: &Volume) -> anyhow::Result<()> {
        let attachment = VolumeAttachment {
            metadata: ObjectMeta {
                name: Some(volume.attachment(node)),
                ..Default::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: volume.driver.clone(),
                node_name: node.into(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(volume.object.clone()),
                    ..Default::default()
                },
            },
            status: None,
        };
        match self.attachments.create(&attachment).await {
            Ok(written) => self.written.wrote(&all(), written.meta()),
            Err(error) if is_already_exists(&error) => {}
            Err(error) => return Err(error).context("attaching a volume"),
        }
        Ok(())
    }

    fn tell(&self, wanted: &Wanted, kind: EventType, reason: &str, what: &str, more: &str) {
        for pod in &wanted.pods {
            let text = format!("{what} for volume {:?} {more}", wanted.volume.object);
            self.recorder.event(&**pod, kind, reason, text);
        }
    }

    fn remember(&self, node: &str, volume: &str) {
        let begun = Attaching {
            since: Instant::now(),
            told: None,
        };
        let mut memory = self.memory.lock();
        memory
            .entry(node.into())
            .or_default()
            .attaching
            .insert(volume.into(), begun);
    }

    /// Whether the volume was being attached by this controller.
    fn forget(&self, node: &str, volume: &str) -> bool {
        let mut memory = self.memory.lock();
        memory
            .get_mut(node)
            .is_some_and(|k| k.attaching.remove(volume).is_some())
    }

    fn is_news(&self, node: &str, volume: &str, message: &str) -> bool {
        let mut memory = self.memory.lock();
        let known = memory.entry(node.into()).or_default();
        let attaching = known.attaching.entry(volume.into()).or_insert(Attaching {
            since: Instant::now(),
            told: None,
        });
        if attaching.told.as_deref() == Some(message) {
            return false;
        }
        attaching.told = Some(message.into());
        true
    }

    /// Says so when an attacher has been silent for long; returns how much longer it is waited for.
    fn silence(&self, node: &str, name: &str, wanted: &Wanted) -> Duration {
        let now = Instant::now();
        {
            let mut memory = self.memory.lock();
            let known = memory.entry(node.into()).or_default();
            let attaching = known
                .attaching
                .entry(name.into())
                .or_insert(Attaching { since: now, told: None });
            let waited = now - attaching.since;
            if waited < ATTACHER {
                return ATTACHER - waited;
            }
            attaching.since = now;
        }
        let Volume { driver, handle, .. } = &wanted.volume;
        let text =
            format!(": timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}");
        self.tell(
            wanted,
            Warning,
            "FailedAttachVolume",
            "AttachVolume.Attach failed",
            &text,
        );
        ATTACHER
    }
}
