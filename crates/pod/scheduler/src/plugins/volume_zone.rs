//! Volumes that are in a zone or region by their labels.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject};
use crate::pod::PodInfo;
use crate::world::World;

/// With the older names that mean the same.
const TOPOLOGY: &[(&str, &str)] = &[
    ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
    (
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    ),
];

pub struct VolumeZone;

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let names = cycle.pod.claims.iter().filter_map(|claim| {
            let claim = cycle.snapshot.world.claim(&cycle.pod.key.namespace, &claim.name)?;
            claim.spec.as_ref()?.volume_name.clone().filter(|n| !n.is_empty())
        });
        let mut places = Vec::new();
        for name in names {
            let Some(volume) = cycle.snapshot.world.volume(&name) else {
                return Prepared::Reject(Reject::for_good(format!("persistentvolume {name:?} not found")));
            };
            for (name, value) in volume.metadata.labels.iter().flatten() {
                if let Some(names) = TOPOLOGY.iter().find(|(a, b)| name == a || name == b) {
                    // A volume in several zones lists them.
                    places.push((names, value.split("__").map(str::to_owned).collect::<Vec<_>>()));
                }
            }
        }
        if places.is_empty() {
            return Prepared::Skip;
        }
        check(move |node| {
            let is_there = places.iter().all(|((name, older), values)| {
                let value = node.label(name).or_else(|| node.label(older));
                value.is_some_and(|value| values.iter().any(|v| v == value))
            });
            if is_there {
                Ok(())
            } else {
                Err(Reject::for_good("node(s) had no available volume zone"))
            }
        })
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        super::same_volumes(a, b)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_) | ClusterEvent::Volumes)
    }
    fn helps(&self, event: &ClusterEvent, _: &PodInfo, _: &dyn World) -> bool {
        matches!(event, ClusterEvent::Node(_) | ClusterEvent::Volumes)
    }
}
