//! The node a pod asks for by name (one that has it is bound already: this guards against a stale queue).

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject};
use crate::pod::PodInfo;
use crate::world::World;
use keelson_client::ApiObject;

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let Some(wanted) = cycle.pod.node_name() else {
            return Prepared::Skip;
        };
        check(move |node| match node.name() == wanted {
            true => Ok(()),
            false => Err(Reject::for_good("node(s) didn't match the requested node name")),
        })
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        a.node_name() == b.node_name()
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        matches!(event, ClusterEvent::Node(node) if pod.node_name() == Some(node.name()))
    }
}
