//! The garbage collector: deletes what has lost its owners, in the way its owner's deletion asked for.

mod graph;
mod monitors;

use crate::context::Context;
use graph::{FOREGROUND, Node, ORPHAN, Task};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::events::EventType::Warning;
use keelson_client::objects::found;
use keelson_client::partial::PARTIAL_ACCEPT;
use keelson_client::{
    ApiObject, Informer, PartialObject, Patch, Recorder, ResourceId, Rest, WorkQueue, delete_options, is_conflict,
    is_not_found,
};
use monitors::Monitors;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 20;
const ABSENT: usize = 500;
/// Definitions change in bursts: one look at discovery serves them all.
const SETTLE: Duration = Duration::from_millis(300);

pub fn start(context: &Context) {
    let rest = context.rest("generic-garbage-collector");
    let queue: Arc<WorkQueue<Task>> = Arc::new(WorkQueue::new());
    context.tell(&queue, "garbage_collector_attempt_to_delete");
    let monitors = Arc::new(Monitors::new(context.reader(), queue.clone(), context.stop.clone()));
    let recorder = context.recorder(&rest, "garbage-collector-controller");
    let collector = Arc::new(Collector {
        rest,
        monitors,
        queue,
        recorder,
        absent: Mutex::default(),
    });
    let reader = context.reader();
    context.spawn(collector.run(reader, context.stop.clone()));
}

