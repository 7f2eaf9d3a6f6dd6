//! How changes become keys: the same few ways for all controllers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{ApiObject, Informer, ObjectKey, WorkQueue};
use std::sync::Arc;

pub type Queue = Arc<WorkQueue<ObjectKey>>;

/// Each changed object is its own key.
pub fn own<K: ApiObject>(informer: &Informer<K>, queue: &Queue) {
    let queue = queue.clone();
    informer.on_change(move |change| queue.add(change.object().key()));
}

/// The key of a changed object is its controlling owner, if that is of the given kind. An object that changed hands is
/// told to both. One without a controller goes to `orphan`, which adds the keys of those who may want it.
pub fn owned<K: ApiObject>(
    informer: &Informer<K>,
    queue: &Queue,
    kind: &'static str,
    group: &'static str,
    orphan: impl Fn(&K, &Queue) + Send + 'static,
) {
    let queue = queue.clone();
    informer.on_change(move |change| {
        let object = change.object();
        let owner = controller_of(object.meta());
        if let Some(old) = change.old() {
            let before = controller_of(old.meta());
            if before.map(|o| &o.uid) != owner.map(|o| &o.uid)
                && let Some(before) = before.filter(|o| is_kind(o, kind, group))
            {
                queue.add(ObjectKey::new(object.namespace(), before.name.clone()));
            }
        }
        match owner {
            Some(owner) if is_kind(owner, kind, group) => {
                queue.add(ObjectKey::new(object.namespace(), owner.name.clone()))
            }
            Some(_) => {}
            None if change.is_deleted() => {}
            None => orphan(object, &queue),
        }
    });
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

pub fn is_kind(owner: &OwnerReference, kind: &str, group: &str) -> bool {
    owner.kind == kind && owner.api_version.split_once('/').map_or("", |(g, _)| g) == group
}
