//! The table of all served resources. Built-in rows stand from the start; CRDs add, replace and remove rows at run time.
//!
//! Readers take a snapshot (one atomic load); discovery, OpenAPI and the routes are all drawn from it.

use crate::def::ResourceDef;
use keelson_api::{GroupVersionResource, Str};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// One state of the table.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    rows: BTreeMap<GroupVersionResource, Arc<ResourceDef>>,
    /// Grows with every change.
    pub generation: u64,
}

impl Snapshot {
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<ResourceDef>> {
        self.rows.get(&GroupVersionResource::new(group, version, resource))
    }
    /// Rows in order of group, version, resource.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ResourceDef>> {
        self.rows.values()
    }
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<ResourceDef>> {
        self.rows
            .values()
            .find(|d| d.gvr.group == group && d.gvr.version == version && d.kind == kind)
    }
    /// A row of the resource in any version: the storage version if it is served.
    pub fn by_resource(&self, group: &str, resource: &str) -> Option<&Arc<ResourceDef>> {
        let all = || {
            self.rows
                .values()
                .filter(|d| d.gvr.group == group && d.gvr.resource == resource)
        };
        all().find(|d| d.is_storage_version()).or_else(|| all().next())
    }
    pub fn has_group_version(&self, group: &str, version: &str) -> bool {
        self.rows.keys().any(|k| k.group == group && k.version == version)
    }
}

#[derive(Debug)]
pub struct ResourceTable {
    current: RwLock<Arc<Snapshot>>,
    changed: watch::Sender<u64>,
}

impl Default for ResourceTable {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl ResourceTable {
    pub fn new(rows: Vec<ResourceDef>) -> Self {
        let rows = rows.into_iter().map(|d| (d.gvr.clone(), Arc::new(d))).collect();
        ResourceTable {
            current: RwLock::new(Arc::new(Snapshot { rows, generation: 1 })),
            changed: watch::channel(1).0,
        }
    }
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().clone()
    }
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<Arc<ResourceDef>> {
        self.current.read().get(group, version, resource).cloned()
    }
    pub fn by_resource(&self, group: &str, resource: &str) -> Option<Arc<ResourceDef>> {
        self.current.read().by_resource(group, resource).cloned()
    }
    /// Replaces the rows of a group's resource by `rows` (none: removes them) in one step.
    pub fn replace(&self, group: &str, resource: &str, rows: Vec<ResourceDef>) {
        self.change(|map| {
            map.retain(|k, _| !(k.group == group && k.resource == resource));
            map.extend(rows.into_iter().map(|d| (d.gvr.clone(), Arc::new(d))));
        });
    }
    fn change(&self, f: impl FnOnce(&mut BTreeMap<GroupVersionResource, Arc<ResourceDef>>)) {
        let generation = {
            let mut current = self.current.write();
            let mut next = Snapshot::clone(&current);
            f(&mut next.rows);
            next.generation += 1;
            let generation = next.generation;
            *current = Arc::new(next);
            generation
        };
        self.changed.send_replace(generation);
    }
    /// Tells of changes: the value is the generation.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
    /// The groups served, each with its versions.
    pub fn groups(&self) -> BTreeMap<Str, Vec<Str>> {
        let mut groups: BTreeMap<Str, Vec<Str>> = BTreeMap::new();
        for key in self.snapshot().rows.keys() {
            let versions = groups.entry(key.group.clone()).or_default();
            if !versions.contains(&key.version) {
                versions.push(key.version.clone());
            }
        }
        groups
    }
}
