//! Every version of every key since the last compaction, as plain data.

use crate::digest::Summer;
use crate::lease::Leases;
use crate::transact::Below;
use crate::{
    Digest, Error, Event, EventKind, Expect, Got, KeyRange, KeyValue, LeaseId, ListRequest, Listed, Outcome, Result,
    Revision, WatchBatch,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

pub(super) struct State {
    revision: Revision,
    compacted: Revision,
    /// A key's versions, oldest first. A deletion is one without a value.
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// Which keys each revision since the last compaction changed, in order.
    log: BTreeMap<(Revision, u32), Bytes>,
    /// Which keys go with which lease.
    attached: BTreeSet<(LeaseId, Bytes)>,
    /// (deadline, revision of the put, key)
    deadlines: BTreeSet<(u64, Revision, Bytes)>,
}

#[derive(Clone)]
struct Version {
    modified: Revision,
    /// Which of its revision's changes it is.
    sub: u32,
    created: Revision,
    count: u64,
    lease: LeaseId,
    value: Option<Bytes>,
}

impl Version {
    fn kv(&self, key: &Bytes) -> Option<KeyValue> {
        let value = self.value.clone()?;
        let (create_revision, mod_revision, version) = (self.created, self.modified, self.count);
        Some(KeyValue {
            key: key.clone(),
            value,
            create_revision,
            mod_revision,
            version,
            lease: self.lease,
        })
    }
}

impl State {
    pub(super) fn new() -> State {
        State {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            attached: BTreeSet::new(),
            deadlines: BTreeSet::new(),
        }
    }
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }
    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }
    pub(super) fn bytes(&self) -> u64 {
        let values = self
            .keys
            .iter()
            .flat_map(|(k, vs)| vs.iter().map(move |v| k.len() + v.value.as_ref().map_or(0, Bytes::len)));
        values.sum::<usize>() as u64
    }

    fn readable(&self, revision: Option<Revision>) -> Result<Revision> {
        match revision {
            None => Ok(self.revision),
            Some(asked) if asked < self.compacted => Err(Error::Compacted {
                compact_revision: self.compacted,
            }),
            Some(asked) if asked > self.revision => Err(Error::FutureRevision {
                asked,
                current: self.revision,
            }),
            Some(asked) => Ok(asked),
        }
    }

    pub(super) fn get(&self, key: &[u8], revision: Option<Revision>) -> Result<Got> {
        let at = self.readable(revision)?;
        let kv = self
            .keys
            .get_key_value(key)
            .and_then(|(key, versions)| version_at(versions, at)?.kv(key));
        Ok(Got {
            kv,
            revision: self.revision,
            is_stale: false,
        })
    }

    pub(super) fn list(&self, request: &ListRequest) -> Result<Listed> {
        let at = self.readable(request.revision)?;
        let mut listed = Listed {
            kvs: Vec::new(),
            more: false,
            count: 0,
            revision: at,
        };
        if request.range.is_empty() {
            return Ok(listed);
        }
        let end = match request.range.end.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(&request.range.end),
        };
        for (key, versions) in self
            .keys
            .range::<Bytes, _>((Bound::Included(&request.range.start), end))
        {
            let Some(kv) = version_at(versions, at).and_then(|v| v.kv(key)) else {
                continue;
            };
            listed.count += 1;
            if request.limit == 0 || listed.kvs.len() < request.limit {
                listed.kvs.push(kv);
            } else {
                listed.more = true;
                if request.uncounted {
                    break;
                }
            }
        }
        Ok(listed)
    }

    fn current(&self, key: &Bytes) -> Option<KeyValue> {
        self.keys.get(key)?.last()?.kv(key)
    }

    pub(super) fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        expected: Expect,
        deadline: Option<u64>,
    ) -> (Outcome, Option<Event>) {
        let prev = self.current(&key);
        if !expected.holds(prev.as_ref().map(|kv| kv.mod_revision)) {
            return (
                Outcome::Conflict {
                    revision: self.revision,
                    current: prev,
                },
                None,
            );
        }
        let revision = self.revision + 1;
        let (create_revision, version) = prev
            .as_ref()
            .map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, revision, key.clone()));
        }
        let kv = KeyValue {
            key,
            value,
            create_revision,
            mod_revision: revision,
            version,
            lease: 0,
        };
        let event = Event {
            kind: EventKind::Put,
            kv,
            prev: prev.clone(),
        };
        self.take(std::slice::from_ref(&event));
        (Outcome::Done { revision, prev }, Some(event))
    }

    pub(super) fn delete(&mut self, key: &Bytes, expected: Expect) -> (Outcome, Option<Event>) {
        let prev = self.current(key);
        let found = prev.as_ref().map(|kv| kv.mod_revision);
        if found.is_none() || !expected.holds(found) {
            return (
                Outcome::Conflict {
                    revision: self.revision,
                    current: prev,
                },
                None,
            );
        }
        let revision = self.revision + 1;
        let event = Event {
            kind: EventKind::Delete,
            kv: KeyValue::gone(key.clone(), revision),
            prev: prev.clone(),
        };
        self.take(std::slice::from_ref(&event));
        (Outcome::Done { revision, prev }, Some(event))
    }

    /// The changes of the next revision, in order.
    pub(super) fn take(&mut self, events: &[Event]) {
        self.revision += 1;
        for (sub, Event { kind, kv, prev }) in events.iter().enumerate() {
            let version = Version {
                modified: self.revision,
                sub: sub as u32,
                created: kv.create_revision,
                count: kv.version,
                lease: kv.lease,
                value: (*kind == EventKind::Put).then(|| kv.value.clone()),
            };
            self.keys.entry(kv.key.clone()).or_default().push(version);
            self.log.insert((self.revision, sub as u32), kv.key.clone());
            if let Some(had) = prev.as_ref().filter(|prev| prev.lease != 0) {
                self.attached.remove(&(had.lease, kv.key.clone()));
            }
            if kv.lease != 0 {
                self.attached.insert((kv.lease, kv.key.clone()));
            }
        }
    }

    pub(super) fn attached(&self, lease: LeaseId) -> Vec<Bytes> {
        let from = self.attached.range((lease, Bytes::new())..);
        from.take_while(|(id, _)| *id == lease)
            .map(|(_, key)| key.clone())
            .collect()
    }

    /// See [`crate::digest`].
    pub(super) fn digest(&self, revision: Option<Revision>) -> Result<Digest> {
        let to = self.readable(revision)?;
        let standing = |at: Revision| {
            let versions = self.keys.iter().filter_map(move |(key, versions)| {
                let version = version_at(versions, at)?;
                Some((version.modified, version.sub, version.kv(key)?))
            });
            versions.collect::<Vec<_>>()
        };
        let mut kept = standing(to);
        if kept.is_empty() {
            // Where nothing is left etcd counts what the compaction kept.
            kept = standing(self.compacted);
        }
        kept.retain(|(revision, ..)| *revision <= self.compacted);
        kept.sort_unstable_by_key(|(revision, sub, _)| (*revision, *sub));
        let mut summer = Summer::new();
        kept.into_iter().for_each(|(_, sub, kv)| summer.version(sub, kv));
        for (&(revision, sub), key) in self.log.range((self.compacted + 1, 0)..(to + 1, 0)) {
            if let Some(event) = self.event(revision, key) {
                summer.event(sub, event);
            }
        }
        Ok(Digest {
            sum: summer.sum(),
            revision: to,
            compacted: self.compacted,
            current: self.revision,
        })
    }

    pub(super) fn next_deadline(&self) -> Option<(u64, Revision, Bytes)> {
        self.deadlines.first().cloned()
    }

    /// A key that was written again since it got this deadline stays.
    pub(super) fn expire(&mut self, deadline: u64, revision: Revision, key: &Bytes) -> (Outcome, Option<Event>) {
        self.deadlines.remove(&(deadline, revision, key.clone()));
        self.delete(key, Expect::ModRevision(revision))
    }

    pub(super) fn history(&self, range: &KeyRange, after: Revision, max: usize) -> Result<WatchBatch> {
        if after < self.compacted {
            return Err(Error::Compacted {
                compact_revision: self.compacted,
            });
        }
        let mut batch = WatchBatch {
            events: Vec::new(),
            synced: self.revision,
        };
        for (seen, (&(revision, sub), key)) in self.log.range((after + 1, 0)..).enumerate() {
            // A revision's changes stay together.
            if seen >= max && sub == 0 {
                batch.synced = revision - 1;
                break;
            }
            if range.contains(key) {
                batch.events.extend(self.event(revision, key));
            }
        }
        Ok(batch)
    }

    pub(super) fn changes(&self, range: &KeyRange, revision: Revision) -> Result<Vec<Event>> {
        self.readable(Some(revision))?;
        let changed = self.log.range((revision, 0)..(revision + 1, 0));
        let changed = changed.filter(|(_, key)| range.contains(key));
        let events = changed.filter_map(|(_, key)| self.event(revision, key));
        Ok(events.map(|event| Event { prev: None, ..event }).collect())
    }

    fn event(&self, revision: Revision, key: &Bytes) -> Option<Event> {
        let versions = self.keys.get(key)?;
        let at = versions.iter().position(|v| v.modified == revision)?;
        let prev = at.checked_sub(1).and_then(|before| versions[before].kv(key));
        Some(match versions[at].kv(key) {
            Some(kv) => Event {
                kind: EventKind::Put,
                kv,
                prev,
            },
            None => Event {
                kind: EventKind::Delete,
                kv: KeyValue::gone(key.clone(), revision),
                prev,
            },
        })
    }

    pub(super) fn compact(&mut self, to: Revision) -> Result<()> {
        if to <= self.compacted {
            return Err(Error::Compacted {
                compact_revision: self.compacted,
            });
        }
        if to > self.revision {
            return Err(Error::FutureRevision {
                asked: to,
                current: self.revision,
            });
        }
        self.compacted = to;
        // What changed at that very revision stays: clients of etcd may watch from there.
        self.log = self.log.split_off(&(to, 0));
        self.keys.retain(|_, versions| {
            let last = versions.iter().rposition(|v| v.modified <= to);
            if let Some(last) = last {
                let stays = versions[last].value.is_some() || versions[last].modified == to;
                let keep_from = if stays { last } else { last + 1 };
                versions.drain(..keep_from);
            }
            !versions.is_empty()
        });
        Ok(())
    }
}

fn version_at(versions: &[Version], at: Revision) -> Option<&Version> {
    versions.iter().rev().find(|v| v.modified <= at)
}

impl Below for (&State, &Leases) {
    fn revision(&self) -> Revision {
        self.0.revision
    }
    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        Ok(self.0.get(key, None)?.kv)
    }
    fn list(&self, request: &ListRequest) -> Result<Listed> {
        self.0.list(request)
    }
    fn past(&self, request: &ListRequest) -> Result<Listed> {
        self.0.list(request)
    }
    fn lease(&self, id: LeaseId) -> Option<u64> {
        self.1.seconds(id)
    }
    fn attached(&self, id: LeaseId) -> Result<Vec<Bytes>> {
        Ok(self.0.attached(id))
    }
}
