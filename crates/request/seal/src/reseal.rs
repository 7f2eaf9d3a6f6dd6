//! Writes anew what was stored plainly, by an older key, or by another provider than the first: each value by a compare-and-set
//! of what was read, so that nobody's write is lost. It costs a revision each, like upstream's storage migration.
//!
//! Values that can't be opened are left as they are, and counted. So are events: they end by themselves within an hour, and
//! writing them anew would make them stay.

use crate::rules::GroupResource;
use crate::sealed::Sealed;
use keelson_store::{Expect, KeyRange, ListRequest, Outcome, Result};

const PAGE: usize = 200;
const EVENTS: &[u8] = b"/registry/events/";

/// What a pass over the store found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// As the first provider and its first key write it, before or since.
    pub current: u64,
    /// Of these, those written by this pass.
    pub rewritten: u64,
    pub unreadable: u64,
}

impl Sealed {
    /// One pass over the ranges of the store that the rules name.
    pub async fn reseal(&self, ranges: &[KeyRange]) -> Result<Tally> {
        let mut tally = Tally::default();
        for range in ranges {
            let mut rest = range.clone();
            loop {
                let request = ListRequest::new(rest.clone()).limit(PAGE).uncounted();
                let listed = self.inner.list(request).await?;
                for kv in &listed.kvs {
                    self.reseal_one(kv.key.clone(), &mut tally).await?;
                }
                match listed.kvs.last() {
                    Some(last) if listed.more => rest = rest.after(&last.key),
                    _ => break,
                }
            }
        }
        Ok(tally)
    }

    async fn reseal_one(&self, key: bytes::Bytes, tally: &mut Tally) -> Result<()> {
        if key.starts_with(EVENTS) {
            return Ok(());
        }
        // Again and again, as long as others write it: each of them seals it by the rules in force, too.
        loop {
            let Some(kv) = self.inner.get(&key, None).await?.kv else {
                return Ok(());
            };
            let opened = match self.seal.open(&kv) {
                None => return Ok(()),
                Some(Err(error)) => {
                    tracing::warn!(key = %String::from_utf8_lossy(&key), %error, "a stored value can't be opened");
                    tally.unreadable += 1;
                    return Ok(());
                }
                Some(Ok(opened)) => opened,
            };
            if opened.stale {
                let sealed = self.seal.sealed(&key, opened.value)?;
                let expected = Expect::ModRevision(kv.mod_revision);
                if let Outcome::Conflict { .. } = self.inner.put(key.clone(), sealed, expected, None).await? {
                    continue;
                }
                tally.rewritten += 1;
            }
            tally.current += 1;
            return Ok(());
        }
    }

    /// What secrets, or whatever the rules name, are written by.
    pub fn writes_by(&self, resource: &str) -> String {
        let rules = self.rules();
        let providers = rules.providers(&GroupResource::parse(resource)).cloned();
        providers.map_or_else(|| "identity".into(), |p| p.writes_by())
    }
}
