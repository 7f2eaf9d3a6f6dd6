//! Local copies of just those config maps and secrets that this node's pods refer to: one watch an object, for as long
//! as some pod needs it. A change wakes the pods that refer to it, so nothing asks again and again.

use keelson_client::{Informer, InformerOptions, Kind, Rest};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a first read may take before the pod's start is tried again later.
const FIRST_READ: Duration = Duration::from_secs(30);

type Key = (String, String);
/// Tells the task of the pod with this uid.
pub type Wake = Arc<dyn Fn(&str) + Send + Sync>;

struct Entry<K> {
    informer: Informer<K>,
    pods: Arc<Mutex<BTreeSet<String>>>,
}

/// Objects of one kind.
pub struct Objects<K: Kind> {
    rest: Rest,
    stop: CancellationToken,
    wake: Wake,
    entries: Mutex<HashMap<Key, Entry<K>>>,
    by_pod: Mutex<BTreeMap<String, BTreeSet<Key>>>,
}

impl<K: Kind> Objects<K> {
    pub fn new(rest: Rest, stop: CancellationToken, wake: Wake) -> Self {
        Objects {
            rest,
            stop,
            wake,
            entries: Mutex::default(),
            by_pod: Mutex::default(),
        }
    }

    /// Says which objects a pod needs now; watches start and end accordingly.
    pub fn set(&self, pod: &str, needed: BTreeSet<Key>) {
        let mut by_pod = self.by_pod.lock();
        let before = by_pod.get(pod).cloned().unwrap_or_default();
        if before == needed {
            return;
        }
        let mut entries = self.entries.lock();
        for key in needed.difference(&before) {
            let entry = entries.entry(key.clone()).or_insert_with(|| self.start(key));
            entry.pods.lock().insert(pod.to_owned());
        }
        for key in before.difference(&needed) {
            let unused = entries.get(key).is_some_and(|e| {
                let mut pods = e.pods.lock();
                pods.remove(pod);
                pods.is_empty()
            });
            if unused {
                entries.remove(key);
            }
        }
        if needed.is_empty() {
            by_pod.remove(pod);
        } else {
            by_pod.insert(pod.to_owned(), needed);
        }
    }

    fn start(&self, key: &Key) -> Entry<K> {
        let options = InformerOptions {
            namespace: key.0.clone(),
            fields: format!("metadata.name={}", key.1),
            ..InformerOptions::default()
        };
        let informer = Informer::<K>::start(&self.rest, options, &self.stop);
        let pods: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let (wake, tell) = (self.wake.clone(), pods.clone());
        informer.on_change(move |_| {
            let pods: Vec<String> = tell.lock().iter().cloned().collect();
            pods.iter().for_each(|p| wake(p));
        });
        Entry { informer, pods }
    }

    /// Waits until every object the pod needs has been looked for.
    pub async fn ready(&self, pod: &str) -> Result<(), String> {
        let keys = self.by_pod.lock().get(pod).cloned().unwrap_or_default();
        for key in keys {
            let Some(informer) = self.entries.lock().get(&key).map(|e| e.informer.clone()) else {
                continue;
            };
            tokio::time::timeout(FIRST_READ, informer.synced()).await.map_err(|_| {
                format!(
                    "failed to sync {} cache: timed out waiting for the condition",
                    K::RESOURCE.plural
                )
            })?;
        }
        Ok(())
    }

    /// The object as it is known now; `None` when it doesn't exist. Only for objects made known by `set`.
    pub fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, String> {
        let key = (namespace.to_owned(), name.to_owned());
        let entries = self.entries.lock();
        match entries.get(&key) {
            Some(e) if e.informer.is_synced() => Ok(e.informer.store().get(namespace, name)),
            _ => Err(format!("object \"{namespace}\"/\"{name}\" not registered")),
        }
    }
}

/// The config maps and secrets that a pod refers to.
pub fn references(pod: &k8s_openapi::api::core::v1::Pod) -> (BTreeSet<Key>, BTreeSet<Key>) {
    use crate::pods;
    let ns = pods::namespace(pod);
    let key = |name: &str| (ns.to_owned(), name.to_owned());
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    let spec = pods::spec(pod);
    secrets.extend(
        spec.image_pull_secrets
            .iter()
            .flatten()
            .filter(|s| !s.name.is_empty())
            .map(|s| key(&s.name)),
    );
    let ephemeral: Vec<_> = pods::ephemeral_containers(pod).iter().map(pods::as_container).collect();
    for c in pods::containers(pod)
        .iter()
        .chain(pods::init_containers(pod))
        .chain(&ephemeral)
    {
        for from in c.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|r| key(&r.name)));
            secrets.extend(from.secret_ref.iter().map(|r| key(&r.name)));
        }
        for from in c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            maps.extend(from.config_map_key_ref.iter().map(|r| key(&r.name)));
            secrets.extend(from.secret_key_ref.iter().map(|r| key(&r.name)));
        }
    }
    for v in spec.volumes.iter().flatten() {
        maps.extend(v.config_map.iter().map(|r| key(&r.name)));
        secrets.extend(v.secret.iter().filter_map(|r| r.secret_name.as_deref()).map(key));
        for source in v.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            maps.extend(source.config_map.iter().map(|r| key(&r.name)));
            secrets.extend(source.secret.iter().map(|r| key(&r.name)));
        }
    }
    (maps, secrets)
}
