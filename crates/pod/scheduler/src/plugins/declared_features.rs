//! Features that a pod needs and not every node has: its node has to declare them.

use super::check;
use crate::events::ClusterEvent;
use crate::framework::{Cycle, Plugin, Prepared, Reject};
use crate::pod::PodInfo;
use crate::world::World;
use k8s_openapi::api::core::v1::Node;
use keelson_client::declared_features::{missing, needed};

pub struct NodeDeclaredFeatures;

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let needs = needs(cycle.pod);
        if needs.is_empty() {
            return Prepared::Skip;
        }
        check(move |node| match declares(node.node(), &needs) {
            true => Ok(()),
            false => Err(Reject::for_good("node(s) didn't match Pod's required features")),
        })
    }
    fn is_same(&self, a: &PodInfo, b: &PodInfo) -> bool {
        needs(a) == needs(b)
    }
    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::Node(_))
    }
    fn helps(&self, event: &ClusterEvent, pod: &PodInfo, _: &dyn World) -> bool {
        matches!(event, ClusterEvent::Node(node) if declares(node, &needs(pod)))
    }
}

fn needs(pod: &PodInfo) -> Vec<&'static str> {
    pod.pod.spec.as_ref().map(needed).unwrap_or_default()
}

fn declares(node: &Node, needs: &[&'static str]) -> bool {
    let declared = node.status.as_ref().and_then(|s| s.declared_features.as_deref());
    missing(needs, declared.unwrap_or_default()).next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Fixed;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn a_node_that_comes_to_declare_all_of_it_helps() {
        let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
        let pod = json!({"spec": {"containers": [{"name": "c", "restartPolicyRules": rule}], "hostNetwork": true, "hostUsers": false}});
        let pod = PodInfo::of(Arc::new(serde_json::from_value::<Pod>(pod).unwrap()));
        let helps = |declared: &[&str]| {
            let node = serde_json::from_value(json!({"status": {"declaredFeatures": declared}})).unwrap();
            NodeDeclaredFeatures.helps(&ClusterEvent::Node(Arc::new(node)), &pod, &Fixed::default())
        };
        assert!(!helps(&[]));
        assert!(!helps(&["RestartAllContainersOnContainerExits"]));
        assert!(helps(&[
            "RestartAllContainersOnContainerExits",
            "UserNamespacesHostNetworkSupport"
        ]));
        assert!(!NodeDeclaredFeatures.hears(&ClusterEvent::Devices));
    }
}
