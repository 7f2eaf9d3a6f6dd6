//! Many clients in one process that look at the same collections: the kubelets of thousands of simulated nodes. Whatever
//! they follow is followed once: a *hub* keeps the collection and tells each *branch*, an informer like any other, of its part.
//! Their requests wait for seats, of which there are as many as the API server is meant to get at a time.
//!
//! What informers ask for by the name of their node, pods and nodes, they take from one collection of all; what they ask for in
//! the same words they share as it is. What is kept of an object is what the first who follows its collection keeps: all have to
//! want the same (an informer's `transform` can't be compared with another's). A handler must not begin to follow, or leave, the collection that it is told of.

use crate::informer::{Change, Informer, Shared, tell, tell_put};
use crate::kind::{ApiObject, Kind, ResourceId};
use crate::reflector::Target;
use crate::rest::Rest;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

pub struct Together {
    hubs: Mutex<HashMap<Place, Weak<dyn Any + Send + Sync>>>,
    seats: Semaphore,
}

/// Who may share: the same objects, in the same form.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    kind: TypeId,
    resource: ResourceId,
    namespace: String,
    labels: String,
    fields: String,
    accept: &'static str,
}

impl Together {
    /// So many requests at a time, watches aside.
    pub fn new(seats: usize) -> Arc<Together> {
        Arc::new(Together {
            hubs: Mutex::default(),
            seats: Semaphore::new(seats),
        })
    }

    pub(crate) async fn seat(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.seats.acquire().await.ok()
    }

    pub(crate) fn join<K: ApiObject>(
        &self,
        rest: &Rest,
        mut target: Target,
        transform: fn(&mut K),
        stop: &CancellationToken,
    ) -> Informer<K> {
        let part = part_of(&mut target);
        let resource = target.resource.clone();
        let hub = self.hub(rest, target, transform);
        hub.branch(part, resource, stop)
    }

    fn hub<K: ApiObject>(&self, rest: &Rest, target: Target, transform: fn(&mut K)) -> Arc<Hub<K>> {
        let place = Place {
            kind: TypeId::of::<K>(),
            resource: target.resource.clone(),
            namespace: target.namespace.clone(),
            labels: target.labels.clone(),
            fields: target.fields.clone(),
            accept: target.accept,
        };
        let mut hubs = self.hubs.lock();
        let found = hubs.get(&place).and_then(Weak::upgrade);
        if let Some(hub) = found.and_then(|any| any.downcast::<Hub<K>>().ok()) {
            return hub;
        }
        hubs.retain(|_, hub| hub.strong_count() > 0);
        let hub = Hub::start(rest, target, transform);
        let weak: Weak<Hub<K>> = Arc::downgrade(&hub);
        hubs.insert(place, weak);
        hub
    }
}

/// What of a collection an informer asks for, where others ask for other parts; the target becomes what all of them follow.
fn part_of(target: &mut Target) -> Option<String> {
    let (field, whole) = if target.resource == Pod::RESOURCE {
        // Not those that are on no node yet.
        ("spec.nodeName=", "spec.nodeName!=")
    } else if target.resource == Node::RESOURCE {
        ("metadata.name=", "")
    } else {
        return None;
    };
    let part = target.fields.strip_prefix(field).filter(|value| !value.contains(','))?;
    let part = part.to_owned();
    target.fields = whole.to_owned();
    Some(part)
}

/// The part that an object is of.
fn part_with<K: ApiObject>(object: &K) -> String {
    match (object as &dyn Any).downcast_ref::<Pod>() {
        Some(pod) => pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
        None => object.name().to_owned(),
    }
}

const PART: &str = "part";

/// One collection, and who is told of it.
struct Hub<K> {
    informer: Informer<K>,
    branches: Arc<Mutex<Branches<K>>>,
}

struct Branches<K> {
    /// By what part of the collection they have.
    parts: HashMap<String, Vec<Branch<K>>>,
    /// Those that have all of it.
    whole: Vec<Branch<K>>,
    synced: bool,
}

