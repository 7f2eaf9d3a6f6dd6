//! How keys, revisions and versions are written in the engine's tables.
//!
//! | table  | key                                   | value                                   |
//! |--------|---------------------------------------|-----------------------------------------|
//! | data   | key, escaped · end mark · revision, inverted | kind · create revision · version · value |
//! | log    | revision, and if it isn't the revision's first change its number | key          |
//! | expiry | deadline · revision                   | key                                     |
//! | leases | lease                                 | seconds                                 |
//! | leases | lease · key                           | nothing                                 |
//! | meta   | a name                                | a number or a text                      |
//!
//! That a revision has several changes, and leases, came with layout 2. A store is of layout 1 until the first of either is
//! written, and both are read: what only an API server writes to can go back to a program that knows layout 1 only.
//! A version that isn't its revision's first change, or has a lease, says so: kind · create revision · version · lease ·
//! number · value.
//!
//! In `data` a key's newest version comes first, and keys come in byte order: a zero byte is escaped, so that the end mark
//! sorts before anything a longer key could go on with.

use crate::{KeyValue, LeaseId, Revision};
use bytes::Bytes;

const END: [u8; 2] = [0, 0];
const ESCAPED_ZERO: [u8; 2] = [0, 0xff];
/// End mark and revision.
const TAIL: usize = 10;
/// Kind, create revision, version.
const HEAD: usize = 17;

const PUT: u8 = 0;
const DELETED: u8 = 1;
const PUT_MORE: u8 = 2;
/// Lease and number.
const MORE: usize = 12;

/// The place before all versions of `key`.
pub(super) fn before(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + TAIL);
    for &byte in key {
        match byte {
            0 => out.extend_from_slice(&ESCAPED_ZERO),
            byte => out.push(byte),
        }
    }
    out.extend_from_slice(&END);
    out
}

/// The place of the version of `key` that was made at `revision`, or else of the next older one.
pub(super) fn at(key: &[u8], revision: Revision) -> Vec<u8> {
    let mut out = before(key);
    out.extend_from_slice(&(!revision).to_be_bytes());
    out
}

/// The place after all versions of `key`.
pub(super) fn behind(key: &[u8]) -> Vec<u8> {
    let mut out = before(key);
    out.extend_from_slice(&[0xff; 9]);
    out
}

/// A place in `data`, taken apart: the key as it is written there, and the revision.
pub(super) fn split(place: &[u8]) -> Option<(&[u8], Revision)> {
    let (rest, revision) = place.split_last_chunk::<8>()?;
    let (key, end) = rest.split_last_chunk::<2>()?;
    (*end == END).then_some((key, !Revision::from_be_bytes(*revision)))
}

fn unescape(written: &[u8], out: &mut Vec<u8>) {
    let mut bytes = written.iter();
    while let Some(&byte) = bytes.next() {
        out.push(byte);
        if byte == 0 {
            bytes.next();
        }
    }
}

/// The key that is written so.
pub(super) fn key(written: &[u8]) -> Bytes {
    let mut key = Vec::with_capacity(written.len());
    unescape(written, &mut key);
    key.into()
}

/// `sub`: which of its revision's changes it is.
pub(super) fn put(kv: &KeyValue, sub: u32) -> Vec<u8> {
    let plain = sub == 0 && kv.lease == 0;
    let mut out = Vec::with_capacity(HEAD + if plain { 0 } else { MORE } + kv.value.len());
    out.push(if plain { PUT } else { PUT_MORE });
    out.extend_from_slice(&kv.create_revision.to_be_bytes());
    out.extend_from_slice(&kv.version.to_be_bytes());
    if !plain {
        out.extend_from_slice(&kv.lease.to_be_bytes());
        out.extend_from_slice(&sub.to_be_bytes());
    }
    out.extend_from_slice(&kv.value);
    out
}

