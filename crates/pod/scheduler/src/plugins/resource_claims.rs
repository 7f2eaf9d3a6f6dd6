//! Pods with resource claims (devices): nothing here allocates devices, so they wait, and are told why.

use crate::framework::{Cycle, Plugin, Prepared, Reject};

pub struct ResourceClaims;

impl Plugin for ResourceClaims {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }
    fn prepare<'a>(&'a self, cycle: Cycle<'a>) -> Prepared<'a> {
        let claims = cycle
            .pod
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.resource_claims.as_deref())
            .unwrap_or_default();
        match claims.is_empty() {
            true => Prepared::Skip,
            false => Prepared::Reject(Reject::for_good("cannot allocate all claims")),
        }
    }
}
