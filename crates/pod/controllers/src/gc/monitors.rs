//! Follows the metadata of every kind of object that can be deleted, as kinds come and go.

use super::graph::{Graph, Node, Task};
use keelson_client::discovery::{Resources, preferred_resources};
use keelson_client::{ApiObject, Informer, ObjectKey, PartialObject, ResourceId, Rest, WorkQueue};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Too many, too short-lived, and never anybody's owner.
const IGNORED: &[(&str, &str)] = &[("", "events"), ("events.k8s.io", "events")];

pub struct Monitors {
    rest: Rest,
    stop: CancellationToken,
    pub graph: Arc<Mutex<Graph>>,
    queue: Arc<WorkQueue<Task>>,
    running: Mutex<BTreeMap<ResourceId, Informer<PartialObject>>>,
    /// All kinds, by group and kind.
    kinds: RwLock<BTreeMap<(String, String), Arc<ResourceId>>>,
}

impl Monitors {
    pub fn new(rest: Rest, queue: Arc<WorkQueue<Task>>, stop: CancellationToken) -> Self {
        Monitors {
            rest,
            stop,
            graph: Default::default(),
            queue,
            running: Default::default(),
            kinds: Default::default(),
        }
    }

    pub fn resource(&self, group: &str, kind: &str) -> Option<Arc<ResourceId>> {
        self.kinds.read().get(&(group.to_string(), kind.to_string())).cloned()
    }

    /// Starts and stops informers as discovery says. A group that can't be discovered keeps what it has.
    pub async fn refresh(&self) -> anyhow::Result<Resources> {
        let found = preferred_resources(&self.rest).await?;
        let failed: BTreeSet<&str> = found
            .failed
            .iter()
            .map(|(gv, _)| gv.split_once('/').map_or("", |(g, _)| g))
            .collect();
        let wanted: BTreeSet<ResourceId> = found
            .found
            .iter()
            .filter(|r| ["delete", "list", "watch"].iter().all(|verb| r.can(verb)))
            .filter(|r| !IGNORED.contains(&(r.id.group.as_ref(), r.id.plural.as_ref())))
            .map(|r| r.id.clone())
            .collect();
        {
            let mut kinds = self.kinds.write();
            kinds.retain(|(group, _), _| failed.contains(group.as_str()));
            for resource in found.found.iter().map(|r| &r.id) {
                kinds
                    .entry((resource.group.to_string(), resource.kind.to_string()))
                    .or_insert_with(|| Arc::new(resource.clone()));
            }
        }
        let mut gone = Vec::new();
        {
            let mut running = self.running.lock();
            running.retain(|resource, informer| {
                let keep = wanted.contains(resource) || failed.contains(resource.group.as_ref());
                if !keep {
                    gone.push(informer.clone());
                }
                keep
            });
            for resource in wanted {
                running.entry(resource.clone()).or_insert_with(|| self.follow(resource));
            }
        }
        for informer in gone {
            tracing::debug!(resource = %informer.resource(), "no longer served");
            for object in informer.store().list() {
                self.enqueue(self.graph.lock().remove(object.uid()));
            }
        }
        Ok(found)
    }

    /// Waits for what runs now.
    pub async fn synced(&self) {
        let running: Vec<_> = self.running.lock().values().cloned().collect();
        for informer in running {
            tokio::select! {
                () = informer.synced() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn follow(&self, resource: ResourceId) -> Informer<PartialObject> {
        let informer = Informer::metadata(&self.rest, resource.clone(), lean, &self.stop);
        let (graph, queue, resource) = (self.graph.clone(), self.queue.clone(), Arc::new(resource));
        informer.on_change(move |change| {
            let object = change.object();
            let tasks = if change.is_deleted() {
                graph.lock().remove(object.uid())
            } else {
                graph
                    .lock()
                    .put(object.uid(), Node::new(resource.clone(), object.meta()))
            };
            tasks.into_iter().for_each(|task| queue.add(task));
        });
        informer
    }

    fn enqueue(&self, tasks: Vec<Task>) {
        tasks.into_iter().for_each(|task| self.queue.add(task));
    }
}

/// Keeps what the graph needs.
fn lean(object: &mut PartialObject) {
    let meta = &mut object.metadata;
    meta.managed_fields = None;
    meta.labels = None;
    meta.annotations = None;
    meta.generate_name = None;
    meta.creation_timestamp = None;
    object.api_version = String::new();
    object.kind = String::new();
}

/// Custom kinds that discovery doesn't show yet, by the names of their definitions.
pub fn missing(definitions: &[Arc<PartialObject>], found: &Resources) -> Vec<ObjectKey> {
    let known: BTreeSet<String> = found
        .found
        .iter()
        .map(|r| format!("{}.{}", r.id.plural, r.id.group))
        .collect();
    definitions
        .iter()
        .filter(|d| !d.is_deleting() && !known.contains(d.name()))
        .map(|d| d.key())
        .collect()
}
