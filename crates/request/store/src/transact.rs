//! Several operations as one change, and leases: what etcd's API asks of a store beyond [`Store`].
//!
//! A transaction runs where nothing else is written. It reads what is newest, with its own writes; all that it writes gets one
//! revision, in the order in which it was written, and is there whole or not at all. A key changes once in it.
//!
//! A lease is a number with a time to live, which its holder renews; when it ends, the keys that were written under it go, in
//! one change. Leases are kept with the keys; how much of their time is left is not: after a start they have all of it, as in etcd.
//!
//! The transaction stages its changes in memory, the same way over every store; a store gives it what is below ([`Below`]) and
//! takes what came of it ([`Staged`]).

use crate::lease::{LeaseId, Standing};
use crate::{Digest, Error, Event, EventKind, KeyRange, KeyValue, ListRequest, Listed, Result, Revision, Store};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// What is to be done as one. An error means that nothing of it happens.
pub type Work = Box<dyn FnOnce(&mut Transaction<'_>) -> Result<()> + Send>;

/// A transaction to be run.
pub struct Request {
    pub work: Work,
    /// Of what it writes, for the bounds of what may queue.
    pub bytes: usize,
    /// It may write more than deletions.
    pub puts: bool,
    /// It reads the past: what that is must not depend on what is being written with it.
    pub past: bool,
}

#[async_trait]
pub trait Transact: Store {
    /// The revision that the store stands at after it.
    async fn transact(&self, request: Request) -> Result<Revision>;

    /// Gives the lease all of its time again, and tells how many seconds that is; `None`: there is no such lease.
    async fn renew(&self, lease: LeaseId) -> Result<Option<u64>>;
    async fn leases(&self) -> Result<Vec<Standing>>;
    /// The keys that go with the lease, in order.
    async fn attached(&self, lease: LeaseId) -> Result<Vec<Bytes>>;

    /// The changes of one revision, without what was there before; also of the one that was last compacted to.
    async fn changes(&self, range: KeyRange, revision: Revision) -> Result<Vec<Event>>;

    /// Returns when what a compaction to `revision` gave up has been removed.
    async fn settled(&self, revision: Revision) -> Result<()>;
    /// What everything up to a revision sums up to.
    async fn digest(&self, revision: Option<Revision>) -> Result<Digest>;
    /// Rewrites what is stored without what was given up.
    async fn defragment(&self) -> Result<()>;
    /// A snapshot, as an open file that has no name.
    async fn snapshot(&self) -> Result<std::fs::File>;
    /// Where that can be said: the file system's directory of the store.
    fn place(&self) -> Option<&Path>;
}

/// A store as a transaction finds it.
pub(crate) trait Below {
    fn revision(&self) -> Revision;
    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>>;
    /// What is newest; the limit and the count are the request's.
    fn list(&self, request: &ListRequest) -> Result<Listed>;
    /// As it stood at the request's revision.
    fn past(&self, request: &ListRequest) -> Result<Listed>;
    /// The seconds that a lease was granted for.
    fn lease(&self, id: LeaseId) -> Option<u64>;
    fn attached(&self, id: LeaseId) -> Result<Vec<Bytes>>;
}

pub struct Transaction<'a> {
    below: &'a dyn Below,
    staged: Staged,
    /// What keys stand at after the changes so far.
    changed: BTreeMap<Bytes, Option<KeyValue>>,
}

/// What came of a transaction.
#[derive(Default)]
pub(crate) struct Staged {
    /// All of one revision, in order.
    pub(crate) events: Vec<Event>,
    /// Granted for so many seconds, or gone.
    pub(crate) leases: BTreeMap<LeaseId, Option<u64>>,
}

