//! Nodes without machines, for any API server: thousands in one process. Each is the real kubelet over a container runtime and a
//! machine in memory, so that what a cluster sees of it is what it sees of any node; what its containers do, pods' annotations say.
//!
//! A [`node`] is one of them, for whoever puts a cluster together. A [`fleet`] is many, under one plan: it registers them, has
//! them fall silent where annotations of their Node objects say so, and takes them away. With [`stages`] nodes have no kubelet:
//! objects become what KWOK's Stage objects make of them.
//!
//! Knows the cluster by the API alone. Nothing here is written down: who starts it again finds the nodes as they are, their pods'
//! containers gone, as after a loss of power.

pub mod fleet;
pub mod node;
pub mod stages;

pub use fleet::{Plan, run};
pub use keelson_kubelet::Company;
pub use keelson_kubelet::fake::{FakeRuntime, Manner};
pub use node::{Node, Setup, Size};

/// What marks the Node objects of simulated nodes. Others of their names are somebody else's, and left alone.
pub const LABEL: &str = "simulate.keelson.dev/node";
/// Annotations of Node objects, `true` or not: the kubelet is silent; the runtime says that it isn't ready.
pub const DOWN: &str = "simulate.keelson.dev/down";
pub const NOT_READY: &str = "simulate.keelson.dev/not-ready";