/// Which of its revision's changes a version is.
pub(super) fn sub(record: &[u8]) -> u32 {
    let more = record
        .strip_prefix(&[PUT_MORE])
        .and_then(|rest| rest.get(16 + 8..16 + MORE));
    more.and_then(|sub| sub.try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(super) fn deleted() -> Vec<u8> {
    vec![DELETED]
}

/// A version as it is written. `None` inside: the key was deleted. Key and value share one allocation.
pub(super) fn version(written_key: &[u8], revision: Revision, record: &[u8]) -> Option<Option<KeyValue>> {
    if record == [DELETED] {
        return Some(None);
    }
    let (&kind, rest) = record.split_first()?;
    let (create, rest) = rest.split_first_chunk::<8>()?;
    let (version, value) = rest.split_first_chunk::<8>()?;
    let (lease, value) = match kind {
        PUT => (0, value),
        PUT_MORE => {
            let (lease, rest) = value.split_first_chunk::<8>()?;
            (LeaseId::from_be_bytes(*lease), rest.get(MORE - 8..)?)
        }
        _ => return None,
    };
    let mut both = Vec::with_capacity(written_key.len() + value.len());
    unescape(written_key, &mut both);
    let key_len = both.len();
    both.extend_from_slice(value);
    let both = Bytes::from(both);
    Some(Some(KeyValue {
        key: both.slice(..key_len),
        value: both.slice(key_len..),
        create_revision: Revision::from_be_bytes(*create),
        mod_revision: revision,
        version: u64::from_be_bytes(*version),
        lease,
    }))
}

pub(super) fn is_deleted(record: &[u8]) -> bool {
    record == [DELETED]
}

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// A change's place in the log.
pub(super) fn change(revision: Revision, sub: u32) -> Vec<u8> {
    let mut out = revision.to_be_bytes().to_vec();
    if sub > 0 {
        out.extend_from_slice(&sub.to_be_bytes());
    }
    out
}

pub(super) fn split_change(place: &[u8]) -> Option<(Revision, u32)> {
    let (revision, sub) = place.split_first_chunk::<8>()?;
    let sub = match sub {
        [] => 0,
        sub => u32::from_be_bytes(sub.try_into().ok()?),
    };
    Some((Revision::from_be_bytes(*revision), sub))
}

/// That a key goes with a lease; the lease's own place without a key.
pub(super) fn attached(lease: LeaseId, key: &[u8]) -> Vec<u8> {
    let mut out = lease.to_be_bytes().to_vec();
    out.extend_from_slice(key);
    out
}

pub(super) fn split_attached(place: &[u8]) -> Option<(LeaseId, &[u8])> {
    let (lease, key) = place.split_first_chunk::<8>()?;
    Some((LeaseId::from_be_bytes(*lease), key))
}

pub(super) fn expiry(deadline_ms: u64, revision: Revision) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&deadline_ms.to_be_bytes());
    out[8..].copy_from_slice(&revision.to_be_bytes());
    out
}

pub(super) fn split_expiry(place: &[u8]) -> Option<(u64, Revision)> {
    let (deadline, revision) = place.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*deadline), number(revision)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order_whatever_bytes_they_have() {
        let keys: &[&[u8]] = &[
            b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0\0", b"a\0b", b"a\x01", b"ab", b"a\xff", b"b",
        ];
        for pair in keys.windows(2) {
            assert!(behind(pair[0]) < before(pair[1]), "{pair:?}");
            assert!(at(pair[0], 7) < at(pair[0], 6) && at(pair[0], 0) < behind(pair[0]));
        }
    }

    #[test]
    fn versions_read_back_as_written() {
        for key in [&b"/registry/pods/a/b"[..], b"\0", b"a\0\0b"] {
            let place = at(key, 42);
            let (written, revision) = split(&place).unwrap();
            let kv = KeyValue {
                key: Bytes::copy_from_slice(key),
                value: "value".into(),
                create_revision: 7,
                mod_revision: 42,
                version: 3,
                lease: 0,
            };
            let leased = KeyValue {
                lease: -5,
                ..kv.clone()
            };
            for (kv, number) in [(&kv, 0), (&kv, 9), (&leased, 0), (&leased, 9)] {
                let record = put(kv, number);
                assert_eq!(version(written, revision, &record).unwrap().as_ref(), Some(kv));
                assert_eq!(sub(&record), number);
                assert_eq!(
                    record[0] == PUT,
                    number == 0 && kv.lease == 0,
                    "layout 1 says what it can"
                );
            }
            assert_eq!(version(written, revision, &deleted()), Some(None));
            assert_eq!(version(written, revision, b""), None);
            assert_eq!(version(written, revision, &[PUT_MORE; 20]), None);
        }
    }

    #[test]
    fn a_revisions_changes_are_in_order_before_the_next_ones() {
        let places = [change(7, 0), change(7, 1), change(7, 300), change(8, 0)];
        assert!(places.is_sorted());
        assert_eq!(places[0], 7u64.to_be_bytes(), "as layout 1 has it");
        let split: Vec<_> = places.iter().filter_map(|place| split_change(place)).collect();
        assert_eq!(split, [(7, 0), (7, 1), (7, 300), (8, 0)]);
        assert_eq!(split_change(&[0; 9]), None);
        assert_eq!(split_attached(&attached(-1, b"k")), Some((-1, &b"k"[..])));
    }
}
