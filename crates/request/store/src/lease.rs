//! Leases that are granted, and when each ends: in memory only, so that renewing one costs no write.

use std::collections::{BTreeSet, HashMap};

/// As etcd numbers them; 0 is none.
pub type LeaseId = i64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub id: LeaseId,
    /// The seconds that it was granted for.
    pub seconds: u64,
    /// Until it ends.
    pub left_ms: u64,
}

#[derive(Default)]
pub(crate) struct Leases {
    /// Seconds, and when it ends.
    held: HashMap<LeaseId, (u64, u64)>,
    /// By end.
    ends: BTreeSet<(u64, LeaseId)>,
}

impl Leases {
    /// With all of its time, from `now_ms` on.
    pub(crate) fn grant(&mut self, id: LeaseId, seconds: u64, now_ms: u64) {
        self.end(id);
        let end = now_ms.saturating_add(seconds.saturating_mul(1000));
        self.held.insert(id, (seconds, end));
        self.ends.insert((end, id));
    }

    pub(crate) fn end(&mut self, id: LeaseId) {
        if let Some((_, end)) = self.held.remove(&id) {
            self.ends.remove(&(end, id));
        }
    }

    pub(crate) fn seconds(&self, id: LeaseId) -> Option<u64> {
        self.held.get(&id).map(|(seconds, _)| *seconds)
    }

    /// One whose time is over is about to go, and isn't brought back.
    pub(crate) fn renew(&mut self, id: LeaseId, now_ms: u64) -> Option<u64> {
        let (seconds, end) = *self.held.get(&id)?;
        if end <= now_ms {
            return None;
        }
        self.grant(id, seconds, now_ms);
        Some(seconds)
    }

    /// By when they end.
    pub(crate) fn standings(&self, now_ms: u64) -> Vec<Standing> {
        let standing = |(end, id): &(u64, LeaseId)| Standing {
            id: *id,
            seconds: self.seconds(*id).unwrap_or_default(),
            left_ms: end.saturating_sub(now_ms),
        };
        self.ends.iter().map(standing).collect()
    }

    /// Those that are over, at most `max`.
    pub(crate) fn due(&self, now_ms: u64, max: usize) -> Vec<LeaseId> {
        let over = self.ends.iter().take_while(|(end, _)| *end <= now_ms);
        over.take(max).map(|(_, id)| *id).collect()
    }

    /// When the next one ends.
    pub(crate) fn next(&self) -> Option<u64> {
        self.ends.first().map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_unless_it_is_renewed_in_time() {
        let mut leases = Leases::default();
        leases.grant(7, 2, 1000);
        leases.grant(8, 5, 1000);
        assert_eq!(leases.next(), Some(3000));
        assert_eq!(leases.renew(7, 2900), Some(2));
        assert_eq!((leases.due(4000, 9), leases.next()), (vec![], Some(4900)));
        assert_eq!(leases.due(6000, 9), [7, 8]);
        assert_eq!(leases.due(6000, 1), [7]);
        assert_eq!(leases.renew(7, 4900), None, "it is over");
        leases.end(7);
        assert_eq!(leases.renew(7, 4000), None);
        let standing = Standing {
            id: 8,
            seconds: 5,
            left_ms: 1500,
        };
        assert_eq!(leases.standings(4500), [standing]);
    }
}
