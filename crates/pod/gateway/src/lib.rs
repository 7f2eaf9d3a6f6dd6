//! Ingress and Gateway API: requests from outside of the cluster, by host and path to the endpoints of services.
//!
//! Objects → [`plan`] (pure: what every port does with which request, and what is told of each object) → every node serves the plan's
//! [`table`] (`serve`), one publisher a cluster writes the rest ([`publish`]). They meet in the namespace [`NAMESPACE`]: a service of type
//! LoadBalancer ([`fronts`]) for all Ingresses and one for each Gateway says which ports lead where on the nodes, and copies of those
//! certificates that are shown are all of the cluster's secrets that nodes may read.
//!
//! A node follows the services of that namespace and nothing else until there is one ([`node`]); the publisher follows Ingresses and
//! definitions until one is its own. The crate knows no pods, and of nodes only their addresses.

pub mod definitions;
pub mod fronts;
pub mod kinds;
pub mod matching;
pub mod node;
pub mod plan;
pub mod publish;
pub mod serve;
mod system;
pub mod table;
mod trust;
mod world;

/// Where services and certificates of the gateway are.
pub const NAMESPACE: &str = "keelson-ingress";
pub const INGRESS_CLASS: &str = "keelson";
pub const INGRESS_CONTROLLER: &str = "keelson.dev/ingress";
pub const GATEWAY_CLASS: &str = "keelson";
pub const GATEWAY_CONTROLLER: &str = "keelson.dev/gateway";
/// Of nodes: whether they serve (`true`).
pub const LABEL: &str = "keelson.io/ingress";
/// Ports on the nodes' addresses that services lead to: the first two are Ingress's, the rest is given to Gateways' listeners.
pub const PORTS: std::ops::RangeInclusive<u16> = 7680..=7935;
