//! A claim for one pod at a time (`ReadWriteOncePod`) that another pod uses.

use crate::events::ClusterEvent;
use crate::framework::{Cycle, NodeFilter, Plugin, Prepared, Reject};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::world::World;
use keelson_client::ObjectKey;

const IN_USE: &str =
    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

pub struct VolumeRestrictions;

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let namespace = &cycle.pod.key.namespace;
        let for_one = |name: &&str| {
            let claim = cycle.snapshot.world.claim(namespace, name);
            let modes = claim.as_ref().and_then(|c| c.spec.as_ref()?.access_modes.as_ref());
            modes.is_some_and(|modes| modes.iter().any(|m| m == "ReadWriteOncePod"))
        };
        let claims = cycle.pod.claims.iter().map(|c| c.name.as_str());
        let claims: Vec<&str> = claims.filter(for_one).collect();
        if claims.is_empty() {
            return Prepared::Skip;
        }
        let uses = |name: &&str| cycle.snapshot.uses_of_claim(&ObjectKey::new(namespace.as_str(), *name));
        Prepared::Filter(Box::new(Alone {
            namespace,
            uses: claims.iter().map(uses).sum(),
            claims,
        }))
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        super::same_volumes(a, b)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(
            event,
            ClusterEvent::Node(_) | ClusterEvent::Volumes | ClusterEvent::PodLeft(_)
        )
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        match event {
            ClusterEvent::PodLeft(gone) => gone.claims.iter().any(|c| pod.claims.contains(c)),
            ClusterEvent::Volumes | ClusterEvent::Node(_) => true,
            _ => false,
        }
    }
}

#[derive(Clone)]
struct Alone<'a> {
    namespace: &'a str,
    claims: Vec<&'a str>,
    /// By other pods, anywhere.
    uses: usize,
}

impl Alone<'_> {
    fn uses_of(&self, pod: &PodInfo) -> usize {
        let same = pod.key.namespace == self.namespace;
        if same {
            pod.claims
                .iter()
                .filter(|c| self.claims.contains(&c.name.as_str()))
                .count()
        } else {
            0
        }
    }
}

impl NodeFilter for Alone<'_> {
    fn filter(&self, _: &NodeInfo) -> Result<(), Reject> {
        if self.uses > 0 {
            Err(Reject::for_now(IN_USE))
        } else {
            Ok(())
        }
    }
    fn add(&mut self, pod: &PodInfo, _: &NodeInfo) {
        self.uses += self.uses_of(pod);
    }
    fn remove(&mut self, pod: &PodInfo, _: &NodeInfo) {
        self.uses = self.uses.saturating_sub(self.uses_of(pod));
    }
    fn copy<'a>(&self) -> Option<Box<dyn NodeFilter + 'a>>
    where
        Self: 'a,
    {
        Some(Box::new(self.clone()))
    }
}
