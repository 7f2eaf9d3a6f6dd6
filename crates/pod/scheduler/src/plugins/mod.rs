//! The plug-ins, one file each, in the order in which they look at a node. The first that refuses it gives the reason.

pub mod balanced_allocation;
mod declared_features;
pub mod dynamic_resources;
mod image_locality;
pub mod inter_pod_affinity;
pub mod node_affinity;
mod node_name;
mod node_ports;
mod node_unschedulable;
pub mod resources_fit;
mod shape;
mod taint_toleration;
pub mod topology_spread;
pub mod volume_binding;
mod volume_limits;
mod volume_restrictions;
mod volume_zone;

use crate::framework::{NodeFilter, Plugin, Prepared, Reject};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::profile::Enabled;
use k8s_openapi::api::core::v1::Volume;
use std::sync::Arc;

/// All of them, with upstream's weights.
pub fn all() -> Vec<Enabled> {
    vec![
        filter(node_name::NodeName),
        filter(node_unschedulable::NodeUnschedulable),
        both(taint_toleration::TaintToleration, 3),
        both(node_affinity::NodeAffinity::default(), 2),
        filter(node_ports::NodePorts),
        both(resources_fit::ResourcesFit::default(), 1),
        filter(volume_restrictions::VolumeRestrictions),
        filter(volume_limits::VolumeLimits),
        both(volume_binding::VolumeBinding::default(), 1),
        filter(volume_zone::VolumeZone),
        both(topology_spread::TopologySpread::default(), 2),
        both(inter_pod_affinity::InterPodAffinity::default(), 2),
        both(dynamic_resources::DynamicResources::default(), 2),
        filter(declared_features::NodeDeclaredFeatures),
        Enabled {
            filters: false,
            ..both(balanced_allocation::BalancedAllocation::default(), 1)
        },
        Enabled {
            filters: false,
            ..both(image_locality::ImageLocality, 1)
        },
    ]
}

fn filter(plugin: impl Plugin + 'static) -> Enabled {
    both(plugin, 0)
}

fn both(plugin: impl Plugin + 'static, weight: i64) -> Enabled {
    Enabled {
        plugin: Arc::new(plugin),
        filters: true,
        weight,
    }
}

/// Whether both pods have the same volumes but for their names. Secrets and config maps are as good on one node as on another.
fn same_volumes(a: &PodInfo, b: &PodInfo) -> bool {
    fn volumes(pod: &PodInfo) -> impl Iterator<Item = &Volume> {
        let all = pod.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        all.filter(|v| v.secret.is_none() && v.config_map.is_none())
    }
    let unnamed = |volume: &Volume| Volume {
        name: String::new(),
        ..volume.clone()
    };
    let (of_a, of_b): (Vec<_>, Vec<_>) = (volumes(a).collect(), volumes(b).collect());
    let mut pairs = of_a.iter().zip(&of_b);
    a.claims == b.claims && of_a.len() == of_b.len() && pairs.all(|(a, b)| a == b || unnamed(a) == unnamed(b))
}

/// A filter that needs to remember nothing.
fn check<'a>(f: impl Fn(&NodeInfo) -> Result<(), Reject> + Send + Sync + 'a) -> Prepared<'a> {
    Prepared::Filter(Box::new(Check(f)))
}

struct Check<F>(F);

impl<F: Fn(&NodeInfo) -> Result<(), Reject> + Send + Sync> NodeFilter for Check<F> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        self.0(node)
    }
}
