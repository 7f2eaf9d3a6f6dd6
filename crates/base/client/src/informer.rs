//! Informers: a [`Store`] kept up to date by a reflector, and handlers that are told of every change.
//!
//! Handlers run in the informer's own task, one after the other, after the store has the change: they note a key in a
//! queue and return. So nothing here is buffered, and nothing can overflow; a handler that blocks slows its informer
//! only, and the server ends its watch. `synced` is true once the whole first state has been applied and handled.

use crate::key::ObjectKey;
use crate::kind::{ApiObject, Kind, ResourceId};
use crate::partial::{PARTIAL_ACCEPT, PartialObject};
use crate::reflector::{EventKind, Sink, Target, reflect};
use crate::rest::{JSON, Rest};
use crate::store::Store;
use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What happened to an object.
#[derive(Clone, Debug)]
pub enum Change<K> {
    Added(Arc<K>),
    Updated {
        old: Arc<K>,
        new: Arc<K>,
    },
    /// With the last state known.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object as it is now, or last was.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Added(object) | Change::Deleted(object) | Change::Updated { new: object, .. } => object,
        }
    }
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Change::Updated { old, .. } => Some(old),
            _ => None,
        }
    }
    pub fn is_deleted(&self) -> bool {
        matches!(self, Change::Deleted(_))
    }
}

pub(crate) type Handler<K> = Box<dyn FnMut(&Change<K>) + Send>;

/// Which part of a collection, and what to keep of each object.
pub struct InformerOptions<K> {
    pub namespace: String,
    pub labels: String,
    pub fields: String,
    /// Runs before an object is stored. By default the managed fields are dropped.
    pub transform: fn(&mut K),
}

impl<K: ApiObject> Default for InformerOptions<K> {
    fn default() -> Self {
        InformerOptions {
            namespace: String::new(),
            labels: String::new(),
            fields: String::new(),
            transform: strip_managed_fields,
        }
    }
}

/// Managed fields are often larger than the rest, and no component here reads them.
pub fn strip_managed_fields<K: ApiObject>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

pub(crate) struct Shared<K> {
    pub(crate) store: Arc<Store<K>>,
    pub(crate) handlers: Mutex<Vec<Handler<K>>>,
    pub(crate) synced: watch::Sender<bool>,
}

impl<K: ApiObject> Shared<K> {
    pub(crate) fn new(store: Arc<Store<K>>) -> Arc<Self> {
        Arc::new(Shared {
            store,
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        })
    }
}

/// A handle; the informer runs until its last handle is gone, or its stop token fires.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
    resource: ResourceId,
    /// What feeds it ends with the last who holds this.
    _running: Arc<dyn Any + Send + Sync>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer {
            shared: self.shared.clone(),
            resource: self.resource.clone(),
            _running: self._running.clone(),
        }
    }
}

impl<K: Kind> Informer<K> {
    /// Starts following all objects of a kind, or those that `options` select.
    pub fn start(rest: &Rest, options: InformerOptions<K>, stop: &CancellationToken) -> Self {
        Self::launch(rest, K::RESOURCE, JSON, options, stop)
    }
}

impl Informer<PartialObject> {
    /// Follows the metadata of any resource.
    pub fn metadata(
        rest: &Rest,
        resource: ResourceId,
        transform: fn(&mut PartialObject),
        stop: &CancellationToken,
    ) -> Self {
        let options = InformerOptions {
            transform,
            ..Default::default()
        };
        Self::launch(rest, resource, PARTIAL_ACCEPT, options, stop)
    }
}

impl<K: ApiObject> Informer<K> {
    /// Follows a resource that is only known by its address, or what `options` select of it.
    pub fn of(rest: &Rest, resource: ResourceId, options: InformerOptions<K>, stop: &CancellationToken) -> Self {
        Self::launch(rest, resource, JSON, options, stop)
    }

    fn launch(
        rest: &Rest,
        resource: ResourceId,
        accept: &'static str,
        options: InformerOptions<K>,
        stop: &CancellationToken,
    ) -> Self {
        let InformerOptions {
            namespace,
            labels,
            fields,
            transform,
        } = options;
        let target = Target {
            resource,
            namespace,
            labels,
            fields,
            accept,
        };
        match rest.joined() {
            Some(together) => together.join(rest, target, transform, stop),
            None => Self::follow(rest, target, transform, stop),
        }
    }

    /// By a watch of its own.
    pub(crate) fn follow(rest: &Rest, target: Target, transform: fn(&mut K), stop: &CancellationToken) -> Self {
        let resource = target.resource.clone();
        let shared = Shared::new(Arc::default());
        let stop = stop.child_token();
        let sink = Feed {
            shared: shared.clone(),
            resource: resource.clone(),
            transform,
            fresh: None,
        };
        tokio::spawn(feed(rest.clone(), target, Box::new(sink), stop.clone()));
        Informer {
            shared,
            resource,
            _running: Arc::new(stop.drop_guard()),
        }
    }

    /// Fed by somebody else, who is kept by `running`.
    pub(crate) fn fed(shared: Arc<Shared<K>>, resource: ResourceId, running: Arc<dyn Any + Send + Sync>) -> Self {
        Informer {
            shared,
            resource,
            _running: running,
        }
    }

