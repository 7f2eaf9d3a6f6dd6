//! Claims and volumes: their default class, the finalizers that hold them while in use, and growing them.

use super::{Phase, Plugin, Review};
use async_trait::async_trait;
use keelson_api::quantity::Quantity;
use keelson_api::{ApiResult, Object, Str};
use keelson_registry::Operation;

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The newest of the objects that an annotation marks as default; by name where the age is the same.
pub fn newest_default(classes: Vec<Object>, annotations: &[&str]) -> Option<Object> {
    let is_default = |c: &Object| annotations.iter().any(|a| c.annotation(a) == Some("true"));
    let mut list: Vec<Object> = classes.into_iter().filter(is_default).collect();
    list.sort_by(|a, b| {
        b.creation_timestamp()
            .cmp(a.creation_timestamp())
            .then_with(|| a.name().cmp(b.name()))
    });
    list.into_iter().next()
}

pub struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let create = review.op == Operation::Create && review.is("", "persistentvolumeclaims");
        let Some(claim) = new.filter(|_| create) else {
            return Ok(());
        };
        if claim.annotation(CLASS).is_some() || claim.at(&["spec", "storageClassName"]).is_some() {
            return Ok(());
        }
        let classes = review.lookup.list("storage.k8s.io", "storageclasses", "").await?;
        let marks = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if let Some(class) = newest_default(classes, &marks) {
            claim.set_at(&["spec", "storageClassName"], class.name());
        }
        Ok(())
    }
}

pub struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, _old: Option<&Object>) -> ApiResult<()> {
        let finalizer = if review.is("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if review.is("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if review.is("storage.k8s.io", "volumeattributesclasses") {
            "kubernetes.io/vac-protection"
        } else {
            return Ok(());
        };
        let Some(object) = new.filter(|_| review.op == Operation::Create) else {
            return Ok(());
        };
        let mut list: Vec<Str> = object.finalizers().map(Str::from).collect();
        if !list.iter().any(|f| f == finalizer) {
            list.push(finalizer.into());
            object.set_finalizers(list);
        }
        Ok(())
    }
}

pub struct PersistentVolumeClaimResize;

fn size(claim: &Object) -> Quantity {
    claim
        .str_at(&["spec", "resources", "requests", "storage"])
        .and_then(|q| q.parse().ok())
        .unwrap_or_default()
}

fn class(claim: &Object) -> &str {
    claim
        .annotation(CLASS)
        .or_else(|| claim.str_at(&["spec", "storageClassName"]))
        .unwrap_or_default()
}

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let update = review.op == Operation::Update && review.is("", "persistentvolumeclaims");
        let (Some(new), Some(old)) = (new.filter(|_| update), old) else {
            return Ok(());
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        if old.str_at(&["status", "phase"]) != Some("Bound") {
            return Err(review.forbidden(Some(new), "Only bound persistent volume claims can be expanded"));
        }
        let name = class(new);
        let allowed = !name.is_empty()
            && name == class(old)
            && review
                .lookup
                .cached("storage.k8s.io", "storageclasses", "", name)
                .await?
                .is_some_and(|c| c.bool("allowVolumeExpansion") == Some(true));
        if allowed {
            return Ok(());
        }
        Err(review.forbidden(
            Some(new),
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}
