//! The plug-ins, one file each, in the order in which they look at a node. The first that refuses it gives the reason.

mod balanced_allocation;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_unschedulable;
mod resource_claims;
mod resources_fit;
mod taint_toleration;
mod topology_spread;
pub(crate) mod volume_binding;
mod volume_limits;
mod volume_restrictions;
mod volume_zone;

use crate::framework::{NodeFilter, Plugin, Prepared, Reject};
use crate::node::NodeInfo;

/// All of them.
pub fn all() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(node_name::NodeName),
        Box::new(node_unschedulable::NodeUnschedulable),
        Box::new(taint_toleration::TaintToleration),
        Box::new(node_affinity::NodeAffinity),
        Box::new(node_ports::NodePorts),
        Box::new(resources_fit::ResourcesFit),
        Box::new(volume_restrictions::VolumeRestrictions),
        Box::new(volume_limits::VolumeLimits),
        Box::new(volume_binding::VolumeBinding),
        Box::new(volume_zone::VolumeZone),
        Box::new(topology_spread::TopologySpread),
        Box::new(inter_pod_affinity::InterPodAffinity),
        Box::new(resource_claims::ResourceClaims),
        Box::new(balanced_allocation::BalancedAllocation),
        Box::new(image_locality::ImageLocality),
    ]
}

/// A filter that needs to remember nothing.
fn check<'a>(f: impl Fn(&NodeInfo) -> Result<(), Reject> + Clone + Send + Sync + 'a) -> Prepared<'a> {
    Prepared::Filter(Box::new(Check(f)))
}

#[derive(Clone)]
struct Check<F>(F);

impl<F: Fn(&NodeInfo) -> Result<(), Reject> + Clone + Send + Sync> NodeFilter for Check<F> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        self.0(node)
    }
    fn copy<'a>(&self) -> Box<dyn NodeFilter + 'a>
    where
        Self: 'a,
    {
        Box::new(self.clone())
    }
}
