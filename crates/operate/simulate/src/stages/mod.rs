//! KWOK's `Stage` objects (`kwok.x-k8s.io/v1alpha1`) for nodes and pods: nodes that have no kubelet at all, whose objects and pods
//! go from stage to stage as the stages say.
//!
//! [`spec`] reads stages and refuses what can't be honoured; [`choose`] (pure) says which stage is next for an object, and when;
//! [`play`] follows nodes and pods and does it; [`lease`] has nodes heard.

pub mod choose;
mod lease;
mod play;
pub mod query;
pub mod spec;
pub mod template;

pub use play::run;
pub use spec::{Kind, Stage, read};

/// Which nodes are played, as KWOK marks them.
pub const ANNOTATION: &str = "kwok.x-k8s.io/node";
pub const FAKE: &str = "fake";