impl Staged {
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.leases.is_empty()
    }
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(below: &'a dyn Below) -> Transaction<'a> {
        Transaction {
            below,
            staged: Staged::default(),
            changed: BTreeMap::new(),
        }
    }

    pub(crate) fn end(self) -> Staged {
        self.staged
    }

    /// Before this transaction.
    pub fn before(&self) -> Revision {
        self.below.revision()
    }

    /// One more than before as soon as something has changed.
    pub fn revision(&self) -> Revision {
        self.before() + Revision::from(!self.staged.events.is_empty())
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        match self.changed.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.below.get(key),
        }
    }

    /// With the changes so far, unless the request names a revision.
    pub fn list(&self, request: &ListRequest) -> Result<Listed> {
        if request.revision.is_some() {
            return self.below.past(request);
        }
        let mut listed = changed(
            request,
            &self.changed,
            |request| self.below.list(request),
            |key| self.below.get(key),
        )?;
        listed.revision = self.revision();
        Ok(listed)
    }

    /// Gives back what it replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if this transaction has changed the key already, or the key is one that no store takes.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: LeaseId) -> Result<Option<KeyValue>> {
        crate::check_key(&key)?;
        let prev = self.unchanged(&key)?;
        let revision = self.before() + 1;
        let (create_revision, version) = prev
            .as_ref()
            .map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let kv = KeyValue {
            key: key.clone(),
            value,
            create_revision,
            mod_revision: revision,
            version,
            lease,
        };
        self.changed.insert(key, Some(kv.clone()));
        self.staged.events.push(Event {
            kind: EventKind::Put,
            kv,
            prev: prev.clone(),
        });
        Ok(prev)
    }

    /// Gives back what was there.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if this transaction has written the key.
    pub fn delete(&mut self, key: &Bytes) -> Result<Option<KeyValue>> {
        if let Some(None) = self.changed.get(key) {
            return Ok(None);
        }
        let Some(prev) = self.unchanged(key)? else {
            return Ok(None);
        };
        self.changed.insert(key.clone(), None);
        self.staged.events.push(Event {
            kind: EventKind::Delete,
            kv: KeyValue::gone(key.clone(), self.before() + 1),
            prev: Some(prev.clone()),
        });
        Ok(Some(prev))
    }

    fn unchanged(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        match self.changed.contains_key(key) {
            true => Err(Error::Invalid {
                what: "a key can't change twice in one transaction".into(),
            }),
            false => self.below.get(key),
        }
    }

    /// The seconds that a lease was granted for.
    pub fn lease(&self, id: LeaseId) -> Option<u64> {
        match self.staged.leases.get(&id) {
            Some(changed) => *changed,
            None => self.below.lease(id),
        }
    }

    pub fn grant(&mut self, id: LeaseId, seconds: u64) {
        self.staged.leases.insert(id, Some(seconds));
    }

    /// Ends a lease, and deletes its keys. False: there is none.
    pub fn revoke(&mut self, id: LeaseId) -> Result<bool> {
        if self.lease(id).is_none() {
            return Ok(false);
        }
        for key in self.below.attached(id)? {
            self.delete(&key)?;
        }
        self.staged.leases.insert(id, None);
        Ok(true)
    }
}

/// A list with changes over it that aren't in what is listed. `was`: what a key was below.
pub(crate) fn changed(
    request: &ListRequest,
    changes: &BTreeMap<Bytes, Option<KeyValue>>,
    below: impl FnOnce(&ListRequest) -> Result<Listed>,
    was: impl Fn(&[u8]) -> Result<Option<KeyValue>>,
) -> Result<Listed> {
    let within: Vec<_> = match request.range.is_empty() {
        true => Vec::new(),
        false => in_range(changes, &request.range).collect(),
    };
    if within.is_empty() {
        return below(request);
    }
    // As many of what is below may be gone or replaced.
    let more = match request.limit {
        0 => 0,
        limit => limit.saturating_add(within.len()),
    };
    let mut listed = below(&ListRequest {
        limit: more,
        ..request.clone()
    })?;
    // What lies behind the last one listed is counted only.
    let last = listed.kvs.last().filter(|_| listed.more).map(|kv| kv.key.clone());
    for (key, change) in within {
        let at = listed.kvs.binary_search_by(|kv| kv.key.cmp(key));
        let shown = last.as_ref().is_none_or(|last| key <= last);
        match (at, change) {
            (Ok(at), Some(kv)) => listed.kvs[at] = kv.clone(),
            (Ok(at), None) => {
                listed.kvs.remove(at);
                listed.count = listed.count.saturating_sub(1);
            }
            (Err(at), Some(kv)) => {
                listed.count += u64::from(shown || was(key)?.is_none());
                if shown {
                    listed.kvs.insert(at, kv.clone());
                }
            }
            (Err(_), None) => listed.count = listed.count.saturating_sub(u64::from(!shown && was(key)?.is_some())),
        }
    }
    if request.limit != 0 && listed.kvs.len() > request.limit {
        listed.kvs.truncate(request.limit);
        listed.more = true;
    }
    Ok(listed)
}

