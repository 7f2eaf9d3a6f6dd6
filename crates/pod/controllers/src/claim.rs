//! Whose object is it? Controllers adopt orphans that match their selector, and let go of what no longer does.

use crate::wire::controller_of;
use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::objects::found;
use keelson_client::partial::PARTIAL_ACCEPT;
use keelson_client::{ApiObject, Kind, Objects, PartialObject, Patch, ResourceId, Rest, is_invalid, is_not_found};
use serde_json::json;
use std::sync::Arc;

/// The owner, as far as claims are concerned.
#[derive(Clone, Debug)]
pub struct Owner {
    pub resource: ResourceId,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub deleting: bool,
}

impl Owner {
    pub fn of<K: Kind>(object: &K) -> Self {
        Owner {
            resource: K::RESOURCE,
            namespace: object.namespace().to_string(),
            name: object.name().to_string(),
            uid: object.uid().to_string(),
            deleting: object.is_deleting(),
        }
    }

    /// The reference by which its objects name it as their controller.
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.resource.api_version(),
            kind: self.resource.kind.to_string(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Mine,
    Adopt,
    Release,
    NotMine,
}

/// What to do about one object; `matches` says whether it satisfies the owner's selector.
pub fn judge(owner: &Owner, object: &ObjectMeta, matches: bool) -> Claim {
    match controller_of(object) {
        Some(controller) if controller.uid != owner.uid => Claim::NotMine,
        Some(_) if matches => Claim::Mine,
        Some(_) if owner.deleting => Claim::NotMine,
        Some(_) => Claim::Release,
        None if owner.deleting || !matches || object.deletion_timestamp.is_some() => Claim::NotMine,
        None => Claim::Adopt,
    }
}

/// The objects of `candidates` that are the owner's, after adopting and releasing. Objects are only adopted if the server
/// says that the owner still lives: a cache may not know yet.
pub async fn claim<K: Kind>(
    rest: &Rest,
    owner: &Owner,
    candidates: Vec<Arc<K>>,
    matches: impl Fn(&K) -> bool,
) -> anyhow::Result<Vec<Arc<K>>> {
    claim_with_finalizer(rest, owner, candidates, None, matches).await
}

/// The same for owners that put a finalizer on what they own.
pub async fn claim_with_finalizer<K: Kind>(
    rest: &Rest,
    owner: &Owner,
    candidates: Vec<Arc<K>>,
    finalizer: Option<&str>,
    matches: impl Fn(&K) -> bool,
) -> anyhow::Result<Vec<Arc<K>>> {
    let mut mine = Vec::with_capacity(candidates.len());
    let mut alive = false;
    for object in candidates {
        match judge(owner, object.meta(), matches(&object)) {
            Claim::Mine => mine.push(object),
            Claim::NotMine => {}
            Claim::Adopt => {
                if !alive {
                    may_adopt(rest, owner).await?;
                    alive = true;
                }
                mine.extend(adopt(rest, owner, &*object, finalizer).await?.map(Arc::new));
            }
            Claim::Release => release(rest, owner, &*object, finalizer).await?,
        }
    }
    Ok(mine)
}

async fn adopt<K: Kind>(rest: &Rest, owner: &Owner, object: &K, finalizer: Option<&str>) -> anyhow::Result<Option<K>> {
    let mut body = json!({"metadata": {"ownerReferences": [owner.reference()], "uid": object.uid()}});
    if let Some(finalizer) = finalizer {
        body["metadata"]["finalizers"] = json!([finalizer]);
    }
    let objects = Objects::<K>::new(rest);
    found(
        objects
            .patch(object.namespace(), object.name(), Patch::Strategic(&body))
            .await,
    )
    .with_context(|| format!("adopting {}", object.key()))
}

async fn release<K: Kind>(rest: &Rest, owner: &Owner, object: &K, finalizer: Option<&str>) -> anyhow::Result<()> {
    let mut body =
        json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner.uid}], "uid": object.uid()}});
    if let Some(finalizer) = finalizer {
        body["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    match Objects::<K>::new(rest)
        .patch(object.namespace(), object.name(), Patch::Strategic(&body))
        .await
    {
        Ok(_) => Ok(()),
        // Gone, or recreated under another uid: nothing is left to release.
        Err(error) if is_not_found(&error) || is_invalid(&error) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("releasing {}", object.key())),
    }
}

async fn may_adopt(rest: &Rest, owner: &Owner) -> anyhow::Result<()> {
    let body = rest
        .get_raw(&owner.resource, &owner.namespace, &owner.name, "", PARTIAL_ACCEPT)
        .await?;
    let now = PartialObject::decode(&body)?;
    anyhow::ensure!(
        now.uid() == owner.uid,
        "the owner {} was replaced by another of that name",
        owner.name
    );
    anyhow::ensure!(!now.is_deleting(), "the owner {} is being deleted", owner.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn owner(deleting: bool) -> Owner {
        let resource = ResourceId::fixed("apps", "v1", "ReplicaSet", "replicasets", true);
        Owner {
            resource,
            namespace: "ns".into(),
            name: "rs".into(),
            uid: "u".into(),
            deleting,
        }
    }

    fn object(controller: Option<&str>, deleting: bool) -> ObjectMeta {
        ObjectMeta {
            owner_references: controller.map(|uid| {
                vec![OwnerReference {
                    uid: uid.into(),
                    controller: Some(true),
                    ..Default::default()
                }]
            }),
            deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..Default::default()
        }
    }

    #[test]
    fn claims() {
        use Claim::*;
        for (controller, object_deleting, matches, owner_deleting, expected) in [
            (Some("u"), false, true, false, Mine),
            (Some("u"), true, true, true, Mine),
            (Some("u"), false, false, false, Release),
            (Some("u"), false, false, true, NotMine),
            (Some("other"), false, true, false, NotMine),
            (None, false, true, false, Adopt),
            (None, false, false, false, NotMine),
            (None, true, true, false, NotMine),
            (None, false, true, true, NotMine),
        ] {
            let found = judge(&owner(owner_deleting), &object(controller, object_deleting), matches);
            assert_eq!(
                found, expected,
                "{controller:?} {object_deleting} {matches} {owner_deleting}"
            );
        }
    }
}
