//! How changes become keys: the same few ways for all controllers.

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_api::Quantity;
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

/// Tries what failed again as soon as a quota of its namespace has room: a refusal by a quota is the likeliest cause, and
/// delays have grown long by then.
pub fn quota_release(quotas: &Informer<ResourceQuota>, queue: &Queue) {
    let queue = queue.clone();
    quotas.on_change(move |change| {
        let quota = change.object();
        if change.is_deleted() || change.old().is_some_and(|old| has_more_room(old, quota)) {
            queue.retry_now(|key| key.namespace == quota.namespace());
        }
    });
}

/// Whether of any resource more is left than before, or it is bounded no longer.
fn has_more_room(old: &ResourceQuota, new: &ResourceQuota) -> bool {
    let left = |quota: &ResourceQuota, name: &str| {
        let status = quota.status.as_ref()?;
        let amount = |list: Option<&std::collections::BTreeMap<String, Text>>| {
            Quantity::parse(&list?.get(name)?.0).ok().map(|q| q.milli_value())
        };
        Some(amount(status.hard.as_ref())?.saturating_sub(amount(status.used.as_ref()).unwrap_or(0)))
    };
    let names = old.status.iter().flat_map(|s| s.hard.iter().flatten());
    names
        .into_iter()
        .any(|(name, _)| match (left(old, name), left(new, name)) {
            (Some(before), Some(after)) => after > before,
            (before, after) => before.is_some() && after.is_none(),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_is_left_of_any_resource() {
        let quota = |hard: &str, used: &str| {
            let text = format!(
                r#"{{"metadata":{{}},"status":{{"hard":{{"pods":"{hard}","cpu":"2"}},"used":{{"pods":"{used}","cpu":"1"}}}}}}"#
            );
            ResourceQuota::decode(text.as_bytes()).expect("a quota")
        };
        let full = quota("3", "3");
        assert!(has_more_room(&full, &quota("3", "2")), "one went");
        assert!(has_more_room(&full, &quota("4", "3")), "it was raised");
        assert!(!has_more_room(&full, &full) && !has_more_room(&quota("3", "2"), &full));
    }
}
