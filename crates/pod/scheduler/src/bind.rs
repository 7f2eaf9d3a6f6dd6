//! Carries plans out: volumes ([`volumes`]), devices ([`devices`], [`extended`]) and binding, conditions, nominations, victims.

mod devices;
mod extended;
mod volumes;

use crate::core::Core;
use crate::extender::Extender;
use crate::ledger::Ledger;
use crate::plan::Why;
use crate::plugins::dynamic_resources::Decision as Devices;
use crate::plugins::volume_binding::Decision;
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::world::World;
use anyhow::{Context, anyhow};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::events::reference;
use keelson_client::{
    ApiObject, EventType, Kind, Objects, Patch, Recorder, Rest, delete_options, is_conflict, is_not_found,
};
use keelson_trace::step;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// How many writes are under way.
pub struct Writes(Semaphore);

impl Writes {
    pub fn new(most: usize) -> Writes {
        Writes(Semaphore::new(most))
    }
    pub async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.0.acquire().await.ok()
    }
    pub async fn has_place(&self) {
        drop(self.place().await);
    }
}

#[derive(Clone)]
pub struct Binder {
    pub rest: Rest,
    pub events: Recorder,
    pub profile: Arc<Profile>,
    /// Told when claims or volumes change.
    pub volumes_changed: Arc<Notify>,
    pub world: Arc<dyn World>,
    pub ledger: Arc<Ledger>,
    pub extenders: Arc<[Extender]>,
}

impl Binder {
    pub async fn bind(
        &self,
        pod: &PodInfo,
        node: &str,
        (volumes, devices): (&Decision, &Devices),
        writes: &Writes,
        core: &Core,
    ) -> anyhow::Result<()> {
        if !(volumes.is_empty() && devices.is_empty()) {
            let _place = writes.place().await;
            self.is_expected(pod, node).await;
        }
        if !volumes.is_empty() {
            let bound = self.bind_volumes(pod, node, volumes, writes, core);
            let bound = tokio::time::timeout(self.profile.volumes_within, bound);
            let bound = async {
                bound
                    .await
                    .unwrap_or_else(|_| Err(anyhow!("context deadline exceeded")))
            };
            step("volumes", bound).await.context("binding volumes")?;
        }
        if !devices.is_empty() {
            step("devices", self.bind_devices(pod, node, devices, writes)).await?;
        }
        let _place = writes.place().await;
        let (namespace, name) = (&pod.key.namespace, &pod.key.name);
        let bound = async {
            match self.bound_by_extender(pod, node).await? {
                true => Ok(()),
                false => self.bind_here(pod, node).await,
            }
        };
        step("binding", bound).await?;
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.tell(&pod.pod, EventType::Normal, "Scheduled", "Binding", message);
        Ok(())
    }

    /// Whether one of them has bound the pod, which is then its business.
    async fn bound_by_extender(&self, pod: &PodInfo, node: &str) -> anyhow::Result<bool> {
        for extender in self.extenders.iter().filter(|e| e.binds() && e.cares_for(pod)) {
            match extender.bind(pod, node).await {
                Ok(()) => return Ok(true),
                Err(error) if extender.may_fail() => {
                    tracing::info!(extender = extender.name(), error = format!("{error:#}"), "passed over");
                }
                Err(error) => return Err(error.context("binding rejected")),
            }
        }
        Ok(false)
    }

