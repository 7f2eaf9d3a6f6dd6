//! What came of a write whose answer got lost.
//!
//! * A creation is looked for: if the key holds what was to be created and was not changed since, it was ours, for no two
//!   creations of objects are the same to the byte. If the key isn't there it may still come, or have been removed again:
//!   the outcome stays unknown.
//! * A change of a known revision can be sent again without harm, since no revision comes twice: either it happens now, or
//!   it is refused, and what stands there tells whether the first one had happened.
//! * A deletion, and a write that expects nothing, stay unknown: what is found afterwards may be anybody's work.

use super::call::Failure;
use super::{Etcd, txn};
use crate::{Error, Expect, KeyValue, Outcome, Result, Revision};
use bytes::Bytes;

/// `unknown` is the error of the write that was lost.
pub(super) async fn put(
    etcd: &Etcd,
    key: &Bytes,
    value: &Bytes,
    expected: Expect,
    lease: i64,
    unknown: Error,
) -> Result<Outcome> {
    let (revision, current) = match expected {
        Expect::Any => return Err(unknown),
        Expect::Absent => match etcd.read(key, None).await {
            Ok(got) => (got.revision, got.kv),
            Err(_) => return Err(unknown),
        },
        Expect::ModRevision(_) => match etcd.transaction(txn::put(key, value, expected, lease)).await {
            Ok(Outcome::Conflict { revision, current }) => (revision, current),
            Ok(done) => return Ok(done),
            Err(Failure::Unsure(_) | Failure::Unsent(_)) => return Err(unknown),
            Err(failure) => return Err(failure.plain()),
        },
    };
    judge(value, expected, revision, current).ok_or(unknown)
}

/// `None`: nobody can tell.
fn judge(value: &Bytes, expected: Expect, revision: Revision, current: Option<KeyValue>) -> Option<Outcome> {
    let ours = |kv: &KeyValue| match expected {
        Expect::Absent => kv.version == 1 && kv.value == *value,
        Expect::ModRevision(_) | Expect::Any => kv.value == *value,
    };
    match (expected, current) {
        // What it replaced has not been seen.
        (_, Some(kv)) if ours(&kv) => Some(Outcome::Done {
            revision: kv.mod_revision,
            prev: None,
        }),
        // Somebody was first, or has changed ours since: either way what stands there is not what was wanted.
        (Expect::ModRevision(_), current) => Some(Outcome::Conflict { revision, current }),
        (Expect::Absent, Some(kv)) if kv.version == 1 => Some(Outcome::Conflict {
            revision,
            current: Some(kv),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(value: &'static str, mod_revision: Revision, version: u64) -> Option<KeyValue> {
        Some(KeyValue {
            key: "/a".into(),
            value: value.into(),
            create_revision: mod_revision + 1 - version,
            mod_revision,
            version,
            lease: 0,
        })
    }

    #[test]
    fn what_stands_there_tells() {
        let ours = Bytes::from_static(b"ours");
        let after = |expected, current| judge(&ours, expected, 9, current);
        let done = |revision| Some(Outcome::Done { revision, prev: None });
        assert_eq!(after(Expect::Absent, standing("ours", 7, 1)), done(7));
        assert_eq!(after(Expect::ModRevision(3), standing("ours", 7, 2)), done(7));
        let conflict = |current| Some(Outcome::Conflict { revision: 9, current });
        assert_eq!(
            after(Expect::Absent, standing("theirs", 7, 1)),
            conflict(standing("theirs", 7, 1))
        );
        assert_eq!(
            after(Expect::ModRevision(3), standing("theirs", 7, 2)),
            conflict(standing("theirs", 7, 2))
        );
        assert_eq!(after(Expect::ModRevision(3), None), conflict(None));
        // Created, by whomever, and changed since; or not there yet.
        assert_eq!(after(Expect::Absent, standing("theirs", 8, 2)), None);
        assert_eq!(after(Expect::Absent, None), None);
    }
}
