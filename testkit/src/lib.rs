//! Whole clusters in one thread and in virtual time, for tests of how the components behave together.
//!
//! A [`Cluster`] is the real API server over the store in memory, the real scheduler and controllers, and nodes that are
//! the real kubelet over a fake runtime and a fake machine. They meet where they always meet: at the API, each with an
//! identity of its own. Only the machine is exchanged: its disk, its containers, its network and its clock.
//!
//! ```text
//! use keelson_testkit::{Cluster, objects::{Pod, is_ready}, secs};
//! #[tokio::test(start_paused = true)]
//! async fn a_pod_runs() {
//!     let cluster = Cluster::builder().nodes(3).start().await;
//!     cluster.apply("{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}").await;
//!     cluster.until::<Pod>("default", "p", secs(60), "is ready", is_ready).await;
//! }
//! ```
//!
//! * [`cluster`]: what runs, and how it is started. [`server`]: the API server. [`node`]: one kubelet. [`part`]: another component.
//!   All but the store can be killed and started anew.
//!   Each has a [`link`] to the API, which can be cut.
//! * [`wait`]: waiting for something to come about, or watching that it doesn't. What was seen last stands in the failure.
//! * [`history`]: every change of a kind of objects as the API's watchers saw it, for invariants that must hold between.
//! * [`objects`]: the typed objects that tests look at, and short questions to them.
//!
//! Time stands still while anything is left to do and then jumps to the next timer, so an hour costs what happens in it.
//! Where a test or the scheduler leaves something to chance, a seed decides; it is printed when a test fails, and
//! `KEELSON_SEED` sets it. Names and uids that the server makes up, and the order of hash maps, do not follow from it.
//! `KEELSON_LOG=debug` shows what the components tell.

pub mod cluster;
pub mod history;
pub mod link;
pub mod node;
pub mod objects;
pub mod part;
pub mod server;
pub mod wait;

pub use cluster::{Builder, Cluster};
pub use history::{History, Record};
pub use node::{Node, Size};
pub use part::Part;
pub use server::Server;
pub use wait::Seen;

use jiff::Timestamp;
use std::time::Duration;

/// Seconds of virtual time.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The whole seconds from one time to another. A clock that shows no time twice is some nanoseconds ahead.
pub fn seconds(from: Timestamp, to: Timestamp) -> i64 {
    (to.duration_since(from).as_millis() as f64 / 1000.0).round() as i64
}
