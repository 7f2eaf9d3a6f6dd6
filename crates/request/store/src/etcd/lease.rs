//! Leases, which make keys go after a time: one is shared by many keys, since each costs etcd more than a key does.
//!
//! As upstream's lease manager: a lease lives a twentieth longer than asked, a minute at most, and serves the keys of that
//! time; no more than [`MOST_KEYS`] of them, since etcd removes them all at once. Upstream keeps one a resource, each of
//! which has its time to live; here one is kept for each time.

use super::call::{self, Failure};
use super::members::Members;
use super::wire::etcdserverpb::LeaseGrantRequest;
use super::wire::etcdserverpb::lease_client::LeaseClient;
use futures::FutureExt;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

const MOST_KEYS: usize = 1000;
const MOST_EXTRA: u64 = 60;

#[derive(Default)]
pub(super) struct Leases {
    /// By time to live. Leases that have ended are dropped when another is granted.
    held: Mutex<HashMap<u64, Lease>>,
}

struct Lease {
    id: i64,
    ends: Instant,
    keys: usize,
}

impl Lease {
    /// It ends neither before the key is due nor later than a new one would.
    fn serves(&self, now: Instant, ttl: u64) -> bool {
        now + Duration::from_secs(ttl) < self.ends && self.keys < MOST_KEYS
    }
}

impl Leases {
    /// A lease for one more key. Times are whole seconds in etcd: what is less counts as one.
    pub async fn take(&self, members: &Members, ttl: Duration) -> Result<i64, Failure> {
        let ttl = ttl.as_millis().div_ceil(1000).max(1);
        let ttl = u64::try_from(ttl).unwrap_or(u64::MAX);
        let mut held = self.held.lock().await;
        let now = Instant::now();
        if let Some(lease) = held.get_mut(&ttl)
            && lease.serves(now, ttl)
        {
            lease.keys += 1;
            return Ok(lease.id);
        }
        held.retain(|_, lease| lease.ends > now);
        let granted = ttl.saturating_add((ttl / 20).min(MOST_EXTRA));
        let request = LeaseGrantRequest {
            ttl: i64::try_from(granted).unwrap_or(i64::MAX),
            id: 0,
        };
        let send = |channel| async move { LeaseClient::new(channel).lease_grant(request).await }.boxed();
        // One granted and not heard of ends by itself.
        let answer = call::write(members, send).await?;
        let lease = Lease {
            id: answer.id,
            ends: now + Duration::from_secs(granted),
            keys: 1,
        };
        let id = lease.id;
        held.insert(ttl, lease);
        Ok(id)
    }

    /// etcd doesn't know it any more.
    pub async fn forget(&self, id: i64) {
        self.held.lock().await.retain(|_, lease| lease.id != id);
    }
}
