//! Which devices a pod's claims get on a node: upstream's structured parameters, as a pure function of claims, classes, slices
//! and what is allocated.
//!
//! ```text
//! slices ─→ pool (per node: complete, current, valid) ─→ search (requests × devices, backtracking) ─→ result
//!             │                                             │ selector · constraint · counters · capacity · taints
//! ```
//!
//! * [`slice`]: what a driver publishes, read once. [`state`]: what is taken.
//! * [`pool`]: the slices that reach a node, by pool. [`request`]: what a claim asks for.
//! * [`search`]: the first solution in a fixed order, or none. It ends when its time is over.
//! * [`result`]: the allocation as the API has it. [`extended`]: the claim of a pod that asks for devices by a resource's name.
//!
//! Knows neither the API's client nor the scheduler. Features are those that 1.37 has on: prioritised lists, partitionable devices,
//! taints, admin access, binding conditions, consumable capacity. Derived attributes, attributes that are lists and
//! compatibility groups are not.

pub mod capacity;
mod constraint;
mod counters;
pub mod extended;
pub mod pool;
mod request;
mod result;
mod search;
pub mod selector;
pub mod slice;
pub mod state;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim};
use pool::Reach;
use selector::Selectors;
use slice::Slice;
use state::State;
use std::sync::Arc;
use std::time::Instant;

/// Devices of one claim at most.
pub const MOST_RESULTS: usize = 32;
/// Devices of all claims of a pod at most: the search is as deep as there are devices.
pub const MOST_IN_ALL: usize = 256;

/// Why a node gets none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Something is wrong with what was given: no other node will do better.
    Fatal(String),
    /// About this node only.
    Here(String),
    /// The time was over.
    Late,
}

/// All that allocation is decided by, but the node and the claims.
pub struct Allocator<'a> {
    pub reach: &'a Reach,
    pub classes: &'a dyn Fn(&str) -> Option<Arc<DeviceClass>>,
    pub state: &'a State,
    pub selectors: &'a Selectors,
}

impl Allocator<'_> {
    /// An allocation for each claim, in their order; `None`: the node has none. Share ids are made by `new_id`.
    pub fn allocate(
        &self,
        node: &Node,
        claims: &[Arc<ResourceClaim>],
        until: Option<Instant>,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Option<Vec<AllocationResult>>, Failure> {
        if is_over(until) {
            return Err(Failure::Late);
        }
        let pools = self.reach.pools(node);
        let requests = request::read(self, node, claims, &pools, until)?;
        let mut search = search::Search::new(self, node, claims, &pools, requests, until);
        if !search.run()? {
            if pools.iter().any(|pool| pool.fault.is_some()) {
                return Err(Failure::Here("invalid resource pools were encountered".into()));
            }
            return Ok(None);
        }
        result::all(&search, new_id).map(Some)
    }
}

/// Whether there is no time left.
fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

/// The devices of a slice, all slices read.
pub type Slices = Vec<Arc<Slice>>;

/// `namespace/name`, or the name alone.
pub(crate) fn named(claim: &ResourceClaim) -> String {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    match claim.metadata.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    }
}