struct Branch<K> {
    shared: Weak<Shared<K>>,
    stop: CancellationToken,
}

impl<K: ApiObject> Hub<K> {
    fn start(rest: &Rest, target: Target, transform: fn(&mut K)) -> Arc<Self> {
        // It ends with its last branch.
        let informer = Informer::follow(&rest.alone(), target, transform, &CancellationToken::new());
        informer.store().add_index(PART, |object| vec![part_with(object)]);
        let branches = Arc::new(Mutex::new(Branches {
            parts: HashMap::new(),
            whole: Vec::new(),
            synced: false,
        }));
        let telling = branches.clone();
        informer.on_change(move |change| telling.lock().tell(change));
        let waiting = branches.clone();
        let set = Box::new(move || waiting.lock().set_synced());
        tokio::spawn(once_synced(informer.gate(), set));
        Arc::new(Hub { informer, branches })
    }

    fn branch(self: Arc<Self>, part: Option<String>, resource: ResourceId, stop: &CancellationToken) -> Informer<K> {
        let store = match part {
            Some(_) => Arc::default(),
            None => self.informer.shared_store(),
        };
        let shared = Shared::new(store);
        let branch = Branch {
            shared: Arc::downgrade(&shared),
            stop: stop.clone(),
        };
        let mut branches = self.branches.lock();
        if let Some(part) = &part {
            for object in self.informer.store().by_index(PART, part) {
                shared.store.put(object.key(), object);
            }
        }
        shared.synced.send_replace(branches.synced);
        let others = match part {
            Some(part) => branches.parts.entry(part).or_default(),
            None => &mut branches.whole,
        };
        others.retain(|b| b.alive().is_some());
        others.push(branch);
        drop(branches);
        Informer::fed(shared, resource, self)
    }
}

/// A task of one type for all kinds.
async fn once_synced(mut gate: watch::Receiver<bool>, then: Box<dyn FnOnce() + Send>) {
    if gate.wait_for(|synced| *synced).await.is_ok() {
        then();
    }
}

impl<K: ApiObject> Branches<K> {
    fn tell(&mut self, change: &Change<K>) {
        self.whole.retain(|branch| match branch.alive() {
            Some(shared) => {
                tell(&mut shared.handlers.lock(), change);
                true
            }
            None => false,
        });
        // Objects stay in their part for life.
        let part = part_with(&**change.object());
        let Some(branches) = self.parts.get_mut(&part) else {
            return;
        };
        branches.retain(|branch| match branch.alive() {
            Some(shared) => {
                pass(&shared, change);
                true
            }
            None => false,
        });
        if branches.is_empty() {
            self.parts.remove(&part);
        }
    }

    fn set_synced(&mut self) {
        self.synced = true;
        let all = self.whole.iter().chain(self.parts.values().flatten());
        for shared in all.filter_map(Branch::alive) {
            shared.synced.send_replace(true);
        }
    }
}

impl<K> Branch<K> {
    fn alive(&self) -> Option<Arc<Shared<K>>> {
        self.shared.upgrade().filter(|_| !self.stop.is_cancelled())
    }
}

/// Has a branch of a part take a change up. What it took when it began isn't new to it.
fn pass<K: ApiObject>(shared: &Shared<K>, change: &Change<K>) {
    let mut handlers = shared.handlers.lock();
    let object = change.object();
    if change.is_deleted() {
        if shared.store.remove(&object.key()).is_some() {
            tell(&mut handlers, change);
        }
    } else {
        let old = shared.store.put(object.key(), object.clone());
        let known =
            |old: &Arc<K>| old.uid() == object.uid() && old.meta().resource_version == object.meta().resource_version;
        if old.as_ref().is_some_and(known) {
            return;
        }
        tell_put(&mut handlers, old, object.clone());
    }
    if let Some(revision) = &object.meta().resource_version {
        shared.store.advance(revision);
    }
}
