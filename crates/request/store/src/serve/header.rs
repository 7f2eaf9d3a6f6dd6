//! Who answers.

use super::{Options, pb};
use crate::Revision;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// The one member there is, and its cluster of one.
pub(super) struct Member {
    pub(super) id: u64,
    cluster: u64,
}

/// A member that leads alone has been elected once.
pub(super) const TERM: u64 = 2;

impl Member {
    /// The same over the same store, so that a client that reconnects finds the cluster that it knew.
    pub(super) fn of(options: &Options, place: Option<&Path>) -> Member {
        let place = place.map(|p| p.display().to_string()).unwrap_or_default();
        let number = |what: &str| xxh3_64(format!("{what}\0{}\0{place}", options.name).as_bytes());
        Member {
            id: number("member"),
            cluster: number("cluster"),
        }
    }

    pub(super) fn header(&self, revision: Revision) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.cluster,
            member_id: self.id,
            revision: revision as i64,
            raft_term: TERM,
        }
    }
}
