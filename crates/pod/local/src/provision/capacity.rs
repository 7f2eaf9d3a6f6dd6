//! How much room the node has, for the scheduler: one object a class.
//!
//! Told when room was taken or given back here, and once a minute in case others did: a disk gives no notice. What has changed by
//! little isn't written.

use super::Shared;
use super::request::quantity;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use keelson_api::Quantity;
use keelson_client::{ApiObject, Objects, Rest, delete_options, is_not_found};
use keelson_csi::v1::{self as csi};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(100);
/// So often a start may come before its node is registered.
const EXPECTED: u32 = 5;
/// A change of less than this part is little.
const PART: i64 = 50;
const DRIVER: &str = "csi.storage.k8s.io/drivername";
const MANAGED_BY: &str = "csi.storage.k8s.io/managed-by";

pub async fn publish(shared: Arc<Shared>, rest: Rest, namespace: String, stop: CancellationToken) {
    let publisher = Publisher {
        objects: Objects::new(&rest),
        nodes: Objects::new(&rest),
        namespace,
        shared: shared.clone(),
    };
    let told = shared.clone();
    shared.classes.on_change(move |_| told.changed.notify_one());
    tokio::select! {
        () = stop.cancelled() => return,
        () = shared.classes.synced() => {}
    }
    let mut failures = 0;
    loop {
        let pause = match publisher.round().await {
            Ok(()) => {
                failures = 0;
                LOOK
            }
            Err(error) => {
                let (pause, error) = (again(failures), format!("{error:#}"));
                failures += 1;
                match failures > EXPECTED {
                    true => tracing::warn!(error, ?pause, "the room for volumes couldn't be told; trying again"),
                    false => tracing::debug!(error, ?pause, "the room for volumes can't be told yet"),
                }
                pause
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Without it no pod with a new claim is placed here.
fn again(failures: u32) -> Duration {
    LOOK.min(SOON * 2u32.saturating_pow(failures))
}

struct Publisher {
    objects: Objects<CSIStorageCapacity>,
    nodes: Objects<Node>,
    namespace: String,
    shared: Arc<Shared>,
}

fn hash(parts: &[&str]) -> String {
    hex::encode(&Sha256::digest(parts.join("\n"))[..10])
}

fn is_little(old: i64, new: i64) -> bool {
    (old - new).abs() < old.max(1) / PART && (old > 0) == (new > 0)
}

impl Publisher {
    async fn round(&self) -> anyhow::Result<()> {
        let facts = &self.shared.facts;
        let mine = hash(&[&facts.name, &facts.node]);
        let selector = format!("{DRIVER}={},{MANAGED_BY}={mine}", facts.name);
        let mut old: BTreeMap<String, CSIStorageCapacity> = self
            .objects
            .list(&self.namespace, &selector, "")
            .await?
            .into_iter()
            .map(|o| (o.name().to_string(), o))
            .collect();
        let classes = self.shared.classes.store().filter(|c| c.provisioner == facts.name);
        for class in classes {
            let (room, largest) = self.room(&class).await?;
            let name = format!("csisc-{}", hash(&[&facts.name, &facts.node, class.name()]));
            match old.remove(&name) {
                Some(found) if is_little(bytes(&found), room) => {}
                Some(mut found) => {
                    found.capacity = Some(quantity(room));
                    found.maximum_volume_size = Some(quantity(largest));
                    self.objects.update(&found).await?;
                }
                None => {
                    let object = self.object(&name, &mine, &class, room, largest).await?;
                    self.objects.create(&object).await?;
                }
            }
        }
        for name in old.keys() {
            match self
                .objects
                .delete(&self.namespace, name, &delete_options(None, None, None))
                .await
            {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn room(&self, class: &StorageClass) -> anyhow::Result<(i64, i64)> {
        let parameters = class.parameters.iter().flatten();
        let request = csi::GetCapacityRequest {
            parameters: parameters
                .filter(|(name, _)| !name.starts_with("csi.storage.k8s.io/"))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            accessible_topology: Some(self.shared.facts.topology()),
            ..Default::default()
        };
        let found = self
            .shared
            .driver
            .controller()
            .get_capacity(request)
            .await?
            .into_inner();
        let largest = found.maximum_volume_size.unwrap_or(found.available_capacity);
        Ok((found.available_capacity, largest))
    }

    /// It goes with the node.
    async fn object(
        &self,
        name: &str,
        mine: &str,
        class: &StorageClass,
        room: i64,
        largest: i64,
    ) -> anyhow::Result<CSIStorageCapacity> {
        let facts = &self.shared.facts;
        let node = self.nodes.get("", &facts.node).await?;
        Ok(CSIStorageCapacity {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some(self.namespace.clone()),
                labels: Some(BTreeMap::from([
                    (DRIVER.into(), facts.name.clone()),
                    (MANAGED_BY.into(), mine.into()),
                ])),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Node".into(),
                    name: facts.node.clone(),
                    uid: node.uid().into(),
                    ..Default::default()
                }]),
                ..Default::default()
            },
            capacity: Some(quantity(room)),
            maximum_volume_size: Some(quantity(largest)),
            node_topology: Some(LabelSelector {
                match_labels: Some(facts.segments.clone()),
                match_expressions: None,
            }),
            storage_class_name: class.name().into(),
        })
    }
}

fn bytes(object: &CSIStorageCapacity) -> i64 {
    let text = object.capacity.as_ref().map(|q| q.0.as_str()).unwrap_or_default();
    Quantity::parse(text).map_or(0, |q| q.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_before_its_node_asks_again_soon() {
        let pauses: Vec<u64> = (0..12).map(|n| again(n).as_millis() as u64).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!((pauses[9], pauses[10], again(u32::MAX)), (51_200, 60_000, LOOK));
    }

    #[test]
    fn what_is_little() {
        assert!(is_little(1000, 990) && is_little(1000, 1000));
        assert!(!is_little(1000, 900) && !is_little(10, 0) && !is_little(0, 10));
    }
}
