//! Cordoned nodes.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject};
use crate::pod::PodInfo;
use crate::select::{tolerates, tolerations};
use crate::world::World;
use k8s_openapi::api::core::v1::{Node, Taint};

pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        if is_tolerated(cycle.pod) {
            return Prepared::Skip;
        }
        check(|node| match node.is_cordoned {
            true => Err(Reject::for_good("node(s) were unschedulable")),
            false => Ok(()),
        })
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        tolerations(&a.pod) == tolerations(&b.pod)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        matches!(event, ClusterEvent::Node(node) if !is_cordoned(node) || is_tolerated(pod))
    }
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false)
}

fn is_tolerated(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    tolerates(tolerations(&pod.pod), &taint)
}