fn in_range<'a>(
    changes: &'a BTreeMap<Bytes, Option<KeyValue>>,
    range: &KeyRange,
) -> impl Iterator<Item = (&'a Bytes, &'a Option<KeyValue>)> {
    use std::ops::Bound;
    let end = match range.end.is_empty() {
        true => Bound::Unbounded,
        false => Bound::Excluded(range.end.clone()),
    };
    changes.range((Bound::Included(range.start.clone()), end))
}

/// Runs `work` in a transaction and gives back what it made, once that is on disk.
pub(crate) async fn run<T: Send + 'static>(
    store: &dyn Transact,
    bounds: (usize, bool, bool),
    work: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (tell, told) = std::sync::mpsc::channel();
    let (bytes, puts, past) = bounds;
    let work: Work = Box::new(move |transaction| {
        // Who asked may have gone.
        let _ = tell.send(work(transaction)?);
        Ok(())
    });
    store
        .transact(Request {
            work,
            bytes,
            puts,
            past,
        })
        .await?;
    told.try_recv().map_err(|_| Error::Unavailable {
        what: "a transaction told nothing".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, revision: Revision) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::new(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        }
    }

    /// Whatever has changed, a list is what it would be if that had been stored before.
    #[test]
    fn lists_are_as_if_the_changes_were_stored() {
        let names = ["a", "b", "c", "d", "e"];
        for stored in 0u32..32 {
            for changes in 0u32..243 {
                let digit = |n: u32| changes / 3u32.pow(n) % 3;
                let below: BTreeMap<_, _> = (0..5u32)
                    .filter(|n| stored >> n & 1 == 1)
                    .map(|n| (Bytes::from(names[n as usize]), kv(names[n as usize], 2)))
                    .collect();
                let over: BTreeMap<_, _> = (0..5u32)
                    .filter(|n| digit(*n) > 0)
                    .map(|n| {
                        let name = names[n as usize];
                        (Bytes::from(name), (digit(n) == 1).then(|| kv(name, 3)))
                    })
                    .collect();
                let mut whole = below.clone();
                for (key, change) in &over {
                    match change {
                        Some(kv) => drop(whole.insert(key.clone(), kv.clone())),
                        None => drop(whole.remove(key)),
                    }
                }
                for limit in 0..4 {
                    let request = ListRequest::new(KeyRange::new("b", "e")).limit(limit);
                    let listed = changed(
                        &request,
                        &over,
                        |r| Ok(plain(&below, r)),
                        |key| Ok(below.get(key).cloned()),
                    );
                    assert_eq!(
                        listed.unwrap(),
                        plain(&whole, &request),
                        "{stored:05b} {changes} {limit}"
                    );
                }
            }
        }
    }

    fn plain(keys: &BTreeMap<Bytes, KeyValue>, request: &ListRequest) -> Listed {
        let all: Vec<_> = keys
            .values()
            .filter(|kv| request.range.contains(&kv.key))
            .cloned()
            .collect();
        let shown = if request.limit == 0 {
            all.len()
        } else {
            request.limit.min(all.len())
        };
        Listed {
            more: shown < all.len(),
            count: all.len() as u64,
            kvs: all[..shown].to_vec(),
            revision: 0,
        }
    }
}
