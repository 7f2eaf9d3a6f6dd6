//! Every version of every key since the last compaction, as plain data.

use crate::{
    Error, Event, EventKind, Expect, Got, KeyRange, KeyValue, ListRequest, Listed, Outcome, Result, Revision,
    WatchBatch,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

pub(super) struct State {
    revision: Revision,
    compacted: Revision,
    /// A key's versions, oldest first. A deletion is one without a value.
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// Which key each revision since the last compaction changed.
    log: BTreeMap<Revision, Bytes>,
    /// (deadline, revision of the put, key)
    deadlines: BTreeSet<(u64, Revision, Bytes)>,
}

#[derive(Clone)]
struct Version {
    modified: Revision,
    created: Revision,
    count: u64,
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
        self.revision += 1;
        let revision = self.revision;
        let (created, count) = prev
            .as_ref()
            .map_or((revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let version = Version {
            modified: revision,
            created,
            count,
            value: Some(value.clone()),
        };
        self.keys.entry(key.clone()).or_default().push(version);
        self.log.insert(revision, key.clone());
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, revision, key.clone()));
        }
        let kv = KeyValue {
            key,
            value,
            create_revision: created,
            mod_revision: revision,
            version: count,
        };
        (
            Outcome::Done {
                revision,
                prev: prev.clone(),
            },
            Some(Event {
                kind: EventKind::Put,
                kv,
                prev,
            }),
        )
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
        self.revision += 1;
        let revision = self.revision;
        let version = Version {
            modified: revision,
            created: 0,
            count: 0,
            value: None,
        };
        self.keys.entry(key.clone()).or_default().push(version);
        self.log.insert(revision, key.clone());
        let event = Event {
            kind: EventKind::Delete,
            kv: deleted(key.clone(), revision),
            prev: prev.clone(),
        };
        (Outcome::Done { revision, prev }, Some(event))
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
        for (seen, (&revision, key)) in self.log.range((Bound::Excluded(after), Bound::Unbounded)).enumerate() {
            if seen == max {
                batch.synced = revision - 1;
                break;
            }
            if range.contains(key) {
                batch.events.extend(self.event(revision, key));
            }
        }
        Ok(batch)
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
                kv: deleted(key.clone(), revision),
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
        self.log = self.log.split_off(&(to + 1));
        self.keys.retain(|_, versions| {
            let last = versions.iter().rposition(|v| v.modified <= to);
            if let Some(last) = last {
                let keep_from = if versions[last].value.is_some() { last } else { last + 1 };
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

fn deleted(key: Bytes, revision: Revision) -> KeyValue {
    KeyValue {
        key,
        value: Bytes::new(),
        create_revision: 0,
        mod_revision: revision,
        version: 0,
    }
}