    async fn bind_here(&self, pod: &PodInfo, node: &str) -> anyhow::Result<()> {
        let (namespace, name) = (&pod.key.namespace, &pod.key.name);
        let body = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"namespace": namespace, "name": name, "uid": pod.uid()},
            "target": {"kind": "Node", "name": node},
        });
        self.rest
            .post_raw(&Pod::RESOURCE, namespace, name, "binding", &body)
            .await
            .context("binding rejected")?;
        Ok(())
    }

    /// Says in the pod's status, and by an event, that it fits nowhere now.
    pub async fn waits(&self, pod: &PodInfo, why: &Why) {
        let message = why.message();
        self.tell(
            &pod.pod,
            EventType::Warning,
            "FailedScheduling",
            "Scheduling",
            message.clone(),
        );
        let preemption = why.preemption.as_ref();
        let nominated = match preemption {
            Some(p) if p.target.is_some() => p.target.as_ref().map(|(node, _)| Some(node.as_str())),
            Some(p) if p.clear_nomination && pod.nominated_node().is_some() => Some(None),
            _ => None,
        };
        self.set_status(pod, "Unschedulable", &message, nominated).await;
    }

    /// An error kept the pod from its node.
    pub async fn failed(&self, pod: &PodInfo, error: &anyhow::Error) {
        let message = format!("{error:#}");
        self.tell(
            &pod.pod,
            EventType::Warning,
            "FailedScheduling",
            "Scheduling",
            message.clone(),
        );
        self.set_status(pod, "SchedulerError", &message, Some(None)).await;
    }

    /// What has to be done before the pod can be bound may take a while: others are to know where it will be.
    async fn is_expected(&self, pod: &PodInfo, node: &str) {
        if pod.nominated_node() != Some(node) {
            let status = json!({"nominatedNodeName": node});
            self.patch_pod_status(pod, status, "the node that is expected couldn't be told")
                .await;
        }
    }

    /// The room that was made for the pod is another's now.
    pub async fn isnt_nominated(&self, pod: &PodInfo) {
        let status = json!({"nominatedNodeName": null});
        self.patch_pod_status(pod, status, "the nomination couldn't be taken back")
            .await;
    }

    async fn set_status(&self, pod: &PodInfo, reason: &str, message: &str, nominated: Option<Option<&str>>) {
        let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let old = conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled");
        let is_same = old.is_some_and(|c| {
            c.status == "False" && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message)
        });
        if is_same && nominated.is_none_or(|node| node == pod.nominated_node()) {
            return;
        }
        let since = old
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.as_ref())
            .map(|t| t.0);
        let mut status = json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "observedGeneration": pod.pod.metadata.generation,
            "lastProbeTime": null, "lastTransitionTime": seconds(since.unwrap_or_else(keelson_clock::now)),
        }]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = json!(node);
        }
        self.patch_pod_status(pod, status, "the pod's condition couldn't be written")
            .await;
    }

    /// Makes room: the victims are marked, told and deleted.
    pub async fn evict(&self, pod: &PodInfo, node: &str, victims: &[Arc<PodInfo>]) -> anyhow::Result<()> {
        for victim in victims {
            let (namespace, name) = (&victim.key.namespace, &victim.key.name);
            let message = format!(
                "{}: preempting to accommodate a higher priority pod",
                self.profile.scheduler_name
            );
            let status = json!({"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message,
                "observedGeneration": victim.pod.metadata.generation, "lastTransitionTime": seconds(keelson_clock::now()),
            }]});
            self.patch_pod_status(victim, status, "the victim couldn't be marked")
                .await;
            let options = delete_options(None, Some(victim.uid()), None);
            match self.objects::<Pod>().delete(namespace, name, &options).await {
                Ok(()) => {}
                Err(error) if is_not_found(&error) || is_conflict(&error) => continue,
                Err(error) => return Err(error).with_context(|| format!("preempting pod {namespace}/{name}")),
            }
            let message = format!("Preempted by pod {} on node {node}", pod.uid());
            self.tell(&victim.pod, EventType::Normal, "Preempted", "Preempting", message);
        }
        Ok(())
    }

    async fn patch_pod_status(&self, pod: &PodInfo, status: serde_json::Value, what: &str) {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let patched = self
            .objects::<Pod>()
            .patch_status(&pod.key.namespace, &pod.key.name, Patch::Strategic(&patch))
            .await;
        match patched {
            Ok(_) => {}
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => tracing::warn!(pod = %pod.key, %error, "{what}"),
        }
    }

    fn objects<K: Kind>(&self) -> Objects<K> {
        Objects::new(&self.rest)
    }

    fn tell(&self, pod: &Pod, kind: EventType, reason: &str, action: &str, message: String) {
        let about = reference(&Pod::RESOURCE, &pod.metadata);
        self.events.event_with_action(&about, kind, reason, action, message);
    }
}

/// As the API writes times.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Volumes that a plan takes are promised from the decision on.
pub fn promise(core: &Core, volumes: &Decision) {
    core.with(|state, _| {
        for (volume, claim) in &volumes.bind {
            state.cluster.promise(volume.name(), claim.key());
        }
    });
}

pub fn release(core: &Core, volumes: &Decision) {
    core.with(|state, _| {
        volumes
            .bind
            .iter()
            .for_each(|(volume, _)| state.cluster.release(volume.name()))
    });
}
