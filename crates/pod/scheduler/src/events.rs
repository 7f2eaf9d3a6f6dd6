//! What happens in the cluster that may make room for a pod that had none.

use crate::pod::PodInfo;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// New, or changed in what matters to scheduling.
    Node(Arc<Node>),
    /// A pod came to a node, or one there changed its labels.
    PodPlaced(Arc<PodInfo>),
    /// A pod left its node, or needs less there.
    PodLeft(Arc<PodInfo>),
    Volumes,
    Namespace,
    /// Nothing in particular: time has passed.
    Anything,
}