/// Uids never come back: what was found absent stays so.
#[derive(Default)]
struct Absent {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl Absent {
    fn add(&mut self, key: String) {
        if self.known.insert(key.clone()) {
            self.order.push_back(key);
            if self.order.len() > ABSENT
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

struct Collector {
    rest: Rest,
    monitors: Arc<Monitors>,
    queue: Arc<WorkQueue<Task>>,
    recorder: Recorder,
    absent: Mutex<Absent>,
}

enum Owner {
    /// It is there.
    Solid,
    /// It is gone, or never was.
    Dangling,
    /// It waits for its dependents to end.
    Waiting,
}

const API_SERVICES: ResourceId = ResourceId::fixed("apiregistration.k8s.io", "v1", "APIService", "apiservices", false);

impl Collector {
    async fn run(self: Arc<Self>, reader: Rest, stop: CancellationToken) {
        let refreshes: Arc<WorkQueue<()>> = Arc::new(WorkQueue::new());
        let definitions = Informer::metadata(
            &reader,
            ResourceId::DEFINITIONS,
            keelson_client::informer::strip_managed_fields,
            &stop,
        );
        let services = Informer::metadata(
            &reader,
            API_SERVICES,
            keelson_client::informer::strip_managed_fields,
            &stop,
        );
        for informer in [&definitions, &services] {
            let refreshes = refreshes.clone();
            informer.on_change(move |_| refreshes.add_after((), SETTLE));
        }
        refreshes.add(());
        let (watcher, token) = (self.clone(), stop.clone());
        let first = Arc::new(tokio::sync::Notify::new());
        let ready = first.clone();
        let refreshing = async move {
            let mut is_first = true;
            loop {
                let next = tokio::select! {
                    () = token.cancelled() => return,
                    next = refreshes.next() => next,
                };
                if next.is_none() {
                    return;
                }
                match watcher.monitors.refresh().await {
                    Ok(found) => {
                        if std::mem::take(&mut is_first) {
                            ready.notify_one();
                        }
                        if found.failed.is_empty() && monitors::missing(&definitions.store().list(), &found).is_empty()
                        {
                            refreshes.forget(&());
                        } else {
                            refreshes.add_rate_limited(());
                        }
                    }
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "can't discover what there is to collect; will retry"
                        );
                        refreshes.add_rate_limited(());
                    }
                }
                refreshes.done(&());
            }
        };
        let refreshing = tokio::spawn(refreshing);
        tokio::select! {
            () = stop.cancelled() => return,
            () = first.notified() => {}
        }
        self.monitors.synced().await;
        tracing::debug!("the garbage collector's graph is complete");
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..WORKERS {
            workers.spawn(self.clone().work());
        }
        stop.cancelled().await;
        self.queue.close();
        while workers.join_next().await.is_some() {}
        refreshing.abort();
    }

    async fn work(self: Arc<Self>) {
        while let Some(task) = self.queue.next().await {
            let result = match &task {
                Task::Check(uid) => self.check(uid).await,
                Task::Orphan(uid) => self.orphan(uid).await,
            };
            match result {
                Ok(()) => self.queue.forget(&task),
                Err(error) => {
                    let is_race = error
                        .chain()
                        .any(|e| e.downcast_ref::<keelson_client::Error>().is_some_and(is_conflict));
                    if is_race {
                        tracing::debug!(?task, error = format!("{error:#}"), "changed meanwhile; will retry");
                    } else {
                        tracing::warn!(
                            ?task,
                            error = format!("{error:#}"),
                            "garbage collection failed; will retry"
                        );
                    }
                    self.queue.add_rate_limited(task.clone());
                }
            }
            self.queue.done(&task);
        }
    }

    async fn live(&self, resource: &ResourceId, ns: &str, name: &str) -> anyhow::Result<Option<PartialObject>> {
        let body = found(self.rest.get_raw(resource, ns, name, "", PARTIAL_ACCEPT).await)?;
        Ok(body.map(|body| PartialObject::decode(&body)).transpose()?)
    }

    async fn check(&self, uid: &str) -> anyhow::Result<()> {
        let (node, is_solid, misplaced) = {
            let graph = self.monitors.graph.lock();
            let Some(node) = graph.get(uid) else { return Ok(()) };
            (node.clone(), graph.is_solid(node), graph.misplaced(node))
        };
        if node.waits() {
            return self.let_go(uid, &node).await;
        }
        if node.deleting || node.owners.is_empty() || is_solid {
            return Ok(());
        }
        for owner in misplaced {
            self.tell_misplaced(uid, &node, &owner);
        }
        let Some(latest) = self.live(&node.resource, &node.namespace, &node.name).await? else {
            return Ok(());
        };
        if latest.uid() != uid || latest.is_deleting() {
            return Ok(());
        }
        self.collect(uid, &node, latest).await
    }

    async fn collect(&self, uid: &str, node: &Node, latest: PartialObject) -> anyhow::Result<()> {
        let owners = latest.metadata.owner_references.clone().unwrap_or_default();
        if owners.is_empty() {
            return Ok(());
        }
        let (mut solid, mut waiting) = (Vec::new(), false);
        for owner in &owners {
            match self.judge(node, owner).await? {
                Some(Owner::Solid) => solid.push(owner.clone()),
                Some(Owner::Waiting) => waiting = true,
                Some(Owner::Dangling) => {}
                // A reference that can't mean anything: nothing is done, now or later.
                None => return Ok(()),
            }
        }
        if !solid.is_empty() {
            if solid.len() < owners.len() {
                tracing::debug!(object = %node.name, resource = %node.resource, "removing references to owners that are gone");
                return self.set_owners(node, &latest, solid).await;
            }
            return Ok(());
        }
        let policy = if waiting && self.has_dependents(uid) {
            if self.has_circle(uid) {
                let unblocked = owners
                    .iter()
                    .map(|o| OwnerReference {
                        block_owner_deletion: Some(false),
                        ..o.clone()
                    })
                    .collect();
                self.set_owners(node, &latest, unblocked).await?;
                return self.delete(node, &latest, "Foreground", false).await;
            }
            "Foreground"
        } else {
            let has = |finalizer: &str| latest.metadata.finalizers.iter().flatten().any(|f| f == finalizer);
            if has(ORPHAN) {
                "Orphan"
            } else if has(FOREGROUND) {
                "Foreground"
            } else {
                "Background"
            }
        };
        self.delete(node, &latest, policy, true).await
    }

    fn has_dependents(&self, uid: &str) -> bool {
        self.monitors.graph.lock().dependents(uid).next().is_some()
    }

    /// A dependent that itself waits for its dependents may wait for this one.
    fn has_circle(&self, uid: &str) -> bool {
        self.monitors.graph.lock().dependents(uid).any(|(_, node)| node.waits())
    }

    async fn delete(&self, node: &Node, latest: &PartialObject, policy: &str, same: bool) -> anyhow::Result<()> {
        let revision = latest.metadata.resource_version.as_deref().filter(|_| same);
        tracing::debug!(object = %node.name, namespace = %node.namespace, resource = %node.resource, policy, "collecting");
        let options = delete_options(Some(policy), Some(latest.uid()), revision);
        match self
            .rest
            .delete_raw(&node.resource, &node.namespace, &node.name, &options)
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Asks the server for an owner. None if a cluster-scoped object refers to a namespaced owner.
    async fn judge(&self, node: &Node, owner: &OwnerReference) -> anyhow::Result<Option<Owner>> {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let key = format!("{group}/{}/{}/{}/{}", owner.kind, node.namespace, owner.name, owner.uid);
        if self.absent.lock().known.contains(&key) {
            return Ok(Some(Owner::Dangling));
        }
        let resource = self.monitors.resource(group, &owner.kind);
        let resource =
            resource.ok_or_else(|| anyhow::anyhow!("no kind {} in {:?} is served", owner.kind, owner.api_version))?;
        if resource.namespaced && node.namespace.is_empty() {
            tracing::debug!(object = %node.name, resource = %node.resource, owner = %owner.name, "a cluster-scoped object can't have a namespaced owner");
            return Ok(None);
        }
        let namespace = if resource.namespaced {
            node.namespace.as_str()
        } else {
            ""
        };
        let live = self
            .live(&resource, namespace, &owner.name)
            .await?
            .filter(|o| o.uid() == owner.uid);
        Ok(Some(match live {
            None => {
                self.absent.lock().add(key);
                Owner::Dangling
            }
            Some(live) if live.is_deleting() && live.metadata.finalizers.iter().flatten().any(|f| f == FOREGROUND) => {
                Owner::Waiting
            }
            Some(_) => Owner::Solid,
        }))
    }

    /// An owner that waits ends once nothing blocks it; until then its dependents are looked at.
    async fn let_go(&self, uid: &str, node: &Node) -> anyhow::Result<()> {
        let blocking: Vec<(String, bool)> = self
            .monitors
            .graph
            .lock()
            .blocking(uid)
            .map(|(uid, node)| (uid.clone(), node.waits()))
            .collect();
        if blocking.is_empty() {
            return self.remove_finalizer(uid, node, FOREGROUND).await;
        }
        for (dependent, _) in blocking.into_iter().filter(|(_, waits)| !waits) {
            self.queue.add(Task::Check(dependent));
        }
        Ok(())
    }

    async fn orphan(&self, uid: &str) -> anyhow::Result<()> {
        let (node, dependents) = {
            let graph = self.monitors.graph.lock();
            let Some(node) = graph.get(uid) else { return Ok(()) };
            let dependents: Vec<(String, Node)> = graph
                .dependents(uid)
                .map(|(uid, node)| (uid.clone(), node.clone()))
                .collect();
            (node.clone(), dependents)
        };
        for (dependent, node) in dependents {
            let Some(latest) = self.live(&node.resource, &node.namespace, &node.name).await? else {
                continue;
            };
            let owners = latest.metadata.owner_references.clone().unwrap_or_default();
            let left: Vec<OwnerReference> = owners.iter().filter(|o| o.uid != uid).cloned().collect();
            if latest.uid() == dependent && left.len() < owners.len() {
                self.set_owners(&node, &latest, left).await?;
            }
        }
        self.remove_finalizer(uid, &node, ORPHAN).await
    }

    async fn remove_finalizer(&self, uid: &str, node: &Node, finalizer: &str) -> anyhow::Result<()> {
        let Some(latest) = self
            .live(&node.resource, &node.namespace, &node.name)
            .await?
            .filter(|l| l.uid() == uid)
        else {
            return Ok(());
        };
        let before = latest.metadata.finalizers.clone().unwrap_or_default();
        let left: Vec<&String> = before.iter().filter(|f| *f != finalizer).collect();
        if left.len() == before.len() {
            return Ok(());
        }
        self.patch(node, &latest, json!({"finalizers": left})).await
    }

    async fn set_owners(&self, node: &Node, latest: &PartialObject, owners: Vec<OwnerReference>) -> anyhow::Result<()> {
        self.patch(node, latest, json!({"ownerReferences": owners})).await
    }

    /// Changes metadata, if the object is still as it was read.
    async fn patch(&self, node: &Node, latest: &PartialObject, mut meta: serde_json::Value) -> anyhow::Result<()> {
        meta["uid"] = json!(latest.uid());
        meta["resourceVersion"] = json!(latest.metadata.resource_version);
        let body = json!({"metadata": meta});
        match self
            .rest
            .patch_raw(&node.resource, &node.namespace, &node.name, "", &Patch::Merge(&body))
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn tell_misplaced(&self, uid: &str, node: &Node, owner: &OwnerReference) {
        let subject = ObjectReference {
            api_version: Some(node.resource.api_version()),
            kind: Some(node.resource.kind.to_string()),
            namespace: Some(node.namespace.clone()),
            name: Some(node.name.clone()),
            uid: Some(uid.to_string()),
            ..Default::default()
        };
        let what = format!(
            "[{}/{}, namespace: {}, name: {}, uid: {}]",
            owner.api_version, owner.kind, node.namespace, owner.name, owner.uid
        );
        let text = format!("ownerRef {what} does not exist in namespace {:?}", node.namespace);
        self.recorder
            .event_for(&subject, Warning, "OwnerRefInvalidNamespace", text);
    }
}
