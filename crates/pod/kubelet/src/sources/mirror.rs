//! Mirrors: the objects by which static pods are seen in the API. The manifest decides; the mirror only shows.

use crate::kubelet::Kubelet;
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::{Objects, is_already_exists, is_conflict, is_not_found};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

struct Entry {
    changed: Arc<Notify>,
    stop: CancellationToken,
}

/// The static pods that want a mirror, by namespace and name.
#[derive(Default)]
pub struct Mirrors {
    wanted: Mutex<HashMap<(String, String), (String, Entry)>>,
    /// Hash and uid of the mirrors that are in the API.
    seen: Mutex<HashMap<(String, String), (String, String)>>,
}

fn key(pod: &Pod) -> (String, String) {
    (pods::namespace(pod).to_owned(), pods::name(pod).to_owned())
}

impl Mirrors {
    /// A mirror was seen in the API.
    pub fn seen(&self, mirror: &Pod, gone: bool) {
        let key = key(mirror);
        if gone {
            self.seen.lock().remove(&key);
        } else {
            // One that is being deleted is none any more: it goes at once, and another is made.
            let lives = mirror.metadata.deletion_timestamp.is_none();
            let hash = pods::annotation(mirror, pods::MIRROR_ANNOTATION)
                .filter(|_| lives)
                .unwrap_or_default()
                .to_owned();
            self.seen
                .lock()
                .insert(key.clone(), (hash, pods::uid(mirror).to_owned()));
        }
        if let Some((_, entry)) = self.wanted.lock().get(&key) {
            entry.changed.notify_one();
        }
    }

    /// A static pod is there: its mirror is kept as it should be from now on.
    pub fn wanted(self: &Arc<Self>, kl: &Arc<Kubelet>, pod: &Arc<Pod>) {
        let entry = Entry {
            changed: Arc::new(Notify::new()),
            stop: kl.stop.child_token(),
        };
        let (changed, stop) = (entry.changed.clone(), entry.stop.clone());
        if let Some((_, old)) = self.wanted.lock().insert(key(pod), (pods::uid(pod).to_owned(), entry)) {
            old.stop.cancel();
        }
        tokio::spawn(keep(self.clone(), kl.clone(), pod.clone(), changed, stop));
    }

    /// A static pod is gone, and its mirror goes.
    pub fn unwanted(self: &Arc<Self>, kl: &Arc<Kubelet>, uid: &str) {
        let key = {
            let mut wanted = self.wanted.lock();
            let Some(key) = wanted.iter().find(|(_, (u, _))| u == uid).map(|(k, _)| k.clone()) else {
                return;
            };
            if let Some((_, entry)) = wanted.remove(&key) {
                entry.stop.cancel();
            }
            key
        };
        let (mirrors, kl) = (self.clone(), kl.clone());
        tokio::spawn(async move {
            let seen = mirrors.seen.lock().get(&key).map(|(_, uid)| uid.clone());
            if let Some(uid) = seen
                && let Err(e) = delete(&kl, &key, &uid).await
            {
                tracing::warn!(
                    "the mirror of a static pod that is gone can't be deleted: {}",
                    crate::error_text(&e)
                );
            }
        });
    }
}

async fn keep(mirrors: Arc<Mirrors>, kl: Arc<Kubelet>, pod: Arc<Pod>, changed: Arc<Notify>, stop: CancellationToken) {
    let hash = pods::annotation(&pod, pods::HASH_ANNOTATION)
        .unwrap_or_default()
        .to_owned();
    let key = key(&pod);
    loop {
        let seen = mirrors.seen.lock().get(&key).cloned();
        let result = match seen {
            Some((h, _)) if h == hash => Ok(()),
            Some((_, uid)) => delete(&kl, &key, &uid).await,
            None => create(&kl, &pod, &hash).await,
        };
        let retry = match result {
            Ok(()) => None,
            Err(e) => {
                tracing::warn!(pod = %pods::describe(&pod), "the static pod's mirror can't be kept: {}", crate::error_text(&e));
                Some(Duration::from_secs(5))
            }
        };
        let timer = async {
            match retry {
                Some(d) => tokio::time::sleep(d).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed.notified() => {}
            () = timer => {}
        }
    }
}

async fn create(kl: &Kubelet, pod: &Pod, hash: &str) -> Result<(), keelson_client::Error> {
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.status = None;
    let notes = mirror.metadata.annotations.get_or_insert_default();
    notes.insert(pods::MIRROR_ANNOTATION.into(), hash.to_owned());
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: kl.cfg.node_name.clone(),
        uid: kl.node.uid(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    match Objects::<Pod>::new(&kl.rest).create(&mirror).await {
        Ok(_) => {
            kl.status.reconcile(pods::uid(pod), None);
            Ok(())
        }
        Err(e) if is_already_exists(&e) => Ok(()),
        Err(e) => Err(e),
    }
}

async fn delete(kl: &Kubelet, key: &(String, String), uid: &str) -> Result<(), keelson_client::Error> {
    let mut options = keelson_client::delete_options(None, Some(uid), None);
    options.grace_period_seconds = Some(0);
    match Objects::<Pod>::new(&kl.rest).delete(&key.0, &key.1, &options).await {
        Err(e) if is_not_found(&e) || is_conflict(&e) => Ok(()),
        other => other,
    }
}