    pub fn resource(&self) -> &ResourceId {
        &self.resource
    }

    pub fn store(&self) -> &Store<K> {
        &self.shared.store
    }

    pub(crate) fn shared_store(&self) -> Arc<Store<K>> {
        self.shared.store.clone()
    }

    /// Has `handler` told of all objects there are, then of every change. It must be quick, and must not register another.
    pub fn on_change(&self, mut handler: impl FnMut(&Change<K>) + Send + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.shared.store.list() {
            handler(&Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Waits until the first whole state has been stored and handled.
    pub async fn synced(&self) {
        // The sender lives in self: this can only end by becoming true.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// For a [`crate::Controller`]'s readiness gate.
    pub fn gate(&self) -> watch::Receiver<bool> {
        self.shared.synced.subscribe()
    }
}

/// A task like all others, whatever the kind: each type of task costs kilobytes of the program.
async fn feed(rest: Rest, target: Target, mut sink: Box<dyn Sink>, stop: CancellationToken) {
    reflect(rest, target, &mut *sink, stop).await;
}

/// Between the reflector and the store.
struct Feed<K> {
    shared: Arc<Shared<K>>,
    resource: ResourceId,
    transform: fn(&mut K),
    fresh: Option<BTreeMap<ObjectKey, Arc<K>>>,
}

impl<K: ApiObject> Feed<K> {
    fn read(&self, json: &[u8]) -> Option<K> {
        match K::decode(json) {
            Ok(mut object) => {
                (self.transform)(&mut object);
                Some(object)
            }
            Err(error) => {
                tracing::error!(resource = %self.resource, %error, "an object can't be read and is left out");
                None
            }
        }
    }
}

impl<K: ApiObject> Sink for Feed<K> {
    fn begin(&mut self) {
        self.fresh = Some(BTreeMap::new());
    }

    fn item(&mut self, json: &[u8]) {
        if let Some(object) = self.read(json)
            && let Some(fresh) = &mut self.fresh
        {
            fresh.insert(object.key(), Arc::new(object));
        }
    }

    fn end(&mut self, revision: &str) {
        let fresh = self.fresh.take().unwrap_or_default();
        let store = &self.shared.store;
        let mut handlers = self.shared.handlers.lock();
        for key in store.keys() {
            if !fresh.contains_key(&key)
                && let Some(old) = store.remove(&key)
            {
                tell(&mut handlers, &Change::Deleted(old));
            }
        }
        for (key, object) in fresh {
            let old = store.get_key(&key);
            if old.as_ref().is_some_and(|old| {
                old.meta().resource_version == object.meta().resource_version && old.uid() == object.uid()
            }) {
                continue;
            }
            store.put(key, object.clone());
            tell_put(&mut handlers, old, object);
        }
        store.restart(revision);
        self.shared.synced.send_replace(true);
    }

    fn event(&mut self, kind: EventKind, json: &[u8]) -> Option<String> {
        let object = self.read(json)?;
        let revision = object.meta().resource_version.clone();
        let store = &self.shared.store;
        let mut handlers = self.shared.handlers.lock();
        match kind {
            EventKind::Added | EventKind::Modified => {
                let object = Arc::new(object);
                let old = store.put(object.key(), object.clone());
                tell_put(&mut handlers, old, object);
            }
            EventKind::Deleted => {
                let removed = store.remove(&object.key());
                if removed.is_some() {
                    tell(&mut handlers, &Change::Deleted(Arc::new(object)));
                }
            }
        }
        if let Some(revision) = &revision {
            store.advance(revision);
        }
        revision
    }

    fn bookmark(&mut self, revision: &str) {
        self.shared.store.advance(revision);
    }
}

/// An object under the same name with another uid is another object: the old one is gone.
pub(crate) fn tell_put<K: ApiObject>(handlers: &mut [Handler<K>], old: Option<Arc<K>>, new: Arc<K>) {
    match old {
        Some(old) if old.uid() == new.uid() => tell(handlers, &Change::Updated { old, new }),
        Some(old) => {
            tell(handlers, &Change::Deleted(old));
            tell(handlers, &Change::Added(new));
        }
        None => tell(handlers, &Change::Added(new)),
    }
}

pub(crate) fn tell<K>(handlers: &mut [Handler<K>], change: &Change<K>) {
    for handler in handlers {
        handler(change);
    }
}

/// One informer per kind, started when first asked for, shared by all who ask.
pub struct Informers {
    rest: Rest,
    stop: CancellationToken,
    started: Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
}

impl Informers {
    pub fn new(rest: Rest, stop: CancellationToken) -> Self {
        Informers {
            rest,
            stop,
            started: Mutex::new(HashMap::new()),
        }
    }

    pub fn get<K: Kind>(&self) -> Informer<K> {
        let mut started = self.started.lock();
        let slot = started
            .entry(TypeId::of::<K>())
            .or_insert_with(|| Box::new(Informer::<K>::start(&self.rest, InformerOptions::default(), &self.stop)));
        match slot.downcast_ref::<Informer<K>>() {
            Some(informer) => informer.clone(),
            // Slots are keyed by type: this can't be another one.
            None => Informer::start(&self.rest, InformerOptions::default(), &self.stop),
        }
    }
}
