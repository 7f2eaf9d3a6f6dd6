//! A copy of a cluster, to try there what is to be done to the cluster.
//!
//! [`copy`] (pure) says what of an object goes into the copy, and what is left out. Who runs the copy's API server, scheduler and
//! controllers is the program; nodes are played by [`STAGES`] (of `keelson_simulate`), storage drivers by [`volumes`]. [`mod@report`]
//! (pure) tells two pictures of the copy apart: what was changed, where pods go, what waits, what holds them back.
//!
//! Nothing here knows the cluster that was copied: it is read by the program, and never written to.

pub mod copy;
pub mod report;
pub mod volumes;

pub use report::{Picture, Report, report};

/// Of the copy's nodes and pods. Those that were copied stay as they were; new pods run as soon as they are bound, jobs' pods end well after a
/// second, and who is deleted goes at once.
pub const STAGES: &str = include_str!("stages.yaml");

/// What marks a new pod that [`STAGES`] have run: no image was pulled for it.
pub const SIMULATED: &str = "simulated";
