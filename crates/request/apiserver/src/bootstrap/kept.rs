//! The namespaces that the system needs are made again when they go: without `kube-node-lease`, for one, no node could
//! say that it lives.

use super::{RETRY, cluster, reconcile};
use crate::live::Sink;
use crate::serve::Loopback;
use keelson_api::Object;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Watches namespaces and makes those that are missing.
pub struct KeptNamespaces {
    loopback: Loopback,
    wanted: Vec<Object>,
    /// Their names; bounded by how many are wanted.
    missing: Mutex<BTreeSet<String>>,
    wake: Notify,
}

impl KeptNamespaces {
    pub const PATH: &str = "/api/v1/namespaces";

    pub fn new(loopback: Loopback) -> Arc<Self> {
        Arc::new(KeptNamespaces {
            loopback,
            wanted: cluster::namespaces(),
            missing: Mutex::default(),
            wake: Notify::new(),
        })
    }

    pub fn sink(self: &Arc<Self>) -> Arc<dyn Sink> {
        Arc::new(NamespaceSink(self.clone()))
    }

    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = stop.cancelled() => return,
            }
            while let Some(name) = { self.missing.lock().pop_first() } {
                let Some(namespace) = self.wanted.iter().find(|n| n.name() == name) else {
                    continue;
                };
                if let Err(e) = reconcile(namespace, &self.loopback).await {
                    tracing::warn!(%name, "making a namespace of the system again failed, trying again: {e}");
                    self.missing.lock().insert(name);
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    fn miss(&self, names: impl Iterator<Item = String>) {
        let mut missing = self.missing.lock();
        let before = missing.len();
        missing.extend(names.filter(|name| self.wanted.iter().any(|n| n.name() == name)));
        if missing.len() > before {
            self.wake.notify_one();
        }
    }
}

/// The part of [`KeptNamespaces`] that the watch feeds.
struct NamespaceSink(Arc<KeptNamespaces>);

impl Sink for NamespaceSink {
    fn replace(&self, objects: Vec<Object>) {
        let wanted = self.0.wanted.iter().map(|n| n.name().to_string());
        self.0
            .miss(wanted.filter(|name| !objects.iter().any(|o| o.name() == name)));
    }
    fn set(&self, _: Object) {}
    fn delete(&self, object: Object) {
        self.0.miss(std::iter::once(object.name().to_string()));
    }
}
