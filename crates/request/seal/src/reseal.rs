//! Writes anew what was stored plainly, by an older key, or by another provider than the first: each value by a compare-and-set
//! of what was read, so that nobody's write is lost. It costs a revision each, like upstream's storage migration.
//!
//! Values that can't be opened are left as they are, and counted. So are events: they end by themselves within an hour, and
//! writing them anew would make them stay.

use crate::sealed::Sealed;
use keelson_store::{Error, Expect, KeyRange, KeyValue, ListRequest, Outcome, Result, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const PAGE: usize = 200;
/// So many unreadable values are named.
const NAMED: usize = 20;

/// What stands in the store, of those resources that have providers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// How many by which key of which provider: `secretbox/key1`, `identity` for what is plain.
    pub values: BTreeMap<String, u64>,
    /// Of these, those that aren't as the first provider and its first key write them.
    pub stale: u64,
    /// Those written anew by this pass; they are counted under what they are since.
    pub rewritten: u64,
    pub unreadable: u64,
    /// The first of them, by their keys in the store.
    pub unreadable_keys: Vec<String>,
}

impl Sealed {
    /// Looks at all values of the ranges; `rewrite`: and writes anew what is stale.
    pub async fn tally(&self, ranges: &[KeyRange], rewrite: bool) -> Result<Tally> {
        let mut tally = Tally::default();
        for range in ranges {
            let mut rest = range.clone();
            loop {
                let request = ListRequest::new(rest.clone()).limit(PAGE).uncounted();
                let listed = self.inner.list(request).await?;
                if let Some(last) = listed.kvs.last() {
                    rest = rest.after(&last.key);
                }
                for kv in listed.kvs {
                    self.one(kv, rewrite, &mut tally).await?;
                }
                if !listed.more {
                    break;
                }
            }
        }
        Ok(tally)
    }

    async fn one(&self, kv: KeyValue, rewrite: bool, tally: &mut Tally) -> Result<()> {
        // They go by themselves, each after its time, which a new writing would take away.
        if (self.seal.resources)(&kv.key).is_some_and(|r| r.group.is_empty() && r.resource == "events") {
            return Ok(());
        }
        let mut kv = kv;
        // Again and again, as long as others write it: each of them seals it by the rules in force, too.
        loop {
            let opened = match self.seal.open(&kv).await {
                None => return Ok(()),
                Some(Err(refusal)) if refusal.later => return Err(Error::Unavailable { what: refusal.why }),
                Some(Err(_)) => {
                    tally.unreadable += 1;
                    if tally.unreadable_keys.len() < NAMED {
                        let key = String::from_utf8_lossy(&kv.key).into_owned();
                        tally.unreadable_keys.push(key);
                    }
                    return Ok(());
                }
                Some(Ok(opened)) => opened,
            };
            if !opened.stale || !rewrite {
                tally.stale += u64::from(opened.stale);
                *tally.values.entry(opened.by.to_string()).or_default() += 1;
                return Ok(());
            }
            let expected = Expect::ModRevision(kv.mod_revision);
            match self.put(kv.key.clone(), opened.value, expected, None).await? {
                Outcome::Done { .. } => {
                    tally.rewritten += 1;
                    let Some(now) = self.inner.get(&kv.key, None).await?.kv else {
                        return Ok(());
                    };
                    kv = now;
                }
                Outcome::Conflict { .. } => match self.inner.get(&kv.key, None).await?.kv {
                    Some(now) => kv = now,
                    None => return Ok(()),
                },
            }
        }
    }
}
