//! What judgement comes from: informers, and what of theirs is yet to be looked at.
//!
//! The cluster's own policies are a custom resource, which a cluster may not have, or have later: their definition is followed,
//! and they are while they are served.

use crate::facts;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use keelson_client::cluster_policies::{ClusterNetworkPolicy, DEFINITION, GROUP, VERSION};
use keelson_client::key::ObjectKey;
use keelson_client::kind::ApiObject;
use keelson_client::rest::{JSON, Rest};
use keelson_client::{Change, Informer, InformerOptions, PartialObject, ResourceId, is_not_found};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often it is asked whether a definition's kind is served by now, after each change of it.
const TRIES: u32 = 12;

/// What changed and is yet to be looked at. Bounded by the number of objects.
#[derive(Default)]
pub struct Pending {
    pub pods: BTreeSet<ObjectKey>,
    pub namespaces: BTreeSet<String>,
    pub policies: BTreeSet<ObjectKey>,
    pub nodes: BTreeSet<String>,
    pub cluster: BTreeSet<String>,
}

pub struct Sources {
    pub pods: Informer<core::Pod>,
    pub namespaces: Informer<core::Namespace>,
    pub policies: Informer<NetworkPolicy>,
    pub nodes: Informer<core::Node>,
    definitions: Informer<PartialObject>,
    /// `None`: the kind isn't served.
    cluster: Option<Informer<ClusterNetworkPolicy>>,
    /// The definition that was asked about, and how often.
    asked: (Option<String>, u32),
    pub pending: Arc<Mutex<Pending>>,
    pub changed: Arc<Notify>,
    rest: Rest,
    stop: CancellationToken,
}

/// Of a node only labels and addresses are looked at.
fn strip_node(node: &mut core::Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    node.spec = None;
    let addresses = node.status.take().and_then(|s| s.addresses);
    node.status = Some(core::NodeStatus {
        addresses,
        ..core::NodeStatus::default()
    });
}

/// A definition's existence is all that is looked at.
fn strip_definition(definition: &mut PartialObject) {
    let meta = &mut definition.metadata;
    (meta.managed_fields, meta.annotations, meta.labels) = (None, None, None);
}

impl Sources {
    pub fn start(rest: &Rest, stop: &CancellationToken) -> Sources {
        let pods = InformerOptions {
            transform: facts::strip,
            ..InformerOptions::default()
        };
        let nodes = InformerOptions {
            transform: strip_node,
            ..InformerOptions::default()
        };
        let sources = Sources {
            pods: Informer::start(rest, pods, stop),
            namespaces: Informer::start(rest, InformerOptions::default(), stop),
            policies: Informer::start(rest, InformerOptions::default(), stop),
            nodes: Informer::start(rest, nodes, stop),
            definitions: Informer::metadata(rest, ResourceId::DEFINITIONS, strip_definition, stop),
            cluster: None,
            asked: (None, 0),
            pending: Arc::default(),
            changed: Arc::default(),
            rest: rest.clone(),
            stop: stop.clone(),
        };
        sources.note(&sources.pods, |pending, key| pending.pods.insert(key));
        sources.note(&sources.namespaces, |pending, key| pending.namespaces.insert(key.name));
        sources.note(&sources.policies, |pending, key| pending.policies.insert(key));
        sources.note(&sources.nodes, |pending, key| pending.nodes.insert(key.name));
        let changed = sources.changed.clone();
        sources.definitions.on_change(move |change| {
            if change.object().name() == DEFINITION {
                changed.notify_one();
            }
        });
        sources
    }

    fn note<K: ApiObject>(&self, informer: &Informer<K>, note: fn(&mut Pending, ObjectKey) -> bool) {
        let (pending, changed) = (self.pending.clone(), self.changed.clone());
        informer.on_change(move |change: &Change<K>| {
            note(&mut pending.lock(), ObjectKey::of(change.object().meta()));
            changed.notify_one();
        });
    }

    pub async fn synced(&self) {
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.policies.synced().await;
        self.nodes.synced().await;
        self.definitions.synced().await;
    }

    pub fn cluster_policy(&self, name: &str) -> Option<Arc<ClusterNetworkPolicy>> {
        self.cluster.as_ref()?.store().get("", name)
    }

    /// Follows the cluster's policies if they are served by now, and no longer if they aren't defined any more. Whether they
    /// have been read, or there are none; `false`: ask again.
    pub async fn follow_cluster(&mut self) -> bool {
        let definition = self.definitions.store().get("", DEFINITION);
        let version = definition.and_then(|d| d.metadata.resource_version.clone());
        match (&version, &self.cluster) {
            (None, Some(gone)) => {
                let names = gone.store().list().into_iter().map(|p| p.name().to_string());
                self.pending.lock().cluster.extend(names);
                self.cluster = None;
                true
            }
            (Some(_), None) => self.begin_cluster(version).await,
            (None, None) => true,
            (Some(_), Some(followed)) => {
                followed.synced().await;
                true
            }
        }
    }

    /// Whether the server said that it doesn't have the kind.
    pub fn is_unserved(&self) -> bool {
        self.asked.1 > 0
    }

    async fn begin_cluster(&mut self, version: Option<String>) -> bool {
        if self.asked.0 != version {
            self.asked = (version, 0);
        }
        if self.asked.1 == TRIES {
            return true;
        }
        match self.rest.get(&format!("/apis/{GROUP}/{VERSION}"), JSON).await {
            Ok(_) => {
                let cluster = Informer::start(&self.rest, InformerOptions::default(), &self.stop);
                self.note(&cluster, |pending, key| pending.cluster.insert(key.name));
                cluster.synced().await;
                self.cluster = Some(cluster);
                true
            }
            Err(error) if is_not_found(&error) => {
                self.asked.1 += 1;
                if self.asked.1 == TRIES {
                    tracing::warn!("{DEFINITION} is defined without {VERSION}: its policies aren't enforced");
                }
                false
            }
            Err(error) => {
                tracing::warn!(%error, "whether the cluster has policies of its own can't be told");
                false
            }
        }
    }
}
