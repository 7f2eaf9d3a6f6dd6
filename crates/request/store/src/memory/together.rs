//! Transactions and leases, in memory.

use super::{Inner, Memory};
use crate::transact::{Request, Work};
use crate::{Digest, Error, Event, KeyRange, LeaseId, LeaseStanding, Result, Revision, Transact, Transaction};
use async_trait::async_trait;
use bytes::Bytes;
use std::path::Path;

impl Inner {
    fn run(&self, work: Work) -> Result<Revision> {
        let mut state = self.state.lock();
        let mut leases = self.leases.lock();
        let below = (&*state, &*leases);
        let mut transaction = Transaction::new(&below);
        work(&mut transaction)?;
        let staged = transaction.end();
        if !staged.events.is_empty() {
            state.take(&staged.events);
            self.hub.publish(&staged.events, state.revision());
        }
        for (id, seconds) in staged.leases {
            match seconds {
                Some(seconds) => leases.grant(id, seconds, self.clock.now_ms()),
                None => leases.end(id),
            }
        }
        Ok(state.revision())
    }

    /// Of each lease that is over the keys go in one change.
    pub(super) fn end_leases(&self, now_ms: u64) {
        let over = self.leases.lock().due(now_ms, usize::MAX);
        for id in over {
            // Memory has no disk that could fail.
            let _ = self.run(Box::new(move |transaction| transaction.revoke(id).map(drop)));
        }
    }
}

#[async_trait]
impl Transact for Memory {
    async fn transact(&self, request: Request) -> Result<Revision> {
        let ran = self.inner.run(request.work);
        self.inner.earlier.notify_one();
        ran
    }

    async fn renew(&self, lease: LeaseId) -> Result<Option<u64>> {
        Ok(self.inner.leases.lock().renew(lease, self.inner.clock.now_ms()))
    }

    async fn leases(&self) -> Result<Vec<LeaseStanding>> {
        Ok(self.inner.leases.lock().standings(self.inner.clock.now_ms()))
    }

    async fn attached(&self, lease: LeaseId) -> Result<Vec<Bytes>> {
        Ok(self.inner.state.lock().attached(lease))
    }

    async fn changes(&self, range: KeyRange, revision: Revision) -> Result<Vec<Event>> {
        self.inner.state.lock().changes(&range, revision)
    }

    /// At once: compacting does all of it.
    async fn settled(&self, _: Revision) -> Result<()> {
        Ok(())
    }

    async fn digest(&self, revision: Option<Revision>) -> Result<Digest> {
        self.inner.state.lock().digest(revision)
    }

    async fn defragment(&self) -> Result<()> {
        Ok(())
    }

    async fn snapshot(&self) -> Result<std::fs::File> {
        Err(Error::Invalid {
            what: "a store in memory has no snapshots".into(),
        })
    }

    fn place(&self) -> Option<&Path> {
        None
    }
}
