//! Storage classes, as far as claims are concerned. Pure.

use super::annotation;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use keelson_client::ApiObject;
use std::cmp::Reverse;
use std::sync::Arc;

const CLAIM_BETA: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// The claim says which class it wants, if only that it wants none.
pub fn is_chosen(claim: &PersistentVolumeClaim) -> bool {
    annotation(claim, CLAIM_BETA).is_some() || claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_some())
}

/// The class of claims that don't say which; the newest, if there are several.
pub fn default(classes: &[Arc<StorageClass>]) -> Option<&str> {
    let marked = classes.iter().filter(|c| {
        [DEFAULT, DEFAULT_BETA]
            .iter()
            .any(|a| annotation(&***c, a) == Some("true"))
    });
    let newest = |c: &&Arc<StorageClass>| {
        let created = c.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (Reverse(created), c.name().to_string())
    };
    marked.min_by_key(newest).map(|c| c.name())
}

/// Claims of this class wait for a pod that uses them: the scheduler finds their volumes.
pub fn waits_for_pods(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_counts() {
        let class = |name: &str, created: &str, default: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"{name}","creationTimestamp":"{created}","annotations":{{"{DEFAULT}":"{default}"}}}},"provisioner":"p"}}"#
            );
            Arc::new(StorageClass::decode(text.as_bytes()).expect("a class"))
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let all = [
            class("a", old, "true"),
            class("c", new, "true"),
            class("b", new, "true"),
            class("d", new, "no"),
        ];
        assert_eq!(default(&all), Some("b"));
        assert_eq!(default(&all[3..]), None);
    }
}
