//! Host ports, which a node has once.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject};
use crate::node::conflict;
use crate::pod::PodInfo;
use crate::world::World;

pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let wanted = &cycle.pod.ports;
        if wanted.is_empty() {
            return Prepared::Skip;
        }
        check(move |node| match wanted.iter().any(|port| node.is_taken(port)) {
            true => Err(Reject::for_now(
                "node(s) didn't have free ports for the requested pod ports",
            )),
            false => Ok(()),
        })
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        a.ports == b.ports
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_) | ClusterEvent::PodLeft(_))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        match event {
            ClusterEvent::Node(_) => true,
            ClusterEvent::PodLeft(gone) => gone.ports.iter().any(|a| pod.ports.iter().any(|b| conflict(a, b))),
            _ => false,
        }
    }
}
