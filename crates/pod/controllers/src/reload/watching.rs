//! ConfigMaps and Secrets of those namespaces in which a workload follows some: watched from the first such workload to the last.

use super::follows::Which;
use super::print::{Print, strip};
use crate::wire::Queue;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use keelson_client::{Informer, InformerOptions, Kind, ObjectKey, ResourceId, Rest};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What changes together is rolled out together.
const TOGETHER: Duration = Duration::from_secs(1);

pub struct Watching {
    rest: Rest,
    stop: CancellationToken,
    namespaces: Mutex<HashMap<String, Namespace>>,
}

struct Namespace {
    here: Here,
    /// Workloads that follow something, with the queue in which they are looked at.
    followers: HashMap<(&'static str, String), Queue>,
    _stop: DropGuard,
}

/// What there is in a namespace.
#[derive(Clone)]
pub struct Here {
    maps: Informer<Print>,
    secrets: Informer<Print>,
    namespace: String,
}

impl Here {
    pub fn get(&self, kind: Which, name: &str) -> Option<Arc<Print>> {
        let informer = match kind {
            Which::Map => &self.maps,
            Which::Secret => &self.secrets,
        };
        informer.store().get(&self.namespace, name)
    }
}

impl Watching {
    pub fn new(rest: Rest, stop: CancellationToken) -> Arc<Watching> {
        Arc::new(Watching {
            rest,
            stop,
            namespaces: Mutex::default(),
        })
    }

    /// From now on the workload is looked at when something changes. Gives what there is once that is known; `None`: all is being stopped.
    pub async fn join(self: &Arc<Self>, kind: &'static str, key: &ObjectKey, queue: &Queue) -> Option<Here> {
        let here = {
            let mut namespaces = self.namespaces.lock();
            let namespace = namespaces
                .entry(key.namespace.clone())
                .or_insert_with(|| self.watch(&key.namespace));
            namespace.followers.insert((kind, key.name.clone()), queue.clone());
            namespace.here.clone()
        };
        tokio::select! {
            () = self.stop.cancelled() => None,
            () = async { tokio::join!(here.maps.synced(), here.secrets.synced()); } => Some(here),
        }
    }

    pub fn leave(&self, kind: &'static str, key: &ObjectKey) {
        let mut namespaces = self.namespaces.lock();
        if let Some(namespace) = namespaces.get_mut(&key.namespace) {
            namespace.followers.remove(&(kind, key.name.clone()));
            if namespace.followers.is_empty() {
                namespaces.remove(&key.namespace);
            }
        }
    }

    fn watch(self: &Arc<Self>, namespace: &str) -> Namespace {
        let stop = self.stop.child_token();
        let follow = |resource: ResourceId| {
            let options = InformerOptions {
                namespace: namespace.to_owned(),
                transform: strip,
                ..InformerOptions::default()
            };
            let informer = Informer::<Print>::of(&self.rest, resource, options, &stop);
            let (all, namespace) = (Arc::downgrade(self), namespace.to_owned());
            informer.on_change(move |_| tell(&all, &namespace));
            informer
        };
        let (maps, secrets) = (follow(ConfigMap::RESOURCE), follow(Secret::RESOURCE));
        Namespace {
            here: Here {
                maps,
                secrets,
                namespace: namespace.to_owned(),
            },
            followers: HashMap::new(),
            _stop: stop.drop_guard(),
        }
    }
}

fn tell(all: &Weak<Watching>, namespace: &str) {
    let Some(all) = all.upgrade() else { return };
    let namespaces = all.namespaces.lock();
    for ((_, name), queue) in namespaces.get(namespace).into_iter().flat_map(|n| &n.followers) {
        queue.add_after(ObjectKey::new(namespace, name.clone()), TOGETHER);
    }
}
