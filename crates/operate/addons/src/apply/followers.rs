//! Applied objects as they are now: of each kind that any add-on has, those with our label are followed, and no others.

use crate::LABEL;
use crate::inventory::Entry;
use crate::live::Live;
use keelson_client::{ApiObject, Informer, InformerOptions, ObjectKey, ResourceId, Rest, WorkQueue};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct Followers {
    rest: Rest,
    queue: Arc<WorkQueue<ObjectKey>>,
    stop: CancellationToken,
    all: Mutex<BTreeMap<ResourceId, Follower>>,
}

/// Several changes come at a time, as when pods become ready one after the other: they are looked at together.
const TOGETHER: Duration = Duration::from_millis(200);

/// Which objects of a kind add-ons have, whatever labels say: anybody can put ours on what is his.
type Names = Arc<Mutex<BTreeMap<String, BTreeSet<ObjectKey>>>>;

struct Follower {
    informer: Informer<Live>,
    by: Names,
}

impl Followers {
    pub fn new(rest: Rest, queue: Arc<WorkQueue<ObjectKey>>, stop: CancellationToken) -> Followers {
        Followers {
            rest,
            queue,
            stop,
            all: Mutex::default(),
        }
    }

    /// An add-on has these objects from now on, and no others.
    pub fn follow(&self, addon: &str, kinds: BTreeMap<ResourceId, BTreeSet<ObjectKey>>) {
        let mut all = self.all.lock();
        all.retain(|resource, follower| {
            let mut by = follower.by.lock();
            if !kinds.contains_key(resource) {
                by.remove(addon);
            }
            !by.is_empty()
        });
        for (resource, names) in kinds {
            let follower = all.entry(resource).or_insert_with_key(|resource| {
                let by = Names::default();
                Follower {
                    informer: self.start(resource, by.clone()),
                    by,
                }
            });
            follower.by.lock().insert(addon.to_string(), names);
        }
    }

    fn start(&self, resource: &ResourceId, by: Names) -> Informer<Live> {
        let options = InformerOptions {
            labels: LABEL.into(),
            ..InformerOptions::default()
        };
        let informer = Informer::<Live>::of(&self.rest, resource.clone(), options, &self.stop);
        let queue = self.queue.clone();
        informer.on_change(move |change| {
            let (old, new) = (change.old(), change.object());
            if old.is_some_and(|old| old.print == new.print && old.health == new.health && old.addon() == new.addon()) {
                return;
            }
            // What is gone may be what something waits for.
            let time = if change.is_deleted() { Duration::ZERO } else { TOGETHER };
            let key = new.key();
            for (addon, _) in by.lock().iter().filter(|(_, names)| names.contains(&key)) {
                queue.add_after(ObjectKey::cluster(addon), time);
            }
        });
        informer
    }

    /// Resolves when all kinds of an add-on are known.
    pub async fn known(&self, addon: &str) {
        let all: Vec<Informer<Live>> = {
            let all = self.all.lock();
            let of_addon = all.values().filter(|f| f.by.lock().contains_key(addon));
            of_addon.map(|f| f.informer.clone()).collect()
        };
        for informer in all {
            informer.synced().await;
        }
    }

    /// `None`: not known yet.
    pub fn find(&self, resource: &ResourceId, namespace: &str, name: &str) -> Option<Option<Arc<Live>>> {
        let all = self.all.lock();
        let follower = all.get(resource).filter(|f| f.informer.is_synced())?;
        Some(follower.informer.store().get(namespace, name))
    }

    pub fn get(&self, entry: &Entry) -> Option<Option<Arc<Live>>> {
        let resource = {
            let all = self.all.lock();
            let is_it = |r: &&ResourceId| r.group == entry.group && r.kind == entry.kind && r.version == entry.version;
            all.keys().find(is_it).cloned()?
        };
        self.find(&resource, &entry.namespace, &entry.name)
    }
}
