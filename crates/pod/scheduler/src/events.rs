//! What happens in the cluster that may make room for a pod that had none.

use crate::ledger::Effect;
use crate::pod::PodInfo;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// New, or changed in what matters to scheduling.
    Node(Arc<Node>),
    NodeGone,
    /// A pod came to a node, or one there has labels that it hadn't.
    PodPlaced(Arc<PodInfo>),
    /// A pod left its node, needs less there, or hasn't the labels any more that it had.
    PodLeft(Arc<PodInfo>),
    Volumes,
    /// A claim of devices.
    Claim {
        namespace: String,
        name: String,
        effect: Effect,
    },
    /// There are others, or other classes of them; or what was promised is free again.
    Devices,
    Namespace,
    /// Nothing in particular: time has passed.
    Anything,
}
