//! What a controller wrote but may not have seen yet.
//!
//! A controller decides from its informers' stores, which lag behind its own writes: deciding again too early makes one
//! pod too many. So it notes each write, and before the next decision for the same key waits until the store shows it:
//! created and changed objects by their revision, deleted ones by being gone or marked.

use crate::key::ObjectKey;
use crate::kind::ApiObject;
use crate::store::{Store, parse_revision};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// A store that is further behind than this has lost its server; the key is tried again later.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Expected {
    revision: u64,
    gone: Vec<(ObjectKey, String)>,
}

/// Writes to the objects of one kind, by the key of the controller's own object.
#[derive(Default)]
pub struct Expectations {
    expected: Mutex<HashMap<ObjectKey, Expected>>,
}

/// The cache did not show the controller's own writes in time.
#[derive(Debug, thiserror::Error)]
#[error("the cache of {0} is behind this controller's own writes")]
pub struct Behind(String);

impl Expectations {
    /// An object was created or changed; `meta` is what the server answered.
    pub fn wrote(&self, key: &ObjectKey, meta: &ObjectMeta) {
        let revision = parse_revision(meta.resource_version.as_deref().unwrap_or_default());
        let mut expected = self.expected.lock();
        let entry = expected.entry(key.clone()).or_default();
        entry.revision = entry.revision.max(revision);
    }

    /// An object was deleted, or marked for it.
    pub fn deleted(&self, key: &ObjectKey, object: &ObjectMeta) {
        let gone = (ObjectKey::of(object), object.uid.clone().unwrap_or_default());
        self.expected.lock().entry(key.clone()).or_default().gone.push(gone);
    }

    pub fn forget(&self, key: &ObjectKey) {
        self.expected.lock().remove(key);
    }

    fn met<K: ApiObject>(&self, key: &ObjectKey, store: &Store<K>) -> bool {
        let mut expected = self.expected.lock();
        let Some(entry) = expected.get_mut(key) else {
            return true;
        };
        entry.gone.retain(|(object, uid)| {
            store
                .get_key(object)
                .is_some_and(|o| o.uid() == uid && !o.is_deleting())
        });
        if entry.gone.is_empty() && store.revision() >= entry.revision {
            expected.remove(key);
            return true;
        }
        false
    }

    /// Waits until `store` shows all that was written for `key`.
    pub async fn settle<K: ApiObject>(&self, key: &ObjectKey, store: &Store<K>) -> Result<(), Behind> {
        if self.met(key, store) {
            return Ok(());
        }
        let mut changes = store.changes();
        let wait = async {
            while !self.met(key, store) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            self.forget(key);
            return Err(Behind(
                std::any::type_name::<K>()
                    .rsplit("::")
                    .next()
                    .unwrap_or_default()
                    .to_string(),
            ));
        }
        Ok(())
    }
}
