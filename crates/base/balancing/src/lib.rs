//! Load balancers, as far as who gives addresses away and who answers for them must mean the same: whose services are ours, which nodes take
//! part, [`Pools`] of addresses, and the [`peer`]s that are told of them.

mod kind;
pub mod peer;
mod pools;
mod ranges;

pub use kind::{Advertisement, Announce, LoadBalancerIpPool, PoolSpec, PoolStatus};
pub use peer::BgpPeer;
pub use pools::{Pool, Pools};
pub use ranges::Range;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::ApiObject;
use keelson_client::labels::{self, Labels};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const GROUP: &str = "keelson.dev";
pub const VERSION: &str = "v1";
/// The name of the definition of pools.
pub const DEFINITION: &str = "loadbalancerippools.keelson.dev";

/// The name of the definition of peers.
pub const PEER_DEFINITION: &str = "bgppeers.keelson.dev";

/// The class that asks for the nodes' own addresses by name, and the one that asks for a pool's.
pub const NODE_CLASS: &str = "keelson.dev/node";
pub const POOL_CLASS: &str = "keelson.dev/pool";

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Set by the cluster autoscaler on nodes that are about to go.
const GOING: &str = "ToBeDeletedByClusterAutoscaler";

/// Whether the service wants an address from here.
pub fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| [NODE_CLASS, POOL_CLASS].contains(&class))
}

pub fn is_local(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|s| s.external_traffic_policy.as_deref());
    policy == Some("Local")
}

pub fn ingress(service: &Service) -> impl Iterator<Item = &LoadBalancerIngress> {
    let balancer = service.status.iter().filter_map(|s| s.load_balancer.as_ref());
    balancer.flat_map(|b| b.ingress.iter().flatten())
}

/// The nodes that have endpoints in these slices: where traffic of a service that stays local may go.
pub fn nodes_with_endpoints(slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let endpoints = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
    endpoints
        .filter(|e| serves(e))
        .filter_map(|e| e.node_name.clone())
        .collect()
}

/// Whether the proxy of its node would send somebody there.
fn serves(endpoint: &Endpoint) -> bool {
    let is = |get: fn(&EndpointConditions) -> Option<bool>, else_: bool| {
        endpoint.conditions.as_ref().and_then(get).unwrap_or(else_)
    };
    is(|c| c.ready, true) || (is(|c| c.serving, true) && is(|c| c.terminating, false))
}

/// Whether the labels are selected; without a selector all are.
pub fn selects(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    selector.is_none() || labels::matches(selector, labels)
}

/// Whether load balancers may lead to the node.
pub fn takes_part(node: &Node) -> bool {
    readiness(node) == Some("True") && !is_left_out(node)
}

/// Whether the node may answer for addresses while others hear from it. Of one whose kubelet is silent the API doesn't know how it is: it
/// may have lost the API only, and go on, so that others must not begin.
pub fn may_answer(node: &Node) -> bool {
    readiness(node).is_some_and(|ready| ready != "False") && !is_left_out(node)
}

/// Its condition Ready.
pub fn readiness(node: &Node) -> Option<&str> {
    let mut conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

fn is_left_out(node: &Node) -> bool {
    let excluded = node.metadata.labels.as_ref().and_then(|l| l.get(EXCLUDE));
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    node.is_deleting() || excludes(excluded) || taints.any(|t| t.key == GOING)
}

/// The label excludes unless it is a word that Go reads as false.
fn excludes(label: Option<&String>) -> bool {
    label.is_some_and(|text| !matches!(text.as_str(), "0" | "f" | "F" | "false" | "False" | "FALSE"))
}
