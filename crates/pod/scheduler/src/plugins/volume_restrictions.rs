//! A claim for one pod at a time (`ReadWriteOncePod`) that another pod uses.

use crate::events::ClusterEvent;
use crate::framework::{Cycle, NodeFilter, Plugin, Prepared, Reject};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

const IN_USE: &str =
    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

pub struct VolumeRestrictions;

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }
    fn prepare<'a>(&self, cycle: Cycle<'a>) -> Prepared<'a> {
        let namespace = &cycle.pod.key.namespace;
        let for_one = |name: &&str| {
            let claim = cycle.snapshot.world.claim(namespace, name);
            let modes = claim.as_ref().and_then(|c| c.spec.as_ref()?.access_modes.as_ref());
            modes.is_some_and(|modes| modes.iter().any(|m| m == "ReadWriteOncePod"))
        };
        let claims: Vec<&str> = cycle
            .pod
            .claims
            .iter()
            .map(|c| c.name.as_str())
            .filter(for_one)
            .collect();
        if claims.is_empty() {
            return Prepared::Skip;
        }
        let mut alone = Alone {
            namespace,
            claims,
            uses: 0,
        };
        let pods = cycle.snapshot.nodes.values().flat_map(|node| node.pods());
        alone.uses = pods.map(|pod| alone.uses_of(pod)).sum();
        Prepared::Filter(Box::new(alone))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo) -> bool {
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
    fn copy<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(self.clone())
    }
}
